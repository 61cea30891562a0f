"""GlobalConstraint: rewards what serves a quantity of the whole, while that can still be moved."""

import statistics
from collections.abc import Callable, Sequence
from typing import Annotated

from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.scores import MIN_CONTRAST
from tfgrpo_dspy.strategies.arguments import NOT_ASYNC, Magnitude, strategy
from tfgrpo_dspy.strategies.base import Scored, Strategy

MEAN_STRENGTH = 2 / 3  # of 4 * level * (1 - level), over all levels from 0 to 1


@strategy
class GlobalConstraint(Strategy):
    """Adds a reward for a quantity of the whole, such as how many agents cooperate.

    What it does: the level is the mean of `quantity(rollout)` over a training batch, and each
    rollout counts with `score + weight * spread * 4 * level * (1 - level) * quantity(rollout)`.
    `spread` is the standard deviation of the scores of the first batch (1 where they are all the
    same), so the weight means the same for every metric. The term is strong at intermediate levels;
    where nobody or everybody contributes, it is 0, and the score alone counts.

    At the end, student and result are compared by `score + weight * spread * 2/3 * quantity`: 2/3
    is the mean strength over all levels. By the score alone the student would win back what the
    term was meant to change; and with the level of the rollouts that are compared, those of one
    program would change what the others' count with. So `detailed_results` shows validation and
    test with the term; for the metric alone, evaluate the program with `dspy.Evaluate`.

    **Source.** GRPO-GCC (arXiv 2510.08607).
    **Carried over.** A global term, strong at intermediate levels and weak at the extremes.
    **When to use.** What is good for one agent or answer harms the whole, such as the use of a
    shared resource, and the metric cannot say so of a single rollout.

    Args:
        quantity: what a rollout contributes, from 0 to 1; a function of a rollout alone, such as
            `lambda rollout: rollout.outputs["decision"] == "cooperate"`.
        weight: how many standard deviations of the score a contribution is worth at most; .01 to
            100.
    """

    quantity: Annotated[Callable[[Rollout], float], NOT_ASYNC]
    weight: Magnitude = 1.0

    def reward(self, scored: Scored) -> Sequence[float]:
        """The scores, and what the contributions are worth."""
        contributed = [self._contribution(rollout) for rollout in scored.rollouts]
        strength = MEAN_STRENGTH
        if scored.is_training and contributed:
            level = statistics.fmean(contributed)
            strength = 4 * level * (1 - level)
        scores = [rollout.score or 0.0 for rollout in scored.first] or [0.0]
        spread = statistics.pstdev(scores)
        worth = self.weight * strength * (spread if spread > MIN_CONTRAST else 1.0)
        pairs = zip(scored.rollouts, contributed, strict=True)
        return [(rollout.score or 0.0) + worth * contribution for rollout, contribution in pairs]

    def _contribution(self, rollout: Rollout) -> float:
        quantity = float(self.quantity(rollout))
        if not 0 <= quantity <= 1:
            message = f"quantity(rollout)={quantity!r}; return a number from 0 to 1"
            raise ValueError(message)
        return quantity
