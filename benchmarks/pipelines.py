"""Two lessons that help only together, each for one predictor. SIMULATED.

    python benchmarks/pipelines.py [--seeds 10] [--first-seed 0] [--jobs 2]

The first predictor must write its group in capitals and the second end its answer with a check
digit; the score is 1 where both do, and 0 else. The student does either with the chances of a row.
The simulated reflection LM finds a lesson only where a metric's feedback says it, and writes a line
that changes nothing in one answer of five. Counted are the results that hold both lessons, and the
largest effect that is stated of the line that changes nothing. Results: `results/pipelines.json`.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
from running import RESULTS, commit, parser_of, results, show, silence, stored, versions, write

from tfgrpo_dspy import TrainingFreeGRPO

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from simulated import SimulatedEngine, SimulatedLM
from simulated_rules import ProgramSide, Prompt

CAPITALS, DIGIT, USELESS = (
    *("Write the group in capitals.", "End the answer with a check digit."),
    "Think before you answer.",
)
TOLD, N_TRAIN, N_VALIDATION = 0.95, 27, 13
ROWS = {  # chances of the student, LM calls, whether each predictor has feedback of its own
    "one feedback": (0.05, 0.05, 900, False),
    "the second lesson is often kept": (0.05, 0.3, 900, False),
    "feedback for each predictor": (0.05, 0.3, 900, True),
    "300 LM calls": (0.05, 0.3, 300, False),
}


class Pipeline(dspy.Module):
    """Sorts a request into a group, then answers it."""

    def __init__(self) -> None:
        super().__init__()
        self.sort, self.reply = (
            dspy.Predict("request -> group"),
            dspy.Predict("request, group -> answer"),
        )

    def forward(self, request: str) -> dspy.Prediction:
        group = self.sort(request=request).group
        return dspy.Prediction(group=group, answer=self.reply(request=request, group=group).answer)


def program_side(first: float, second: float) -> type[ProgramSide]:
    """What answers for the pipeline; it keeps untold rules with these chances."""

    class Side(ProgramSide):
        def answer(self, prompt: Prompt, name: str) -> Any:
            if name == "group":
                chance = TOLD if CAPITALS in prompt.told else first
                return "NORTH" if prompt.luck(name).random() < chance else "north"
            chance = TOLD if DIGIT in prompt.told else second
            return "done-7" if prompt.luck(name).random() < chance else "done"

    return Side


def judged(example: Any, pred: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """1 if both rules are kept; the feedback is the first one that is not."""
    if pred.group != "NORTH":
        return dspy.Prediction(score=0.0, feedback=CAPITALS)
    is_right = pred.answer == "done-7"
    return dspy.Prediction(score=float(is_right), feedback="Good" if is_right else DIGIT)


def judged_each(
    example: Any,  # noqa: ARG001
    pred: Any,
    trace: Any = None,  # noqa: ARG001
    pred_name: str | None = None,
    pred_trace: Any = None,  # noqa: ARG001
) -> dspy.Prediction:
    """The same score, with feedback for one predictor."""
    wrong = {"sort": pred.group != "NORTH", "reply": pred.answer != "done-7"}
    said = {"sort": CAPITALS, "reply": DIGIT}[pred_name] if wrong.get(pred_name or "") else ""
    return dspy.Prediction(score=float(not any(wrong.values())), feedback=said)


def run(row: str, seed: int) -> dict[str, Any]:
    """Which lessons a run returns, and what it states of the useless line."""
    first, second, budget, is_each = ROWS[row]
    lm = SimulatedLM(SimulatedEngine(attentive=0.6, program=program_side(first, second)))
    draw = random.Random(0)
    texts = (f"letter {i} about {draw.choice(['rain', 'sun', 'snow'])}" for i in range(40))
    examples = [dspy.Example(request=text).with_inputs("request") for text in texts]
    with silence(), dspy.context(lm=lm):
        optimizer = TrainingFreeGRPO(
            judged_each if is_each else judged,
            reflection_lm=lm,
            max_lm_calls=budget,
            seed=seed,
            num_threads=1,
            progress=False,
        )
        data = {"trainset": examples[:N_TRAIN], "valset": examples[-N_VALIDATION:]}
        program = optimizer.compile(Pipeline(), **data)
    effects = {tried.text: tried.effect for tried in program.detailed_results.tried}
    useless = effects.get(USELESS)
    return {
        "row": row,
        "seed": seed,
        "both": CAPITALS in program.sort.signature.instructions
        and DIGIT in program.reply.signature.instructions,
        "useless": None if useless is None else round(useless.estimate, 3),
        "error": None if useless is None else round(useless.standard_error, 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all rows, print a table, write JSON."""
    given = parser_of(__doc__, RESULTS / "pipelines.json", seeds=10, first=0).parse_args(arguments)
    if given.show:
        table(stored(given.show))
        return
    dspy.configure_cache(enable_disk_cache=False)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    runs = list(results(run, [(row, seed) for row in ROWS for seed in seeds], given.jobs))
    write(given.out, {"versions": versions(), "commit": commit()}, runs)
    table(runs)


def table(runs: Sequence[dict[str, Any]]) -> None:
    """Print a line for each row."""
    rows = []
    for row in ROWS:
        of_row = [each for each in runs if each["row"] == row]
        stated = [each for each in of_row if each["useless"] is not None]
        largest = max(stated, key=lambda each: each["useless"], default=None)
        words = f"{largest['useless']:+.2f} +- {largest['error']:.2f}" if largest else "none"
        rows.append((row, f"{sum(each['both'] for each in of_row)} of {len(of_row)}", words))
    show(("row", "both lessons", "largest effect of the useless line"), rows, "SIMULATED")


if __name__ == "__main__":
    main()
