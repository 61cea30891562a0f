"""Tells DSPy's callbacks of the measurements of student and result, as `dspy.Evaluate` does.

So what listens to evaluations, such as MLflow, shows them.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import dspy

from tfgrpo_dspy.dspy_seam import EvaluationResult, with_callbacks
from tfgrpo_dspy.sampling.additions import Additions

Row = tuple[Any, Any, float]
"""An example, its prediction, and the score."""


class _Measured(dspy.Evaluate):
    """An evaluation whose rollouts were made before."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__(devset=[example for example, _, _ in rows])
        mean = statistics.fmean(score for _, _, score in rows)
        self._result = EvaluationResult(score=round(100 * mean, 2), results=list(rows))

    @with_callbacks  # type: ignore[untyped-decorator]
    def __call__(self, program: Any, callback_metadata: Any = None) -> Any:  # noqa: ARG002
        """The result. The callbacks are told of it, and of the arguments."""
        return self._result


def tell_evaluations(
    role: str, student: Any, measured: Iterable[tuple[Additions, Sequence[Row]]]
) -> None:
    """Tell the callbacks of these programs' rows; to be called in the thread of the compile.

    The callbacks know the metric as `role`, of which the score is a percentage.
    """
    for additions, rows in measured if dspy.settings.callbacks else ():
        if rows:
            _Measured(rows)(additions.bake(student), callback_metadata={"metric_key": role})
