"""How often each example succeeds, by the groups so far: what the choice of examples rests on."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.scores import NO_SCORES
from tfgrpo_dspy.strategies.base import BatchPlan

Domain = str | Callable[[Any], Any]
"""The domain of an example: the name of one of its fields, or a function of the example."""
PRIOR_GROUPS = 5
LEAST = 0.05  # of both parameters of a Beta distribution


@dataclass(frozen=True, slots=True)
class PassRate:
    """A Beta distribution of the chance that a rollout of an example succeeds."""

    successes: float = 1.0
    failures: float = 1.0

    @property
    def variance_of_a_rollout(self) -> float:
        """The expectation of p (1 - p): 1/6 where nothing is known, and less at both ends."""
        a, b = self.successes, self.failures
        return a * b / ((a + b) * (a + b + 1))

    def chance_of_contrast(self, n: int) -> float:
        """The expected chance that a group of `n` rollouts has both successes and failures."""
        a, b, all_pass, all_fail = self.successes, self.failures, 1.0, 1.0
        for k in range(n):
            all_pass *= (a + k) / (a + b + k)
            all_fail *= (b + k) / (a + b + k)
        return 1.0 - all_pass - all_fail


def success_shares(past: Sequence[SampledGroup]) -> list[list[float]]:
    """The scores of each group, as shares (0 to 1) of the range of all scores; 0 of no range."""
    groups = [each.unaided.scores for each in past]
    known = NO_SCORES.including(score for scores in groups for score in scores)
    spread = 1.0 if known.is_flat else known.highest - known.lowest
    return [[(score - known.lowest) / spread for score in scores] for scores in groups]


def pass_rates(
    past: Sequence[SampledGroup], training: Iterable[int], weights: Sequence[float]
) -> dict[int, PassRate]:
    """The pass rate of each training example; `weights` say how much each past group counts."""
    all_shares = success_shares(past)
    usual = _prior([shares for shares in all_shares if len(shares) > 1])
    rates = dict.fromkeys(training, usual)
    for each, shares, weight in zip(past, all_shares, weights, strict=True):
        before, n_passed = rates.get(each.group.example, usual), sum(shares)
        rates[each.group.example] = PassRate(
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


def mixed(plan: BatchPlan) -> list[int]:
    """The examples that may be chosen in an order that seed and update mix.

    Those of batches that are still being made stand last: their groups may change the choice.
    """
    order = list(plan.training)
    random.Random(f"{plan.seed}/{plan.update}/choose").shuffle(order)
    return sorted(order, key=lambda example: plan.under_way.count(example))


def domains(plan: BatchPlan, domain: Domain) -> Mapping[int, Any]:
    """The domain of each example that may be chosen."""
    examples = {index: plan.trainset[index] for index in plan.training}
    if isinstance(domain, str):
        if lacking := [index for index, example in examples.items() if domain not in example]:
            fields = ", ".join(examples[lacking[0]].keys())
            raise SettingsError(f"domain={domain!r}: example {lacking[0]} has the fields {fields}.")
        return {index: example[domain] for index, example in examples.items()}
    return {index: domain(example) for index, example in examples.items()}
