"""The range of a run's scores: what is a difference, what a failure counts. One score: `metric`."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

MIN_CONTRAST = 1e-9
"""Scores that differ by no more than this are the same: 0.6 - 0.5 is not quite 0.4 - 0.3."""
CONTRAST_SHARE = 0.01
"""Nor do scores count as unlike that differ by less than this share of all scores of the run. The
noise of an embedding or of a judge's logits is smaller; one of 100 points, or of 40, is larger."""
MOST = 1e150  # the largest size of a score: of larger ones no variance can be computed
MOST_DIGITS = 17  # of a score: no two floats look alike then
MOST_WHOLE = 1e9  # scores below are shown without an exponent


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """The lowest and the highest score that a run has seen. Scores have no other zero."""

    lowest: float = math.inf
    highest: float = -math.inf

    def including(self, scores: Iterable[float | None]) -> "ScoreRange":
        """The range with these scores, too; None is no score."""
        finite = [score for score in scores if score is not None]
        return ScoreRange(min([self.lowest, *finite]), max([self.highest, *finite]))

    @property
    def least_contrast(self) -> float:
        """Two scores that differ by no more than this count as equal."""
        rounding = MIN_CONTRAST * max(1.0, abs(self.lowest), abs(self.highest))
        spread = self.highest - self.lowest
        return max(rounding, CONTRAST_SHARE * spread) if spread > 0 else MIN_CONTRAST

    @property
    def is_flat(self) -> bool:
        """True if the run has seen one score only, or none: nobody knows whether that is good."""
        return self.highest - self.lowest <= self.least_contrast

    @property
    def failure_score(self) -> float:
        """The score of a program's failure: the lowest score, or less if that is the only one.

        `0.2 and 0.9 -> 0.2`; `1.0 alone -> 0.0`; `-3.0 alone -> -6.0`; 0.0 where there is none.
        """
        if not self.is_flat:
            return self.lowest
        if self.lowest > self.least_contrast:
            return 0.0
        return self.lowest - max(1.0, abs(self.lowest))

    def texts(self, scores: Sequence[float]) -> tuple[str, ...]:
        """The scores with at least three digits; those that do not count as equal look unlike."""
        largest = max(map(abs, scores), default=0.0)
        digits_of_whole = len(f"{largest:.0f}") if largest < MOST_WHOLE else 0
        for digits in range(max(3, digits_of_whole), MOST_DIGITS + 1):
            texts = tuple(f"{score:z.{digits}g}" for score in scores)
            by_text: dict[str, list[float]] = {}
            for text, score in zip(texts, scores, strict=True):
                by_text.setdefault(text, []).append(score)
            if all(max(s) - min(s) <= self.least_contrast for s in by_text.values()):
                break
        return texts


def number_of(value: Any) -> float | None:
    """The number that a value is, of Python's kinds or NumPy's; None: it is none below `MOST`."""
    is_single = not getattr(value, "shape", ())  # NumPy makes a number of an array of one
    if not is_single or isinstance(value, str) or not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except Exception:  # noqa: BLE001 - a huge integer, a torch tensor, a type of the user's
        return None
    return number if abs(number) < MOST else None


def mean_of(numbers: Sequence[float]) -> float | None:
    """Their mean; None: there are none."""
    return statistics.fmean(numbers) if numbers else None


NO_SCORES = ScoreRange()
