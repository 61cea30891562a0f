"""A SIMULATED LM: rules in place of a model, so that the examples run in seconds, for nothing.

No figure that comes from it says anything about real LMs. As the LM of a program it answers the
tasks of these examples: mostly right where its prompt (or a demo) has the advice that the task
needs, and now and then without. As reflection LM it repeats the advice that it finds in a metric's
feedback, draws two conclusions from "Expected ..., given ...", overlooks some of both, and writes
something useless in one answer of five. Lessons come from its prompt alone (`simulated_rules.py`),
and the same request always gets the same answer.
"""

import argparse
import json
import logging
from dataclasses import dataclass
from typing import Any

import dspy
from dspy import lm15
from simulated_rules import REFLECTION, ProgramSide, Prompt, reflection

SIMULATED = "Simulated LM: these figures say nothing about real LMs. Pass --lm for a real one."


@dataclass(frozen=True)
class SimulatedEngine:
    """Answers requests by rules.

    `unaided`: the chance that it does without advice what advice would ask for; `obedient`: that it
    follows advice; `attentive`: that it notices a lesson. `program` answers for the program.
    """

    unaided: float = 0.3
    obedient: float = 0.9
    attentive: float = 0.6
    program: type[ProgramSide] = ProgramSide
    supported_params = frozenset({"temperature", "max_tokens", "seed"})

    def complete(self, request: lm15.Request) -> lm15.Response:
        prompt = Prompt.of(request)
        asked = prompt.outputs
        if asked.keys() & REFLECTION:
            values = {name: reflection(prompt, name, self.attentive) for name in asked}
        else:
            program = self.program(self.unaided, self.obedient)
            values = {name: program.answer(prompt, name) for name in asked}
        text = json.dumps(values) if "will be a JSON object" in prompt.told else _chat(values)
        usage = lm15.Usage(
            input_tokens=len(prompt.told + prompt.user) // 4, output_tokens=len(text) // 4
        )
        message = lm15.Message.assistant([lm15.TextPart(text)])
        return lm15.Response(
            id=None, model=request.model, message=message, finish_reason="stop", usage=usage
        )


def _chat(values: dict[str, Any]) -> str:
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    parts = [f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


class SimulatedLM(dspy.LM):
    """A `dspy.LM` on the engine. A rollout id, by which DSPy asks for another sample, is a seed."""

    def __init__(self, engine: SimulatedEngine | None = None, **kwargs: Any) -> None:
        given = {"engine": engine or SimulatedEngine(), "cache": False, **kwargs}
        super().__init__(given.pop("model", "simulated"), **given)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        sample = {**self.kwargs, **kwargs}.get("rollout_id")
        seed = {} if sample is None else {"seed": int(sample)}
        return super().__call__(*args, **kwargs | seed)


def arguments(
    about: str | None, engine: SimulatedEngine | None = None, **options: str
) -> argparse.Namespace:
    """The command line, with `lm` and `reflection_lm` as LMs; sets the LM for DSPy, too.

    Args:
        about: the docstring of the example; `--help` shows its first line.
        engine: that of the simulated LM.
        options: names of more options, each with its help.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--lm", help="such as openai/gpt-5-mini; default: a simulated LM")
    parser.add_argument("--reflection-lm", help="default: the --lm")
    for name, help_ in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=help_)
    given = parser.parse_args()
    if given.reflection_lm and not given.lm:
        parser.error(f"--reflection-lm {given.reflection_lm} needs an --lm, too")
    given.is_simulated = not given.lm
    if given.is_simulated:
        print(SIMULATED)
    names = given.lm, given.reflection_lm or given.lm
    simulated = SimulatedLM(engine)
    given.lm, given.reflection_lm = (dspy.LM(name) if name else simulated for name in names)
    dspy.configure(lm=given.lm)
    logging.getLogger("dspy").setLevel(logging.WARNING)
    return given
