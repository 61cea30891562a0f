"""The best program that an optimizer has told of so far: its result, where the budget ends it.

What an optimizer tells of itself is all that is used:

- MIPROv2, few-shot bootstrapping, COPRO, InferRules: each evaluation of a whole validation set, by
  DSPy's evaluation callback; best is the highest score, the first of equals, as they choose too;
- GEPA: its `on_valset_evaluated` callback, which says whether the candidate is the best;
- SIMBA tells of nothing: where it is ended, the winners of its steps are read from its variables
  (`winners_of_simba`).

Nothing here calls an LM.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback


class Observer(BaseCallback):
    """One for each run of an optimizer; put it into `dspy.context(callbacks=[...])`.

    Args:
        student: the program that the run starts from.
    """

    def __init__(self, student: Any) -> None:
        self.best: Any | None = None
        self._student = student
        self._open: dict[str, Any] = {}
        self._best_score = float("-inf")
        self._validation: list[Any] | None = None

    def watch(self, validation: Sequence[Any]) -> None:
        """Evaluations on exactly these examples are those by which the optimizer chooses."""
        self._validation = list(validation)

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if (inputs.get("devset") or instance.devset) == self._validation:
            self._open[call_id] = inputs["program"]

    def on_evaluate_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        program = self._open.pop(call_id, None)
        if program is not None and exception is None and outputs.score > self._best_score:
            self._best_score = outputs.score
            self.best = program.deepcopy()

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """GEPA's event."""
        if event["is_best_program"]:
            program = self._student.deepcopy()
            for name, predictor in program.named_predictors():
                text = event["candidate"][name]
                predictor.signature = predictor.signature.with_instructions(text)
            self.best = program


def winners_of_simba(error: BaseException) -> list[Any]:
    """The student and the winners of the steps that SIMBA had done when this error ended it.

    SIMBA keeps them in a variable of its `compile` only, which the error's traceback still holds.
    """
    trace = error.__traceback__
    while trace is not None:
        if "winning_programs" in trace.tb_frame.f_locals:
            return list(trace.tb_frame.f_locals["winning_programs"])
        trace = trace.tb_next
    raise error


def prompt_words(program: dspy.Module) -> int:
    """Words of instructions and demos, which every later call pays."""
    words = 0
    for _, predictor in program.named_predictors():
        words += len(predictor.signature.instructions.split())
        words += sum(
            len(str(value).split()) for demo in predictor.demos for value in dict(demo).values()
        )
    return words
