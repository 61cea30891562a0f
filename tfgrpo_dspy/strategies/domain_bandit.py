"""DomainBandit: sample more from the domains that teach more."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from statistics import fmean
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.strategies.arguments import NOT_ASYNC, Least1, Magnitude, strategy
from tfgrpo_dspy.strategies.base import BatchPlan
from tfgrpo_dspy.strategies.choosing import Choosing, Domain, domains


@strategy
class DomainBandit(Choosing):
    """Samples domains by a softmax over an upper confidence bound of how much they teach.

    The bound of a domain is L + exploration * sqrt(2 ln(n + 1) / (n_d + 1)): L is the mean absolute
    advantage of its latest groups (0 in a group without contrast, about 1 in others), n_d the
    number of its groups, n that of all. Domains have chances proportional to exp(bound /
    temperature); in a domain, the examples that came least often come first. Half of each batch is
    as usual.

    **Source.** DUMP (arXiv 2504.09710; distribution-level curriculum for reinforcement learning
    post-training): this bound, and this softmax.
    **When to use.** Examples come from known domains, of which some are too easy or too hard.

    Args:
        domain: the name of the field, or the function of an example, that gives its domain.
        exploration: factor of the confidence bound, at least 0; 0 takes what taught most.
        window: how many of the latest groups of a domain count, at least 1.
        temperature: .01 to 100; the lower, the more the best domain gets.
    """

    domain: Annotated[Domain, NOT_ASYNC]
    exploration: Annotated[float, Field(ge=0, le=100)] = 0.5
    window: Least1 = 12
    temperature: Magnitude = 0.1

    def weights(self, plan: BatchPlan) -> Mapping[int, float]:
        """The chance of its domain, shared among the examples that came least often."""
        domain_of = domains(plan, self.domain)
        taught: defaultdict[Hashable, list[float]] = defaultdict(list)
        times = Counter(plan.under_way)
        for sampled in plan.past:
            times[sampled.group.example] += 1
            advantages = sampled.unaided.advantages
            if sampled.group.example in domain_of and advantages:
                taught[domain_of[sampled.group.example]].append(fmean(map(abs, advantages)))
        n_all = sum(map(len, taught.values()))
        share = {example: 4.0 ** -times[example] for example in domain_of}
        whole: Counter[Hashable] = Counter()
        for example, domain in domain_of.items():
            whole[domain] += share[example]  # type: ignore[assignment]
        bounds = {}
        for domain in whole:
            latest = taught[domain][-self.window :]
            unsure = math.sqrt(2 * math.log(n_all + 1) / (len(taught[domain]) + 1))
            bounds[domain] = (fmean(latest) if latest else 0.0) + self.exploration * unsure
        highest = max(bounds.values(), default=0.0)
        return {
            example: math.exp((bounds[domain] - highest) / self.temperature)
            * (share[example] / whole[domain])
            for example, domain in domain_of.items()
        }
