"""LMs that take their calls from the ledger; what the calls have cost, and can cost at most.

Every LM of a program runs as a `metered` copy: its class, made at run time, takes each call from
the ledger, makes the retries, and reports to a `Meter`. A program may swallow an Exception, so a
refusal is a BaseException. That class never reaches a program that is given back. The calls of
other LMs, which a metric, a tool or a program holds itself, are seen by a `CallWatcher`.

DSPy classifies the errors of its own engines. What a user's engine raises comes as an
LMUnexpectedError with the error as its cause; those of litellm and the openai client carry an HTTP
status, by which they are classified here.
"""

import asyncio
import functools
import logging
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import dspy

from tfgrpo_dspy import budget, dspy_seam
from tfgrpo_dspy.budget import NOTHING, USAGE, Amount, Ledger, Prices, Reservation, max_tokens_of
from tfgrpo_dspy.dspy_seam import ACTIVE_CALL_ID, BaseCallback, Call, caller, sent, watching
from tfgrpo_dspy.errors import CallSparedError, RunStopped, described, sentence
from tfgrpo_dspy.experience import HEADER
from tfgrpo_dspy.rollout import OWN, SEED_RANGE, Failure, FailureKind, Usage, rollout_id_for
from tfgrpo_dspy.text import estimate_tokens, known_secrets, redacted, shortened
from tfgrpo_dspy.user_code import ABANDONED, NOT_WANTED

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
PASSING_NAMES = frozenset({"APIConnectionError", "Timeout", "APITimeoutError"})
FATAL_STATUS = frozenset({401, 402, 403, 404})
FATAL = (
    dspy.LMAuthError,
    dspy.LMBillingError,
    dspy.LMUnsupportedModelError,
    dspy.LMConfigurationError,
)
TIMED_OUT, UNAVAILABLE, TOO_MANY, MODERATED = 408, 503, (429, 529), (403, 406, 451)
TOO_LARGE, MAYBE_TOO_LARGE = 413, (400, 422)
"""HTTP statuses of a request that is too large: that alone, and those of any request refused."""
UNLIKE_A_REFUSAL = (*FATAL[:3], dspy.LMRateLimitError, dspy.LMTimeoutError, dspy.LMTransportError)
"""Errors that refuse no sampling parameter, whatever they name."""
FILTER = r"(?i)content.?(filter|policy|management|inspect|exist)|safety|moderation|flagged"
FILTER += r"|promptFeedback|inappropriate|\u654f\u611f|\u4e0d\u5b89\u5168"  # sensitive, not safe
CONTEXT = r"(?i)context.?(size|length|window)|maximum context"
LEAST_CHARACTERS = 2000  # a shorter prompt is refused for another reason


def place_of(lm: Any) -> str:
    """The model and where it is reached: what limits, refusals and prices are of."""
    base = (getattr(lm, "kwargs", None) or {}).get("api_base") or ""
    return f"{lm.model} {base}".strip()


def is_passing(error: BaseException) -> bool:
    """Whether the same call may well be answered later: rate limits, timeouts, resets, 5xx."""
    if not isinstance(error, dspy.LMError) or is_too_long(error):
        return False
    cause = _foreign_cause(error)
    if dspy.is_retryable_lm_error(error) or isinstance(cause, ConnectionError | TimeoutError):
        return True
    if _status(error) in PASSING_STATUS or type(cause).__name__ in PASSING_NAMES:
        return True
    is_no_reply = type(error) is dspy.LMProviderError and _status(error) in (None, 200)
    return is_no_reply or bool(re.search(r"\b(loading|overloaded)\b", str(error), re.IGNORECASE))


def is_filtered(error: BaseException) -> bool:
    """Whether a content filter of the provider refused the prompt, or held the answer back."""
    message = f"{getattr(error, 'provider_code', '')} {error}"
    is_one = isinstance(error, dspy.LMError) and re.search(FILTER, message)
    return bool(is_one) and _status(error) in (None, 200, *MAYBE_TOO_LARGE, *MODERATED)


