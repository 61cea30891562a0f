"""Mean scores, and what one program gains on another, with a confidence interval."""

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit

from tfgrpo_dspy.results import CONFIDENCE, Gain, ScoreSummary

ExampleScores = Sequence[float | None]
"""The scores of the examples of a set, in their order; None where there is none."""
ROUNDING = 1e-9
"""Differences that differ by no more than this are the same: 0.6 - 0.5 is not quite 0.4 - 0.3."""


def summary_of(scores: ExampleScores) -> ScoreSummary | None:
    """The mean score; None where no example was measured."""
    if not scores:
        return None
    known = [score for score in scores if score is not None]
    mean = statistics.fmean(known) if known else None
    return ScoreSummary(mean, len(known), len(scores) - len(known))


def gain_between(before: ExampleScores, after: ExampleScores) -> Gain | None:
    """The mean of after minus before, with its interval by Student's t; None without any pair.

    Examples that lack one of the two scores are left out. The interval is that of the mean over
    examples like these; it is None where there are fewer than two pairs, or every difference is the
    same, because the data then say nothing of their spread.
    """
    pairs = zip(before, after, strict=False)
    gains = [new - old for old, new in pairs if new is not None and old is not None]
    if not gains:
        return None
    mean, n = statistics.fmean(gains), len(gains)
    if n < 2 or max(gains) - min(gains) <= ROUNDING:
        return Gain(mean, None, None, n)
    error = statistics.stdev(gains) / math.sqrt(n)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
    return Gain(mean, mean - half, mean + half, n)
