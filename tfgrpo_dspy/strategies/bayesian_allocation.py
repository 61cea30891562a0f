"""BayesianAllocation: examples and numbers of rollouts by the contrast that is expected of them."""

import heapq
from collections.abc import Mapping

from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.strategies.arguments import Least2, Share, strategy
from tfgrpo_dspy.strategies.base import BatchPlan, Strategy
from tfgrpo_dspy.strategies.pass_rates import mixed, pass_rates

SMALLEST_GROUP = 2


@strategy
class BayesianAllocation(Strategy):
    """Gives rollouts to the examples where a further one is most likely to bring contrast.

    The pass rate of each example has a Beta posterior. Groups count less, the more the library has
    changed since. Rollouts are given one after the other to where they raise the expected number of
    groups with contrast most: a new group takes two, and a group may grow to `most`.

    **Source.** CurES (arXiv 2510.01037; curriculum by efficient sampling).
    **Carried over.** A Bayesian estimate of the chance of success, and both choices made by it:
    which examples, and how many rollouts of each.
    **Not carried over.** The analysis of gradients that leads there, and its learning rates.
    **When to use.** As `LearningFrontier`, if some examples need more than the usual number of
    rollouts to show contrast.

    Args:
        memory: how much a group still counts when no experience of its library is left; 0 to 1.
        most: rollouts of one example, at least 2.

    Raises:
        SettingsError: a setting is out of range.
    """

    memory: Share = 0.7
    most: Least2 = 3

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        """The sizes of the groups with the highest expected number of contrasts."""
        now = _advice(plan.past[-1]) if plan.past else frozenset()
        weights = [self._weight(_advice(each), now) for each in plan.past]
        rates = pass_rates(plan.past, plan.training, weights)
        left, sizes = sum(plan.sizes.values()), dict[int, int]()
        order = mixed(plan)
        gains = [rates[i].chance_of_contrast(SMALLEST_GROUP) / SMALLEST_GROUP for i in order]
        waiting = [(i in plan.under_way, -gains[k], k) for k, i in enumerate(order)]
        heapq.heapify(waiting)
        while waiting and left:
            is_under_way, _, k = heapq.heappop(waiting)
            example, n = order[k], sizes.get(order[k], 0)
            size = n + 1 if n else SMALLEST_GROUP
            if size - n > left:
                continue
            sizes[example], left = size, left - (size - n)
            if size < self.most:
                rate = rates[example]
                gain = rate.chance_of_contrast(size + 1) - rate.chance_of_contrast(size)
                heapq.heappush(waiting, (is_under_way, -gain, k))
        return sizes

    def _weight(self, then: frozenset[str], now: frozenset[str]) -> float:
        """1.0 for the same library, `memory` for one of which nothing is left."""
        either = then | now
        share = len(then & now) / len(either) if either else 1.0
        return self.memory + (1 - self.memory) * share


def _advice(sampled: SampledGroup) -> frozenset[str]:
    """The texts that the rollouts of the group were given."""
    return frozenset(each.text for given in sampled.given for each in given.library)
