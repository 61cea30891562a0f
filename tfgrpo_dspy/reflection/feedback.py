"""Lessons without an LM: sentences that the metric says to the worse rollouts of several examples.

For a reflection LM whose answers cannot be read. A metric that knows rules says the same of many
examples ("Use at most 60 words."), and such a sentence is advice as it stands; what it says of one
example only ("Expected 42, got 41.") is none.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

from tfgrpo_dspy.rollout import Group, Rollout

LEAST_GROUPS = 2
"""Of so many examples a sentence must have been said."""

_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")


def recurring_feedback(groups: Sequence[Group]) -> Mapping[str, tuple[Group, ...]]:
    """The sentences, in the order of their first, each with the groups that it was said in.

    One that better rollouts hear more often than worse ones is praise, and left out.
    """
    heard = [[(rollout, _sentences(rollout)) for rollout in group.rollouts] for group in groups]
    everybody = [pair for of_group in heard for pair in of_group]
    usual = _mean([rollout for rollout, _ in everybody])
    found = {}
    for sentence in dict.fromkeys(sentence for _, said in everybody for sentence in said):
        where = [g for g, pairs in zip(groups, heard, strict=True) if _is_in(sentence, pairs)]
        of_told = _mean([rollout for rollout, said in everybody if sentence in said])
        is_praise = of_told > usual and not math.isclose(of_told, usual)
        if len(where) >= LEAST_GROUPS and not is_praise:
            found[sentence] = tuple(where)
    return found


def _sentences(rollout: Rollout) -> dict[str, None]:
    parts = _BETWEEN_SENTENCES.split(rollout.feedback or "")
    return dict.fromkeys(part.strip() for part in parts if part.strip())


def _is_in(sentence: str, pairs: Collection[tuple[Rollout, Collection[str]]]) -> bool:
    return any(sentence in said for _, said in pairs)


def _mean(rollouts: Sequence[Rollout]) -> float:
    return fmean(rollout.score or 0.0 for rollout in rollouts) if rollouts else 0.0
