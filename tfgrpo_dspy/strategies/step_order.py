"""StepOrder: rewards rollouts whose steps come in a reference order."""

import itertools
from collections.abc import Callable, Hashable, Sequence
from statistics import fmean
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies.arguments import NOT_ASYNC, strategy
from tfgrpo_dspy.strategies.base import Scored, Strategy
from tfgrpo_dspy.strategies.objectives import Objectives

Steps = Callable[[Rollout], Sequence[Hashable]]


def step_names(rollout: Rollout) -> list[str]:
    """The names of the predictors and tools that were called, in order."""
    return [step.name for step in rollout.steps]


@strategy
class StepOrder(Strategy):
    """Adds the rank correlation of a rollout's steps with a reference order to its score.

    `order(rollout)` is Kendall's tau (-1 to 1) of the steps that both have, by their first
    occurrence; 0.0 where they share fewer than two. It is mixed in by `Objectives`: score and order
    are each divided by their standard deviation in the first batch. For more objectives, pass
    `computed={"order": StepOrder(reference).order}` to your own `Objectives`.

    **Source.** Bootstrapped mixed rewards: canonical action order (arXiv 2512.04277).
    **Carried over.** The reward for the order of a solver, mixed with that for the result.
    **When to use.** The result alone is rarely right, and a solver's order is known.

    Args:
        reference: the right order of steps, as a function of the rollout.
        steps: the order that the rollout took; default: the names of its predictors and tools.
        weight: of the order, beside 1 for the score; 0 to 10.
    """

    reference: Annotated[Steps, NOT_ASYNC]
    steps: Annotated[Steps, NOT_ASYNC] = step_names
    weight: Annotated[float, Field(ge=0, le=10)] = 0.3

    def order(self, rollout: Rollout) -> float:
        """Kendall's tau of the steps that both orders have, of which no two are in one place.

        So it is a mean over pairs; `scipy.stats`, which has it, takes half a second to import.
        """
        taken = {step: place for place, step in reversed([*enumerate(self.steps(rollout))])}
        wanted = [step for step in dict.fromkeys(self.reference(rollout)) if step in taken]
        if len(wanted) < 2:
            return 0.0
        pairs = itertools.combinations([taken[step] for step in wanted], 2)
        return fmean(1.0 if first < second else -1.0 for first, second in pairs)

    def reward(self, scored: Scored) -> Sequence[float | None]:
        """The scaled score with its share of the scaled order."""
        mixed = Objectives({"score": 1.0, "order": self.weight}, computed={"order": self.order})
        return mixed.reward(scored)
