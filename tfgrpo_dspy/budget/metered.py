"""LMs that take their calls from the ledger, and the watcher of those that do not."""

import functools
import random
from typing import Any

import tenacity
from dspy.utils.callback import BaseCallback

from tfgrpo_dspy.budget.faults import is_passing, retry_after
from tfgrpo_dspy.budget.meter import POLL_S, Meter
from tfgrpo_dspy.rollout import SEED_RANGE, rollout_id_for

MIN_RETRIES = 8  # an LM that may retry at all (`num_retries` above 0) retries at least so often
FIRST_WAIT_S = 0.02
LONGEST_WAIT_S = 60.0
LONGEST_PAUSE_S = 300.0
"""A provider that asks for a longer pause is asked again after so many seconds."""


def metered(lm: Any, meter: Meter) -> Any:
    """The LM, a copy of the user's, made to report to the meter (as will copies of it)."""
    kind: Any = type(lm)
    lm.__class__ = _metered_class(kind)
    lm.tfgrpo_meter = meter
    return lm


@functools.cache
def _metered_class(kind: Any) -> Any:
    return kind if issubclass(kind, _Metered) else type(kind.__name__, (_Metered, kind), {})


class _Metered:
    """What a metered LM does besides what its own class does, which comes next in the order."""

    tfgrpo_meter: Meter
    kwargs: dict[str, Any]

    @property
    def num_retries(self) -> int:
        """None for DSPy, whatever the user or the program sets: the retries are made here."""
        return 0

    @num_retries.setter
    def num_retries(self, value: int) -> None:
        vars(self)["num_retries"] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tfgrpo_retried(super().__call__, *args, **kwargs)  # type: ignore[misc]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return await self.tfgrpo_aretried(super().acall, *args, **kwargs)  # type: ignore[misc]

    def tfgrpo_retried(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """What the call gives, each of its attempts taken from the budget."""
        meter = self.tfgrpo_meter

        def attempt() -> Any:
            while (taken := meter.take(self, args, kwargs)) is None:
                meter.ledger.wait(POLL_S)
            with meter.attempting(self, taken):
                return call(*args, **kwargs)

        with meter.noting(self):
            return tenacity.Retrying(sleep=meter.ledger.wait, **self._policy())(attempt)

    async def tfgrpo_aretried(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """The same in an event loop."""
        meter = self.tfgrpo_meter

        async def attempt() -> Any:
            while (taken := meter.take(self, args, kwargs)) is None:
                await meter.async_wait(POLL_S)
            with meter.attempting(self, taken):
                return await call(*args, **kwargs)

        with meter.noting(self):
            return await tenacity.AsyncRetrying(sleep=meter.async_wait, **self._policy())(attempt)

    def _policy(self) -> dict[str, Any]:
        n_retries = vars(self)["num_retries"] and max(vars(self)["num_retries"], MIN_RETRIES)
        return {
            "retry": tenacity.retry_if_exception(is_passing),
            "stop": tenacity.stop_after_attempt(1 + n_retries),
            "wait": _seconds_until_the_next,
            "reraise": True,
        }

    def update_history(self, entry: dict[str, Any]) -> None:
        self.tfgrpo_meter.answered(entry)
        if self.tfgrpo_meter.keeps_history:
            super().update_history(entry)  # type: ignore[misc]

    def copy(self, **changes: Any) -> Any:
        """A program that asks for another sample (another rollout id) gets another seed too."""
        seed, rollout_id = self.kwargs.get("seed"), changes.get("rollout_id")
        if seed is not None and rollout_id is not None and "seed" not in changes:
            changes["seed"] = rollout_id_for(seed, 0, 0, rollout_id, "copy") % SEED_RANGE
        return super().copy(**changes)  # type: ignore[misc]


def _seconds_until_the_next(state: tenacity.RetryCallState) -> float:
    """As long as the provider asks for, or twice as long as before, at random around that."""
    asked = retry_after(state.outcome.exception() if state.outcome else None)
    if asked is not None:
        return min(asked, LONGEST_PAUSE_S)
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (state.attempt_number - 1))
    return float(longest * random.uniform(0.5, 1.0))


class CallWatcher(BaseCallback):
    """Takes the calls of LMs that are not metered: those that a metric or a tool holds itself.

    DSPy tells of answers from its cache too, and of no retries. A BaseException is the veto.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        """Take the call, unless the LM does so itself."""
        if not isinstance(instance, _Metered):
            args = (inputs.get("prompt"), inputs.get("messages"))
            self._meter.take_unseen(instance, args, inputs.get("kwargs") or inputs)
