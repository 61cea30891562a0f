"""Tells DSPy's callbacks of the measurements of student and result, as `dspy.Evaluate` does.

So what listens to evaluations, such as MLflow, shows them. Each callback is a listener like others.
"""

import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from tfgrpo_dspy.dspy_seam import EvaluationResult, with_callbacks
from tfgrpo_dspy.listeners.listening import Listening

Row = tuple[Any, Any, float]  # an example, its prediction, and the score


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a program scores on a set; callbacks know the metric by the name of the set."""

    set: str
    program: Any
    rows: Sequence[Row]


class _Measured(dspy.Evaluate):
    """An evaluation whose rollouts were made before; its score is a percentage."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__(devset=[example for example, _, _ in rows])
        mean = statistics.fmean(score for _, _, score in rows)
        self._result = EvaluationResult(score=round(100 * mean, 2), results=list(rows))

    @with_callbacks  # type: ignore[untyped-decorator]
    def __call__(self, program: Any, callback_metadata: Any = None) -> Any:  # noqa: ARG002
        """The result. The callbacks are told of it, and of the arguments."""
        return self._result


def callback_listeners(clean: Callable[[str], str]) -> list[Listening]:
    """A listener to evaluations for each of DSPy's callbacks; to be made in the compile's thread.

    MLflow keeps the active runs of each thread: the listener's thread is given the compile's.
    """
    stack = getattr(sys.modules.get("mlflow.tracking.fluent"), "_active_run_stack", None)
    runs = [*stack.get()] if stack else []

    def tell(callback: Any, evaluation: Evaluation) -> None:
        if stack:
            stack.set([*runs])
        try:
            with dspy.context(callbacks=[callback]):
                metadata = {"metric_key": evaluation.set}
                _Measured(evaluation.rows)(evaluation.program, callback_metadata=metadata)
        finally:
            if stack:
                stack.set([])

    return [
        Listening(functools.partial(tell, callback), type(callback).__name__, clean=clean)
        for callback in dspy.settings.callbacks
    ]
