"""How much of a limited budget the validation set and the gate may take, in rollouts."""

import random

from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.settings import LEAST_VALIDATION, Settings

VALIDATION_SHARE = 0.05
"""What one measurement on the validation set may take; student and result are measured."""
GATE_SHARE = 0.5
"""What all trials may take, the measurement of the student included."""


_ROUNDING = 1e-9


def affordable(settings: Settings, share: float, spent: Usage, n_rollouts: int) -> int | None:
    """How many rollouts this share of the budget pays for; None: nothing limits them.

    `spent` is what so many rollouts have cost.
    """
    used = used_up(settings, spent, n_rollouts)
    return int(share * n_rollouts / used + _ROUNDING) if used else None


def used_up(settings: Settings, spent: Usage, n_rollouts: int) -> float:
    """The share of the budget that this is, by the limit that it uses up most; 0: without limits.

    Calls that a cache answered count as well, so that a run that is repeated decides the same (what
    they would have cost is not known).
    """
    limits = (
        (settings.max_metric_calls, float(n_rollouts)),
        (settings.max_lm_calls, float(spent.n_lm_calls + spent.n_cached_calls)),
        (settings.max_cost, spent.cost_usd),
    )
    return max((cost / most for most, cost in limits if most is not None), default=0.0)


def order_of(n_examples: int, settings: Settings) -> tuple[int, ...] | None:
    """The validation examples in random order, if the budget may reach for the first ones only."""
    limits = (settings.max_metric_calls, settings.max_lm_calls, settings.max_cost)
    if n_examples <= LEAST_VALIDATION or all(limit is None for limit in limits):
        return None
    mixed = random.Random(f"validation/{settings.seed}").sample(range(n_examples), n_examples)
    return tuple(mixed)
