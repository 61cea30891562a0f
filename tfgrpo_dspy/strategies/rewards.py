"""Strategies that change what a rollout counts with."""

import itertools
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import field
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.errors import SettingsError, such_that
from tfgrpo_dspy.rollout import MIN_CONTRAST, Rollout
from tfgrpo_dspy.strategies.base import NOT_ASYNC, Magnitude, Scored, Strategy, strategy

PENALTY = 10.0
"""Factor of the distance by which a rollout misses a bound, in standard deviations."""
MEAN_STRENGTH = 2 / 3  # of 4 * level * (1 - level), over all levels from 0 to 1
Numbers = Mapping[str, Annotated[float, Field(allow_inf_nan=False, ge=-1e150, le=1e150)]]
Steps = Callable[[Rollout], Sequence[Hashable]]


def _spread(numbers: Sequence[float]) -> float:
    """Their standard deviation; 1 where they are the same throughout."""
    spread = statistics.pstdev(numbers or [0.0])
    return spread if spread > MIN_CONTRAST else 1.0


@strategy
class Objectives(Strategy):
    """Rewards the weighted mean of several objectives, each in its standard deviations.

    The metric returns `dspy.Prediction(objectives={name: value}, feedback=...)`. Each objective is
    divided by its standard deviation in the first batch (by 1 where it is the same throughout).
    Weights say what is learned; bounds say what may win: in the final choice, what a rollout lacks
    to a bound counts ten times. A rollout that lacks an objective has no score. All scores of the
    results are these rewards; `finalists` have the means of the objectives.

    **Source.** Multi-reward GRPO (arXiv 2511.06023), bootstrapped mixed rewards (arXiv 2512.04277).

    Args:
        weights: by name, 0 or more; of each objective, more is better. "score" is the metric's.
        never_below: what some objectives should have at least in every rollout, by name.
        computed: further objectives, as functions of a rollout (such as `StepOrder(...).order`).
    """

    weights: Annotated[
        Mapping[str, Annotated[float, Field(ge=0, le=1e150)]],
        such_that(lambda weights: any(weights.values()), "pass a weight that is not 0"),
    ]
    never_below: Numbers = field(default_factory=dict)
    computed: Mapping[str, Annotated[Callable[[Rollout], float], NOT_ASYNC]] = field(
        default_factory=dict
    )

    def reward(self, scored: Scored) -> Sequence[float | None]:
        """The weighted mean of the scaled objectives, less what is lacking to the bounds."""
        names = dict.fromkeys([*self.weights, *self.never_below])
        scale: dict[str, float] = {}
        for name in names:
            values = [self._value(name, rollout) for rollout in scored.first]
            numbers = [value for value in values if value is not None]
            if values and not numbers:
                raise SettingsError(
                    f"objective {name!r}: the metric gave {sorted(scored.first[0].objectives)}; "
                    f"return dspy.Prediction(objectives={{{name!r}: ...}}), or leave the name out."
                )
            scale[name] = _spread(numbers)
        bounds = {} if scored.is_training else self.never_below

        def reward(rollout: Rollout) -> float | None:
            values = {n: x for n in names if (x := self._value(n, rollout)) is not None}
            if len(values) < len(names):
                return None
            mean = sum(w * values[name] / scale[name] for name, w in self.weights.items())
            lacking = (max(0.0, low - values[n]) / scale[n] for n, low in bounds.items())
            return mean / sum(self.weights.values()) - PENALTY * sum(lacking)

        return list(map(reward, scored.rollouts))

    def _value(self, name: str, rollout: Rollout) -> float | None:
        if name in self.computed:
            return float(self.computed[name](rollout))
        return (rollout.score or 0.0) if name == "score" else rollout.objectives.get(name)


def step_names(rollout: Rollout) -> list[str]:
    """The names of the predictors and tools that were called, in order."""
    return [step.name for step in rollout.steps]


@strategy
class StepOrder(Strategy):
    """Adds the rank correlation of a rollout's steps with a reference order to its score.

    `order(rollout)` is Kendall's tau (-1 to 1) of the steps that both have, by their first
    occurrence; 0.0 where they share fewer than two. `Objectives` mixes it in; for more objectives,
    pass `computed={"order": StepOrder(reference).order}` to your own.

    **Source.** Bootstrapped mixed rewards: canonical action order (arXiv 2512.04277).

    Args:
        reference: the right order of steps, as a function of the rollout.
        steps: the order that the rollout took; default: the names of its predictors and tools.
        weight: of the order, beside 1 for the score; 0 to 10.
    """

    reference: Annotated[Steps, NOT_ASYNC]
    steps: Annotated[Steps, NOT_ASYNC] = step_names
    weight: Annotated[float, Field(ge=0, le=10)] = 0.3

    def order(self, rollout: Rollout) -> float:
        """Kendall's tau of the steps that both orders have (`scipy.stats` is slow to import)."""
        taken = {step: place for place, step in reversed([*enumerate(self.steps(rollout))])}
        wanted = [step for step in dict.fromkeys(self.reference(rollout)) if step in taken]
        if len(wanted) < 2:
            return 0.0
        pairs = itertools.combinations([taken[step] for step in wanted], 2)
        return statistics.fmean(1.0 if first < second else -1.0 for first, second in pairs)

    def reward(self, scored: Scored) -> Sequence[float | None]:
        """The scaled score with its share of the scaled order."""
        mixed = Objectives({"score": 1.0, "order": self.weight}, computed={"order": self.order})
        return mixed.reward(scored)


@strategy
class GlobalConstraint(Strategy):
    """Adds a reward for a quantity of the whole, such as how many agents cooperate.

    The level is the mean of `quantity(rollout)` over a training batch, and each rollout counts with
    `score + weight * spread * 4 * level * (1 - level) * quantity(rollout)`, which is strong at
    intermediate levels. `spread` is the standard deviation of the scores of the first batch (1
    where they are all the same). At the end, student and result are compared by
    `score + weight * spread * 2/3 * quantity`, with the mean strength over all levels.

    **Source.** GRPO-GCC (arXiv 2510.08607).

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
        contributed = [float(self.quantity(rollout)) for rollout in scored.rollouts]
        for quantity in contributed:
            if not 0 <= quantity <= 1:
                raise ValueError(f"quantity(rollout)={quantity!r}; return a number from 0 to 1")
        strength = MEAN_STRENGTH
        if scored.is_training and contributed:
            level = statistics.fmean(contributed)
            strength = 4 * level * (1 - level)
        spread = _spread([rollout.score or 0.0 for rollout in scored.first])
        worth = self.weight * strength * spread
        pairs = zip(scored.rollouts, contributed, strict=True)
        return [(rollout.score or 0.0) + worth * contribution for rollout, contribution in pairs]
