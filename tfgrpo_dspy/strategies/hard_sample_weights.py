"""HardSampleWeights: sample more of what scores low, so that the worst domain gets better."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from statistics import fmean
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.strategies.arguments import Least1, strategy
from tfgrpo_dspy.strategies.base import BatchPlan, Strategy
from tfgrpo_dspy.strategies.pass_rates import Domain, domains, success_shares


@strategy
class HardSampleWeights(Strategy):
    """Samples examples with weights exp(loss / temperature): the worst of similar distributions.

    The loss is 1 minus the mean score, as a share of the range of all scores: of the example, or of
    its domain. These weights maximise the weighted loss less `temperature` times the
    Kullback-Leibler divergence from equal weights. With a domain, each domain has the same weight
    before its loss is known, however few examples it has.

    **Source.** Instance-reweighted distributionally robust optimization.
    **Carried over.** The weights, which are the closed form of the KL-regularised worst case.
    **Not carried over.** Reweighting gradients: here, weights are chances to be sampled.
    **When to use.** The worst domain counts, and has fewer examples than others. Without `domain`,
    examples that nobody can solve take calls from others.

    Args:
        domain: the name of the field, or the function of an example, that gives its domain; None:
            every example is its own.
        temperature: .01 to 1,000; the higher, the more equal are the weights.
        window: so many of the latest groups of a domain count.

    Raises:
        SettingsError: a setting is out of range.
    """

    domain: Domain | None = None
    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 0.3
    window: Least1 = 6

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        """Examples drawn by their weights, without any twice."""
        own = {example: example for example in plan.training}
        domain_of = own if self.domain is None else domains(plan, self.domain)
        scores: defaultdict[Hashable, list[float]] = defaultdict(list)
        for each, shares in zip(plan.past, success_shares(plan.past), strict=True):
            if each.group.example in domain_of and shares:
                scores[domain_of[each.group.example]].append(fmean(shares))
        known = {name: 1 - fmean(of_one[-self.window :]) for name, of_one in scores.items()}
        usual = fmean(known.values()) if known else 0.0
        sizes = Counter(domain_of.values())
        rng = random.Random(f"{plan.seed}/{plan.update}/HardSampleWeights")
        key = {}
        for example, domain in domain_of.items():
            weight = math.exp(known.get(domain, usual) / self.temperature) / sizes[domain]
            waits = example in plan.under_way and self.domain is None
            key[example] = (waits, rng.expovariate(1.0) / weight)  # the lowest are a weighted draw
        chosen = sorted(key, key=lambda example: key[example])[: len(plan.sizes)]
        return dict(zip(chosen, plan.sizes.values(), strict=False))
