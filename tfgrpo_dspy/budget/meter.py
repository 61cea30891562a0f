"""What the calls of one rollout or reflection have cost, and what came of them."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import dspy
from dspy.utils.exceptions import LMError

from tfgrpo_dspy.budget.faults import is_fatal, is_too_long, is_unanswered
from tfgrpo_dspy.budget.ledger import ABANDONED, NOT_WANTED, Ledger, Reservation
from tfgrpo_dspy.budget.prices import TOKENS_IN_A_PRICE, Prices, price_of
from tfgrpo_dspy.errors import RunStopped, described
from tfgrpo_dspy.redaction import known_secrets, redacted
from tfgrpo_dspy.rollout import Failure, Usage

POLL_S = 0.1
"""How often a call looks whether others gave some of their dollars back, or the run has ended."""
ATTEMPT: ContextVar[list[Usage] | None] = ContextVar("tfgrpo_attempt", default=None)
"""What the attempt that this thread makes has used, by DSPy's history."""


class Meter:
    """What the LM copies that carry it have done; each rollout or reflection has its own."""

    def __init__(self, ledger: Ledger | None = None, prices: Prices | None = None) -> None:
        self.ledger = ledger or Ledger()
        self.provider_failure: Failure | None = None
        self.keeps_history = not dspy.settings.disable_history
        self._prices = prices or {}
        self._was_refused = False
        self._abandoned = ABANDONED.get()
        self._used: list[Usage] = []
        self._last: tuple[Any, Mapping[str, Any]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Meter":
        return self

    def take(self, lm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Reservation | None:
        """Take the calls and dollars that a call may need. None: not now. Raises RunStopped."""
        n = int(kwargs.get("n") or lm.kwargs.get("n") or 1)
        if self.ledger.budget.max_cost is None:
            return self.ledger.take(n, 0.0, self._abandoned)
        price = price_of(lm, self._prices)
        if isinstance(price, str):
            self.ledger.stop(f"max_cost: {price}", is_failure=True)
            raise RunStopped(self.ledger.stopped_because)
        return self.ledger.take(n, price.most(args, kwargs, n), self._abandoned)

    @contextmanager
    def attempting(self, lm: Any, taken: Reservation) -> Iterator[None]:
        """One attempt of a call; it is settled in the end. Raises RunStopped: none will succeed."""
        used: list[Usage] = []
        token = ATTEMPT.set(used)
        n_calls, cost = taken.n_calls, taken.cost
        try:
            yield
            if used:
                n_calls = used[-1].n_lm_calls
                cost = used[-1].cost_usd or (cost if n_calls else 0.0)
            else:  # an LM of the user's own that keeps no history
                self._used.append(Usage(n_calls))
        except LMError as error:
            self._used.append(Usage(n_calls, n_failed_calls=n_calls))
            cost = cost if is_unanswered(error) else 0.0
            if is_fatal(error):
                message = self._message(error, lm)
                self.ledger.stop(message, is_failure=True)
                raise RunStopped(message) from error
            raise
        finally:
            ATTEMPT.reset(token)
            self.ledger.settle(taken, n_calls, cost)

    def answered(self, entry: Mapping[str, Any]) -> None:
        """Count a call by its entry in DSPy's history."""
        usage = self._usage_of(entry)
        used = ATTEMPT.get()
        if used is not None:
            used.append(usage)
        self._used.append(usage)
        self._last = (dspy.settings.caller_modules or [None])[-1], entry

    @contextmanager
    def noting(self, lm: Any) -> Iterator[None]:
        """Remember that a call was refused, or ended in an error after its retries."""
        try:
            yield
        except RunStopped:
            self._was_refused = True
            raise
        except LMError as error:
            if not is_too_long(error):  # that is the program's failure
                self.provider_failure = Failure("provider", self._message(error, lm))
            raise

    def _message(self, error: LMError, lm: Any) -> str:
        return redacted(described(error), known_secrets([lm]))

    def take_unseen(self, lm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take and settle a call of an LM that is not metered. Raises RunStopped."""
        with self.noting(lm):
            while (taken := self.take(lm, args, kwargs)) is None:
                self.ledger.wait(POLL_S)
        self.ledger.settle(taken, taken.n_calls, taken.cost)
        self._used.append(Usage(taken.n_calls))

    def check(self) -> None:
        """Raises RunStopped: nobody waits for these calls, or one was refused, swallowed or not."""
        if self._abandoned is not None and self._abandoned.is_set():
            raise RunStopped(NOT_WANTED)
        if self._was_refused:
            raise RunStopped(self.ledger.stopped_because)

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

    def _usage_of(self, entry: Mapping[str, Any]) -> Usage:
        usage, response = entry["usage"], entry["response"]
        responses = response if isinstance(response, tuple) else (response,)
        if not usage and any(map(_reports_tokens, responses)):
            # DSPy empties the usage of an answer from its cache
            return Usage(n_cached_calls=len(responses))
        used = Usage(
            n_lm_calls=len(responses),  # an engine is called once for each completion
            prompt_tokens=usage.get("prompt_tokens") or 0,
            completion_tokens=usage.get("completion_tokens") or 0,
            cost_usd=entry.get("cost") or 0.0,
        )
        if entry["model"] not in self._prices:
            return used
        prompt, completion = self._prices[entry["model"]]
        dollars = used.prompt_tokens * prompt + used.completion_tokens * completion
        return replace(used, cost_usd=dollars / TOKENS_IN_A_PRICE)

    @property
    def last_call(self) -> tuple[Any, str, str] | None:
        """Of the last answered call: the module that made it, the last message sent, the answer."""
        if self._last is None:
            return None
        caller, entry = self._last
        prompt = entry["messages"][-1]["content"] if entry["messages"] else entry["prompt"]
        answer = entry["outputs"][0] if entry["outputs"] else ""
        answer = answer.get("text") if isinstance(answer, Mapping) else answer
        return caller, str(prompt), str(answer or "")


def _reports_tokens(response: Any) -> bool:
    usage: Any = getattr(response, "usage", None) or {}
    names = ("input_tokens", "prompt_tokens")
    if isinstance(usage, Mapping):
        return any(usage.get(name) is not None for name in names)
    return any(getattr(usage, name, None) is not None for name in names)
