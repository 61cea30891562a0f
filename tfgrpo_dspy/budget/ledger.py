"""The one account of a run: calls and dollars are taken from it before they are spent."""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from tfgrpo_dspy.errors import RunStopped

logger = logging.getLogger(__name__)

NOT_WANTED = "nobody waits for this any more"
LONGEST_HOLD_S = 300.0
"""A provider that asks for a longer pause is asked again after so many seconds."""
SHORT_HOLD_S = 5.0
REFUSALS = {"max_lm_calls": "is used up", "max_cost": "could be exceeded by the next call"}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend at most; None: as much as it takes. Cost in US dollars."""

    max_lm_calls: int | None = None
    max_metric_calls: int | None = None
    max_cost: float | None = None
    max_minutes: float | None = None


@dataclass(slots=True, eq=False)
class Reservation:
    """Calls and dollars taken for one LM call; corrected when it is known what it took.

    `is_share`: taken for a request to an executor, which mostly takes less and gives the rest back.
    """

    n_calls: int
    cost: float
    is_given_up: Callable[[], bool] = lambda: False
    is_share: bool = False


class Ledger:
    """Hard limits, for any number of threads: what is not there cannot be taken.

    `n_lm_calls` and `cost` are what the run so far has cost, replayed parts included; `n_paid` and
    `paid` what all starts of it have really paid, which is more where something was lost;
    `most_calls` and `most_cost` what was taken at most at any moment, before some was given back.
    """

    def __init__(
        self, budget: Budget | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget = budget or Budget()
        self.n_lm_calls = self.n_paid = self.most_calls = 0
        self.cost = self.paid = self.most_cost = 0.0
        self.n_metric_calls = self.n_metric_calls_made = 0
        self.stopped_because = ""
        self.is_failure = False
        self._clock = clock
        minutes = self.budget.max_minutes
        self._deadline = math.inf if minutes is None else clock() + 60 * minutes
        self._open: set[Reservation] = set()
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._held_until: dict[str, float] = {}
        self.set_reserve(0, 0, 0.0, 0.0)

    @property
    def limits_lm_calls(self) -> bool:
        """Whether calls or dollars are limited."""
        return self.budget.max_lm_calls is not None or self.budget.max_cost is not None

    def take(
        self, n_calls: int, cost: float = 0.0, is_given_up: Callable[[], bool] = lambda: False
    ) -> Reservation | None:
        """Take LM calls, and the dollars that they cost at most.

        None: they are not there now, and calls under way may give some back; those do not count
        of which `is_given_up` says that nobody waits for them.

        Raises:
            RunStopped: so many will not be there, or the run has ended.
        """
        with self._lock:
            self.check()
            if is_given_up():
                raise RunStopped(NOT_WANTED)
            if not (self._has("max_lm_calls", n_calls) and self._has("max_cost", cost)):
                return None
            return self._open_for(Reservation(n_calls, cost, is_given_up))

    def _has(self, name: str, wanted: float) -> bool:
        """Whether so much of a limit is left now. Raises RunStopped: it will never be."""
        left = self._left(name)
        if wanted > left + self._may_return(name):
            self._use_up(name, REFUSALS[name])
        return wanted <= left

    def _use_up(self, name: str, how: str = "is used up") -> None:
        self.stop(f"{name}={getattr(self.budget, name)} {how}")
        self.check()

    def _left(self, name: str, is_replay: bool = False) -> float:
        limit: float | None = getattr(self.budget, name)
        if limit is None:
            return math.inf
        if name == "max_cost":
            return limit - self._reserve.cost - max(self.cost, 0.0 if is_replay else self.paid)
        n_used = max(self.n_lm_calls, 0 if is_replay else self.n_paid)
        return limit - self._reserve.n_calls - n_used

    def _may_return(self, name: str) -> float:
        """What calls under way may give back: a call its dollars, a share its calls too."""
        if name == "max_cost":
            return sum(taken.cost for taken in self._open if not taken.is_given_up())
        return sum(taken.n_calls for taken in self._open if taken.is_share)

    def take_share(
        self, n_shares: int, least: tuple[int, float], most: tuple[float, float]
    ) -> Reservation | None:
        """Take an n-th of what is left, for a request to an executor.

        It is at least `least` (calls, dollars), or all that is left, and otherwise at most `most`.
        None: not now, as calls under way may give some back.

        Raises:
            RunStopped: nothing is left, or the run has ended.
        """
        with self._lock:
            self.check()
            n_calls = self._share("max_lm_calls", n_shares, least[0], most[0])
            cost = self._share("max_cost", n_shares, least[1], most[1])
            if n_calls is None or cost is None:
                return None
            return self._open_for(Reservation(math.floor(n_calls), cost, is_share=True))

    def _share(self, name: str, n_shares: int, least: float, most: float) -> float | None:
        """An n-th of what is left of a limit (0 without one); None: not now."""
        left = self._left(name)
        if math.isinf(left):
            return 0.0
        wanted = max(min(left / n_shares, most), least)
        if wanted <= left:
            return wanted
        if self._may_return(name) > 0:
            return None
        if left <= 0:
            self._use_up(name)
        return left

    def may_reach(self, n_calls: int, cost: float) -> bool:
        """Whether so much is left, or will be when all that is under way has given back."""
        with self._lock:
            wanted = {"max_lm_calls": n_calls, "max_cost": cost}
            return all(self._left(n) + self._may_return(n) >= w for n, w in wanted.items())

    def settle(self, taken: Reservation, n_calls: int, cost: float) -> None:
        """Correct what was taken by what it was: calls that a cache answered are given back."""
        with self._lock:
            self._add(n_calls - taken.n_calls, cost - taken.cost)
            self._open.discard(taken)
            taken.n_calls, taken.cost = n_calls, cost

    def forfeit(self, taken: Reservation) -> None:
        """Count a share as spent, as nobody waits for its request; `settle` may correct it."""
        with self._lock:
            taken.is_share, taken.is_given_up = False, lambda: True

    def count(self, n_calls: int, cost: float) -> None:
        """Count calls that cannot be refused; the run ends where they exceed a limit."""
        with self._lock:
            self._add(n_calls, cost)
            for name in REFUSALS:
                if self._left(name) < 0:
                    self.stop(f"{name}={getattr(self.budget, name)} is used up")

    def _open_for(self, taken: Reservation) -> Reservation:
        self._add(taken.n_calls, taken.cost)
        self._open.add(taken)
        return taken

    def _add(self, n_calls: int, cost: float) -> None:
        self.n_lm_calls += n_calls
        self.cost += cost
        self.n_paid += n_calls
        self.paid += cost
        self.most_calls = max(self.most_calls, self.n_lm_calls)
        self.most_cost = max(self.most_cost, self.cost)

    def resume(self, n_paid: int, paid: float) -> None:
        """What earlier starts of this run have paid, for results and for nothing."""
        with self._lock:
            self.n_paid, self.paid = n_paid, paid

    def spend(self, n_calls: int, cost: float) -> None:
        """Take what was paid before, for a part of the run that is replayed.

        Raises:
            RunStopped: that was more than the run may spend now.
        """
        with self._lock:
            self.check()
            for name, wanted in (("max_lm_calls", n_calls), ("max_cost", cost)):
                if wanted > self._left(name, is_replay=True):
                    self._use_up(name)
            self.n_lm_calls += n_calls
            self.cost += cost

    def take_metric_calls(self, n_calls: int) -> None:
        """Take the metric calls of a whole stage, so that none is begun that cannot be finished.

        Raises:
            RunStopped: so many are not there, or the run has ended.
        """
        with self._lock:
            limit = self.budget.max_metric_calls
            if limit is not None:
                n_left = limit - self._reserved_metric_calls - self.n_metric_calls
                if n_calls > n_left:
                    needed = f"{n_calls} more are needed, {n_left} are left"
                    self.stop(f"max_metric_calls={limit}: {needed}")
            self.check()
            self.n_metric_calls += n_calls

    def note_metric_call(self) -> None:
        """A metric call that was taken before is made now."""
        with self._lock:
            self.n_metric_calls_made += 1

    def give_back_metric_calls(self, n_calls: int) -> None:
        """Give back those that were not made, because the program failed."""
        with self._lock:
            self.n_metric_calls -= n_calls

    def set_reserve(
        self, n_metric_calls: int, n_lm_calls: int, cost: float, seconds: float
    ) -> None:
        """Keep so much for the end; nothing else can take it until `open_reserve`."""
        with self._lock:
            self._reserved_metric_calls = n_metric_calls
            self._reserve = Reservation(n_lm_calls, cost)
            self._reserved_s = seconds

    def open_reserve(self) -> None:
        """Let the end of the run have what was kept for it, if only a budget has ended the run."""
        with self._lock:
            self.set_reserve(0, 0, 0.0, 0.0)
            if not self.is_failure:
                self._stopping.clear()

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
        if self._seconds_left() <= 0:
            self.stop(f"max_minutes={self.budget.max_minutes} are over")
        if self._stopping.is_set():
            raise RunStopped(self.stopped_because)

    def minutes_left(self) -> float | None:
        """Until `max_minutes` are over; None without them."""
        left = self._seconds_left()
        return None if math.isinf(left) else max(0.0, left) / 60

    def _seconds_left(self) -> float:
        return self._deadline - self._reserved_s - self._clock()

    def hold(self, model: str, seconds: float) -> None:
        """The provider of this model asks for a pause: all threads keep it, up to five minutes."""
        with self._lock:
            now, seconds_held = self._clock(), min(seconds, LONGEST_HOLD_S)
            if self._held_until.get(model, now) <= now:
                end = datetime.now().astimezone() + timedelta(seconds=seconds_held)
                logger.log(
                    logging.WARNING if seconds > SHORT_HOLD_S else logging.INFO,
                    "the provider of %s asks for a pause of %g s: no call to it before %s",
                    *(model, seconds, end.isoformat(timespec="seconds")),
                )
            self._held_until[model] = max(now + seconds_held, self._held_until.get(model, now))

    def seconds_held(self, model: str) -> float:
        """How long no call to this model may be made."""
        until = self._held_until.get(model)
        return 0.0 if until is None else max(0.0, until - self._clock())

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the run ends. Raises RunStopped."""
        self._stopping.wait(min(seconds, max(0.0, self._seconds_left())))
        self.check()
