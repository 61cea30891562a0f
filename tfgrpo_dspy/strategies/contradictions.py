"""Which texts help on some inputs and harm on others, by groups in which only some rollouts had it.

The gate gives an experience on trial to some rollouts of a group only; so the group compares
rollouts with and without it on one input.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from tfgrpo_dspy.experience.values import Advice, Evidence
from tfgrpo_dspy.gate.relevance import index_of
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.scores import MIN_CONTRAST

N_RESAMPLES = 999
Difference = tuple[float, Evidence]
"""What a text added to the mean score of a group, and the group."""


def differences(groups: Iterable[SampledGroup]) -> dict[Advice, list[Difference]]:
    """For each text the groups in which some rollouts had it and others lacked it.

    Groups in which both have the same mean score say nothing of it, and are left out.
    """
    found: dict[Advice, list[Difference]] = {}
    for sampled in groups:
        of_each = zip(sampled.group.all_rollouts, sampled.given, sampled.aids, strict=True)
        unaided = {r.rollout_id: given.library for r, given, aid in of_each if not aid}
        scored = [
            (rollout, {experience.advice for experience in unaided[rollout.rollout_id]})
            for rollout in sampled.group.rollouts
            if rollout.rollout_id in unaided and rollout.score is not None
        ]
        source = Evidence(
            sampled.update,
            sampled.group.example,
            tuple(rollout.rollout_id for rollout, _ in scored),
            tuple(rollout.score for rollout, _ in scored),
        )
        for advice in sorted(set().union(*(held for _, held in scored))):
            having = [r.score or 0.0 for r, held in scored if advice in held]
            lacking = [r.score or 0.0 for r, held in scored if advice not in held]
            if not lacking:
                continue
            added = statistics.fmean(having) - statistics.fmean(lacking)
            if abs(added) > MIN_CONTRAST:
                found.setdefault(advice, []).append((added, source))
    return found


def p_value(found: Sequence[Difference], inputs: tuple[str, ...]) -> float:
    """How likely luck alone shows as much help on some inputs and as much harm on others.

    The differences of similar inputs are added up, so that they agree or cancel out. The statistic
    is the lesser of the evidence for help and for harm (squares of standardised sums). Its
    distribution without any effect is that under random signs of the differences.

    Args:
        found: the differences of one text.
        inputs: the inputs of all examples as texts, by position.
    """
    index = index_of(inputs)
    examples = [source.example for _, source in found]
    alike = np.array([index.relevance(inputs[e], (e,))[0][examples] for e in examples])
    np.fill_diagonal(alike, 1.0)
    added = np.array([difference for difference, _ in found])
    spread = np.sqrt(alike**2 @ added**2)

    def lesser(signed: Any, axis: int = -1) -> Any:
        sums = np.moveaxis(signed, axis, -1) @ alike.T / spread
        help_, harm = (np.square(np.maximum(part, 0.0)).sum(axis=-1) for part in (sums, -sums))
        return np.minimum(help_, harm)

    tested = permutation_test(
        (added,),
        lesser,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=N_RESAMPLES,
        random_state=np.random.default_rng(0),
    )
    return float(tested.pvalue)
