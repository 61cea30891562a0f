"""Ready DSPy metrics with feedback, which compare a field of the prediction with a label."""

from dataclasses import dataclass
from typing import Any

import dspy

from tfgrpo_dspy.errors import MetricError, SettingsError
from tfgrpo_dspy.metrics.mathematics import (
    TIMEOUT_S,
    check,
    difference,
    is_equivalent,
    normalize_text,
)
from tfgrpo_dspy.wording import shortened

__all__ = ["exact_match", "is_equivalent", "math_equivalent", "normalize_text", "normalized_match"]

SHOWN_BYTES = 200  # of a label or an answer in the feedback


class ScoredPrediction(dspy.Prediction):
    """`score` and `feedback`; true only if the score is 1.

    `BootstrapFewShot` takes an answer as a demonstration if the metric's result is true; a plain
    `dspy.Prediction` with fields is always true.
    """

    def __bool__(self) -> bool:
        return bool(self.score == 1.0)


@dataclass(frozen=True)
class ExactMatch:
    """A metric: 1.0 if field and label are the same text, apart from white space around it.

    Other values than texts are compared by their `str`. If the label is a list, tuple or set, one
    match is enough.

    Attributes:
        field: the output field of the prediction.
        label_field: the field of the example that holds the label; `field` when None.

    Raises:
        SettingsError: a name is empty.
        MetricError: on a call: the example has no label.
    """

    field: str = "answer"
    label_field: str | None = None

    def __post_init__(self) -> None:
        if not self.field or self.label_field == "":
            raise SettingsError(f"{self!r}: a field needs a name; pass for example 'answer'")

    def __call__(
        self, example: dspy.Example, pred: dspy.Prediction, *_: Any, **__: Any
    ) -> ScoredPrediction:
        """1.0 or 0.0, and a sentence on the difference; raises MetricError without a label."""
        labels = self._labels(example)
        expected, answer = " or ".join(map(_quoted, labels)), pred.get(self.field)
        if answer is None:
            names = ", ".join(pred.keys())
            feedback = f"Expected {expected} in the field '{self.field}'; there is only: {names}."
            return ScoredPrediction(score=0.0, feedback=feedback)
        differences = [self.difference(str(answer), label) for label in labels]
        if "" in differences:
            return ScoredPrediction(score=1.0, feedback=f"{_quoted(answer)} is right.")
        feedback = f"Expected {expected}, given {_quoted(answer)}: {differences[0]}."
        return ScoredPrediction(score=0.0, feedback=feedback)

    def difference(self, answer: str, expected: str) -> str:
        """The difference between answer and label, as a phrase; "" if there is none."""
        return "" if answer.strip() == expected.strip() else "they are not the same text"

    def _labels(self, example: dspy.Example) -> list[str]:
        name = self.label_field or self.field
        label = example.get(name)
        label = sorted(label, key=str) if isinstance(label, set | frozenset) else label
        labels = label if isinstance(label, list | tuple) else [label]
        if not labels or None in labels:
            there = ", ".join(example.keys())
            message = f"the example has no label '{name}' (it has: {there}); pass label_field="
            raise MetricError(f"{message} with the field of the expected answer.")
        return [str(one) for one in labels]


class NormalizedMatch(ExactMatch):
    """`exact_match` of the texts after `normalize_text`."""

    def difference(self, answer_field: str, expected: str) -> str:
        """The normalised texts, if they differ."""
        answer, wanted = normalize_text(answer_field), normalize_text(expected)
        return "" if answer == wanted else f"compared as {_quoted(wanted)} and {_quoted(answer)}"


@dataclass(frozen=True)
class MathEquivalent(ExactMatch):
    """1.0 if `is_equivalent` holds for field and label; 0.0 if that takes over `timeout_s` seconds.

    Raises:
        SettingsError: a name is empty, or `timeout_s` is not more than 0.
        MathUnavailableError: the extra `math` is not installed, or does not start.
        MetricError: on a call: the example has no label.
    """

    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.timeout_s)

    def difference(self, answer: str, expected: str) -> str:
        """The kind of difference, or why the comparison failed."""
        return difference(answer, expected, self.timeout_s)


exact_match = ExactMatch
"""`exact_match("answer")` makes an `ExactMatch`."""
normalized_match = NormalizedMatch
"""`normalized_match("answer")` makes a `NormalizedMatch`."""
math_equivalent = MathEquivalent
"""`math_equivalent("answer")` makes a `MathEquivalent`."""


def _quoted(value: Any) -> str:
    return f"'{shortened(str(value), SHOWN_BYTES)}'"
