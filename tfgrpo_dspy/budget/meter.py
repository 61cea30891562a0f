"""LMs that take their calls from the ledger; what the calls have cost, and can cost at most.

Every LM runs as a `metered` copy: its class, made at run time, takes each call from the ledger,
makes the retries, and reports to a `Meter`. A program may swallow an Exception, so a refusal is a
BaseException. That class never reaches a program that is given back.
"""

import asyncio
import functools
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import dspy
import tenacity

from tfgrpo_dspy.budget.answers import note_answer
from tfgrpo_dspy.budget.faults import (
    is_fatal,
    is_passing,
    is_rate_limit,
    is_refused,
    is_too_long,
    is_unanswered,
    may_be_too_long,
    named_in,
    refuses_prompt,
    retry_after,
)
from tfgrpo_dspy.budget.ledger import LONGEST_WAIT_S, Ledger, Reservation, Sampled
from tfgrpo_dspy.budget.prices import Prices, price_of, token_price
from tfgrpo_dspy.dspy_seam import Call, as_instance_of, caller, sent
from tfgrpo_dspy.errors import RunStopped, described, sentence
from tfgrpo_dspy.experience.programs import HEADER
from tfgrpo_dspy.redaction import known_secrets, redacted
from tfgrpo_dspy.rollout import OWN, SEED_RANGE, Failure, FailureKind, Usage, rollout_id_for
from tfgrpo_dspy.user_code import ABANDONED, NOT_WANTED
from tfgrpo_dspy.wording import shortened

logger = logging.getLogger(__name__)

POLL_S = 0.1
"""How often a call looks whether others gave some of their dollars back, or the run has ended."""
ATTEMPT: ContextVar[list[Usage] | None] = ContextVar("tfgrpo_attempt", default=None)
"""What the attempt that this thread makes has used, by DSPy's history."""
MIN_RETRIES = 8  # an LM that may retry at all (`num_retries` above 0) retries at least so often
FIRST_WAIT_S = 0.02
SAID_FROM_S = 1.0  # shorter waits are not logged
SAMPLING = ("temperature", "seed")  # what the optimizer sets; left out in this order if refused
LOGGED_BYTES = 300  # of a refusal
LONGEST_PAUSE_S = 300.0  # a provider that asks for a longer pause is asked again after this one


class ParameterRefusedError(Exception):
    """The provider refused a parameter; the call is to be made again, without it."""


