"""Objectives: several figures of the metric, scaled alike and weighted, some with a bound."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.checked import such_that
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.scores import MIN_CONTRAST
from tfgrpo_dspy.strategies.arguments import NOT_ASYNC, Numbers, strategy
from tfgrpo_dspy.strategies.base import Scored, Strategy

PENALTY = 10.0
"""Factor of the distance by which a rollout misses a bound, in standard deviations."""
NOTHING: Mapping[str, float] = MappingProxyType({})


@strategy
class Objectives(Strategy):
    """Rewards the weighted mean of several objectives, each in its standard deviations.

    The metric returns `dspy.Prediction(objectives={name: value}, feedback=...)`. Each objective is
    divided by its standard deviation in the first batch (by 1 where it is the same throughout), so
    that none drowns the others. Weights say what is learned; bounds say what may win: in the final
    choice, what a rollout lacks to a bound counts ten times. A rollout that lacks an objective has
    no score. All scores of the results are these rewards; `finalists` have the means of the
    objectives, and `print(detailed_results)` shows which candidates are not dominated.

    **Source.** Multi-reward GRPO for de-biasing (arXiv 2511.06023); bootstrapped mixed rewards
    (arXiv 2512.04277).
    **Carried over.** Several rewards with weights, each normalised by its own spread.
    **When to use.** The metric has several figures of different scales, or one that must not fall.

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
        scale = {name: self._spread(name, scored.first) for name in self._names}
        bounds = NOTHING if scored.is_training else self.never_below
        return [self._reward(rollout, scale, bounds) for rollout in scored.rollouts]

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys([*self.weights, *self.never_below]))

    def _reward(
        self, rollout: Rollout, scale: Mapping[str, float], bounds: Mapping[str, float]
    ) -> float | None:
        values = {name: self._value(name, rollout) for name in self._names}
        numbers = {name: value for name, value in values.items() if value is not None}
        if len(numbers) < len(values):
            return None
        mean = sum(w * numbers[name] / scale[name] for name, w in self.weights.items())
        lacking = ((max(0.0, low - numbers[n]), scale[n]) for n, low in bounds.items())
        penalty = PENALTY * sum(missing / spread for missing, spread in lacking)
        return mean / sum(self.weights.values()) - penalty

    def _spread(self, name: str, rollouts: Sequence[Rollout]) -> float:
        values = [self._value(name, rollout) for rollout in rollouts]
        numbers = [value for value in values if value is not None]
        if values and not numbers:
            raise SettingsError(
                f"objective {name!r}: the metric gave {sorted(rollouts[0].objectives)}; return "
                f"dspy.Prediction(objectives={{{name!r}: ...}}), or leave the name out."
            )
        spread = statistics.pstdev(numbers or [0.0])
        return spread if spread > MIN_CONTRAST else 1.0

    def _value(self, name: str, rollout: Rollout) -> float | None:
        if name in self.computed:
            return float(self.computed[name](rollout))
        return (rollout.score or 0.0) if name == "score" else rollout.objectives.get(name)
