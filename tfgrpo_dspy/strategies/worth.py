"""Whether what a strategy does pays, by the groups so far; else the run goes on as without it.

All is a function of the decided groups, so that a run that is resumed decides the same.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

from tfgrpo_dspy.group import Group
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.strategies.state_values import states

LATEST, ENOUGH, MORE, OFTEN = 60, 8, 0.05, 1 / 4
"""Choosing stops if, in the latest 60 groups with at least 8 in both halves, the chosen half does
not teach more often by .05, or the usual half teaches in a quarter: then enough groups teach."""
RESCUES = 8
"""After this number of rescued groups without a better extra attempt, no group is rescued."""
CREDITED, AT_ONCE, DECISIVE = 6, 3, 1 / 3
"""Until 6 groups were credited, at most 3 of a batch are; then credit goes on if a step decided in
a third of them."""
CREDIT_SHARE = 0.5
"""LM calls of rollouts that go on from a step, beside those of whole rollouts."""


def teaches(sampled: SampledGroup) -> bool:
    """Whether lessons can come of the group: it has contrast, or fails with feedback."""
    group = sampled.unaided
    return group.has_contrast or (group.has_feedback and not group.is_at_best({}))


def chosen_in_vain(past: Sequence[SampledGroup], often: float = OFTEN) -> bool:
    """Whether the first halves of the latest batches teach often, or no less than the second."""
    halves: tuple[list[bool], list[bool]] = ([], [])
    for _, of_update in groupby(past[-LATEST:], key=lambda sampled: sampled.update):
        batch = list(of_update)
        for place, sampled in enumerate(batch):
            halves[place >= math.ceil(len(batch) / 2)].append(teaches(sampled))
    usual, chosen = halves
    is_vain = min(len(usual), len(chosen)) >= ENOUGH and fmean(chosen) < fmean(usual) + MORE
    return is_vain or fmean(usual) >= often


def rescued_in_vain(past: Sequence[SampledGroup]) -> bool:
    """Whether no extra attempt of the latest rescued groups was better than all others."""
    better = []
    for sampled in past:
        pairs = zip(
            sampled.additions, (sampled.measured or sampled.group).all_rollouts, strict=True
        )
        extra = [r.score for one, r in pairs if one.aid and r.score is not None]
        if extra:
            usual = sampled.by_metric
            better.append(max(extra) > max(usual.scores, default=-math.inf) + usual.least_contrast)
    return len(better) >= RESCUES and not any(better[-RESCUES:])


def has_turns(group: Group) -> bool:
    """Whether a rollout has more than one turn; else no step decided more than the outcome."""
    return any(len(states(rollout)) > 2 for rollout in group.rollouts)


def may_be_credited(past: Sequence[SampledGroup], place: int) -> bool:
    """Whether the steps of the group at this place of its batch are valued."""
    credited = [s for s in past if any(rollout.changes for rollout in s.group.rollouts)]
    rollouts = [r for s in past for r in (*s.group.all_rollouts, *s.probes)]
    going_on = sum(r.usage.n_lm_calls for r in rollouts if r.n_replayed is not None)
    whole = sum(r.usage.n_lm_calls for r in rollouts if r.n_replayed is None)
    is_tried = len(credited) >= CREDITED or place < AT_ONCE
    return is_tried and not credited_in_vain(past) and going_on <= CREDIT_SHARE * whole


def credited_in_vain(past: Sequence[SampledGroup]) -> bool:
    """Whether steps were valued in enough groups, and hardly any of them decided."""
    credited = [s for s in past if any(rollout.changes for rollout in s.group.rollouts)]
    decided = [bool(sampled.group.decisive_predictor) for sampled in credited]
    return len(decided) >= CREDITED and fmean(decided) < DECISIVE
