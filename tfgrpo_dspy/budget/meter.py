"""The LM copies that take their calls from the ledger, and what each rollout's calls have cost."""

import asyncio
import functools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import dspy
import tenacity
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import LMError

from tfgrpo_dspy.budget.faults import is_fatal, is_passing, is_too_long, is_unanswered, retry_after
from tfgrpo_dspy.budget.ledger import NOT_WANTED, POLL_S, Ledger, Reservation
from tfgrpo_dspy.budget.prices import TOKENS_IN_A_PRICE, Price, price_of, prompt_bytes
from tfgrpo_dspy.budget.tasks import CURRENT_TASK
from tfgrpo_dspy.errors import RunStopped, described
from tfgrpo_dspy.redaction import known_secrets, redacted
from tfgrpo_dspy.rollout import SEED_RANGE, Failure, Usage, rollout_id_for

MIN_RETRIES = 8
"""An LM that may retry at all (`num_retries` above 0) retries at least so often: the first waits
are short, so that a refusal costs little, and all together last some seconds."""
FIRST_WAIT_S = 0.02
LONGEST_WAIT_S = 60.0
LONGEST_HOLD_S = 3600.0
"""A provider that asks for a longer pause is asked again after so many seconds."""
ASYNC_WAIT_S = 0.25


@dataclass(frozen=True, slots=True)
class Call:
    """One answered LM call: the module that made it, the last message sent, the text received."""

    caller: Any
    prompt: str
    answer: str


@dataclass(slots=True)
class _Open:
    """A call under way: what was taken for it, and the usage that DSPy's history told of it."""

    lease: Reservation
    used: Usage | None = None


_OPEN: ContextVar[_Open | None] = ContextVar("tfgrpo_open_call", default=None)


