"""The base of strategies that choose examples: chances for one half of each batch.

The other half is that of the usual schedule, so that no example is forgotten, and so that it shows
whether choosing pays.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.group import Group
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.scores import NO_SCORES
from tfgrpo_dspy.strategies.base import BatchPlan, Strategy
from tfgrpo_dspy.strategies.worth import OFTEN, chosen_in_vain, teaches

Domain = str | Callable[[Any], Any]
"""The domain of an example: the name of one of its fields, or a function of the example."""
PRIOR_GROUPS = 5
LEAST = 0.05  # of both parameters of a Beta distribution
LESSONS = 2  # groups of an example that teach, before more of them count less


class Choosing(Strategy):
    """Draws half of each batch by `weights`, where that teaches more, and the other half seldom."""

    often = OFTEN

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        """The first half of the usual batch, and examples that are drawn by their weights."""
        n, usual = len(plan.sizes), list(plan.sizes)[: math.ceil(len(plan.sizes) / 2)]
        weights = self.weights(plan)
        if not plan.past or chosen_in_vain(plan.past, self.often):
            return plan.sizes
        chance = random.Random(f"{plan.seed}/{plan.update}/{type(self).__name__}")
        key = {
            example: (plan.under_way.count(example), chance.expovariate(1.0) / max(1e-9, weight))
            for example, weight in sorted(weights.items())
            if example not in usual
        }
        drawn = sorted(key, key=lambda example: key[example])  # the lowest are a weighted draw
        return self.sizes(plan, [*usual, *drawn][:n])

    def weights(self, plan: BatchPlan) -> Mapping[int, float]:
        """How much more often each example is drawn than another."""
        return dict.fromkeys(plan.training, 1.0)

    def sizes(self, plan: BatchPlan, chosen: Sequence[int]) -> Mapping[int, int]:
        """How many rollouts each of these gets."""
        return dict(zip(chosen, plan.sizes.values(), strict=False))


@dataclass(frozen=True, slots=True)
class PassRate:
    """A Beta distribution of the chance that a rollout of an example succeeds."""

    successes: float = 1.0
    failures: float = 1.0

    @property
    def mean(self) -> float:
        """The expected chance."""
        return self.successes / (self.successes + self.failures)

    @property
    def variance_of_a_rollout(self) -> float:
        """The expectation of p (1 - p): 1/6 where nothing is known, and less at both ends."""
        a, b = self.successes, self.failures
        return a * b / ((a + b) * (a + b + 1))


def fullest(sampled: SampledGroup) -> tuple[float, ...]:
    """The scores of the rollouts that had the most advice: those without it are trials of a gate.

    So advice that is on trial makes no example look as if its success were a matter of luck.
    """
    sizes = {
        rollout.rollout_id: len(additions.library)
        for rollout, additions in zip(sampled.group.all_rollouts, sampled.additions, strict=True)
    }
    rollouts = [r for r in sampled.unaided.rollouts if r.score is not None]
    most = max((sizes[r.rollout_id] for r in rollouts), default=0)
    return tuple(r.score or 0.0 for r in rollouts if sizes[r.rollout_id] == most)


def success_shares(past: Sequence[SampledGroup]) -> list[list[float]]:
    """The scores of each group, as shares (0 to 1) of the range of all scores; 0 of no range."""
    groups = [fullest(sampled) for sampled in past]
    of_run = NO_SCORES.including(s for sampled in past for s in sampled.unaided.scores)
    spread = 1.0 if of_run.is_flat else of_run.highest - of_run.lowest
    return [[(score - of_run.lowest) / spread for score in scores] for scores in groups]


def pass_rates(
    past: Sequence[SampledGroup], training: Iterable[int], weights: Sequence[float]
) -> dict[int, PassRate]:
    """The pass rate of each training example; `weights` say how much each past group counts."""
    all_shares = success_shares(past)
    usual = _prior([shares for shares in all_shares if len(shares) > 1])
    rates = dict.fromkeys(training, usual)
    for sampled, shares, weight in zip(past, all_shares, weights, strict=True):
        before, n_passed = rates.get(sampled.group.example, usual), sum(shares)
        rates[sampled.group.example] = PassRate(
            before.successes + weight * n_passed,
            before.failures + weight * (len(shares) - n_passed),
        )
    return rates


def _prior(groups: Sequence[Sequence[float]]) -> PassRate:
    """The Beta distribution of the examples' chances, by the moments of all groups.

    Where most groups have no contrast, its mass lies at both ends. Its correlation within a group
    is 1/3, that of equal chances from 0 to 1, with the weight of `PRIOR_GROUPS` groups.
    """
    shares = [share for group in groups for share in group]
    mean = (sum(shares) + 1) / (len(shares) + 2)
    within = [len(g) / (len(g) - 1) * fmean(g) * (1 - fmean(g)) for g in groups]
    alike = [1 - min(1.0, each / (mean * (1 - mean))) for each in within]
    correlation = (sum(alike) + PRIOR_GROUPS / 3) / (len(alike) + PRIOR_GROUPS)
    size = 1 / correlation - 1
    return PassRate(max(mean * size, LEAST), max((1 - mean) * size, LEAST))


def still_open(past: Sequence[SampledGroup], training: Iterable[int]) -> dict[int, float]:
    """Factors by example: what `LESSONS` groups have taught, and is still open, stays so."""
    taught = Counter(sampled.group.example for sampled in past if teaches(sampled))
    return {example: 1 / (1 + max(0, taught[example] - LESSONS)) for example in training}


def fails_with_words(past: Sequence[SampledGroup]) -> bool:
    """Whether failures teach in this run, because the metric says what was wrong."""
    failing: list[Group] = [s.unaided for s in past if not s.unaided.has_contrast]
    return any(group.has_feedback and not group.is_at_best({}) for group in failing)


def domains(plan: BatchPlan, domain: Domain) -> Mapping[int, Any]:
    """The domain of each example that may be chosen."""
    examples = {index: plan.trainset[index] for index in plan.training}
    if isinstance(domain, str):
        if lacking := [index for index, example in examples.items() if domain not in example]:
            fields = ", ".join(examples[lacking[0]].keys())
            raise SettingsError(f"domain={domain!r}: example {lacking[0]} has the fields {fields}.")
        return {index: example[domain] for index, example in examples.items()}
    return {index: domain(example) for index, example in examples.items()}