class Meter:
    """What the LM copies that carry it have done; each rollout or reflection has its own."""

    def __init__(
        self,
        ledger: Ledger | None = None,
        prices: Prices | None = None,
        leaves_lessons: bool = False,
        advice: Sequence[str] = (),  # the texts that a prompt is to hold
    ) -> None:
        self.ledger = ledger or Ledger()
        self._leaves_lessons = leaves_lessons
        self.provider_failure: Failure | None = None
        self.keeps_history = not dspy.settings.disable_history
        self.prices = prices or {}
        self._refusal: RunStopped | None = None
        self._abandoned = ABANDONED.get()
        self._used: list[Usage] = []
        self.dearest_call = 0.0  # the most dollars that were taken for one
        self.surprisals: list[float] = []  # of the tokens of all answers
        self.last_call: tuple[Any, Call] | None = None  # the answered one, after its module
        self._shown = (HEADER, *advice)  # an adapter may show the texts without the header
        self.shows_advice: bool | None = None  # whether a prompt held advice; None if unknown
        self.may_be_too_long = False  # the last refused prompt, of a model that answered none

    def __deepcopy__(self, memo: dict[int, Any]) -> "Meter":
        return self

    def take(self, lm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Reservation | None:
        """Reserve what a call may need; None: not now. Raises RunStopped."""
        if self.ledger.is_paused(str(lm.model)):
            self.ledger.check()
            return None
        n = int(kwargs.get("n") or getattr(lm, "kwargs", {}).get("n") or 1)
        cost = 0.0
        if self.ledger.budget.max_cost is not None:
            price = price_of(lm, self.prices)
            if isinstance(price, str):
                self.ledger.fail(f"max_cost: {price}")
            cost = price.most(args, kwargs, n)
            self.dearest_call = max(self.dearest_call, cost)
        return self.ledger.take(n, cost, self._abandoned, leaves_lessons=self._leaves_lessons)

    @contextmanager
    def attempting(self, lm: Any, kwargs: Mapping[str, Any], taken: Reservation) -> Iterator[None]:
        """One attempt of a call; it is settled in the end. Raises RunStopped: none will succeed.

        Raises ParameterRefusedError: the call is to be made again. A refusal takes a call from the
        ledger, and is no usage of a rollout: how many there are depends on the clock.
        """
        used: list[Usage] = []
        token = ATTEMPT.set(used)
        n_calls, cost = taken.n_calls, taken.cost
        try:
            yield
            if used:
                n_calls = used[-1].n_lm_calls
                cost = used[-1].cost_usd or (cost if n_calls else 0.0)
            else:  # an LM of the user's own that keeps no history
                self.count(Usage(n_calls))
        except dspy.LMError as error:
            if self._leaves_out(lm, kwargs, error):
                n_calls, cost = 0, 0.0
                raise ParameterRefusedError from error
            if is_rate_limit(error):
                asked = retry_after(error)
                self.ledger.pause(str(lm.model), asked and min(asked, LONGEST_PAUSE_S))
            n_calls = 0 if is_refused(error) else n_calls
            self.count(Usage(n_calls, n_failed_calls=taken.n_calls))
            cost = cost if is_unanswered(error) else 0.0
            if is_fatal(error):
                self.ledger.raised.note(error)
                self.ledger.fail(self._message(error, lm), error)
            raise
        finally:
            ATTEMPT.reset(token)
            self.ledger.settle(taken, n_calls, cost)

    def sent_with(self, lm: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call; None stands for what its provider has refused."""
        refused = [s.name for s in _sampled(lm, kwargs) if s in self.ledger.left_out]
        return {**kwargs, **dict.fromkeys(refused)}

    def _leaves_out(self, lm: Any, kwargs: Mapping[str, Any], error: dspy.LMError) -> bool:
        """Whether the error refuses what the optimizer sets; it is left out from now on."""
        for each in _sampled(lm, kwargs):
            if not named_in(error, [each.name]):
                continue
            # redacted first: the first part of a secret would not be known as one
            why = sentence(shortened(redacted(str(error), known_secrets([lm])), LOGGED_BYTES))
            way = f'pass temperature="{OWN}" to leave it out from the start'
            message = (
                f"{each.model} refused {each.name}={each.value}, which is left out of such calls "
                f"from now on{f' ({way})' * (each.name == 'temperature')}: {why}"
            )
            if self.ledger.left_out.setdefault(each, message) is message:
                logger.warning("%s", message)
            return True
        return False

    def answered(self, entry: Mapping[str, Any], lm: Any) -> None:
        """Count a call of the LM by its entry in DSPy's history."""
        call = Call.of(entry)
        usage = self.usage_of(call, lm)
        self.ledger.end_pauses(str(lm.model))
        used = ATTEMPT.get()
        if used is not None:
            used.append(usage)
        self.count(usage)
        note_answer(call)
        self.surprisals += [-each for each in call.logprobs if math.isfinite(each)]
        self.last_call = caller(), call
        self.shows_advice = self.shows_advice or any(
            part in text for text in sent(entry) for part in self._shown
        )
        if call.is_empty:  # DSPy makes a prediction without fields of it
            message = f"{call.model or 'the LM'} gave no completion"
            self.provider_failure = Failure(FailureKind.PROVIDER, message)

    @contextmanager
    def noting(self, lm: Any, *sent: Any) -> Iterator[None]:
        """Remember that a call was refused, or ended in an error after its retries.

        Raises ContextWindowExceededError: what was sent was too long, however the provider says so;
        DSPy's modules catch this error, and it is the program's failure.
        """
        model, n_characters = str(lm.model), len(str(sent))
        try:
            yield
        except RunStopped as refusal:
            self._refusal = refusal
            raise
        except dspy.LMError as error:
            n_answered = self.ledger.longest_answered[model]
            self.may_be_too_long = not n_answered and may_be_too_long(error, n_characters)
            if is_too_long(error, n_characters, n_answered):
                if isinstance(error, dspy.ContextWindowExceededError):
                    raise
                raise dspy.ContextWindowExceededError(model=model, message=error.message) from error
            self.provider_failure = Failure(
                FailureKind.PROVIDER, self._message(error, lm), refuses_prompt(error)
            )
            raise
        if sent:
            longest = self.ledger.longest_answered
            longest[model] = max(longest[model], n_characters)

    def _message(self, error: dspy.LMError, lm: Any) -> str:
        return redacted(described(error), known_secrets([lm]))

    def count(self, usage: Usage) -> None:
        """Count what calls have cost."""
        self._used.append(usage)

    def check(self) -> None:
        """Raises RunStopped: nobody waits for these calls, or one was refused, swallowed or not."""
        if self._abandoned is not None and self._abandoned.is_set():
            raise RunStopped(NOT_WANTED)
        if self._refusal is not None:
            raise type(self._refusal)(*self._refusal.args)

    def say_wait(self, state: tenacity.RetryCallState) -> None:
        """Log that a call waits for its next attempt: the first of those that wait as long."""
        seconds = state.next_action.sleep if state.next_action else 0.0
        until = time.monotonic() + seconds
        if seconds >= SAID_FROM_S and until > self.ledger.waits_until + SAID_FROM_S:
            self.ledger.waits_until = until
            fault = type(state.outcome.exception() if state.outcome else None).__name__
            logger.warning("%s: the next attempt of this LM call is in %.0f s", fault, seconds)

    async def async_wait(self, seconds: float) -> None:
        """`Ledger.wait` in an event loop, whose thread goes on with its other work."""
        while seconds > 0:
            await asyncio.sleep(min(seconds, POLL_S))
            self.ledger.check()
            seconds -= POLL_S

    @property
    def usage(self) -> Usage:
        """What all calls together have cost."""
        return sum(self._used, start=Usage())

    def usage_of(self, call: Call, lm: Any) -> Usage:
        """What a call of the LM has cost: what DSPy says, or its tokens at a known price."""
        if call.is_cached:
            return Usage(n_cached_calls=call.n_answers)
        cost = call.cost or 0.0
        if call.cost is None or call.model in self.prices:
            price = token_price(lm, self.prices)
            if not isinstance(price, str):
                cost = call.prompt_tokens * price.prompt + call.completion_tokens * price.completion
        return Usage(
            n_lm_calls=call.n_answers,
            prompt_tokens=call.prompt_tokens,
            completion_tokens=call.completion_tokens,
            cost_usd=cost,
        )


def metered(lm: Any, meter: Meter) -> Any:
    """The LM, a copy of the user's, made to report to the meter (as will copies of it)."""
    kind: Any = type(lm)
    lm = as_instance_of(lm, _metered_class(kind))
    lm.tfgrpo_meter = meter
    return lm


def is_metered(lm: Any) -> bool:
    """Whether the LM takes its calls itself."""
    return isinstance(lm, _Metered)


@functools.cache
def _metered_class(kind: Any) -> Any:
    return kind if issubclass(kind, _Metered) else type(kind.__name__, (_Metered, kind), {})


class _Metered:
    """The methods that a metered LM has in front of its own class's, which they call."""

    tfgrpo_meter: Meter
    kwargs: dict[str, Any]

    @property
    def num_retries(self) -> int:
        """0 for DSPy, whatever the user or the program sets: the retries are made here."""
        return 0

    @num_retries.setter
    def num_retries(self, value: int) -> None:
        vars(self)["num_retries"] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tfgrpo_retried("__call__", *args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return await self.tfgrpo_aretried("acall", *args, **kwargs)

    def tfgrpo_retried(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a method of the user's class; each attempt is taken from the budget."""
        meter = self.tfgrpo_meter

        def attempt() -> Any:
            while True:  # until no parameter is refused
                while (taken := meter.take(self, args, kwargs)) is None:
                    meter.ledger.wait(POLL_S)
                allowed = meter.sent_with(self, kwargs)
                with suppress(ParameterRefusedError), meter.attempting(self, allowed, taken):
                    return getattr(super(_Metered, self), method)(*args, **allowed)

        with meter.noting(self, args, kwargs):
            return tenacity.Retrying(sleep=meter.ledger.wait, **self._policy())(attempt)

    async def tfgrpo_aretried(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """`tfgrpo_retried` in an event loop."""
        meter = self.tfgrpo_meter

        async def attempt() -> Any:
            while True:
                while (taken := meter.take(self, args, kwargs)) is None:
                    await meter.async_wait(POLL_S)
                allowed = meter.sent_with(self, kwargs)
                with suppress(ParameterRefusedError), meter.attempting(self, allowed, taken):
                    return await getattr(super(_Metered, self), method)(*args, **allowed)

        with meter.noting(self, args, kwargs):
            return await tenacity.AsyncRetrying(sleep=meter.async_wait, **self._policy())(attempt)

    def _policy(self) -> dict[str, Any]:
        n_retries = vars(self)["num_retries"] and max(vars(self)["num_retries"], MIN_RETRIES)
        return {
            "retry": tenacity.retry_if_exception(is_passing),
            "stop": tenacity.stop_after_attempt(1 + n_retries),
            "wait": _seconds_until_the_next,
            "reraise": True,
            "before_sleep": self.tfgrpo_meter.say_wait,
        }

    def update_history(self, entry: dict[str, Any]) -> None:
        self.tfgrpo_meter.answered(entry, self)
        if self.tfgrpo_meter.keeps_history:
            super().update_history(entry)  # type: ignore[misc]

    def copy(self, **changes: Any) -> Any:
        """A program that asks for another sample (another rollout id) gets another seed too."""
        seed, rollout_id = self.kwargs.get("seed"), changes.get("rollout_id")
        if seed is not None and rollout_id is not None and "seed" not in changes:
            changes["seed"] = rollout_id_for(seed, 0, 0, rollout_id, "copy") % SEED_RANGE
        return super().copy(**changes)  # type: ignore[misc]


def _seconds_until_the_next(state: tenacity.RetryCallState) -> float:
    """The pause that the provider asks for, or twice the last one, at random around that."""
    error = state.outcome.exception() if state.outcome else None
    if error is not None and is_rate_limit(error):
        return 0.0  # `Meter.take` waits
    asked = retry_after(error)
    if asked is not None:
        return min(asked, LONGEST_PAUSE_S)
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (state.attempt_number - 1))
    return float(longest * random.uniform(0.5, 1.0))


def _sampled(lm: Any, kwargs: Mapping[str, Any]) -> list[Sampled]:
    """What a call sends of what the optimizer sets; seeds differ, and are refused together."""
    sent = {**getattr(lm, "kwargs", {}), **kwargs}
    values = [(name, sent.get(name)) for name in SAMPLING if sent.get(name) is not None]
    return [Sampled(str(lm.model), n, "any" if n == "seed" else repr(v)) for n, v in values]