class Meter:
    """What the LM copies that carry it have done; each rollout or reflection has its own.

    Calls may come from several threads of one program: while it runs, all that happens here is
    an append.

    Args:
        ledger: what calls are taken from; by default one without limits.
        prices: see `price_of`; looked at where the ledger has a `max_cost`.
    """

    def __init__(
        self,
        ledger: Ledger | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.ledger = ledger or Ledger()
        self.prices = prices or {}
        self.provider_failure: Failure | None = None
        self.is_too_long = False
        self.was_refused = False
        self.keeps_history = not dspy.settings.disable_history
        self.task = CURRENT_TASK.get()
        self._answered: list[tuple[list[Any], Mapping[str, Any]]] = []
        self._n_failed: list[int] = []
        self._n_unseen: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Meter":
        """A program that copies its own parts still reports to it."""
        return self

    # ------------------------------------------------------------------ one attempt

    def open(self, lm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Open:
        """Take a call, after a wait where its dollars are held by others. Raises RunStopped."""
        most = self._most(lm, args, kwargs)
        with self._noting_refusal():
            return _Open(self.ledger.take(*most, self.is_given_up))

    async def async_open(self, lm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Open:
        """The same in an event loop, whose other calls may be those that hold the dollars."""
        most = self._most(lm, args, kwargs)
        with self._noting_refusal():
            while (lease := self.ledger.take_now(*most, self.is_given_up)) is None:
                await asyncio.sleep(POLL_S)
            return _Open(lease)

    def _most(self, lm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, float]:
        """The calls and dollars that it can take at most."""
        n = int(kwargs.get("n") or lm.kwargs.get("n") or 1)
        if self.ledger.budget.max_cost is None:
            return n, 0.0
        price = price_of(lm, self.prices)
        if isinstance(price, str):
            self.ledger.stop(f"max_cost: {price}", is_failure=True)
            price = Price(0.0, 0.0, 1)
        own = kwargs.get("max_tokens") or kwargs.get("max_completion_tokens")
        return n, price.most(prompt_bytes(args, kwargs), n, own)

    @contextmanager
    def _noting_refusal(self) -> Iterator[None]:
        try:
            yield
        except RunStopped:
            self.was_refused = True
            raise

    def is_given_up(self) -> bool:
        """Whether nobody waits any more for what these calls are for."""
        return self.task is not None and self.task.is_abandoned

    def check_wanted(self) -> None:
        """Raises RunStopped: nobody waits any more for what these calls are for."""
        if self.is_given_up():
            raise RunStopped(NOT_WANTED)

    @contextmanager
    def settling(self, lm: Any, call: _Open) -> Iterator[None]:
        """While one attempt is under way; what it took is settled however it ends."""
        token = _OPEN.set(call)
        try:
            yield
        except LMError as error:
            self.close(lm, call, error)
            raise
        except BaseException:
            self.ledger.settle(call.lease, call.lease.n_calls, call.lease.cost)
            raise
        finally:
            _OPEN.reset(token)
        self.close(lm, call, None)

    def close(self, lm: Any, call: _Open, error: LMError | None) -> None:
        """Settle an attempt that has ended. Raises RunStopped: the error is the end of the run."""
        if error is None:
            used = call.used
            if used is None:  # an LM of the user's own that keeps no history
                self.ledger.settle(call.lease, call.lease.n_calls, call.lease.cost)
            else:
                is_unknown = used.n_lm_calls and not used.cost_usd
                cost = call.lease.cost if is_unknown else used.cost_usd
                self.ledger.settle(call.lease, used.n_lm_calls, cost)
            return
        self._n_failed.append(call.lease.n_calls)
        cost = call.lease.cost if is_unanswered(error) else 0.0
        self.ledger.settle(call.lease, call.lease.n_calls, cost)
        if is_fatal(error):
            message = redacted(described(error), known_secrets([lm]))
            self.ledger.stop(message, is_failure=True)
            self.was_refused = True
            raise RunStopped(message)

    def answered(self, entry: Mapping[str, Any]) -> None:
        """Count a call by its entry in DSPy's history."""
        call = _OPEN.get()
        if call is not None:
            call.used = self._usage_of(entry)
        self._answered.append((dspy.settings.caller_modules or [None], entry))

    def gave_up(self, error: LMError, lm: Any) -> None:
        """Remember that a call ended in an error, after its retries.

        A prompt that is too long is the program's doing, not the provider's.
        """
        if is_too_long(error):
            self.is_too_long = True
            return
        message = redacted(described(error), known_secrets([lm]))
        self.provider_failure = Failure("provider", message)

    def take_unseen(self, lm: Any, inputs: Mapping[str, Any]) -> None:
        """Take calls of an LM that is not metered: they are counted, no more is known of them."""
        opened = self.open(lm, (inputs.get("prompt"), inputs.get("messages")), inputs)
        self.ledger.settle(opened.lease, opened.lease.n_calls, opened.lease.cost)
        self._n_unseen.append(opened.lease.n_calls)

    def check_refused(self) -> None:
        """Raises RunStopped: a call was refused, even where the program swallowed that."""
        if self.was_refused:
            raise RunStopped(self.ledger.stopped_because)

    # ------------------------------------------------------------------ pauses

    def wait(self, seconds: float) -> None:
        """Wait; the task's clock stands still. Raises RunStopped: the run has ended meanwhile."""
        with self._noting_refusal(), self.task.pausing() if self.task else nullcontext():
            self.ledger.wait(seconds)

    async def async_wait(self, seconds: float) -> None:
        """The same in an event loop, whose thread goes on with its other work."""
        with self._noting_refusal(), self.task.pausing() if self.task else nullcontext():
            while seconds > 0:
                await asyncio.sleep(min(seconds, ASYNC_WAIT_S))
                self.ledger.check()
                seconds -= ASYNC_WAIT_S

    # ------------------------------------------------------------------ what it came to

    @property
    def usage(self) -> Usage:
        """What all calls together have cost.

        DSPy makes one list of callers for each call of a module: it tells an adapter's second
        attempt apart from a predictor's second call. (A module that is no predictor may call its
        LM as often as it likes.)
        """
        predictions = [id(c) for c, _ in self._answered if isinstance(c[-1], dspy.Predict)]
        extra = Usage(
            n_lm_calls=sum(self._n_failed) + sum(self._n_unseen),
            n_failed_calls=sum(self._n_failed),
            n_second_calls=len(predictions) - len(set(predictions)),
        )
        return sum((self._usage_of(entry) for _, entry in self._answered), start=extra)

    def _usage_of(self, entry: Mapping[str, Any]) -> Usage:
        used = _usage_of(entry)
        if entry["model"] not in self.prices or not used.n_lm_calls:
            return used
        prompt, completion = self.prices[entry["model"]]
        dollars = used.prompt_tokens * prompt + used.completion_tokens * completion
        return replace(used, cost_usd=dollars / TOKENS_IN_A_PRICE)

    @property
    def last_call(self) -> Call | None:
        """The last call that was answered."""
        if not self._answered:
            return None
        callers, entry = self._answered[-1]
        prompt = entry["messages"][-1]["content"] if entry["messages"] else entry["prompt"]
        answer = entry["outputs"][0] if entry["outputs"] else ""
        answer = answer.get("text") if isinstance(answer, Mapping) else answer
        return Call(callers[-1], str(prompt), str(answer or ""))


def metered(lm: Any, meter: Meter) -> Any:
    """The LM, a copy of the user's, made to report to the meter (as will copies of it)."""
    kind: Any = type(lm)
    lm.__class__ = _metered_class(kind)
    lm.tfgrpo_meter = meter
    return lm


class _Metered:
    """What a metered LM does besides what its own class does, which comes next in the order."""

    tfgrpo_meter: Meter
    model: str
    kwargs: dict[str, Any]

    @property
    def num_retries(self) -> int:
        """None for DSPy, whatever the user or the program sets: the retries are made here."""
        return 0

    @num_retries.setter
    def num_retries(self, value: int) -> None:
        vars(self)["num_retries"] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        meter = self.tfgrpo_meter
        call = super().__call__  # type: ignore[misc]
        try:
            return self._attempt(call, args, kwargs)
        except LMError as error:
            if not self._may_retry(error):
                meter.gave_up(error, self)
                raise
            meter.wait(self._backoff(error, 1))
        retrying = tenacity.Retrying(sleep=meter.wait, **self._policy())
        try:
            return retrying(self._attempt, call, args, kwargs)
        except LMError as error:
            meter.gave_up(error, self)
            raise

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        meter = self.tfgrpo_meter
        call = super().acall  # type: ignore[misc]
        try:
            return await self._async_attempt(call, args, kwargs)
        except LMError as error:
            if not self._may_retry(error):
                meter.gave_up(error, self)
                raise
            await meter.async_wait(self._backoff(error, 1))
        retrying = tenacity.AsyncRetrying(sleep=meter.async_wait, **self._policy())
        try:
            return await retrying(self._async_attempt, call, args, kwargs)
        except LMError as error:
            meter.gave_up(error, self)
            raise

    @property
    def _n_retries(self) -> int:
        retries: int = vars(self)["num_retries"]
        return max(retries, MIN_RETRIES) if retries else 0

    def _may_retry(self, error: LMError) -> bool:
        return self._n_retries > 0 and is_passing(error)

    def _policy(self) -> dict[str, Any]:
        """Of the retries: the first attempt, which mostly is the only one, is made without it."""
        return {
            "retry": tenacity.retry_if_exception(is_passing),
            "stop": tenacity.stop_after_attempt(self._n_retries),
            "wait": lambda state: self._backoff(
                state.outcome and state.outcome.exception(), state.attempt_number + 1
            ),
            "reraise": True,
        }

    def _backoff(self, error: BaseException | None, n_attempts: int) -> float:
        """The seconds until the next attempt; a pause that the provider asks for holds for all."""
        asked = retry_after(error) if error is not None else None
        if asked is not None:
            self.tfgrpo_meter.ledger.hold(self.model, min(asked, LONGEST_HOLD_S))
            return 0.0
        longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (n_attempts - 1))
        return float(longest * random.uniform(0.5, 1.0))

    def _attempt(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        meter = self.tfgrpo_meter
        while (held := meter.ledger.seconds_held(self.model)) > 0:
            meter.wait(held)
        with meter.settling(self, meter.open(self, args, kwargs)):
            return call(*args, **kwargs)

    async def _async_attempt(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        meter = self.tfgrpo_meter
        while (held := meter.ledger.seconds_held(self.model)) > 0:
            await meter.async_wait(held)
        with meter.settling(self, await meter.async_open(self, args, kwargs)):
            return await call(*args, **kwargs)

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
            self._meter.take_unseen(instance, inputs.get("kwargs") or inputs)


@functools.cache
def _metered_class(kind: Any) -> Any:
    return kind if issubclass(kind, _Metered) else type(kind.__name__, (_Metered, kind), {})


def _usage_of(entry: Mapping[str, Any]) -> Usage:
    usage, response = entry["usage"], entry["response"]
    responses = response if isinstance(response, tuple) else (response,)
    if not usage and any(_reports_tokens(response) for response in responses):
        # DSPy empties the usage of an answer from its cache
        return Usage(n_cached_calls=len(responses))
    return Usage(
        n_lm_calls=len(responses),  # an engine is called once for each completion
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        cost_usd=entry.get("cost") or 0.0,
    )


def _reports_tokens(response: Any) -> bool:
    usage = getattr(response, "usage", None) or {}
    names = ("input_tokens", "prompt_tokens")
    counts = [
        usage.get(n) if isinstance(usage, Mapping) else getattr(usage, n, None) for n in names
    ]
    return any(count is not None for count in counts)
