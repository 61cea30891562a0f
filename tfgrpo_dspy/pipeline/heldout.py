"""The score that counts: student and result on examples that chose nothing."""

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.pipeline.measuring import Measurements
from tfgrpo_dspy.results import CONFIDENCE, Gain, HeldOut

ROUNDING = 1e-9
"""Differences that differ by no more than this are the same: 0.6 - 0.5 is not quite 0.4 - 0.3."""


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
    mean = statistics.fmean(gains)
    if len(gains) < 2 or max(gains) - min(gains) <= ROUNDING:
        return Gain(mean, None, None, len(gains))
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    half = float(stdtrit(len(gains) - 1, (1 + CONFIDENCE) / 2)) * error
    return Gain(mean, mean - half, mean + half, len(gains))


def gain_between(
    measured: Measurements, start: ExperienceLibrary, library: ExperienceLibrary
) -> Gain | None:
    """What a library gains on another, on the set that both were tried on."""
    pairs = zip(measured.everywhere(library), measured.everywhere(start), strict=False)
    return gain_of(list(pairs))


def held_out(
    measured: Measurements, start: ExperienceLibrary, library: ExperienceLibrary
) -> HeldOut | None:
    """Student and result on the test set; None where they were not both tried on all of it."""
    student, best = measured.summary(start), measured.summary(library)
    if student is None or best is None:
        return None
    return HeldOut(student, best, gain_between(measured, start, library))
