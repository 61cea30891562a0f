"""Ablations of TrainingFreeGRPO, as optimizers of the comparison; the oracle of simulated tasks.

What differs from `tfgrpo` (its defaults at the budget) is in the name. A setting that the package
refuses is a cell that ended with its error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import dspy
from compare_optimizers import Setup, paper, tfgrpo
from simlm_world import draw
from tasks.simulated import lessons_of

from tfgrpo_dspy import Experience, ExperienceLibrary, NoGate, TrainingFreeGRPO

SHOWN_AT_ONCE = 10
"""Examples in one prompt, where experiences are generated without rollouts."""
JITTER = 1e-6


class DirectExperiences(dspy.Signature):
    """Read examples of a task, each with its inputs and its labels, and write experiences: short
    lines of advice, "When <condition>, <advice>.", that help to do the task on other examples.
    """

    program: str = dspy.InputField(desc="what the program does")
    examples: str = dspy.InputField(desc="inputs and labels")
    lessons: list[str] = dspy.OutputField(desc="one line each")


def _direct(setup: Setup) -> Any:
    """Experiences from the examples alone: no rollout, no score (the paper's first ablation)."""
    student = setup.task.student()
    ask = dspy.Predict(DirectExperiences)
    does = "\n".join(p.signature.instructions for _, p in student.named_predictors())
    lines: dict[str, None] = {}
    examples = setup.examples
    with dspy.context(lm=setup.reflection):
        for start in range(0, len(examples), SHOWN_AT_ONCE):
            shown = "\n\n".join(map(_shown, examples[start : start + SHOWN_AT_ONCE]))
            lines |= dict.fromkeys(ask(program=does, examples=shown).lessons)
    return _baked(list(lines), student)


def _shown(example: dspy.Example) -> str:
    return "\n".join(f"{name}: {value}" for name, value in example.items())


def _baked(lines: Sequence[str], student: Any) -> Any:
    library = ExperienceLibrary(
        [Experience(f"E{number}", line) for number, line in enumerate(lines, start=1)]
    )
    return library.bake(student)


def _oracle(setup: Setup) -> Any:
    """All that there is to learn, for nothing: what a simulated task can give at most."""
    return _baked(lessons_of(setup.task), setup.task.student())


def _without_feedback(setup: Setup) -> Any:
    def metric(gold: Any, pred: Any, trace: Any = None) -> float:  # noqa: ARG001
        return float(setup.task.metric(gold, pred).score)

    return tfgrpo(setup, metric=metric)


def _without_filter(setup: Setup) -> Any:
    """Every group has contrast: scores differ by less than anything a metric means."""

    def metric(gold: Any, pred: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
        found = setup.task.metric(gold, pred)
        score = found.score - JITTER * draw(pred)
        return dspy.Prediction(score=score, feedback=found.feedback)

    return tfgrpo(setup, metric=metric, min_contrast=0.0)


def _without_metric(setup: Setup) -> Any:
    optimizer = TrainingFreeGRPO(
        None,
        reflection_lm=setup.reflection,
        max_lm_calls=setup.budget,
        num_threads=setup.n_threads,
        seed=setup.seed,
        progress=False,
    )
    return optimizer.compile(setup.task.student(), trainset=setup.examples)


def _with(**settings: Any) -> Callable[[Setup], Any]:
    return lambda setup: tfgrpo(setup, **settings)


ABLATIONS: dict[str, Callable[[Setup], Any]] = {
    **{f"group_size={n}": _with(group_size=n) for n in (1, 2, 3, 5, 8)},
    "no labels": _with(use_labels=False),
    "no feedback": _without_feedback,
    "metric=None": _without_metric,
    "no gate": _with(gate=NoGate()),
    "no contrast filter": _without_filter,
    "contrast only": _with(failure_analysis=False),
    "always summarise": _with(summarize_always=True),
    "no rollouts": _direct,
    **{f"max_staleness={n}": _with(max_staleness=n) for n in (0, 1, 2)},
    "paper": paper,
    "paper, small batches": lambda setup: paper(setup, batch_size=5),
    "paper, as implemented": lambda setup: paper(setup, update_per_group=True),
    "oracle": _oracle,
}
