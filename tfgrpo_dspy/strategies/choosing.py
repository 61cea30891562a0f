"""Strategies that choose the examples of a batch, and how many rollouts each of them gets.

They draw one half of each batch; the other is the usual schedule's, so that no example is
forgotten, and that it shows whether choosing pays.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.rollout import NO_SCORES
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.strategies import base

Domain = Annotated[str | Callable[[Any], Any], base.NOT_ASYNC]
"""The domain of an example: the name of one of its fields, or a function of the example."""
LATEST, ENOUGH, MORE, OFTEN = 60, 8, 0.05, 1 / 4
"""Choosing stops if, in the latest 60 groups with at least 8 in both halves, the chosen half does
not teach more often by .05, or the usual half teaches in a quarter: then enough groups teach."""
PRIOR_GROUPS = 5
OF_BANDIT, OF_WEIGHTS = 12, 6  # the latest groups of a domain that count for its teaching, its loss
LOSS_SCALE = 0.3  # of weights: the higher, the more equal they are
LEAST = 0.05  # of both parameters of a Beta distribution
LESSONS = 2  # groups of an example that teach, before more of them count less
SMALLEST_GROUP = 2
TRIED, WORSE = 2, 0.3
"""Groups of an example before it can be noise, and by how much it is worse than its domain."""


class Choosing(base.Strategy):
    """Draws half of each batch by `weights`, where that teaches more, and the other half seldom."""

    often = OFTEN

    def choose(self, plan: base.BatchPlan) -> Mapping[int, int]:
        usual = list(plan.sizes)[: math.ceil(len(plan.sizes) / 2)]
        weights = self.weights(plan)
        if not plan.past or self._is_in_vain(plan.past):
            return plan.sizes
        chance = random.Random(f"{plan.seed}/{plan.update}/{type(self).__name__}")
        key = {
            example: (plan.under_way.count(example), chance.expovariate(1.0) / max(1e-9, weight))
            for example, weight in sorted(weights.items())
            if example not in usual
        }
        drawn = sorted(key, key=lambda example: key[example])  # the lowest are a weighted draw
        return self.sizes(plan, [*usual, *drawn][: len(plan.sizes)])

    def weights(self, plan: base.BatchPlan) -> Mapping[int, float]:
        """The weight of each example: how much more often it is drawn than another."""
        raise NotImplementedError

    def sizes(self, plan: base.BatchPlan, chosen: Sequence[int]) -> Mapping[int, int]:
        """The number of rollouts of each of these."""
        return dict(zip(chosen, plan.sizes.values(), strict=False))

    def _is_in_vain(self, past: Sequence[SampledGroup]) -> bool:
        """True if the first halves of the latest batches teach often, or no less than the second"""
        usual, chosen = list[bool](), list[bool]()
        for _, of_update in groupby(past[-LATEST:], key=lambda sampled: sampled.update):
            batch = [_teaches(sampled) for sampled in of_update]
            half = math.ceil(len(batch) / 2)
            usual, chosen = usual + batch[:half], chosen + batch[half:]
        has_enough = min(len(usual), len(chosen)) >= ENOUGH
        return (has_enough and fmean(chosen) < fmean(usual) + MORE) or fmean(usual) >= self.often


def _teaches(sampled: SampledGroup) -> bool:
    """True if lessons can come of the group: it has contrast, or fails with feedback."""
    group = sampled.unaided
    return group.has_contrast or (group.has_feedback and not group.is_at_best({}))


def variance(won: float, lost: float) -> float:
    """The expectation of p (1 - p), where the chance p is of this Beta distribution.

    1/6 where nothing is known (1, 1), and less at both ends.
    """
    return won * lost / ((won + lost) * (won + lost + 1))


def fullest(sampled: SampledGroup) -> list[float]:
    """The scores of the rollouts that had the most advice: the others are trials of a gate."""
    rollouts = [r for r in sampled.unaided.rollouts if r.score is not None]
    sizes = [len(sampled.additions_of(rollout).library) for rollout in rollouts]
    return [r.score or 0.0 for r, size in zip(rollouts, sizes, strict=True) if size == max(sizes)]


def success_shares(past: Sequence[SampledGroup]) -> list[list[float]]:
    """The scores of each group, as shares (0 to 1) of the range of all scores; 0 of no range."""
    of_run = NO_SCORES.including(s for sampled in past for s in sampled.unaided.scores)
    spread = 1.0 if of_run.is_flat else of_run.highest - of_run.lowest
    return [[(score - of_run.lowest) / spread for score in fullest(each)] for each in past]


def pass_rates(plan: base.BatchPlan, memory: float) -> dict[int, tuple[float, float]]:
    """The Beta distribution of the chance that a rollout of each training example succeeds.

    `memory` is how much a group counts, beside a group one epoch (of usual size) later.
    The prior is the Beta distribution of the examples' chances, by the moments of all groups: where
    most have no contrast, its mass lies at both ends. Its correlation within a group is 1/3, that
    of equal chances from 0 to 1, with the weight of `PRIOR_GROUPS` groups.
    """
    all_shares, n_past, n_examples = success_shares(plan.past), len(plan.past), len(plan.training)
    groups = [shares for shares in all_shares if len(shares) > 1]
    every = [share for group in groups for share in group]
    mean = (sum(every) + 1) / (len(every) + 2)
    within = [len(g) / (len(g) - 1) * fmean(g) * (1 - fmean(g)) for g in groups]
    alike_within = [1 - min(1.0, each / (mean * (1 - mean))) for each in within]
    size = (len(groups) + PRIOR_GROUPS) / (sum(alike_within) + PRIOR_GROUPS / 3) - 1
    usual = max(mean * size, LEAST), max((1 - mean) * size, LEAST)
    rates = dict.fromkeys(plan.training, usual)
    for k, (sampled, shares) in enumerate(zip(plan.past, all_shares, strict=True)):
        (won, lost), n = rates.get(sampled.group.example, usual), sum(shares)
        weight = memory ** ((n_past - 1 - k) / n_examples)
        rates[sampled.group.example] = won + weight * n, lost + weight * (len(shares) - n)
    return rates


def _domains(plan: base.BatchPlan, domain: Domain | None) -> Mapping[int, Hashable]:
    """The domain of each example that may be chosen; None: each is its own."""
    examples = {index: plan.trainset[index] for index in plan.training}
    if domain is None:
        return {index: index for index in examples}
    if not isinstance(domain, str):
        return {index: domain(example) for index, example in examples.items()}
    if lacking := [index for index, example in examples.items() if domain not in example]:
        fields = ", ".join(examples[lacking[0]].keys())
        raise SettingsError(f"domain={domain!r}: example {lacking[0]} has the fields {fields}.")
    return {index: example[domain] for index, example in examples.items()}


@base.strategy
class LearningFrontier(Choosing):
    """Draws examples by how much can still be learned of them, as the library grows.

    The chance of an example is proportional to the square of its learnability: the expectation of
    p (1 - p), where p is its pass rate under the latest library, of a Beta posterior; where
    failures come with feedback, also that of (1 - p)^2. From the third group on that taught, it is
    divided by their number. Sources: AceGRPO (arXiv 2602.07906); `most`: CurES (arXiv 2510.01037).

    Args:
        memory: how much a group counts, beside a group one epoch (of usual size) later; 0 to 1.
        most: rollouts of one example, at least 2: those drawn have rollouts in proportion to the
            root of the expectation of p (1 - p); None: as many as usual.
    """

    memory: base.Share = 0.5
    most: base.Least2 | None = None

    def weights(self, plan: base.BatchPlan) -> Mapping[int, float]:
        rates = pass_rates(plan, self.memory)
        failing = [s.unaided for s in plan.past if not s.unaided.has_contrast]
        has_words = any(group.has_feedback and not group.is_at_best({}) for group in failing)
        taught = Counter(sampled.group.example for sampled in plan.past if _teaches(sampled))
        worth = {}
        for example in plan.training:
            (won, lost), n_more = rates[example], max(0, taught[example] - LESSONS)
            of_both = variance(won, lost)
            of_failing = lost / (won + lost) - of_both  # the expectation of (1 - p)^2
            worth[example] = (of_both + has_words * of_failing) ** 2 / (1 + n_more)
        return worth

    def sizes(self, plan: base.BatchPlan, chosen: Sequence[int]) -> Mapping[int, int]:
        if self.most is None:
            return super().sizes(plan, chosen)
        half, left = math.ceil(len(plan.sizes) / 2), sum(plan.sizes.values())
        rates, sizes = pass_rates(plan, self.memory), dict[int, int]()
        spreads = {
            e: math.sqrt(variance(won, lost)) for e in chosen[half:] for won, lost in [rates[e]]
        }
        for example in chosen:
            size = plan.group_size
            if example in spreads:
                wanted = round(size * spreads[example] / fmean(spreads.values()))
                size = min(max(SMALLEST_GROUP, wanted), max(self.most, size))
            if min(size, left) < SMALLEST_GROUP:
                break
            sizes[example] = min(size, left)
            left -= sizes[example]
        return sizes


@base.strategy
class DomainBandit(Choosing):
    """Samples domains by a softmax over an upper confidence bound of how much they teach.

    The bound of a domain is L + exploration * sqrt(2 ln(n + 1) / (n_d + 1)), its chance in
    proportion to exp(bound / temperature): L is the mean absolute advantage of its latest groups,
    n_d the number of its groups, n that of all. In a domain, the examples that came least often
    come first. Source: DUMP (arXiv 2504.09710).

    Args:
        domain: the name of the field, or the function of an example, that gives its domain.
        exploration: factor of the confidence bound, 0 to 100; 0 takes what taught most.
        temperature: .01 to 100; the lower, the more the best domain gets.
    """

    domain: Domain
    exploration: Annotated[float, Field(ge=0, le=100)] = 0.5
    temperature: base.Magnitude = 0.1

    def weights(self, plan: base.BatchPlan) -> Mapping[int, float]:
        domain_of = _domains(plan, self.domain)
        taught: defaultdict[Hashable, list[float]] = defaultdict(list)
        times = Counter([*plan.under_way, *(sampled.group.example for sampled in plan.past)])
        for sampled in plan.past:
            advantages = sampled.unaided.advantages
            if sampled.group.example in domain_of and advantages:
                taught[domain_of[sampled.group.example]].append(fmean(map(abs, advantages)))
        unsure = 2 * math.log(sum(map(len, taught.values())) + 1)
        bounds = {
            domain: fmean(taught[domain][-OF_BANDIT:] or [0.0])
            + self.exploration * math.sqrt(unsure / (len(taught[domain]) + 1))
            for domain in domain_of.values()
        }
        highest = max(bounds.values(), default=0.0)
        share = {example: 4.0 ** -times[example] for example in domain_of}
        whole: defaultdict[Hashable, float] = defaultdict(float)
        for example, domain in domain_of.items():
            whole[domain] += share[example]
        return {
            example: math.exp((bounds[domain] - highest) / self.temperature)
            * (share[example] / whole[domain])
            for example, domain in domain_of.items()
        }


@base.strategy
class HardSampleWeights(Choosing):
    """Samples examples with weights exp(loss / 0.3), without those that look like noise.

    The loss is 1 minus the mean score of its domain, as a share of the range of all scores. First
    the examples of the highest losses, compared with their domain (or with all examples), are set
    aside as noise, of those that had two groups or more. Source: instance-reweighted
    distributionally robust optimization (arXiv 2402.14270).

    Args:
        domain: as for `DomainBandit`; None: every example is its own.
        noise: at most this share of the examples is set aside; 0 to 0.5.
    """

    often = math.inf  # it looks for what scores low, not for what teaches
    domain: Domain | None = None
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.1

    def weights(self, plan: base.BatchPlan) -> Mapping[int, float]:
        domain_of = _domains(plan, self.domain)
        scores: defaultdict[Hashable, list[float]] = defaultdict(list)
        of_example: defaultdict[int, list[float]] = defaultdict(list)
        for sampled, shares in zip(plan.past, success_shares(plan.past), strict=True):
            if sampled.group.example in domain_of and shares:
                scores[domain_of[sampled.group.example]].append(fmean(shares))
                of_example[sampled.group.example].append(fmean(shares))
        losses = {name: 1 - fmean(of_one[-OF_WEIGHTS:]) for name, of_one in scores.items()}
        usual = fmean(losses.values()) if losses else 0.0
        excess = {
            e: 1 - fmean(of_one) - (usual if self.domain is None else losses[domain_of[e]])
            for e, of_one in of_example.items()
        }
        worse = [e for e, n in of_example.items() if len(n) >= TRIED and excess[e] > WORSE]
        ranked = sorted(worse, key=lambda e: (-excess[e], -len(of_example[e]), e))
        noise = set(ranked[: int(self.noise * len(domain_of))])
        sizes = Counter(domain_of.values())
        return {
            example: math.exp(losses.get(domain, usual) / LOSS_SCALE) / sizes[domain]
            for example, domain in domain_of.items()
            if example not in noise
        }
