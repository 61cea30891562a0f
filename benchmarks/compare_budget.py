"""The one account of a cell: LM calls and tokens by role, and the end at the budget.

A call is what reaches the LM: an answer from DSPy's cache is free, `n` completions are `n` calls.
A call is taken before it is made, so the budget is never exceeded; what turns out to be cached is
given back. At the end every further call is refused by an exception that no `except Exception`
catches. Retries inside an LM are not seen.
"""

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

POLICY, REFLECTION = "policy", "reflection"


class BudgetSpentError(BaseException):
    """The budget does not reach for the call."""


@dataclass
class Spent:
    """What one role has spent."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class _Call:
    """A call under way, and the entry of DSPy's history about it."""

    role: str
    n: int
    entry: Mapping[str, Any] | None = field(default=None)


_CALL: ContextVar[_Call | None] = ContextVar("compare_call", default=None)


class Account:
    """Counts, and refuses what is above the limit.

    Args:
        limit: how many calls of both roles together; None: as many as are made.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.spent = {POLICY: Spent(), REFLECTION: Spent()}
        self.n_failed = 0
        self.is_refusing = False
        self._n_under_way = 0
        self._changed = threading.Condition()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Account":
        return self  # programs that carry an LM are deep-copied; the account is one

    @property
    def n_calls(self) -> int:
        """Calls that are done, of both roles."""
        return sum(spent.calls for spent in self.spent.values())

    @contextmanager
    def call(self, role: str, n: int) -> Iterator[None]:
        """While a call is made. Raises BudgetSpentError: the budget does not reach for it."""
        self._take(n)
        call = _Call(role, n)
        token = _CALL.set(call)
        try:
            yield
        except BaseException:
            self.n_failed += 1
            raise
        finally:
            _CALL.reset(token)
            self._settle(call)

    @contextmanager
    def kept_back(self, n: int) -> Iterator[None]:
        """While so many calls of the limit are kept for what comes after."""
        if self.limit is None:
            yield
            return
        self.limit -= n
        try:
            yield
        finally:
            with self._changed:
                self.limit += n
                self.is_refusing = False

    def _take(self, n: int) -> None:
        with self._changed:
            while not self.is_refusing and not self._reaches(n) and self._n_under_way:
                self._changed.wait()  # calls under way may turn out to be cached
            if self.is_refusing or not self._reaches(n):
                self.is_refusing = True
                self._changed.notify_all()
                raise BudgetSpentError
            self._n_under_way += n

    def _reaches(self, n: int) -> bool:
        return self.limit is None or self.n_calls + self._n_under_way + n <= self.limit

    def _settle(self, call: _Call) -> None:
        with self._changed:
            self._n_under_way -= call.n
            if call.entry is None or not _is_cached(call.entry):
                usage = {} if call.entry is None else call.entry["usage"]
                spent = self.spent[call.role]
                spent.calls += call.n
                spent.prompt_tokens += usage.get("prompt_tokens") or 0
                spent.completion_tokens += usage.get("completion_tokens") or 0
            self._changed.notify_all()


def counted(lm: Any, role: str, account: Account) -> Any:
    """A copy of the LM whose calls, and those of its copies, are taken from the account."""
    copy = lm.copy()
    copy.__class__ = _counted_class(type(lm))
    copy.compare_account, copy.compare_role = account, role
    return copy


class _Counted:
    """What a counted LM does besides what its own class does, which comes next in the order."""

    compare_account: Account
    compare_role: str
    kwargs: dict[str, Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.compare_account.call(self.compare_role, self._n(kwargs)):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        with self.compare_account.call(self.compare_role, self._n(kwargs)):
            return await super().acall(*args, **kwargs)  # type: ignore[misc]

    def update_history(self, entry: dict[str, Any]) -> None:
        call = _CALL.get()
        if call is not None:
            call.entry = entry
        super().update_history(entry)  # type: ignore[misc]

    def _n(self, kwargs: Mapping[str, Any]) -> int:
        return int(kwargs.get("n") or self.kwargs.get("n") or 1)


@functools.cache
def _counted_class(kind: type) -> type:
    return type(kind.__name__, (_Counted, kind), {})


def _is_cached(entry: Mapping[str, Any]) -> bool:
    """Whether DSPy's cache gave the answer: its usage is emptied then, not that of the response."""
    response = entry["response"]
    first = response[0] if isinstance(response, tuple) else response
    told = getattr(first, "usage", None)
    tokens = getattr(told, "input_tokens", None) or getattr(told, "prompt_tokens", None)
    return not entry["usage"] and (getattr(first, "cache_hit", False) or tokens is not None)