def is_fatal(error: dspy.LMError, has_answered: bool) -> bool:
    """Whether every further call would fail: a refused key, no credit, no such model.

    A model that has answered and then forbids a prompt has moderated it.
    """
    is_kind = isinstance(error, FATAL) or _status(error) in FATAL_STATUS
    is_moderated = has_answered and _status(error) in MODERATED
    return is_kind and not is_moderated and not is_too_long(error)


def is_too_long(error: BaseException, n_characters: int = 0, n_answered: int = 0) -> bool:
    """Whether the prompt was longer than the model's context.

    DSPy tells by OpenAI's error code, which few providers send, and each words it in its own way;
    so a refused request also tells by its size. Of `n_characters`, it is taken for too long if the
    model has answered prompts, but none that was as long (`n_answered` is the longest).
    """
    if isinstance(error, dspy.ContextWindowExceededError):
        return True
    if type(_foreign_cause(error)).__name__ == "ContextWindowExceededError":
        return True
    may_say = isinstance(error, dspy.LMError) and not isinstance(error, UNLIKE_A_REFUSAL)
    is_said = may_say and re.search(CONTEXT, str(error))
    is_longest = 0 < n_answered < n_characters and may_be_too_long(error, n_characters)
    return bool(is_said) or _status(error) == TOO_LARGE or is_longest


def may_be_too_long(error: BaseException, n_characters: int) -> bool:
    """Whether a shorter prompt may be answered; a model that has answered none may refuse all."""
    may_be = n_characters > LEAST_CHARACTERS and _status(error) in MAYBE_TOO_LARGE
    return may_be and not is_filtered(error)


def is_rate_limit(error: BaseException) -> bool:
    """Whether there were too many requests."""
    is_asked = _status(error) == UNAVAILABLE and retry_after(error) is not None
    return isinstance(error, dspy.LMRateLimitError) or _status(error) in TOO_MANY or is_asked


def refuses(error: BaseException | None, parameter: str) -> bool:
    """Whether the error, or a cause of it, refuses the sampling parameter of this name."""
    if isinstance(error, UNLIKE_A_REFUSAL) or error is None or is_too_long(error):
        return False
    pattern = rf"(?<![A-Za-z]){parameter}(?![A-Za-z])"
    while error is not None and not re.search(pattern, str(error), re.IGNORECASE):
        error = error.__cause__
    return error is not None


def retry_after(error: BaseException | None) -> float | None:
    """The seconds of a pause that the provider asks for."""
    hint = getattr(error, "retry_after", None)
    if hint is None:
        response = getattr(_foreign_cause(error), "response", None)
        hint = (getattr(response, "headers", None) or {}).get("retry-after")
    try:
        return None if hint is None else max(0.0, float(hint))
    except (TypeError, ValueError):  # a date: the backoff does
        return None


def _foreign_cause(error: BaseException | None) -> BaseException | None:
    return error.__cause__ if isinstance(error, dspy.LMUnexpectedError) else None


def _status(error: BaseException) -> Any:
    status = getattr(error, "status", None)
    return status if status is not None else getattr(_foreign_cause(error), "status_code", None)


logger = logging.getLogger(__name__)

POLL_S = 0.1
"""How often a call looks whether others gave some of their dollars back, or the run has ended."""
MIN_RETRIES = 8  # an LM that may retry at all (`num_retries` above 0) retries at least so often
FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 60.0
AFTER_A_RATE_LIMIT = 50  # times longer is waited if the provider does not say how long
LONGEST_PAUSE_S = 300.0  # a provider that asks for a longer pause is asked again after this one
SAMPLING = ("temperature", "seed")  # what the optimizer sets; left out in this order if refused
LOGGED_BYTES = 300  # of a refusal
BREAKS = 10  # refusals of advice that was never answered, times how often others were in between
MORE_ROOM = 4  # times as many tokens, where an answer was cut before anything could be read


