"""The limits of a run: each call and its dollars are taken here before it is made.

The ledger counts calls when they are made, in an order that depends on the clock. The account, by
which the next update is planned, counts whole updates in their order, and answers from a cache like
calls: so a run that is repeated, with other threads or a warm cache, plans the same batches.
"""

import functools
import logging
import math
import operator
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import NamedTuple, NoReturn

from tfgrpo_dspy.errors import Raised, RunStopped, TrainingCut
from tfgrpo_dspy.rollout import DECIMALS, Rollout, Usage
from tfgrpo_dspy.user_code import NOT_WANTED, check_wanted

logger = logging.getLogger(__name__)

REFUSALS = {"max_cost": "could be exceeded by the next call"}  # of others: "is used up"
UNSEEN = (
    "a call of %s was seen only after it was made, as the code around it sets the callbacks of "
    "dspy.context: such calls count, and one that is too many ends the run, but none is refused. "
    "Leave callbacks= out, or add to dspy.settings.callbacks"
)
LENT_SHARE = 0.5  # of the dollars that are kept for the end


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend at most; None: as much as it takes. Cost in US dollars."""

    max_lm_calls: int | None = None
    max_metric_calls: int | None = None
    max_cost: float | None = None
    max_minutes: float | None = None


LONGEST_WAIT_S = 60.0  # after a refusal, where the provider says nothing
NOTHING = Budget(0, 0, 0.0, 0.0)


class Sampled(NamedTuple):
    """A sampling parameter as it is sent to a model."""

    model: str
    name: str
    value: str  # as text


@dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """Calls and dollars taken for an LM call; settled when it is known what that took."""

    n_calls: int
    cost: float
    abandoned: threading.Event = field(default_factory=threading.Event)  # nobody waits for it
    is_share: bool = False  # it is for a request to an executor
    n_metric_calls: int = 0  # of a share


class Ledger:
    """Hard limits, for any number of threads: what is not there cannot be taken.

    While something is kept for the end (`set_reserve`), a limit ends the training only: it refuses
    single rollouts and answers (`TrainingCut`), and `cut_because` says why. Later it ends the run.
    `n_lm_calls` and `cost` are what the run so far has cost, replayed parts included; of that,
    `n_used` and `used` is what its results took.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.left_out: dict[Sampled, str] = {}  # what providers refuse, and is sent no more
        self.n_lm_calls = self.n_used = 0
        self.cost = self.used = 0.0
        self.n_metric_calls = self.n_metric_calls_made = 0
        self.longest_answered: Counter[str] = Counter()  # characters of a prompt, by model
        self.n_unseen = 0  # calls that nobody could refuse
        self.dearest = 0.0  # the most dollars that were taken for one LM call, now or as recorded
        self.stopped_because = self.cut_because = ""
        self.is_failure = False
        self.raised = Raised()
        self._begun, self._stood_s = time.monotonic(), 0.0
        self._stands_since: float | None = None  # a person was asked
        self._reserve, self._n_lessons = NOTHING, 0
        self._is_training = False
        self.is_late = False  # whether the clock has ended the training
        self._open: set[Reservation] = set()
        self._lock = threading.RLock()
        self.clean: Callable[[str], str] = str  # takes secrets out of why the run ends
        self._pauses: dict[str, tuple[int, float]] = {}  # by model: how many in a row, until when
        self._stopping = threading.Event()

    @property
    def lost(self) -> tuple[int, float]:
        """The calls and dollars that came to nothing: no result took them."""
        n = max(0, self.n_lm_calls - self.n_used)
        return n, max(0.0, self.cost - self.used) if n else 0.0

    @property
    def seconds(self) -> float:
        """How long the run has taken, but for the time in which its clock stood still."""
        now = time.monotonic() if self._stands_since is None else self._stands_since
        return now - self._begun - self._stood_s

    @contextmanager
    def standing(self) -> Iterator[None]:
        """The clock of the run stands still within it, as while a person is asked."""
        self._stands_since = time.monotonic()
        try:
            yield
        finally:
            self._stood_s += time.monotonic() - self._stands_since
            self._stands_since = None

    @property
    def refused_because(self) -> str:
        """Why the training, or the run, was stopped before its plan was done; "": it was not."""
        return self.stopped_because or self.cut_because

    @property
    def limits_lm_calls(self) -> bool:
        """Whether calls or dollars are limited."""
        return self.budget.max_lm_calls is not None or self.budget.max_cost is not None

    def _limit(self, name: str) -> float:
        limit: float | None = getattr(self.budget, name)
        return math.inf if limit is None else limit - getattr(self._reserve, name)

    def left(self, name: str, leaves_lessons: bool = False) -> float:
        """How much of a limit is left, the reserve not counted; infinite without a limit."""
        used = {
            "max_lm_calls": self.n_lm_calls,
            "max_metric_calls": self.n_metric_calls,
            "max_cost": self.cost,
        }
        kept = self._n_lessons if leaves_lessons and name == "max_lm_calls" else 0
        return self._limit(name) - used[name] - kept

    def take(
        self,
        n_calls: int,
        cost: float = 0.0,
        abandoned: threading.Event | None = None,
        is_share: bool = False,
        n_metric_calls: int = 0,
        leaves_lessons: bool = False,  # what is kept for those of the rollouts that are made
    ) -> Reservation | None:
        """Reserve calls, and the most dollars that they may cost; None if they are not there now.

        Raises RunStopped: they will never be there, the run has ended, or nobody waits for them.
        """
        event = abandoned or threading.Event()
        taken = Reservation(n_calls, cost, event, is_share, n_metric_calls)
        wanted = {"max_lm_calls": n_calls, "max_cost": cost, "max_metric_calls": n_metric_calls}
        with self._lock:
            self.check()
            if taken.abandoned.is_set():
                raise RunStopped(NOT_WANTED)
            borrows = self._is_training and not is_share
            if not all(self._has(n, m, leaves_lessons, borrows) for n, m in wanted.items()):
                return None
            self._add(n_calls, cost)
            self.n_metric_calls += n_metric_calls
            self._open.add(taken)
            if not is_share and leaves_lessons >= self._is_training:
                self.dearest = max(self.dearest, cost)
            return taken

    def _has(self, name: str, wanted: float, leaves_lessons: bool, borrows: bool) -> bool:
        """Whether the wanted part of a limit is left now. Raises RunStopped: it will never be.

        A call hardly ever costs the most that it may: it borrows a part of that from what is kept,
        as long as the calls under way will not touch that if each costs what calls cost on average.
        """
        left, reach = self.left(name, leaves_lessons), self.reach(name, leaves_lessons)
        if name == "max_cost" and borrows and wanted:
            n_settled = self.n_lm_calls - sum(taken.n_calls for taken in self._open)
            of_settled = self.cost - sum(taken.cost for taken in self._open)
            if reach < len(self._open) * (of_settled / max(1, n_settled)):
                self.use_up(name)
            lent = LENT_SHARE * (self._reserve.max_cost or 0.0)
            left, reach = left + lent, reach + lent
        if wanted > reach:
            self.use_up(name)
        return wanted <= left

    def reach(self, name: str, leaves_lessons: bool = False) -> float:
        """The most of a limit that can still become available.

        That is what is left, and what open reservations may return: a share its calls and dollars,
        a single call its dollars.
        """
        with self._lock:
            awaited = [taken for taken in self._open if not taken.abandoned.is_set()]
            shares = [taken for taken in awaited if taken.is_share]
            back = {
                "max_lm_calls": sum(taken.n_calls for taken in shares),
                "max_metric_calls": sum(taken.n_metric_calls for taken in shares),
                "max_cost": sum(taken.cost for taken in awaited),
            }
            return self.left(name, leaves_lessons) + back[name]

    def use_up(self, name: str) -> NoReturn:
        """End the training, or the run, as a limit is reached. Raises RunStopped."""
        used = "is used up, but for what the end of the run needs"
        why = REFUSALS.get(name, used if self._is_training else "is used up")
        self.end(f"{name}={getattr(self.budget, name)} {why}")

    def end(self, reason: str) -> NoReturn:
        """End the training, or the run, but for what is under way. Raises RunStopped."""
        with self._lock:
            if self._is_training:
                self.cut_because = self.cut_because or reason  # the first reason stands
                raise TrainingCut(self.cut_because)
            self.stop(reason)
            raise RunStopped(self.stopped_because)

    def settle(
        self, taken: Reservation, n_calls: int, cost: float, n_metric_calls: int = 0
    ) -> None:
        """Correct what was taken by what was used."""
        with self._lock:
            self._add(n_calls - taken.n_calls, cost - taken.cost)
            self.n_metric_calls += n_metric_calls - taken.n_metric_calls
            self.n_metric_calls_made += n_metric_calls
            self._open.discard(taken)

    def _add(self, n_calls: int, cost: float) -> None:
        self.n_lm_calls += n_calls
        self.cost = round(self.cost + cost, DECIMALS)

    def charge(self, model: str, n_calls: int, cost: float) -> None:
        """Count calls that were made unasked. Raises RunStopped: more than there was."""
        with self._lock:
            if not self.n_unseen:
                logger.warning(UNSEEN, model)
            self.n_unseen += n_calls
            self._add(n_calls, cost)
            for name in ("max_lm_calls", "max_cost"):
                if self.left(name) < 0:
                    self.use_up(name)
            self.check()

    def spend(self, n_calls: int, cost: float, n_metric_calls: int = 0) -> None:
        """Take what a replayed part has cost, also of what is kept. Raises RunStopped."""
        with self._lock:
            self.check()
            wanted = {"max_lm_calls": n_calls, "max_cost": cost, "max_metric_calls": n_metric_calls}
            for name, more in wanted.items():
                if more and more > self.left(name) + (getattr(self._reserve, name) or 0):
                    self.use_up(name)
            self._add(n_calls, cost)
            self.n_metric_calls += n_metric_calls
            self.n_metric_calls_made += n_metric_calls

    def note_used(self, n_calls: int, cost: float) -> None:
        """Note what a result took, made now or replayed."""
        with self._lock:
            self.n_used += n_calls
            self.used = round(self.used + cost, DECIMALS)

    def note_dearest(self, cost: float) -> None:
        """Note the most dollars that were taken for one call of a result, made now or replayed."""
        with self._lock:
            self.dearest = max(self.dearest, cost)

    def take_metric_call(self) -> None:
        """Take a call of the metric, also for an answer that came too late. Raises RunStopped."""
        with self._lock:
            check_wanted()
            if self.left("max_metric_calls") < 1:
                self.use_up("max_metric_calls")
            self.n_metric_calls += 1
            self.n_metric_calls_made += 1

    def set_reserve(self, reserve: Budget, n_lessons: int = 0) -> None:
        """Keep this until `open_reserve`; rollouts alone are refused the calls kept for lessons."""
        check_wanted()
        with self._lock:
            self._reserve, self._n_lessons, self._is_training = reserve, n_lessons, True

    def open_reserve(self) -> None:
        """Let the end of the run have what was kept, though a budget has ended the run."""
        with self._lock:
            self._reserve, self._n_lessons = NOTHING, 0
            self._is_training = self.is_late = False
            if not self.is_failure:
                self._stopping.clear()

    def raise_limits(self, n_lm_calls: float, n_metric_calls: float, cost: float) -> None:
        """Add this, for the end of a finished run, to each limit."""
        with self._lock:
            more = math.ceil(n_lm_calls), math.ceil(n_metric_calls), cost, 0.0
            pairs = zip(astuple(self.budget), more, strict=True)
            self.budget = Budget(*(limit and limit + n for limit, n in pairs))
            self.open_reserve()

    def stop(self, reason: str, *, is_failure: bool = False) -> None:
        """End the run; the first reason stands, but for a failure, which always does."""
        with self._lock:
            if not self._stopping.is_set():
                if is_failure or not self.stopped_because:
                    self.stopped_because = self.clean(" ".join(reason.split()))  # in one line
                self.is_failure = is_failure
                self._stopping.set()

    def fail(self, why: str, error: BaseException | None = None) -> NoReturn:
        """End the run, which cannot work, for this error. Raises RunStopped."""
        self.stop(why, is_failure=True)
        raise RunStopped(self.stopped_because) from error

    def check(self) -> None:
        """Raises RunStopped: the training or the run has ended, or nobody waits for this."""
        check_wanted()
        if self.is_late or self.seconds_left() <= 0:
            self.is_late = self._is_training  # also if the end needs less time after all
            self.end(f"max_minutes={self.budget.max_minutes} are over")
        if self._stopping.is_set():
            raise RunStopped(self.stopped_because)

    def ended(self) -> RunStopped | None:
        """What `check` raises; None: nothing."""
        try:
            self.check()
        except RunStopped as why:
            return why
        return None

    def seconds_left(self) -> float:
        """Until `max_minutes` are over, but for what is kept for the end; infinite without them."""
        limit = self.budget.max_minutes
        return math.inf if limit is None else 60 * limit - self.seconds_kept - self.seconds

    @property
    def seconds_kept(self) -> float:
        """How much of `max_minutes` is kept for the end."""
        return 60 * (self._reserve.max_minutes or 0.0)

    def pause(self, model: str, seconds: float | None) -> None:
        """Let all calls of a model wait so long; None: a second, and each time twice as long."""
        with self._lock:
            n, until = self._pauses.get(model, (0, 0.0))
            now = time.monotonic()
            if seconds is None and now < until:
                return
            seconds = min(LONGEST_WAIT_S, 2.0**n) if seconds is None else seconds
            self._pauses[model] = n + 1, max(until, now + seconds)
        if seconds >= 1 and not n:
            logger.warning("%s has too many requests: all wait for %.0f s", model, seconds)

    def is_paused(self, model: str) -> bool:
        """Whether calls of the model wait."""
        return time.monotonic() < self._pauses.get(model, (0, 0.0))[1]

    def end_pauses(self, model: str) -> None:
        """Note that the model answers again."""
        if model in self._pauses:
            self._pauses[model] = 0, self._pauses[model][1]

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the run ends. Raises RunStopped."""
        self._stopping.wait(min(seconds, max(0.0, self.seconds_left())))
        self.check()


LIMITS = ("max_lm_calls", "max_metric_calls", "max_cost")
N_RECENT = 2  # an update is expected to cost as much as the dearer of the last two
COST_MARGIN = 1.5
"""Factor for dollars: a rollout with a library has a longer prompt than those before it."""
SPREADS = 2.0  # how many standard deviations above the mean is reckoned with


@dataclass(frozen=True, slots=True)
class Amount:
    """LM calls (answers from a cache included), metric calls, US dollars."""

    n_lm_calls: float = 0.0
    n_metric_calls: float = 0.0
    cost: float = 0.0

    @classmethod
    def of(cls, usage: Usage, n_metric_calls: int) -> "Amount":
        """The amount that rollouts or reflections of this usage have taken."""
        return cls(usage.n_answers, n_metric_calls, usage.cost_usd)

    def __iter__(self) -> Iterator[float]:
        return iter((self.n_lm_calls, self.n_metric_calls, self.cost))

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(*(round(each, DECIMALS) for each in map(operator.add, self, other)))

    def __mul__(self, factor: float) -> "Amount":
        return Amount(*(factor * number for number in self))

    def __truediv__(self, divisor: float) -> "Amount":
        """Exact for equal whole numbers, as a product with `1 / divisor` is not."""
        return Amount(*(number / divisor for number in self))

    def __or__(self, other: "Amount") -> "Amount":
        return Amount(*map(max, self, other))


@dataclass(frozen=True, slots=True)
class Account:
    """What a run has taken up to a decided update.

    The means leave out rollouts that go on from a step of another one, or did not end.
    """

    budget: Budget
    used: Amount = Amount()
    rollouts: Amount = Amount()  # of what was used, by the whole ones
    squares: Amount = Amount()  # the sums of the squares of these
    dearest: Amount = Amount()  # the most that one of them took
    n_rollouts: int = 0
    recent: tuple[Amount, ...] = ()  # what each of the latest updates has taken for an example
    reflections: Amount = Amount()
    assumed: Amount = Amount(1.0, 1.0)  # of a rollout, before the first is made
    assumed_answer: Amount = Amount(1.0)  # the same of an answer of the reflection LM

    def after_rollouts(self, rollouts: Sequence[Rollout]) -> "Account":
        """The account when these rollouts are made."""
        amounts = [Amount.of(r.usage + r.metric_usage, r.n_metric_calls) for r in rollouts]
        pairs = zip(rollouts, amounts, strict=True)
        whole = [amount for rollout, amount in pairs if _is_whole(rollout)]
        squares = [Amount(*(number**2 for number in amount)) for amount in whole]
        return replace(
            self,
            used=sum(amounts, self.used),
            rollouts=sum(whole, self.rollouts),
            squares=sum(squares, self.squares),
            dearest=functools.reduce(operator.or_, whole, self.dearest),
            n_rollouts=self.n_rollouts + len(whole),
        )

    def after_update(
        self, rollouts: Sequence[Rollout], reflections: Usage, n_examples: float
    ) -> "Account":
        """The account after a decided update of `n_examples` examples with groups of usual size."""
        account, answers = self.after_rollouts(rollouts), Amount.of(reflections, 0)
        used, all_answers = account.used + answers, self.reflections + answers
        account = replace(account, used=used, reflections=all_answers)
        if not n_examples:
            return account
        per_example = (account.used + self.used * -1.0) / n_examples
        return replace(account, recent=(*self.recent, per_example)[-N_RECENT:])

    @property
    def per_rollout(self) -> Amount:
        """What a rollout takes on average."""
        return self.rollouts / self.n_rollouts if self.n_rollouts else self.assumed

    @property
    def calls_share(self) -> float:
        """The share of the calls assumed for a rollout that it takes on average."""
        return self.per_rollout.n_lm_calls / self.assumed.n_lm_calls

    def per_example(self, group_size: int, groups_per_call: int) -> Amount:
        """What an example of an update takes: rollouts, its part of a lesson, retries as before."""
        answer = replace(self.per_answer, cost=self.per_answer.cost / groups_per_call)
        usual = self.per_rollout * group_size + answer
        return functools.reduce(operator.or_, self.recent, usual)

    @property
    def per_answer(self) -> Amount:
        """What an answer of the reflection LM takes on average."""
        n = self.reflections.n_lm_calls
        return self.reflections / n if n else self.assumed_answer

    def expected(self, n_rollouts: int) -> Amount:
        """An amount that `n_rollouts` hardly exceed: two standard deviations above the mean."""
        mean, n = self.per_rollout, max(1, self.n_rollouts)
        pairs = zip(self.squares, mean, strict=True)
        sds = Amount(*(math.sqrt(max(0.0, square / n - each**2)) for square, each in pairs))
        spread = sds * (SPREADS * math.sqrt(n_rollouts)) if self.n_rollouts else Amount()
        return mean * n_rollouts + spread

    @property
    def later(self) -> Amount:
        """What a later rollout takes on average; its metric is not asked about predictors."""
        usual, n_metric_calls = self.per_rollout, min(1.0, self.assumed.n_metric_calls)
        return replace(usual, n_metric_calls=n_metric_calls, cost=COST_MARGIN * usual.cost)

    def reserve(self, n_rollouts: int) -> Amount:
        """The amount to keep for later rollouts: at least that of two as dear as the dearest."""
        two = min(2, n_rollouts) * self.dearest.n_lm_calls
        calls = max(self.expected(n_rollouts).n_lm_calls, two)
        return replace(self.later * n_rollouts, n_lm_calls=calls)

    def n_fitting(self, amount: Amount, kept: Amount) -> tuple[float, str]:
        """How often `each` fits into what is left beside `kept`; and the limit that says so."""
        limits = (self.budget.max_lm_calls, self.budget.max_metric_calls, self.budget.max_cost)
        rows = zip(LIMITS, limits, self.used + kept, amount, strict=True)
        fitting = {
            name: max(0.0, math.floor((limit - used) / one + 1e-9))
            for name, limit, used, one in rows
            if limit is not None and one > 0
        }
        name = min(fitting, key=lambda name: fitting[name], default="")
        return fitting.get(name, math.inf), name


def _is_whole(rollout: Rollout) -> bool:
    is_cut = rollout.failure is not None and rollout.failure.kind.is_cut_short
    return rollout.n_replayed is None and not is_cut
