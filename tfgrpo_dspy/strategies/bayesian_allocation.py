"""BayesianAllocation: examples and numbers of rollouts by a posterior of each pass rate."""

import math
from collections.abc import Mapping, Sequence

from tfgrpo_dspy.strategies.arguments import Least2, Magnitude, Share, strategy
from tfgrpo_dspy.strategies.base import BatchPlan
from tfgrpo_dspy.strategies.choosing import Choosing, PassRate, pass_rates, still_open
from tfgrpo_dspy.wording import alike

SMALLEST_GROUP = 2


@strategy
class BayesianAllocation(Choosing):
    """Samples examples by a softmax, and gives rollouts by the spread of their scores.

    The pass rate p of each example has a Beta posterior, in which groups count less, the more the
    library has changed since. The standard deviation s of a rollout's score is the root of the
    expectation of p (1 - p). Examples are sampled with chances proportional to exp(s /
    temperature), and those drawn have rollouts in proportion to s: from 2 to `most`. Examples from
    which lessons were drawn already count less (see `LearningFrontier`), and half of each batch is
    as usual.

    **Source.** CurES (arXiv 2510.01037): the chances of prompts are a softmax, rollouts go where
    the variance is, and pass rates are estimated by Bayes' rule.
    **When to use.** As `LearningFrontier`, if some examples need more than the usual number of
    rollouts to show contrast.

    Args:
        memory: how much a group still counts when no experience of its library is left; 0 to 1.
        most: rollouts of one example, at least 2.
        temperature: .01 to 100; the lower, the more go to the examples of the largest spread.
    """

    memory: Share = 0.7
    most: Least2 = 3
    temperature: Magnitude = 0.1

    def weights(self, plan: BatchPlan) -> Mapping[int, float]:
        """exp(s / temperature), less for those that have taught."""
        rates, is_open = self._rates(plan), still_open(plan.past, plan.training)
        return {
            example: math.exp(_spread(rates[example]) / self.temperature) * is_open[example]
            for example in plan.training
        }

    def sizes(self, plan: BatchPlan, chosen: Sequence[int]) -> Mapping[int, int]:
        """The usual group size for the first half; sizes by the spread for the drawn examples."""
        n_usual, left = math.ceil(len(plan.sizes) / 2), sum(plan.sizes.values())
        rates, sizes = self._rates(plan), dict[int, int]()
        spreads = [_spread(rates[example]) for example in chosen[n_usual:]]
        usual = sum(spreads) / len(spreads) if spreads else 1.0
        for place, example in enumerate(chosen):
            size = plan.group_size
            if place >= n_usual:
                wanted = round(plan.group_size * _spread(rates[example]) / usual)
                size = min(max(SMALLEST_GROUP, wanted), max(self.most, plan.group_size))
            if size > left:
                size = left
            if size < SMALLEST_GROUP:
                break
            sizes[example], left = size, left - size
        return sizes

    def _rates(self, plan: BatchPlan) -> dict[int, PassRate]:
        now = plan.past[-1].advice if plan.past else frozenset[str]()
        fresh = [alike(sampled.advice, now) for sampled in plan.past]
        weights = [self.memory + (1 - self.memory) * share for share in fresh]
        return pass_rates(plan.past, plan.training, weights)


def _spread(rate: PassRate) -> float:
    return math.sqrt(rate.variance_of_a_rollout)
