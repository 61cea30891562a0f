"""Copies of LMs, one for each sample, and what is set on them."""

import functools
from typing import Any

import dspy
from dspy.utils.exceptions import LMConfigurationError

from tfgrpo_dspy.rollout import SEED_RANGE


def allows_temperature(lm: Any, temperature: float) -> bool:
    """Whether DSPy would build this LM with that temperature; reasoning models allow none."""
    if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return True
    return _can_be_built(lm.model, lm.model_type, temperature)


@functools.cache
def _can_be_built(model: str, model_type: Any, temperature: float) -> bool:
    try:
        dspy.LM(model, model_type=model_type, temperature=temperature)
    except LMConfigurationError:
        return False
    return True


def sampling_copy(lm: Any, rollout_id: int, temperature: float | None) -> Any:
    """A copy of the LM for one sample; `temperature` None leaves it at its own.

    `rollout_id` is part of DSPy's cache key only; an engine object is given a seed besides,
    and so is an LM to which its user gave one. At temperature 0 there is only one sample.
    """
    changes: dict[str, Any] = {}
    if temperature is not None and allows_temperature(lm, temperature):
        changes["temperature"] = temperature
    if {**getattr(lm, "kwargs", {}), **changes}.get("temperature") != 0:
        changes["rollout_id"] = rollout_id
        has_engine_object = not isinstance(getattr(lm, "engine", "none"), str)
        if has_engine_object or lm.kwargs.get("seed") is not None:
            changes["seed"] = rollout_id % SEED_RANGE
    return lm.copy(**changes)
