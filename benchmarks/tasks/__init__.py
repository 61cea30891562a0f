"""What a task gives to the optimizers that are compared on it; `simulated` has those of `compare`.

LMs that a task brings are `seeded`, so that samples of one prompt differ for every optimizer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy


@dataclass(frozen=True)
class Task:
    """What an optimizer is given, and what its result is measured on.

    Attributes:
        name: what tables call it; `sim:<name>` where its LMs are simulated.
        student: makes a fresh student.
        train: what the optimizer learns from.
        val: what it may select on.
        test: what nobody sees until the end.
        metric: `metric(gold, pred, trace=None, pred_name=None, pred_trace=None)` gives
            `dspy.Prediction(score=, feedback=)`, the score in [0, 1].
        plain_metric: `metric(gold, pred, trace=None)` gives the same score as a float, for
            optimizers that take no feedback. It is graded where the task is: what asks for a yes
            or no (few-shot bootstrapping) needs a threshold.
        make_lm: the policy LM, from a seed.
        make_reflection_lm: the reflection LM, from a seed.
        demo_threshold: the score that a run must reach to become a demo; in a task of 0 and 1 it
            changes nothing.
        notes: what a reader of its figures has to know.
    """

    name: str
    student: Callable[[], dspy.Module]
    train: Sequence[dspy.Example]
    val: Sequence[dspy.Example]
    test: Sequence[dspy.Example]
    metric: Callable[..., dspy.Prediction]
    plain_metric: Callable[..., float]
    make_lm: Callable[[int], Any]
    make_reflection_lm: Callable[[int], Any]
    demo_threshold: float = 0.5
    notes: str = ""


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
