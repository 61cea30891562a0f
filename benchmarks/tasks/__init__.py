"""What a task of the comparison is: a program, examples in three parts, a metric, maybe its LMs.

Each module of this package has `load(seed, data=None) -> Task`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dspy


@dataclass(frozen=True)
class Task:
    """One task, as every optimizer is given it.

    `student` makes a fresh student. `metric(gold, pred, trace=None, pred_name=None,
    pred_trace=None)` gives `dspy.Prediction(score=, feedback=)` with a score in [0, 1];
    `plain_metric(gold, pred, trace=None)` gives a float, for optimizers that take no feedback.
    `make_lm` and `make_reflection_lm` make the LMs from a seed where the task brings its own
    (simulated, embedded).
    """

    name: str
    student: Callable[[], dspy.Module]
    train: Sequence[dspy.Example]
    val: Sequence[dspy.Example]
    test: Sequence[dspy.Example]
    metric: Callable
    plain_metric: Callable
    make_lm: Callable[[int], dspy.LM] | None = None
    make_reflection_lm: Callable[[int], dspy.LM] | None = None
    notes: str = ""
