"""HardSampleWeights: sample more of what scores low, so that the worst domain gets better."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from statistics import fmean
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.strategies.arguments import NOT_ASYNC, Least1, strategy
from tfgrpo_dspy.strategies.base import BatchPlan
from tfgrpo_dspy.strategies.choosing import Choosing, Domain, domains, success_shares

TRIED, WORSE = 2, 0.3
"""Groups of an example before it can be noise, and by how much it is worse than its domain."""


@strategy
class HardSampleWeights(Choosing):
    """Samples examples with weights exp(loss / temperature), without those that look like noise.

    The loss is 1 minus the mean score, as a share of the range of all scores: of the example, or of
    its domain. First the examples of the highest losses, compared with their domain (or with all
    examples), are set aside as noise: at most the share `noise` of all, of those that had two
    groups or more. Then the weights above maximise the weighted loss less `temperature` times the
    Kullback-Leibler divergence from equal weights. With a domain, each domain has the same weight
    before its loss is known, however few examples it has. Half of each batch is as usual.

    **Source.** Instance-reweighted distributionally robust optimization: the highest losses are
    discarded, the others reweighted by the closed form of the KL-regularised worst case.
    **When to use.** The worst domain counts, and has fewer examples than others.

    Args:
        domain: the name of the field, or the function of an example, that gives its domain; None:
            every example is its own.
        temperature: .01 to 1,000; the higher, the more equal are the weights.
        window: how many of the latest groups of a domain count, at least 1.
        noise: at most this share of the examples is set aside; 0 to 0.5.
    """

    often = math.inf  # it looks for what scores low, not for what teaches
    domain: Annotated[Domain | None, NOT_ASYNC] = None
    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 0.3
    window: Least1 = 6
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.1

    def weights(self, plan: BatchPlan) -> Mapping[int, float]:
        """exp(loss / temperature) of each example that is not set aside."""
        alone: dict[int, Hashable] = {example: example for example in plan.training}
        domain_of = alone if self.domain is None else domains(plan, self.domain)
        scores: defaultdict[Hashable, list[float]] = defaultdict(list)
        of_example: defaultdict[int, list[float]] = defaultdict(list)
        for sampled, shares in zip(plan.past, success_shares(plan.past), strict=True):
            if sampled.group.example in domain_of and shares:
                scores[domain_of[sampled.group.example]].append(fmean(shares))
                of_example[sampled.group.example].append(fmean(shares))
        losses = {name: 1 - fmean(of_one[-self.window :]) for name, of_one in scores.items()}
        usual = fmean(losses.values()) if losses else 0.0
        sizes, n_most = Counter(domain_of.values()), int(self.noise * len(domain_of))
        expected = {e: usual if self.domain is None else losses[domain_of[e]] for e in of_example}
        noise = set(_noise(of_example, expected)[:n_most])
        return {
            example: math.exp(losses.get(domain, usual) / self.temperature) / sizes[domain]
            for example, domain in domain_of.items()
            if example not in noise
        }


def _noise(scores: Mapping[int, list[float]], expected: Mapping[int, float]) -> list[int]:
    """The examples whose losses are far above what is expected, the furthest first."""
    excess = {e: 1 - fmean(of_one) - expected[e] for e, of_one in scores.items()}
    tried = [e for e, of_one in scores.items() if len(of_one) >= TRIED and excess[e] > WORSE]
    return sorted(tried, key=lambda e: (-excess[e], -len(scores[e]), e))
