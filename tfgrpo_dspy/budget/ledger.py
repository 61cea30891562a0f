"""The one account of a run: calls and dollars are taken from it before they are spent."""

import math
import threading
import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import astuple, dataclass, field

from tfgrpo_dspy.budget.left_out import LeftOut
from tfgrpo_dspy.errors import RunStopped

NOT_WANTED = "nobody waits for this any more"
REFUSALS = {"max_lm_calls": "is used up", "max_cost": "could be exceeded by the next call"}
ABANDONED: ContextVar[threading.Event | None] = ContextVar("tfgrpo_abandoned", default=None)
"""Set when nobody waits for the task of this thread any more; then its calls are refused."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend at most; None: as much as it takes. Cost in US dollars."""

    max_lm_calls: int | None = None
    max_metric_calls: int | None = None
    max_cost: float | None = None
    max_minutes: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """Calls and dollars taken for an LM call, or (`is_share`) for a request to an executor.

    They are settled when it is known what that took; `abandoned`: nobody waits for that.
    """

    n_calls: int
    cost: float
    abandoned: threading.Event = field(default_factory=threading.Event)
    is_share: bool = False


class Ledger:
    """Hard limits, for any number of threads: what is not there cannot be taken.

    `n_lm_calls` and `cost` are what the run so far has cost, replayed parts included; `n_paid` and
    `paid` what all its starts have paid; `n_lost` and `lost` what came to nothing in earlier ones.
    """

    def __init__(self, budget: Budget | None = None, left_out: LeftOut | None = None) -> None:
        self.budget = budget or Budget()
        self.left_out = left_out or LeftOut()
        self.n_lm_calls = self.n_paid = self.n_lost = 0
        self.cost = self.paid = self.lost = 0.0
        self.n_metric_calls = self.n_metric_calls_made = 0
        self.longest_answered: Counter[str] = Counter()  # characters of a prompt, by model
        self.stopped_because = ""
        self.is_failure = False
        minutes = self.budget.max_minutes
        self._deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._reserve = Budget(0, 0, 0.0, 0.0)
        self._open: set[Reservation] = set()
        self._lock = threading.RLock()
        self.waits_until = 0.0  # by the clock, as the log has said of a refused call
        self._stopping = threading.Event()

    @property
    def limits_lm_calls(self) -> bool:
        """Whether calls or dollars are limited."""
        return self.budget.max_lm_calls is not None or self.budget.max_cost is not None

    def _limit(self, name: str) -> float:
        limit: float | None = getattr(self.budget, name)
        return math.inf if limit is None else limit - getattr(self._reserve, name)

    def left(self, name: str) -> float:
        """How much of a limit is left, the reserve not counted; infinite without a limit."""
        used = {
            "max_lm_calls": max(self.n_lm_calls, self.n_paid),
            "max_metric_calls": self.n_metric_calls,
            "max_cost": max(self.cost, self.paid),
        }
        return self._limit(name) - used[name]

    def take(
        self,
        n_calls: int,
        cost: float = 0.0,
        abandoned: threading.Event | None = None,
        is_share: bool = False,
    ) -> Reservation | None:
        """Take LM calls, and the dollars that they cost at most. None: not there now.

        Raises RunStopped: so many will not be there, the run has ended, or nobody waits for them.
        """
        taken = Reservation(n_calls, cost, abandoned or threading.Event(), is_share)
        with self._lock:
            self.check()
            if taken.abandoned.is_set():
                raise RunStopped(NOT_WANTED)
            if not (self._has("max_lm_calls", n_calls) and self._has("max_cost", cost)):
                return None
            self._add(n_calls, cost)
            self._open.add(taken)
            return taken

    def _has(self, name: str, wanted: float) -> bool:
        """Whether so much of a limit is left now. Raises RunStopped: it will never be."""
        if wanted <= self.left(name):
            return True
        if wanted > self.reach(name):
            self.use_up(name, REFUSALS[name])
        return False

    def reach(self, name: str) -> float:
        """What is left, and what calls under way may give back: a share calls, any its dollars."""
        is_cost = name == "max_cost"
        with self._lock:
            awaited = [taken for taken in self._open if not taken.abandoned.is_set()]
            return self.left(name) + sum(
                taken.cost if is_cost else taken.n_calls * taken.is_share for taken in awaited
            )

    def use_up(self, name: str, how: str = "is used up") -> None:
        """End the run, as a limit is reached. Raises RunStopped."""
        self.stop(f"{name}={getattr(self.budget, name)} {how}")
        self.check()

    def settle(self, taken: Reservation, n_calls: int, cost: float) -> None:
        """Correct what was taken by what was used."""
        with self._lock:
            self._add(n_calls - taken.n_calls, cost - taken.cost)
            self._open.discard(taken)

    def _add(self, n_calls: int, cost: float) -> None:
        self.n_lm_calls += n_calls
        self.cost += cost
        self.n_paid += n_calls
        self.paid += cost

    def spend(self, n_calls: int, cost: float) -> None:
        """Take what a replayed part of the run has cost. Raises RunStopped: more than is left."""
        with self._lock:
            self.check()
            used = {"max_lm_calls": self.n_lm_calls + n_calls, "max_cost": self.cost + cost}
            for name, amount in used.items():
                if amount > self._limit(name):
                    self.use_up(name)
            self.n_lm_calls += n_calls
            self.cost += cost

    def take_metric_calls(self, n_calls: int) -> None:
        """Take the metric calls of a whole stage. Raises RunStopped: so many are not left."""
        with self._lock:
            n_left = self.left("max_metric_calls")
            if n_calls > n_left:
                needed = f"{n_calls} more are needed, {n_left} are left"
                self.stop(f"max_metric_calls={self.budget.max_metric_calls}: {needed}")
            self.check()
            self.n_metric_calls += n_calls

    def note_metric_calls(self, n_made: int = 1, n_given_back: int = 0) -> None:
        """What became of metric calls that were taken before."""
        with self._lock:
            self.n_metric_calls_made += n_made
            self.n_metric_calls -= n_given_back

    def set_reserve(self, reserve: Budget) -> None:
        """Keep so much for the end; nothing else can take it until `open_reserve`."""
        with self._lock:
            self._reserve = reserve

    def open_reserve(self) -> None:
        """Let the end of the run have what was kept, though a budget has ended the run."""
        with self._lock:
            self._reserve = Budget(0, 0, 0.0, 0.0)
            if not self.is_failure:
                self._stopping.clear()

    def raise_limits(self, n_lm_calls: float, n_metric_calls: float, cost: float) -> None:
        """Let the end of a finished run have so much more, though a budget has ended the run."""
        with self._lock:
            more = math.ceil(n_lm_calls), math.ceil(n_metric_calls), cost, 0.0
            limits = zip(astuple(self.budget), more, strict=True)
            self.budget = Budget(*(None if limit is None else limit + n for limit, n in limits))
            self.open_reserve()

    def stop(self, reason: str, *, is_failure: bool = False) -> None:
        """End the run; the first reason stands, but for a failure, which always does."""
        with self._lock:
            if not self._stopping.is_set():
                keeps_reason = self.stopped_because and not is_failure
                self.stopped_because = self.stopped_because if keeps_reason else reason
                self.is_failure = is_failure
                self._stopping.set()

    def check(self) -> None:
        """Raises RunStopped when the run has ended, by a limit, the clock or `stop`."""
        if self.seconds_left() <= 0:
            self.stop(f"max_minutes={self.budget.max_minutes} are over")
        if self._stopping.is_set():
            raise RunStopped(self.stopped_because)

    def seconds_left(self) -> float:
        """Until `max_minutes` are over, but for what is kept for the end; infinite without them."""
        return self._deadline - 60 * (self._reserve.max_minutes or 0.0) - time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the run ends. Raises RunStopped."""
        self._stopping.wait(min(seconds, max(0.0, self.seconds_left())))
        self.check()
