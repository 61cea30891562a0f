"""Lessons without an LM: sentences in the metric's feedback on worse rollouts of several examples.

For a reflection LM whose answers cannot be read. A metric that knows rules repeats itself over many
examples ("Use at most 60 words."), and such a sentence is advice as it stands; a sentence about one
example only ("Expected 42, got 41.") is none.
"""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from tfgrpo_dspy.rollout import Group, Rollout

LEAST_GROUPS = 2
"""A lesson is a sentence that stands in the feedback of at least so many groups."""

_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")


def recurring_feedback(groups: Sequence[Group]) -> Mapping[str, tuple[Group, ...]]:
    """The sentences in the order of their first use, each with the groups that it is about.

    Praise is left out: sentences about rollouts that score better than the mean of all.
    """
    rollouts: dict[str, list[Rollout]] = {}
    about: dict[str, dict[int, Group]] = {}
    for place, group in enumerate(groups):
        for rollout in group.rollouts:
            parts = map(str.strip, _BETWEEN_SENTENCES.split(rollout.feedback or ""))
            for sentence in dict.fromkeys(filter(None, parts)):
                rollouts.setdefault(sentence, []).append(rollout)
                about.setdefault(sentence, {})[place] = group
    usual = _mean([rollout for group in groups for rollout in group.rollouts]) + 1e-9
    return {
        sentence: tuple(of_groups.values())
        for sentence, of_groups in about.items()
        if len(of_groups) >= LEAST_GROUPS and _mean(rollouts[sentence]) <= usual
    }


def _mean(rollouts: Sequence[Rollout]) -> float:
    return fmean(rollout.score or 0.0 for rollout in rollouts) if rollouts else 0.0
