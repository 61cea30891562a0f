"""The tasks that prompt optimizers are compared on: one protocol, one module each, found by name.

`load("support", seed=0)` gives a `Task`; `NAMES` lists what there is, and
`sim:<name>` is a SIMULATED task. The seed draws the examples and the splits. LMs that a task brings
are `seeded`, so that samples of one prompt differ for every optimizer. Modules: `support`, `style`,
`simulated`.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

NAMES = ("support", "style")


@dataclass(frozen=True)
class Task:
    """What an optimizer is given, and what its result is measured on.

    Attributes:
        name: as in `NAMES`, or `sim:<name>`.
        student: makes a fresh student.
        train: what the optimizer learns from.
        val: what it may select on.
        test: what nobody sees until the end.
        metric: `metric(gold, pred, trace=None, pred_name=None, pred_trace=None)` gives
            `dspy.Prediction(score=, feedback=)`, the score in [0, 1].
        plain_metric: `metric(gold, pred, trace=None)` gives the same score as a float, for
            optimizers that take no feedback. It is graded where the task is: what asks for a yes
            or no (few-shot bootstrapping) needs a threshold.
        demo_threshold: the score that a run must reach to become a demo; in a task of 0 and 1 it
            changes nothing.
        make_lm: the policy LM where the task brings its own, from a seed.
        make_reflection_lm: the same for the reflection LM.
        notes: what a reader of its figures has to know.
    """

    name: str
    student: Callable[[], dspy.Module]
    train: Sequence[dspy.Example]
    val: Sequence[dspy.Example]
    test: Sequence[dspy.Example]
    metric: Callable[..., dspy.Prediction]
    plain_metric: Callable[..., float]
    demo_threshold: float = 0.5
    make_lm: Callable[[int], dspy.LM] | None = None
    make_reflection_lm: Callable[[int], dspy.LM] | None = None
    notes: str = ""


def load(name: str, seed: int) -> Task:
    """The task of that name, with the examples and splits of that seed.

    Args:
        name: one of `NAMES`, or `sim:<variant>`, with `+<variation>` behind it where it is varied.
        seed: draws examples and splits; the same seed gives the same task.

    Raises:
        ValueError: there is no task of that name.
        ImportError: the task needs a package of the `bench` extra.
    """
    prefix, separator, rest = name.partition(":")
    if separator and prefix == "sim":
        return _module("simulated").load(seed, name=rest)
    if name not in NAMES:
        known = ", ".join((*NAMES, "sim:<name>"))
        raise ValueError(f"task {name!r}: there is none; pass one of {known}")
    return _module(name).load(seed)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"task {name!r} needs the package {error.name!r}: pip install -e '.[bench]'"
        ) from error


def plain(metric: Callable[..., dspy.Prediction]) -> Callable[..., float]:
    """The metric without its feedback."""

    def plain_metric(gold: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> float:
        return float(metric(gold, pred, trace).score)

    return plain_metric


def in_gepas_form(judged: Callable[[Any, Any], dspy.Prediction]) -> Callable[..., dspy.Prediction]:
    """The judgement of a prediction as a metric of GEPA's form, which asks for more."""

    def metric(
        gold: Any,
        pred: Any,
        trace: Any = None,  # noqa: ARG001
        pred_name: Any = None,  # noqa: ARG001
        pred_trace: Any = None,  # noqa: ARG001
    ) -> dspy.Prediction:
        return judged(gold, pred)

    return metric
