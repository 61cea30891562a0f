"""LearningFrontier: train on the examples that are neither too easy nor too hard."""

from collections import defaultdict
from collections.abc import Mapping

from tfgrpo_dspy.strategies.arguments import Share, strategy
from tfgrpo_dspy.strategies.base import BatchPlan, Strategy
from tfgrpo_dspy.strategies.pass_rates import mixed, pass_rates


@strategy
class LearningFrontier(Strategy):
    """Prefers examples whose pass rate is neither 0 nor 1, and follows it as the library grows.

    The pass rate of an example is estimated by its groups, of which later ones count more. Examples
    without a group stand between those that had contrast and those that had none. An example whose
    latest group is the first that had contrast stands first: it has become learnable.

    **Source.** AceGRPO (arXiv 2602.07906; adaptive curriculum for group relative policy
    optimization).
    **Carried over.** Sampling by learnability, which is estimated anew all the time, and a buffer
    of examples that have become learnable.
    **Not carried over.** The learnability potential, which rests on gradients.
    **When to use.** Many examples always succeed, or always fail, and failures have no feedback in
    words that could teach something.

    Args:
        memory: how much a group counts, beside a group one epoch (of usual size) later; 0 to 1.

    Raises:
        SettingsError: `memory` is out of range.
    """

    memory: Share = 0.5

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        """The examples of the highest expected p (1 - p), and those that became learnable."""
        n_past, n_examples = len(plan.past), len(plan.training)
        weights = [self.memory ** ((n_past - 1 - k) / n_examples) for k in range(n_past)]
        rates = pass_rates(plan.past, plan.training, weights)
        contrasts: defaultdict[int, list[bool]] = defaultdict(list)
        for each in plan.past:
            contrasts[each.group.example].append(each.unaided.has_contrast)

        def rank(example: int) -> tuple[bool, bool, float]:
            had = contrasts[example]
            has_become = len(had) > 1 and had[-1] and not any(had[:-1])
            is_under_way = example in plan.under_way
            return is_under_way, not has_become, -rates[example].variance_of_a_rollout

        chosen = sorted(mixed(plan), key=rank)[: len(plan.sizes)]
        return dict(zip(chosen, plan.sizes.values(), strict=False))
