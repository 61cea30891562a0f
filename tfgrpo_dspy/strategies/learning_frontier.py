"""LearningFrontier: train on the examples that are neither too easy nor too hard."""

from collections.abc import Mapping

from tfgrpo_dspy.strategies.arguments import Share, strategy
from tfgrpo_dspy.strategies.base import BatchPlan
from tfgrpo_dspy.strategies.choosing import Choosing, fails_with_words, pass_rates, still_open


@strategy
class LearningFrontier(Choosing):
    """Draws examples by how much can still be learned of them, as the library grows.

    An example is drawn with a chance that is proportional to the square of its learnability: the
    expectation of p (1 - p), where p is its pass rate under the latest library; where failures come
    with feedback, also that of (1 - p)^2, as they teach, too. From the third group on that taught,
    it is divided by their number: what stays open after many lessons is not learnable. Half of each
    batch is as usual, and all of it where that teaches often, or the drawn half does not more.

    **Source.** AceGRPO (arXiv 2602.07906): an evolving buffer of tasks, sampled by a learnability
    potential.
    **When to use.** Many examples always succeed, or always fail, and failures have no feedback in
    words that could teach something.

    Args:
        memory: how much a group counts, beside a group one epoch (of usual size) later; 0 to 1.
    """

    memory: Share = 0.5

    def weights(self, plan: BatchPlan) -> Mapping[int, float]:
        """The learnability of each example."""
        n_past, n_examples = len(plan.past), len(plan.training)
        weights = [self.memory ** ((n_past - 1 - k) / n_examples) for k in range(n_past)]
        rates = pass_rates(plan.past, plan.training, weights)
        is_open, words = still_open(plan.past, plan.training), fails_with_words(plan.past)
        worth = {}
        for example in plan.training:
            rate = rates[example]
            failing = 1 - rate.mean - rate.variance_of_a_rollout  # the expectation of (1 - p)^2
            learnability = rate.variance_of_a_rollout + words * failing
            worth[example] = learnability**2 * is_open[example]
        return worth
