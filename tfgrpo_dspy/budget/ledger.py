"""The one account of a run: calls and dollars are taken from it before they are spent."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tfgrpo_dspy.errors import RunStopped


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend at most; None: as much as it takes. Cost in US dollars."""

    max_lm_calls: int | None = None
    max_metric_calls: int | None = None
    max_cost: float | None = None
    max_minutes: float | None = None


POLL_S = 0.1
NOT_WANTED = "nobody waits for this any more"


def _never() -> bool:
    return False


def _always() -> bool:
    return True


@dataclass(slots=True, eq=False)
class Reservation:
    """Calls and dollars taken for one LM call; corrected when it is known what it took.

    `is_share`: for work elsewhere, which mostly takes less and gives the rest back; no more where
    that is given up.
    """

    n_calls: int
    cost: float
    is_given_up: Callable[[], bool] = _never
    is_share: bool = False


class Ledger:
    """Hard limits, for any number of threads: what is not there cannot be taken.

    `n_lm_calls` and `cost` are what the run so far has cost, replayed parts included; `n_paid` and
    `paid` what all starts of it have really paid, which is more where something was lost;
    `most_calls` and `most_cost` what was taken at most at any moment, before some was given back.

    `stop` ends the run from any thread: every later call is refused, every pause ends.
    """

    def __init__(
        self, budget: Budget | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget = budget or Budget()
        self.n_lm_calls = 0
        self.n_metric_calls = 0
        self.n_metric_calls_made = 0
        self.cost = 0.0
        self.n_paid = 0
        self.paid = 0.0
        self.most_calls = 0
        self.most_cost = 0.0
        self.stopped_because = ""
        self.is_failure = False
        self._clock = clock
        minutes = self.budget.max_minutes
        self._deadline = None if minutes is None else clock() + 60 * minutes
        self._reserve = Reservation(0, 0.0)
        self._reserved_metric_calls = 0
        self._reserved_seconds = 0.0
        self._open: set[Reservation] = set()
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._held_until: dict[str, float] = {}

    # ------------------------------------------------------------------ the limits

    def take(
        self, n_calls: int, cost: float = 0.0, is_given_up: Callable[[], bool] = _never
    ) -> Reservation:
        """Take LM calls, and the dollars that they cost at most.

        Where they are not there because calls under way hold them, and those may give some back,
        this waits for them; not for those that `is_given_up` says nobody waits for.

        Raises:
            RunStopped: so many are not there, or the run has ended.
        """
        with self._settled:
            while (lease := self._taken(n_calls, cost, is_given_up)) is None:
                self._settled.wait(POLL_S)
            return lease

    def take_now(
        self, n_calls: int, cost: float = 0.0, is_given_up: Callable[[], bool] = _never
    ) -> Reservation | None:
        """The same without the wait: None where it is to be tried again."""
        with self._settled:
            return self._taken(n_calls, cost, is_given_up)

    def _taken(
        self, n_calls: int, cost: float, is_given_up: Callable[[], bool]
    ) -> Reservation | None:
        self._check()
        if is_given_up():
            raise RunStopped(NOT_WANTED)
        limit, most = self.budget.max_lm_calls, self.budget.max_cost
        n_taken, taken = max(self.n_lm_calls, self.n_paid), max(self.cost, self.paid)
        if limit is not None and n_taken + n_calls > limit - self._reserve.n_calls:
            on_loan = sum(lease.n_calls for lease in self._open if lease.is_share)
            if n_taken - on_loan + n_calls > limit - self._reserve.n_calls:
                self._stop(f"max_lm_calls={limit} is used up")
            self._check()
            return None
        if most is not None and taken + cost > most - self._reserve.cost:
            may_come_back = sum(lease.cost for lease in self._open if not lease.is_given_up())
            if taken - may_come_back + cost > most - self._reserve.cost:
                self._stop(f"max_cost={most} could be exceeded by the next call")
            self._check()
            return None
        self._check()
        self._add(n_calls, cost)
        lease = Reservation(n_calls, cost, is_given_up)
        self._open.add(lease)
        return lease

    def take_share(
        self, n_shares: int, least: tuple[int, float], most: tuple[float, float]
    ) -> Reservation | None:
        """Take a lease for work that is done elsewhere: an n-th of what is left.

        It is at least `least` (calls, dollars), or all that is left, and otherwise at most `most`.
        None: not now, as what is on loan may bring some back.

        Raises:
            RunStopped: nothing is left, or the run has ended.
        """
        with self._lock:
            self._check()
            n_calls, cost = (
                self._share(name, n_shares, least[index], most[index])
                for index, name in enumerate(("max_lm_calls", "max_cost"))
            )
            self._check()
            if n_calls is None or cost is None:
                return None
            lease = Reservation(math.floor(n_calls), cost, is_share=True)
            self._add(lease.n_calls, lease.cost)
            self._open.add(lease)
            return lease

    def _share(self, name: str, n_shares: int, least: float, most: float) -> float | None:
        """An n-th of what is left of a limit (0 without one); None: not now."""
        left = self._left(name)
        if math.isinf(left):
            return 0.0
        wanted = max(min(left / n_shares, most), least)
        if wanted <= left:
            return wanted
        if any(lease.is_share or not lease.is_given_up() for lease in self._open):
            return None
        if left <= 0:
            self._stop(f"{name}={getattr(self.budget, name)} is used up")
        return left

    def _left(self, name: str) -> float:
        limit: float | None = getattr(self.budget, name)
        if limit is None:
            return math.inf
        if name == "max_cost":
            return limit - self._reserve.cost - max(self.cost, self.paid)
        return limit - self._reserve.n_calls - max(self.n_lm_calls, self.n_paid)

    def may_reach(self, n_calls: int, cost: float) -> bool:
        """Whether so much is left, or will be when all that is under way has given back."""
        with self._lock:
            out = [lease for lease in self._open if lease.is_share or not lease.is_given_up()]
            calls_left = self._left("max_lm_calls") + sum(lease.n_calls for lease in out)
            dollars_left = self._left("max_cost") + sum(lease.cost for lease in out)
            return calls_left >= n_calls and dollars_left >= cost

    def forfeit(self, lease: Reservation) -> None:
        """Nobody waits for what a share is for: it counts as spent, unless `settle` says otherwise.

        It may do so at any time later.
        """
        with self._settled:
            lease.is_share, lease.is_given_up = False, _always
            self._settled.notify_all()

    def minutes_left(self) -> float | None:
        """Until `max_minutes` are over; None without them."""
        left = self._seconds_left()
        return None if math.isinf(left) else max(0.0, left) / 60

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
            self._check()
            limit, most = self.budget.max_lm_calls, self.budget.max_cost
            if limit is not None and self.n_lm_calls + n_calls > limit - self._reserve.n_calls:
                self._stop(f"max_lm_calls={limit} is used up")
            if most is not None and self.cost + cost > most - self._reserve.cost:
                self._stop(f"max_cost={most} is used up")
            self._check()
            self.n_lm_calls += n_calls
            self.cost += cost

    def settle(self, lease: Reservation, n_calls: int, cost: float) -> None:
        """Correct what was taken by what it was: calls that a cache answered are given back."""
        with self._settled:
            self._add(n_calls - lease.n_calls, cost - lease.cost)
            self._open.discard(lease)
            lease.n_calls, lease.cost = n_calls, cost
            self._settled.notify_all()

    def take_metric_calls(self, n_calls: int) -> None:
        """Take the metric calls of a whole stage, so that none is begun that cannot be finished.

        Raises:
            RunStopped: so many are not there, or the run has ended.
        """
        with self._lock:
            self._check()
            limit = self.budget.max_metric_calls
            left = None if limit is None else limit - self._reserved_metric_calls
            if left is not None and self.n_metric_calls + n_calls > left:
                n_left = left - self.n_metric_calls
                self._stop(
                    f"max_metric_calls={limit}: {n_calls} more are needed, {n_left} are left"
                )
            self._check()
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
            self._reserved_seconds = seconds
            self._reserved_metric_calls = n_metric_calls
            self._reserve = Reservation(n_lm_calls, cost)

    def open_reserve(self) -> None:
        """Let the end of the run have what was kept for it, if only a budget has ended the run."""
        with self._lock:
            self._reserved_seconds = 0.0
            self._reserved_metric_calls = 0
            self._reserve = Reservation(0, 0.0)
            if self._stopping.is_set() and not self.is_failure:
                self._stopping.clear()

    # ------------------------------------------------------------------ the end

    def stop(self, reason: str, *, is_failure: bool = False) -> None:
        """End the run; the first reason stands."""
        with self._lock:
            self._stop(reason, is_failure)

    def _stop(self, reason: str, is_failure: bool = False) -> None:
        if not self._stopping.is_set():
            self.stopped_because = self.stopped_because or reason
            self.is_failure = is_failure
            if is_failure:
                self.stopped_because = reason
            self._stopping.set()

    def check(self) -> None:
        """Raises RunStopped when the run has ended, by a limit, the clock or `stop`."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        if self._seconds_left() <= 0:
            self._stop(f"max_minutes={self.budget.max_minutes} are over")
        if self._stopping.is_set():
            raise RunStopped(self.stopped_because)

    # ------------------------------------------------------------------ pauses

    def hold(self, model: str, seconds: float) -> None:
        """The provider of this model asks for a pause: all threads keep it."""
        with self._lock:
            until = self._clock() + seconds
            self._held_until[model] = max(until, self._held_until.get(model, until))

    def seconds_held(self, model: str) -> float:
        """How long no call to this model may be made."""
        until = self._held_until.get(model)
        return 0.0 if until is None else max(0.0, until - self._clock())

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the run ends. Raises RunStopped."""
        self._stopping.wait(min(seconds, max(0.0, self._seconds_left())))
        self.check()

    def _seconds_left(self) -> float:
        if self._deadline is None:
            return math.inf
        return self._deadline - self._reserved_seconds - self._clock()