_WATCHED: ContextVar[list[Call] | None] = ContextVar("tfgrpo_raw_answers", default=None)
_ATTEMPT: ContextVar[list[Usage] | None] = ContextVar("tfgrpo_attempt", default=None)
"""What the attempt that this thread makes has used, by DSPy's history."""


@contextmanager
def raw_answers() -> Iterator[list[Call]]:
    """The answers that metered LMs give within, in their order."""
    seen: list[Call] = []
    token = _WATCHED.set(seen)
    try:
        yield seen
    finally:
        _WATCHED.reset(token)


def more_room(lm: Any) -> dict[str, int]:
    """Arguments for a longer answer, up to the most that DSPy lists; none if it has no limit."""
    most = dspy_seam.abilities_of(lm).get("max_output_tokens")
    for name in ("max_completion_tokens", "max_tokens"):
        limit = getattr(lm, "kwargs", {}).get(name)
        if isinstance(limit, int):
            room = min(MORE_ROOM * limit, most or MORE_ROOM * limit)
            return {name: room} if room > limit else {}
    return {}


class Meter:
    """What the LM copies that carry it have done; each rollout or reflection has its own."""

    def __init__(
        self,
        ledger: Ledger | None = None,
        prices: Prices | None = None,
        leaves_lessons: bool = False,
        advice: Sequence[str] = (),  # that a prompt is to hold; an adapter may leave the header out
        begun: dict[str, str] | None = None,  # calls that have begun and not ended, by an id
    ) -> None:
        self.ledger = ledger or Ledger()
        self._leaves_lessons = leaves_lessons
        self.provider_failure: Failure | None = None
        self.keeps_history = not dspy.settings.disable_history
        self.prices = prices or {}
        self._refusal: RunStopped | None = None
        self._abandoned = ABANDONED.get()
        self.used: list[Usage] = []  # by each call
        self.begun = {} if begun is None else begun
        self.surprisals: list[float] = []  # of the tokens of all answers
        self.last_call: tuple[Any, Call] | None = None  # the answered one, after its module
        self._advice = advice
        self.shows_advice: bool | None = None  # whether a prompt held advice; None if unknown
        self._breaks = False  # the server breaks on the advice that it is sent
        self.may_be_too_long = False  # the last refused prompt, of a model that answered none

    def __deepcopy__(self, memo: dict[int, Any]) -> "Meter":
        return self

    def take(self, lm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Reservation | None:
        """Reserve what a call may need; None: not now. Raises RunStopped."""
        if time.monotonic() < self.ledger.paused_until[place_of(lm)]:
            self.ledger.check()
            return None
        n = int(kwargs.get("n") or getattr(lm, "kwargs", {}).get("n") or 1)
        take = functools.partial(self.ledger.take, self._abandoned, self._leaves_lessons)
        if self.ledger.budget.max_cost is None:
            return take(Amount(n))
        price, n_bytes = budget.price_of(lm, self.prices), budget.n_bytes_sent(args, kwargs)
        if isinstance(price, str):
            self.ledger.fail(f"max_cost: {price}")
        longest = int(max_tokens_of(kwargs) or price.max_tokens)
        seen = self.ledger.seen[place_of(lm)]
        prompt, least = seen.most_tokens(n_bytes, longest)
        cost, least_cost = (n * price.of(prompt, answer) for answer in (longest, least))
        if (taken := take(Amount(n, cost=cost), least_cost)) is not None:
            taken.seen, taken.n_bytes = seen, n_bytes
            if taken.amount.cost < cost:
                left = taken.amount.cost / n - price.of(prompt, 0)
                taken.max_tokens = int(left / price.completion)
        return taken

    def settle(
        self, taken: Reservation, used: Usage | None, error: BaseException | None = None
    ) -> None:
        """Correct what was taken for a call by its entry, or without one by its error.

        The entry, if there is one, is counted already. A request that was refused is no call; where
        nobody knows what the provider did, it may bill the call.
        """
        n, cost = int(taken.amount.n_lm_calls), taken.amount.cost
        if used is not None:
            n, cost = used.n_lm_calls, used.cost_usd or (cost if used.n_lm_calls else 0.0)
            if taken.seen is not None:
                taken.seen.note(used, taken.n_bytes)
        elif isinstance(error, CallSparedError):
            n, cost = 0, 0.0
        else:
            n_failed = n * (error is not None)
            if isinstance(error, dspy.LMError):
                status = _status(error)
                is_clients = isinstance(status, int) and 400 <= status < 500 and status != TIMED_OUT
                is_refused = is_clients or self._breaks or is_rate_limit(error)
                n *= not (is_refused or is_too_long(error))
                cost *= status is None
            self.used.append(Usage(n, n_failed_calls=n_failed, cost_usd=cost))
        self.ledger.settle(taken, Amount(n, cost=cost))

    @contextmanager
    def attempting(
        self, lm: Any, kwargs: Mapping[str, Any], taken: Reservation, pauses: list[float]
    ) -> Iterator[dict[str, Any]]:
        """One attempt of a call, with these arguments; after one that failed, another may follow.

        The first of the `pauses` is the one before that. An argument is None where its provider has
        refused it. Raises RunStopped: no attempt will succeed.
        """
        used, error = list[Usage](), None
        token = _ATTEMPT.set(used)
        names = [name for name in SAMPLING if (place_of(lm), name) in self.ledger.left_out]
        allowed = {**kwargs, **dict.fromkeys(names)}
        if taken.max_tokens is not None:
            new = "max_completion_tokens"
            is_new = kwargs.get(new) or getattr(lm, "kwargs", {}).get(new)
            allowed[new if is_new else "max_tokens"] = taken.max_tokens
        self.begun[str(id(taken))] = f"a call of {lm.model}"
        try:
            yield allowed
        except BaseException as raised:
            error = raised
            self._breaks = self._is_broken_by_advice(lm, raised)
            if not isinstance(raised, dspy.LMError):
                raise
        finally:
            _ATTEMPT.reset(token)
            del self.begun[str(id(taken))]
            if error is not None and not used and self._leaves_out(lm, allowed, error):
                self.ledger.settle(taken, NOTHING)
                error = None
            else:
                self.settle(taken, used[-1] if used else None, error)
        if isinstance(error, dspy.LMError):
            if is_fatal(error, self.ledger.longest_answered[place_of(lm)] > 0):
                self.ledger.fail(self._message(error, lm), error)
            if self._breaks or len(pauses) == 1 or not is_passing(error):
                raise error
            del pauses[0]
            if (asked := retry_after(error)) is not None:
                pauses[0] = min(asked, LONGEST_PAUSE_S)
            elif is_rate_limit(error):
                pauses[0] = min(AFTER_A_RATE_LIMIT * pauses[0], LONGEST_WAIT_S)
            if is_rate_limit(error):  # all calls of this model wait
                until = self.ledger.paused_until
                model, later = place_of(lm), time.monotonic() + pauses[0]
                until[model] = max(until[model], later)

    def _is_broken_by_advice(self, lm: Any, error: BaseException) -> bool:
        """Whether the server broke on advice each time, and answered prompts without it between."""
        answered, model, weights = self.ledger.n_answered, place_of(lm), [0]
        for advice in self._advice if is_passing(error) and not is_rate_limit(error) else ():
            if not answered[model, advice]:
                self.ledger.broke_s[model] = time.monotonic()
                times = self.ledger.broken[model, advice]
                times.append(answered[model, ""])
                weights.append(len(times) * (len({*times}) - 1))
        return max(weights) >= BREAKS

    def _leaves_out(self, lm: Any, kwargs: Mapping[str, Any], error: BaseException) -> bool:
        sent_with = {**getattr(lm, "kwargs", {}), **kwargs}
        for name in SAMPLING:
            if sent_with.get(name) is None or not refuses(error, name):
                continue
            # redacted first: the first part of a secret would not be known as one
            why = sentence(shortened(redacted(str(error), known_secrets([lm])), LOGGED_BYTES))
            way = f' (pass temperature="{OWN}" to leave it out from the start)'
            message = (
                f"{lm.model} refused {name}={sent_with[name]!r}, which is left out of its calls "
                f"from now on{way * (name == 'temperature')}: {why}"
            )
            self.ledger.note(place_of(lm), name, message)
            return True
        return False

    def answered(self, entry: Mapping[str, Any], lm: Any) -> None:
        """Count a call of the LM by its entry in DSPy's history."""
        call = Call.of(entry)
        usage = self.usage_of(call, entry, lm)
        if (used := _ATTEMPT.get()) is not None:
            used.append(usage)
        self.used.append(usage)
        if (seen := _WATCHED.get()) is not None:
            seen.append(call)
        self.surprisals += [-each for each in call.logprobs if math.isfinite(each)]
        self.last_call = caller(), call
        self.shows_advice = self.shows_advice or any(
            part in text for text in sent(entry) for part in (HEADER, *self._advice)
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
        model, n_characters, began_s = place_of(lm), len(str(sent)), time.monotonic()
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
                too_long = dspy.ContextWindowExceededError(model=lm.model, message=error.message)
                raise too_long from error
            statuses, message = (*MAYBE_TOO_LARGE, *MODERATED), self._message(error, lm)
            is_refusal = _status(error) in statuses and not is_passing(error)
            is_prompts = self._breaks or is_refusal or is_filtered(error)
            self.provider_failure = Failure(FailureKind.PROVIDER, message, is_prompts)
            raise
        if sent:
            longest = self.ledger.longest_answered
            longest[model] = max(longest[model], n_characters)
            is_later = began_s > self.ledger.broke_s[model]  # than the last break: no late answer
            parts = ("", *self._advice) if is_later else self._advice
            self.ledger.n_answered.update((model, each) for each in parts)

    def _message(self, error: dspy.LMError, lm: Any) -> str:
        return redacted(described(error), known_secrets([lm]))

    def check(self) -> None:
        """Raises RunStopped: nobody waits for these calls, or one was refused, swallowed or not."""
        if self._abandoned is not None and self._abandoned.is_set():
            raise RunStopped(NOT_WANTED)
        if self._refusal is not None:
            raise type(self._refusal)(*self._refusal.args)

    @property
    def usage(self) -> Usage:
        """What all calls together have cost."""
        return sum(self.used, start=Usage())

    def usage_of(self, call: Call, entry: Mapping[str, Any], lm: Any) -> Usage:
        """What a call of the LM has cost: what DSPy says, or its tokens at a known price."""
        if call.is_cached:
            return Usage(n_cached_calls=call.n_answers)
        n_prompt, n_answer, cost = call.prompt_tokens, call.completion_tokens, call.cost or 0.0
        if not (cost or (n_prompt and (n_answer or not call.text))):
            n_prompt = n_prompt or sum(map(estimate_tokens, sent(entry)))
            n_answer = n_answer or call.n_answers * estimate_tokens(call.text)
            why = f"{lm.model} reports no usage, or a part: the rest is estimated from its texts"
            self.ledger.note(place_of(lm), USAGE, why)
        if call.cost is None or call.model in self.prices:
            prices, model = self.ledger.prices, place_of(lm)
            if model not in prices:
                prices[model] = budget.token_price(lm, self.prices)
            price = prices[model]
            cost = cost if isinstance(price, str) else price.of(n_prompt, n_answer)
        return Usage(call.n_answers, 0, 0, n_prompt, n_answer, cost)


def metered(lm: Any, meter: Meter) -> Any:
    """The LM, a copy of the user's, made to report to the meter (as will copies of it)."""
    kind: Any = type(lm)
    lm = dspy_seam.as_instance_of(lm, _metered_class(kind))
    lm.tfgrpo_meter = meter  # which is told all, so no watcher has to hear of it
    lm.callbacks = dspy_seam.Unheard(getattr(lm, "callbacks", []))
    return lm


@functools.cache
def _metered_class(kind: Any) -> Any:
    return kind if issubclass(kind, _Metered) else type(kind.__name__, (_Metered, kind), {})


def _pauses(lm: Any) -> list[float]:
    """The seconds before the next attempt of a call, and of those after it, at random."""
    n_retries = vars(lm)["num_retries"]
    longest = [FIRST_WAIT_S * 2.0**k for k in range(n_retries and max(n_retries, MIN_RETRIES))]
    return [0.0, *(min(LONGEST_WAIT_S, s) * random.uniform(0.5, 1.0) for s in longest)]


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
        meter, pauses = self.tfgrpo_meter, _pauses(self)
        with meter.noting(self, args, kwargs):
            while True:
                while (taken := meter.take(self, args, kwargs)) is None:
                    meter.ledger.wait(POLL_S)
                with meter.attempting(self, kwargs, taken, pauses) as allowed:
                    return super().__call__(*args, **allowed)  # type: ignore[misc]
                meter.ledger.wait(pauses[0])

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        meter, pauses = self.tfgrpo_meter, _pauses(self)
        with meter.noting(self, args, kwargs):
            while True:
                while (taken := meter.take(self, args, kwargs)) is None:
                    await asyncio.to_thread(meter.ledger.wait, POLL_S)
                with meter.attempting(self, kwargs, taken, pauses) as allowed:
                    return await super().acall(*args, **allowed)  # type: ignore[misc]
                await asyncio.to_thread(meter.ledger.wait, pauses[0])

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


class _Entries(list[Any]):
    """A history of a caller that is always empty: each entry goes to `note`."""

    def __init__(self, note: Callable[[Any], None]) -> None:
        super().__init__()
        self._note = note

    def append(self, entry: Any) -> None:
        self._note(entry)


class CallWatcher(BaseCallback):
    """Takes each call of an LM that is not metered, and settles it by its entry in DSPy's history.

    DSPy tells its callbacks when a call begins and ends, and adds its entry to the history of each
    caller; the watcher stands among both (`watching`). DSPy tells of no retries, and of no entry
    where the user keeps no history; then a call counts as the most that it can cost. A
    BaseException is the veto. Code that sets other callbacks hides its calls.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._open: dict[str, tuple[Any, Reservation]] = {}
        self._entries: dict[str, Any] = {}

    @property
    def history(self) -> list[Any]:
        """A caller's history, which gives each entry to the watcher; made anew, as it holds it."""
        return _Entries(self._note)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Take the call, unless the LM does so itself. Raises RunStopped."""
        if isinstance(instance, _Metered):
            return
        self._meter.begun[call_id] = f"a call of {getattr(instance, 'model', 'an LM')}"
        args, kwargs = (inputs.get("prompt"), inputs.get("messages")), inputs.get("kwargs")
        with self._meter.noting(instance):
            while (taken := self._meter.take(instance, args, kwargs or inputs)) is None:
                self._meter.ledger.wait(POLL_S)
        self._open[call_id] = instance, taken

    def _note(self, entry: Any) -> None:
        if (call_id := ACTIVE_CALL_ID.get()) in self._open:
            self._entries[call_id] = entry

    def on_lm_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:  # noqa: ARG002
        """Settle the call by its entry; without one, by its error."""
        self._meter.begun.pop(call_id, None)
        if call_id in self._open:
            (lm, taken), used = self._open.pop(call_id), None
            if (entry := self._entries.pop(call_id, None)) is not None:
                used = self._meter.usage_of(Call.of(entry), entry, lm)
                self._meter.used.append(used)
            self._meter.settle(taken, used, exception)
            if isinstance(exception, dspy.LMError):
                with suppress(dspy.LMError), self._meter.noting(lm):
                    raise exception


@contextmanager
def judging(meter: Meter) -> Iterator[None]:
    """Within it, a judge in a metric is metered: the user's own LM, as it is set."""
    judge = dspy.settings.lm
    judge = metered(judge.copy(), meter) if isinstance(judge, dspy.BaseLM) else judge
    with dspy.context(lm=judge, disable_history=False, **watching(CallWatcher(meter))):
        yield
