"""DomainBandit: sample more from the domains that teach more."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from statistics import fmean
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.strategies.arguments import Least1, strategy
from tfgrpo_dspy.strategies.base import BatchPlan, Strategy
from tfgrpo_dspy.strategies.pass_rates import Domain, domains, mixed


@strategy
class DomainBandit(Strategy):
    """Chooses domains by an upper confidence bound on their mean absolute advantage.

    The absolute advantage of a rollout is 0 in a group without contrast and about 1 in others; its
    mean says how much a domain teaches. Each place of a batch goes to the domain of the highest
    bound; in the domain, to the example that was chosen least often.

    **Source.** DUMP (arXiv 2504.09710; distribution-level curriculum for reinforcement learning
    post-training).
    **Carried over.** The reward of a domain (its mean absolute advantage, of recent groups) and the
    upper confidence bound.
    **Not carried over.** The softmax over bounds: each place goes to the highest one, and what is
    already chosen counts as seen.
    **When to use.** Examples come from known domains, of which some are too easy or too hard.

    Args:
        domain: the name of the field, or the function of an example, that gives its domain.
        exploration: factor of the confidence bound, at least 0; 0 always takes what taught most.
        window: so many of the latest groups of a domain count.

    Raises:
        SettingsError: a setting is out of range.
    """

    domain: Domain
    exploration: Annotated[float, Field(ge=0, le=100)] = 0.5
    window: Least1 = 12

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        """An example of the domain with the highest bound for each place of the batch."""
        domain_of = domains(plan, self.domain)
        taught: defaultdict[Hashable, list[float]] = defaultdict(list)
        times: Counter[int] = Counter(each.group.example for each in plan.past)
        for each in plan.past:
            advantages = each.unaided.advantages
            if each.group.example in domain_of and advantages:
                taught[domain_of[each.group.example]].append(fmean(map(abs, advantages)))
        n_seen = Counter({domain: min(len(t), self.window) for domain, t in taught.items()})
        n_seen.update(domain_of[i] for i in plan.under_way if i in domain_of)
        means = {domain: fmean(t[-self.window :]) for domain, t in taught.items()}
        by_domain: defaultdict[Hashable, list[int]] = defaultdict(list)
        for example in sorted(mixed(plan), key=lambda i: -times[i] - plan.under_way.count(i)):
            by_domain[domain_of[example]].append(example)
        chosen: list[int] = []
        while len(chosen) < len(plan.sizes) and by_domain:
            total = math.log(1 + n_seen.total())
            best = max(
                by_domain,
                key=lambda own: (
                    means.get(own, 1.0) + self.exploration * math.sqrt(total / (n_seen[own] or 0.5))
                ),
            )
            chosen.append(by_domain[best].pop())
            n_seen[best] += 1
            if not by_domain[best]:
                del by_domain[best]
        return dict(zip(chosen, plan.sizes.values(), strict=False))
