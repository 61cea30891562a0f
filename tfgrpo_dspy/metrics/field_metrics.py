"""Ready DSPy metrics that compare one field of the prediction with one of the example.

Which texts are equal is decided by `answer_text` and `mathematics`; here are the field look-up,
the score and the feedback. The metrics are plain values: they can be compared and pickled, and
their repr states every setting.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import dspy

from tfgrpo_dspy.errors import MetricError, SettingsError
from tfgrpo_dspy.metrics.answer_text import normalize_text
from tfgrpo_dspy.metrics.mathematics import TIMEOUT_S, compare

SHOWN_CHARACTERS = 200
"""How much of an answer the feedback quotes."""


class ScoredPrediction(dspy.Prediction):
    """`score` and `feedback`; true when the score is 1.

    A plain `dspy.Prediction` is true whenever it has fields, so that `BootstrapFewShot`, which
    asks `if metric(...)`, would take every wrong answer for a demonstration.
    """

    def __bool__(self) -> bool:
        return bool(self.score == 1.0)


@dataclass(frozen=True)
class FieldMetric(ABC):
    """`metric(example, pred, trace=None)`; takes GEPA's five arguments too.

    The label may be a list, tuple or set of accepted answers; one of them is enough.

    Attributes:
        field: the output field of the prediction.
        label_field: the field of the example that holds the label; `field` when None.
    """

    field: str = "answer"
    label_field: str | None = None

    def __post_init__(self) -> None:
        names = {"field": self.field, "label_field": self.label_field}
        for setting, name in names.items():
            is_default = setting == "label_field" and name is None
            if not is_default and not (isinstance(name, str) and name):
                raise SettingsError(f"{setting}={name!r} names no field; pass for example 'answer'")

    def __call__(
        self,
        example: dspy.Example,
        pred: dspy.Prediction,
        trace: Any = None,  # noqa: ARG002 - DSPy and GEPA pass these three
        pred_name: str | None = None,  # noqa: ARG002
        pred_trace: Any = None,  # noqa: ARG002
    ) -> ScoredPrediction:
        """1.0 or 0.0, and one sentence that says what was expected, given and different.

        Raises:
            MetricError: the example has no label.
        """
        labels = self._labels(example)
        expected = " or ".join(map(_quoted, labels))
        given = pred.get(self.field)
        if given is None:
            return ScoredPrediction(
                score=0.0,
                feedback=f"Expected {expected} in the field '{self.field}', which the prediction "
                f"does not have (it has: {_names(pred)}).",
            )
        differences = [self.difference(str(given), label) for label in labels]
        if "" in differences:
            return ScoredPrediction(score=1.0, feedback=f"{_quoted(str(given))} is right.")
        feedback = f"Expected {expected}, given {_quoted(str(given))}: {differences[0]}."
        return ScoredPrediction(score=0.0, feedback=feedback)

    @abstractmethod
    def difference(self, given: str, expected: str) -> str:
        """What differs between answer and label, as a phrase; empty when nothing does."""

    def _labels(self, example: dspy.Example) -> list[str]:
        name = self.label_field or self.field
        label = example.get(name)
        labels = sorted(label, key=str) if isinstance(label, set | frozenset) else label
        labels = list(labels) if isinstance(labels, list | tuple) else [labels]
        if not labels or None in labels:
            raise MetricError(
                f"the example has no label '{name}' (it has: {_names(example)}); pass "
                f"label_field=... with the name of the field that holds the expected answer."
            )
        return [str(one) for one in labels]


@dataclass(frozen=True)
class ExactMatch(FieldMetric):
    """See `exact_match`."""

    def difference(self, given: str, expected: str) -> str:
        """Character for character; white space around the answers does not count."""
        return "" if given.strip() == expected.strip() else "they are not the same text"


@dataclass(frozen=True)
class NormalizedMatch(FieldMetric):
    """See `normalized_match`."""

    def difference(self, given: str, expected: str) -> str:
        """The normalised texts, when they differ."""
        forms = normalize_text(given), normalize_text(expected)
        if forms[0] == forms[1]:
            return ""
        return f"compared as {_quoted(forms[1])} and {_quoted(forms[0])}"


@dataclass(frozen=True)
class MathEquivalent(FieldMetric):
    """See `math_equivalent`."""

    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.timeout_s > 0:
            raise SettingsError(f"timeout_s={self.timeout_s}: a comparison needs time; pass 2.0")

    def difference(self, given: str, expected: str) -> str:
        """What `compare` says."""
        return compare(given, expected, timeout_s=self.timeout_s).difference


def exact_match(field: str = "answer", label_field: str | None = None) -> ExactMatch:
    """A metric: 1.0 when the prediction's field is the label, character for character.

    White space around both is ignored. What is no text is compared by its `str`.

    Args:
        field: the output field of the prediction.
        label_field: the field of the example with the label, or a list of accepted labels;
            the same name as `field` when None.
    """
    return ExactMatch(field, label_field)


def normalized_match(field: str = "answer", label_field: str | None = None) -> NormalizedMatch:
    """A metric: 1.0 when field and label are the same text after `normalize_text`.

    That ignores case, Unicode variants, punctuation outside of numbers, the articles a, an and
    the, and white space; `normalize_text` says exactly how.

    Args:
        field: the output field of the prediction.
        label_field: the field of the example with the label, or a list of accepted labels;
            the same name as `field` when None.
    """
    return NormalizedMatch(field, label_field)


def math_equivalent(
    field: str = "answer", label_field: str | None = None, *, timeout_s: float = TIMEOUT_S
) -> MathEquivalent:
    """A metric: 1.0 when field and label are mathematically the same, see `is_equivalent`.

    Args:
        field: the output field of the prediction.
        label_field: the field of the example with the label, or a list of accepted labels;
            the same name as `field` when None.
        timeout_s: seconds for each comparison; one that takes longer scores 0.0.
    """
    return MathEquivalent(field, label_field, timeout_s)


def _names(record: Any) -> str:
    return ", ".join(sorted(record.keys())) or "nothing"


def _quoted(text: str) -> str:
    """The text on one line between quotes, shortened."""
    line = " ".join(text[: 2 * SHOWN_CHARACTERS].split())
    return f"'{line[:SHOWN_CHARACTERS]}…'" if len(line) > SHOWN_CHARACTERS else f"'{line}'"
