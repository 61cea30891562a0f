"""The LM copies that take their calls from the ledger, and the watchers of all other LMs."""

import functools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import dspy
import tenacity
from dspy.utils.callback import BaseCallback

from tfgrpo_dspy.budget.faults import is_passing, retry_after
from tfgrpo_dspy.budget.meter import ATTEMPT, Meter
from tfgrpo_dspy.rollout import SEED_RANGE, rollout_id_for

MIN_RETRIES = 8
"""An LM that may retry at all (`num_retries` above 0) retries at least so often: the first waits
are short, so that a refusal costs little, and all together last some seconds."""
FIRST_WAIT_S = 0.02
LONGEST_WAIT_S = 60.0


def metered(lm: Any, meter: Meter) -> Any:
    """The LM, a copy of the user's, made to report to the meter (as will copies of it)."""
    kind: Any = type(lm)
    lm.__class__ = _metered_class(kind)
    lm.tfgrpo_meter = meter
    lm.callbacks = [c for c in lm.callbacks if not isinstance(c, _RunWatcher)]
    return lm


@functools.cache
def _metered_class(kind: Any) -> Any:
    return kind if issubclass(kind, _Metered) else type(kind.__name__, (_Metered, kind), {})


class _Forward:
    """`forward` or `aforward` of a metered LM: metered on an LM, its own function on the class.

    DSPy compares the function on the class with its own, to tell its own LMs from users'.
    """

    def __set_name__(self, owner: Any, name: str) -> None:
        self._name = name

    def __get__(self, lm: Any, owner: Any) -> Any:
        forward = getattr(super(_Metered, owner if lm is None else lm), self._name)
        if lm is None or ATTEMPT.get() is not None:  # by `__call__`, which is metered itself
            return forward
        is_async = self._name == "aforward"
        retried = lm.tfgrpo_async_retried if is_async else lm.tfgrpo_retried
        return functools.partial(retried, forward)


class _Metered:
    """What a metered LM does besides what its own class does, which comes next in the order."""

    tfgrpo_meter: Meter
    model: str
    kwargs: dict[str, Any]
    forward = _Forward()
    aforward = _Forward()

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
        return await self.tfgrpo_async_retried(super().acall, *args, **kwargs)  # type: ignore[misc]

    def tfgrpo_retried(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """What the call gives, each of its attempts taken from the budget."""
        meter = self.tfgrpo_meter

        def attempt() -> Any:
            while isinstance(taken := meter.take(self, args, kwargs), float):
                meter.wait(taken)
            with meter.attempting(self, taken):
                return call(*args, **kwargs)

        with meter.noting_failure(self):
            return tenacity.Retrying(sleep=meter.wait, **self._policy())(attempt)

    async def tfgrpo_async_retried(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """The same in an event loop."""
        meter = self.tfgrpo_meter

        async def attempt() -> Any:
            while isinstance(taken := meter.take(self, args, kwargs), float):
                await meter.async_wait(taken)
            with meter.attempting(self, taken):
                return await call(*args, **kwargs)

        with meter.noting_failure(self):
            return await tenacity.AsyncRetrying(sleep=meter.async_wait, **self._policy())(attempt)

    def _policy(self) -> dict[str, Any]:
        n_retries = vars(self)["num_retries"]
        n_attempts = 1 + max(n_retries, MIN_RETRIES) if n_retries else 1
        return {
            "retry": tenacity.retry_if_exception(is_passing),
            "stop": tenacity.stop_after_attempt(n_attempts),
            "wait": self._backoff,
            "reraise": True,
        }

    def _backoff(self, state: tenacity.RetryCallState) -> float:
        """The seconds until the next attempt; a pause that the provider asks for holds for all."""
        error = state.outcome.exception() if state.outcome else None
        asked = retry_after(error)
        if asked is not None:
            self.tfgrpo_meter.ledger.hold(self.model, asked)
            return 0.0
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (state.attempt_number - 1))
        return float(longest * random.uniform(0.5, 1.0))

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


class CallWatcher(BaseCallback):
    """Takes the calls of LMs that are not metered: those that a metric or a tool holds itself.

    DSPy tells of each `lm(...)` once, and of answers from its cache too; retries inside are not
    seen. A BaseException passes through it, which is the veto.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        """Take the call, unless the LM does so itself."""
        if not isinstance(instance, _Metered):
            self._meter.take_unseen(*_most(self._meter, instance, inputs))


class _RunWatcher(CallWatcher):
    """Counts the calls that no other watcher sees: those of threads that a program starts itself.

    None is refused, as the user's other work may share the LM.
    """

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        """Count the call, unless the LM or a watcher of the rollout takes it."""
        is_taken = any(isinstance(other, CallWatcher) for other in dspy.settings.callbacks or ())
        if not isinstance(instance, _Metered) and not is_taken:
            self._meter.ledger.count(*_most(self._meter, instance, inputs))

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it does nothing: the run is not there."""
        return BaseCallback, ()


def _most(meter: Meter, lm: Any, inputs: dict[str, Any]) -> tuple[int, float]:
    given = inputs.get("kwargs") or inputs
    return meter.most(lm, (inputs.get("prompt"), inputs.get("messages")), given)


@contextmanager
def watching(lms: Iterable[Any], meter: Meter) -> Iterator[None]:
    """Within it, calls of the user's own LM objects are counted, whatever thread makes them.

    A callback costs time at every call, so none is set where nothing limits the calls.
    """
    watcher = _RunWatcher(meter)
    lists = [getattr(lm, "callbacks", None) for lm in lms if meter.ledger.limits_lm_calls]
    watched = {id(own): own for own in lists if isinstance(own, list)}.values()
    for callbacks in watched:
        callbacks.append(watcher)
    try:
        yield
    finally:
        for callbacks in watched:
            callbacks[:] = [callback for callback in callbacks if callback is not watcher]
