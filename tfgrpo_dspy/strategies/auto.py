"""`strategies="auto"`, and what is switched off where it does not pay.

All is a function of decided groups and of the first batch, so that a resumed run decides the same.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tfgrpo_dspy.rollout import MIN_CONTRAST, NO_SCORES, Group, Rollout
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.strategies import base
from tfgrpo_dspy.strategies.attempts import Objectives, TieredHints
from tfgrpo_dspy.strategies.steps import states

GROUPS, FAILING = 16, 12
"""Hints need 12 of the first 16 groups that failed throughout without feedback. By chance alone, a
program that is right in a third of its rollouts does so in one run of a hundred."""
ROLLOUTS, UNLIKE = 8, 3.0
"""The factor by which the objectives' standard deviations in the first 8 rollouts must differ."""
HINTS = TieredHints()
RESCUES = 8
"""After this number of rescued groups without a better extra attempt, no group is rescued."""
CREDITED, AT_ONCE, DECISIVE = 6, 3, 1 / 3
"""Until 6 groups were credited, at most 3 of a batch are; then credit goes on if a step decided in
a third of them."""
CREDIT_SHARE = 0.5
"""LM calls of rollouts that go on from a step, beside those of whole rollouts."""


@dataclass(frozen=True)
class Auto(base.Strategy):
    """`TieredHints` where the first groups fail in silence; `Objectives` where scales differ."""

    def rescue(self, context: base.GroupContext, ask: base.Ask) -> Sequence[base.Attempt]:
        is_needed = context.shows_labels and needs_hints(context.past)
        return HINTS.rescue(context, ask) if is_needed else ()

    def propose(self, context: base.UpdateContext, ask: base.Ask) -> base.Proposed:
        return HINTS.propose(context, ask)

    def reward(self, scored: base.Scored) -> Sequence[float | None]:
        spreads = unlike_spreads(scored.first)
        mixed = Objectives(dict.fromkeys(spreads, 1.0)) if spreads else base.Strategy()
        return mixed.reward(scored)


def needs_hints(past: Sequence[SampledGroup]) -> bool:
    """True if most of the first groups had no contrast, no feedback, and not the best score.

    Where they had one score only, it is a failure if it is 0 or less.
    """
    groups = [sampled.by_metric for sampled in past[:GROUPS]]
    scores = NO_SCORES.including(score for group in groups for score in group.scores)
    best = scores.highest - scores.least_contrast
    if scores.is_flat:
        best = math.inf if scores.highest <= 0 else -math.inf
    silent = (g for g in groups if g.scores and not (g.has_contrast or g.has_feedback))
    return len(past) >= GROUPS and sum(max(group.scores) < best for group in silent) >= FAILING


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


def may_rescue(strategies: Sequence[base.Strategy], past: Sequence[SampledGroup]) -> bool:
    """True if a strategy may help groups that fail throughout, after these."""
    rescuing = [one for one in strategies if base.overrides(one, "rescue")]
    return any(not isinstance(one, Auto) or needs_hints(past) for one in rescuing)


def rescued_in_vain(past: Sequence[SampledGroup]) -> bool:
    """True if no extra attempt of the latest rescued groups was better than all others."""
    better = []
    for sampled in past:
        rollouts = (sampled.measured or sampled.group).all_rollouts
        pairs = zip(sampled.additions, rollouts, strict=True)
        extra = [r.score for one, r in pairs if one.aid and r.score is not None]
        if extra:
            usual = sampled.by_metric
            better.append(max(extra) > max(usual.scores, default=-math.inf) + usual.least_contrast)
    return len(better) >= RESCUES and not any(better[-RESCUES:])


def may_be_credited(group: Group, past: Sequence[SampledGroup], place: int) -> bool:
    """True if the steps of this group, at this place of its batch, are valued.

    Where no rollout has more than one turn, no step decided more than the outcome.
    """
    has_turns = any(len(states(rollout)) > 2 for rollout in group.rollouts)
    rollouts = [r for s in past for r in (*s.group.all_rollouts, *s.probes)]
    going_on = sum(r.usage.n_lm_calls for r in rollouts if r.n_replayed is not None)
    whole = sum(r.usage.n_lm_calls for r in rollouts if r.n_replayed is None)
    is_tried = len(_credited(past)) >= CREDITED or place < AT_ONCE
    return has_turns and is_tried and going_on <= CREDIT_SHARE * whole


def credited_in_vain(past: Sequence[SampledGroup]) -> bool:
    """True if steps were valued in enough groups, and hardly any of them decided."""
    decided = [bool(group.decisive_predictor) for group in _credited(past)]
    return len(decided) >= CREDITED and statistics.fmean(decided) < DECISIVE


def _credited(past: Sequence[SampledGroup]) -> list[Group]:
    return [s.group for s in past if any(rollout.changes for rollout in s.group.rollouts)]
