"""The score that counts: student and result on examples that chose nothing."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from tfgrpo_dspy.results import (
    CONFIDENCE,
    DemoTrial,
    Finalist,
    Gain,
    HeldOut,
    ScoreSummary,
    TriedAdvice,
)
from tfgrpo_dspy.sampling import Demo

Scores = Sequence[float | None]
"""Those of the examples of a set, in their order; None where there is none. Empty: not tried."""
ROUNDING = 1e-9
"""Differences that differ by no more than this are the same: 0.6 - 0.5 is not quite 0.4 - 0.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was measured of the candidates for the result, and the demos that the result shows.

    `before` and `after` are the scores of student and result on the same validation examples;
    empty where the budget did not reach.
    """

    demos: tuple[Demo, ...] = ()
    before: Scores = ()
    after: Scores = ()
    finalists: tuple[Finalist, ...] = ()
    demo_trial: DemoTrial | None = None
    tried: tuple[TriedAdvice, ...] = ()


def summary_of(scores: Scores) -> ScoreSummary | None:
    """The mean score; None where nothing was tried."""
    if not scores:
        return None
    known = [score for score in scores if score is not None]
    mean = statistics.fmean(known) if known else None
    return ScoreSummary(mean, len(known), len(scores) - len(known))


def gain_of(pairs: Sequence[tuple[float | None, float | None]]) -> Gain | None:
    """The mean of new minus old, with its interval by Student's t; None without any pair.

    The interval is that of the mean over examples like these. Where there are fewer than two pairs,
    or every difference is the same, the data say nothing of their own spread: it is None then.

    Args:
        pairs: new and old score of each example; those that lack one are left out.
    """
    gains = [new - old for new, old in pairs if new is not None and old is not None]
    if not gains:
        return None
    mean, error = statistics.fmean(gains), _error(gains)
    if error is None:
        return Gain(mean, None, None, len(gains))
    half = float(stdtrit(len(gains) - 1, (1 + CONFIDENCE) / 2)) * error
    return Gain(mean, mean - half, mean + half, len(gains))


def _error(gains: Sequence[float]) -> float | None:
    """The standard error of their mean; None where they say nothing of it."""
    if len(gains) < 2 or max(gains) - min(gains) <= ROUNDING:
        return None
    return statistics.stdev(gains) / math.sqrt(len(gains))


def gain_between(before: Scores, after: Scores) -> Gain | None:
    """What the later scores gain on the earlier ones, on the examples of both."""
    return gain_of(list(zip(after, before, strict=False)))


def held_out(before: Scores, after: Scores) -> HeldOut | None:
    """Student and result on the test set; None where they were not both tried on all of it."""
    student, best = summary_of(before), summary_of(after)
    if student is None or best is None:
        return None
    return HeldOut(student, best, gain_between(before, after))
