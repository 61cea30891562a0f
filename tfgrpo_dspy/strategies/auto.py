"""`strategies="auto"`: what is switched on by what the first groups of a run show, and not before.

All is a function of decided groups and of the first batch, so that a resumed run decides the same.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.scores import MIN_CONTRAST, NO_SCORES
from tfgrpo_dspy.strategies.base import (
    Ask,
    Attempt,
    GroupContext,
    Proposed,
    Scored,
    Strategy,
    UpdateContext,
    overrides,
)
from tfgrpo_dspy.strategies.objectives import Objectives
from tfgrpo_dspy.strategies.tiered_hints import TieredHints

GROUPS, FAILING = 16, 12
"""Hints need 12 of the first 16 groups that failed throughout without feedback. By chance alone, a
program that is right in a third of its rollouts does so in one run of a hundred."""
ROLLOUTS, UNLIKE = 8, 3.0
"""The factor by which the objectives' standard deviations in the first 8 rollouts must differ."""
HINTS = TieredHints()


@dataclass(frozen=True)
class Auto(Strategy):
    """`TieredHints` where the first groups fail in silence; `Objectives` where scales differ."""

    async def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """Hints, if they are needed."""
        is_needed = context.shows_labels and needs_hints(context.past)
        return await HINTS.rescue(context, ask) if is_needed else ()

    async def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """The lessons, without those that give away what a hint was written from."""
        return await HINTS.propose(context, ask)

    def reward(self, scored: Scored) -> Sequence[float | None]:
        """The scores; or the mean of the scaled objectives, as the first batch decides."""
        spreads = unlike_spreads(scored.first)
        if not spreads:
            return super().reward(scored)
        return Objectives(dict.fromkeys(spreads, 1.0)).reward(scored)


def needs_hints(past: Sequence[SampledGroup]) -> bool:
    """Whether most of the first groups failed throughout, and nobody said why."""
    return len(past) >= GROUPS and len(silent_failures(past)) >= FAILING


def silent_failures(past: Sequence[SampledGroup]) -> list[int]:
    """The examples of the first groups that had no contrast, no feedback, and not the best score.

    Where they had one score only, it is a failure if it is 0 or less.
    """
    groups = [sampled.by_metric for sampled in past[:GROUPS]]
    scores = NO_SCORES.including(score for group in groups for score in group.scores)
    best = scores.highest - scores.least_contrast
    if scores.is_flat:
        best = math.inf if scores.highest <= 0 else -math.inf
    silent = (g for g in groups if g.scores and not (g.has_contrast or g.has_feedback))
    return [group.example for group in silent if max(group.scores) < best]


def unlike_spreads(first: Sequence[Rollout]) -> dict[str, float]:
    """The standard deviations of the objectives, if these must be scaled; else none.

    They must where the score is their plain mean throughout, and their scales are far from alike.
    An objective that is the same in all rollouts says nothing of its scale.
    """
    names = list(first[0].objectives) if first else []
    is_plain = len(first) >= ROLLOUTS and len(names) > 1 and all(
        sorted(r.objectives) == sorted(names)
        and abs(statistics.fmean(r.objectives.values()) - (r.score or 0.0)) <= MIN_CONTRAST
        for r in first
    )  # fmt: skip
    spreads = {n: statistics.pstdev(r.objectives[n] for r in first) for n in names * is_plain}
    scales = [spread for spread in spreads.values() if spread > MIN_CONTRAST]
    return spreads if len(scales) > 1 and max(scales) > UNLIKE * min(scales) else {}


def may_rescue(strategies: Sequence[Strategy], past: Sequence[SampledGroup]) -> bool:
    """Whether a strategy may help groups that fail throughout, after these."""
    rescuing = [one for one in strategies if overrides(one, "rescue")]
    return any(not isinstance(one, Auto) or needs_hints(past) for one in rescuing)


def seen(
    past: Sequence[SampledGroup], first: Sequence[Rollout], shows_labels: bool
) -> Iterator[str]:
    """Sentences on what `Auto` saw in these groups and the first batch, and switched on for it."""
    n_failing, n = len(silent_failures(past)), min(len(past), GROUPS)
    is_on = needs_hints(past) and shows_labels
    what = "TieredHints is on" if is_on else "no hints"
    yield f"auto: {what}: {n_failing} of the first {n} groups failed throughout, without a word"
    if spreads := unlike_spreads(first):
        by_name = ", ".join(f"{name} {spread:.3g}" for name, spread in spreads.items())
        yield f"auto: Objectives is on: the objectives' standard deviations are unlike ({by_name})"
