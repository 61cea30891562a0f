"""The limits of a run: what a call takes, and its dollars, are taken here before it is made.

The ledger counts in an order that depends on the clock, and refuses. By what the next update is
planned, the accounts of `calls` say.
"""

import json
import logging
import math
import operator
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from typing import Any, NoReturn

from tfgrpo_dspy.dspy_seam import prices_of
from tfgrpo_dspy.errors import Raised, RunStopped, TrainingCut
from tfgrpo_dspy.rollout import DECIMALS, Usage
from tfgrpo_dspy.user_code import NOT_WANTED, check_wanted

Prices = Mapping[str, tuple[float, float]]
"""US dollars for a million prompt tokens and a million completion tokens, by `lm.model`."""
TOKENS_IN_A_PRICE = 1_000_000
MORE = 1.5  # times the densest prompt so far: what the next one may have at most


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for each prompt and completion token; the most completion tokens (0: no limit)."""

    prompt: float
    completion: float
    max_tokens: int = 0

    def of(self, n_prompt: float, n_completion: float) -> float:
        """Dollars for so many tokens."""
        return n_prompt * self.prompt + n_completion * self.completion


@dataclass(slots=True)
class Seen:
    """The most tokens that calls of a model have had so far: by them the next one is reckoned."""

    prompt: int = 0
    a_byte: float = 0.0  # of the prompt
    answer: int = 0

    def note(self, used: Usage, n_bytes: int) -> None:
        """Note a call whose request had so many bytes."""
        self.prompt = max(self.prompt, used.prompt_tokens)
        self.a_byte = max(self.a_byte, used.prompt_tokens / max(1, n_bytes))
        self.answer = max(self.answer, used.completion_tokens)

    def most_tokens(self, n_bytes: int, longest: int) -> tuple[int, int]:
        """The most tokens of a prompt, and the least that its answer needs room for.

        Where nothing is known: one a byte, and as long as an answer may get.
        """
        prompt = min(n_bytes, max(self.prompt, math.ceil(MORE * self.a_byte * n_bytes)))
        return (prompt, min(longest, 2 * self.answer)) if self.prompt else (n_bytes, longest)


def n_bytes_sent(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The length of a request; a token has at least one byte."""
    return len(json.dumps([args, dict(kwargs)], default=_as_sent).encode())


def token_price(lm: Any, prices: Prices) -> Price | str:
    """The price of a dspy.LM, or in words that none is known."""
    listed = prices_of(lm)
    if lm.model in prices:
        prompt, completion = (float(p) / TOKENS_IN_A_PRICE for p in prices[lm.model])
    elif listed.get("input_cost_per_token") is None or listed.get("output_cost_per_token") is None:
        return (
            f"DSPy knows no price of {lm.model}; pass Execution(prices={{{lm.model!r}: (dollars "
            f"for a million prompt tokens, dollars for a million completion tokens)}})."
        )
    else:
        prompt, completion = listed["input_cost_per_token"], listed["output_cost_per_token"]
    limit = max_tokens_of(getattr(lm, "kwargs", {})) or listed.get("max_output_tokens")
    return Price(prompt, completion, int(limit or 0))


def price_of(lm: Any, prices: Prices) -> Price | str:
    """`token_price`, if the length of an answer is limited; else, in words, what is missing."""
    price = token_price(lm, prices)
    if isinstance(price, str) or price.max_tokens:
        return price
    return f"nothing limits how long an answer of {lm.model} gets; set max_tokens on it."


def max_tokens_of(kwargs: Mapping[str, Any]) -> Any:
    """The limit on the length of an answer among these arguments; None: there is none."""
    return kwargs.get("max_tokens") or kwargs.get("max_completion_tokens")


def _as_sent(value: Any) -> Any:
    schema = getattr(value, "model_json_schema", None)  # of a response format
    return str(value) if schema is None else schema()


logger = logging.getLogger(__name__)

LIMITS = ("max_lm_calls", "max_metric_calls", "max_cost")
"""The names of the limits on the three parts of an `Amount`."""
USAGE = "usage not reported"
LENT_SHARE = 0.5  # of the dollars that are kept for the end


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend at most; None: as much as it takes. Cost in US dollars."""

    max_lm_calls: int | None = None
    max_metric_calls: int | None = None
    max_cost: float | None = None
    max_minutes: float | None = None


@dataclass(frozen=True, slots=True)
class Amount:
    """LM calls, metric calls, US dollars."""

    n_lm_calls: float = 0
    n_metric_calls: float = 0
    cost: float = 0.0

    @classmethod
    def of(cls, result: Any, with_cached: bool = False) -> "Amount":
        """The amount that a rollout or an answer has taken; nothing of what has no usage.

        `with_cached`: answers from a cache are counted as calls.
        """
        names = ("usage", "metric_usage")
        usages = [getattr(result, name) for name in names if hasattr(result, name)]
        n_calls = sum(each.n_answers if with_cached else each.n_lm_calls for each in usages)
        cost = round(sum(each.cost_usd for each in usages), DECIMALS)
        return cls(n_calls, getattr(result, "n_metric_calls", 0), cost)

    def __iter__(self) -> Iterator[float]:
        return iter((self.n_lm_calls, self.n_metric_calls, self.cost))

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(*[round(each, DECIMALS) for each in map(operator.add, self, other)])

    def __sub__(self, other: "Amount") -> "Amount":
        return self + other * -1

    def __mul__(self, factor: float) -> "Amount":
        return Amount(factor * self.n_lm_calls, factor * self.n_metric_calls, factor * self.cost)

    def __truediv__(self, divisor: float) -> "Amount":
        """Exact for equal whole numbers, as a product with `1 / divisor` is not."""
        return Amount(*(number / divisor for number in self))

    def __or__(self, other: "Amount") -> "Amount":
        return Amount(*map(max, self, other))


NOTHING = Amount()


@dataclass(slots=True, eq=False)
class Entry:
    """A rollout or an answer that the run has paid for; what was replayed was paid for before."""

    key: str  # under which it is recorded
    role: str  # what it is made for: "rollout" (training), "validation", "test", or a stage
    update: int | None = None  # that pays for it; None: the final choice
    about: str = ""  # for messages
    asked: str = ""  # the inputs of a question, until they are recorded
    has_advice: bool = False  # whether each predictor is given advice
    value: Any = None  # the `Rollout` or the `Answer`
    seconds: float | None = None  # that it took; None: it was replayed

    @property
    def is_replayed(self) -> bool:
        """True if an earlier start has made it."""
        return self.seconds is None

    @property
    def row(self) -> dict[str, Any]:
        """The row of an answer.

        `answered` is what was read, as JSON, or what could not be read; `fault` says what failed,
        also where the LM was asked once more.
        """
        answer, is_read = self.value, self.value.output is not None
        at_first = f"could not be read at first: {answer.unread}"
        unreadable = at_first if is_read else "nothing in the answer could be read"
        return {
            "stage": self.role, "update": self.update, "asked": self.asked,
            "answered": json.dumps(answer.output, ensure_ascii=False) if is_read else answer.unread,
            "explanation": answer.explanation,
            "fault": answer.error or (unreadable if answer.parse_failures else ""),
            "n_lm_calls": answer.usage.n_lm_calls, "n_tokens": answer.usage.n_tokens,
            "dollars": answer.usage.cost_usd,
        }  # fmt: skip


@dataclass(slots=True, eq=False)
class Reservation:
    """An amount taken for an LM call; settled when it is known what that took."""

    amount: Amount
    abandoned: threading.Event = field(default_factory=threading.Event)  # nobody waits for it
    is_share: bool = False  # it is for a request to an executor
    seen: Seen | None = None  # what calls of its model have had, with `max_cost`
    n_bytes: int = 0  # of the request
    max_tokens: int | None = None  # of the answer, where the dollars left pay for no longer one


class Ledger:
    """Hard limits, for any number of threads: what is not there cannot be taken.

    While something is kept for the end (`keep`), a limit ends the training only: it refuses single
    rollouts and answers (`TrainingCut`), and `cut_because` says why. Later it ends the run. `taken`
    is what the run so far has cost, replayed parts and open reservations included.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.taken = NOTHING
        self.left_out: dict[tuple[str, str], str] = {}
        """By server: parameters that are sent no more, as its provider refuses them, `USAGE` where
        it reports none; in words."""
        self.longest_answered: Counter[str] = Counter()  # characters of a prompt, by server
        self.n_answered: Counter[tuple[str, str]] = Counter()  # by server and advice; "": in all
        self.broke_s: defaultdict[str, float] = defaultdict(float)  # when it last did, by server
        self.broken: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        """By server and advice, what it had answered in all before each time that it broke."""
        self.paused_until: defaultdict[str, float] = defaultdict(float)  # after a limit, by server
        self.seen: defaultdict[str, Seen] = defaultdict(Seen)  # by server
        self.prices: dict[str, Price | str] = {}  # `token_price` by server, of calls without a cost
        self.stopped_because = self.cut_because = ""
        self.is_failure = False
        self.raised = Raised(maxlen=20)
        self.clean: Callable[[str], str] = str  # takes secrets out of why the run ends
        self.seconds_kept = 0.0  # how much of `max_minutes` is kept for the end
        self.is_late = False  # whether the training has ended at once, as by the clock
        self._kept, self._n_lessons, self._is_training = NOTHING, 0, False
        self._open: set[Reservation] = set()
        self._begun = time.monotonic()
        self._stands_since: float | None = None  # a person was asked
        self._lock, self._stopping = threading.RLock(), threading.Event()
        self.one_by_one = threading.Lock()  # held while a shorter prompt of a reflection is tried

    # ------------------------------------------------------------------ calls and dollars

    def left(self, leaves_lessons: bool = False) -> Amount:
        """The amount that is left beside what is kept; a part without a limit is infinite."""
        limits = (getattr(self.budget, name) for name in LIMITS)
        kept = self._kept + Amount(self._n_lessons * leaves_lessons)
        every = zip(limits, self.taken + kept, strict=True)
        return Amount(*(math.inf if most is None else most - used for most, used in every))

    def reach(self, leaves_lessons: bool = False) -> Amount:
        """The most that can still become available.

        That is what is left, and what open reservations may return: a share all of it, a single
        call its dollars.
        """
        with self._lock:
            awaited = [taken for taken in self._open if not taken.abandoned.is_set()]
            back = (t.amount if t.is_share else Amount(cost=t.amount.cost) for t in awaited)
            return sum(back, self.left(leaves_lessons))

    def take(
        self,
        abandoned: threading.Event | None,  # is set when nobody waits for it any more
        leaves_lessons: bool,  # what is kept for those of the rollouts that are made
        amount: Amount,
        least_cost: float = math.inf,  # the dollars that it can do with, if there are no more
        is_share: bool = False,
    ) -> Reservation | None:
        """Reserve calls, and the most dollars that they may cost; None if they are not there now.

        A call hardly ever costs the most that it may: in training it borrows a part of that from
        what is kept, as long as the calls under way will not touch that if each costs what calls
        cost on average. Raises RunStopped: they will never be there, the run has ended, or nobody
        waits for them.
        """
        taken = Reservation(amount, abandoned or threading.Event(), is_share)
        with self._lock:
            self.check()
            if taken.abandoned.is_set():
                raise RunStopped(NOT_WANTED)
            left, reach = self.left(leaves_lessons), self.reach(leaves_lessons)
            if self._is_training and amount.cost and not is_share:
                settled = self.taken - sum((each.amount for each in self._open), NOTHING)
                if reach.cost < len(self._open) * settled.cost / max(1, settled.n_lm_calls):
                    self.use_up("max_cost")
                lent = Amount(cost=LENT_SHARE * self._kept.cost)
                left, reach = left + lent, reach + lent
            if least_cost <= reach.cost < amount.cost:
                taken.amount = amount = replace(amount, cost=reach.cost)
            for name, wanted, most in zip(LIMITS, amount, reach, strict=True):
                if wanted > most:
                    self.use_up(name)
            if any(map(operator.gt, amount, left)):
                return None
            self.taken += amount
            self._open.add(taken)
            return taken

    def settle(self, taken: Reservation, used: Amount) -> None:
        """Correct what was taken by what was used."""
        with self._lock:
            self.taken += used - taken.amount
            self._open.discard(taken)

    def spend(self, amount: Amount) -> None:
        """Take what a replayed part has cost, also of what is kept. Raises RunStopped."""
        with self._lock:
            self.check()
            for name, more, left in zip(LIMITS, amount, self.left() + self._kept, strict=True):
                if more and more > left:
                    self.use_up(name)
            self.taken += amount

    def take_metric_call(self) -> None:
        """Take a call of the metric, also for an answer that came too late. Raises RunStopped."""
        with self._lock:
            check_wanted()
            if self.left().n_metric_calls < 1:
                self.use_up("max_metric_calls")
            self.taken += Amount(n_metric_calls=1)

    def keep(self, amount: Amount, seconds: float, n_lessons: int) -> None:
        """Keep this until `open_reserve`; rollouts alone are refused the calls kept for lessons."""
        check_wanted()
        with self._lock:
            self._kept, self.seconds_kept, self._n_lessons = amount, seconds, n_lessons
            self._is_training = True

    def open_reserve(self, more: Amount = NOTHING) -> None:
        """Let the end of the run have what was kept, though a budget has ended the run.

        `more`: what each limit is raised by, as after a finished run.
        """
        with self._lock:
            pairs = zip(astuple(self.budget), (*more, 0.0), strict=True)
            self.budget = Budget(*(limit and limit + n for limit, n in pairs))
            self._kept, self.seconds_kept, self._n_lessons = NOTHING, 0.0, 0
            self._is_training = self.is_late = False
            if not self.is_failure:
                self._stopping.clear()

    # ------------------------------------------------------------------ how the run ends

    def use_up(self, name: str) -> NoReturn:
        """End the training, or the run, as a limit is reached. Raises RunStopped."""
        why = "is used up" + ", but for what the end of the run needs" * self._is_training
        why = "could be exceeded by the next call" if name == "max_cost" else why
        self.end(f"{name}={getattr(self.budget, name)} {why}")

    def note(self, model: str, about: str, message: str) -> None:
        """Note and log, once, what is not sent to a model, or not known of it."""
        if self.left_out.setdefault((model, about), message) is message:
            logger.warning("%s", message)

    def cut(self, reason: str) -> None:
        """End the training; what is under way has a moment. The first reason stands."""
        self.cut_because, self.is_late = self.cut_because or self.clean(reason), True
        logger.warning("no more is learned: %s", self.cut_because)

    def end(self, reason: str) -> NoReturn:
        """End the training, or the run, but for what is under way. Raises RunStopped."""
        with self._lock:
            if self._is_training:
                self.cut_because = self.cut_because or reason  # the first reason stands
                raise TrainingCut(self.cut_because)
            self.stop(reason)
            raise RunStopped(self.stopped_because)

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
        if error is not None:
            self.raised.append(error)
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

    # ------------------------------------------------------------------ time

    @property
    def seconds(self) -> float:
        """How long the run has taken, but for the time in which its clock stood still."""
        return (self._stands_since or time.monotonic()) - self._begun

    @contextmanager
    def standing(self) -> Iterator[None]:
        """The clock of the run stands still within it, as while a person is asked."""
        self._stands_since = time.monotonic()
        try:
            yield
        finally:
            self._begun += time.monotonic() - self._stands_since
            self._stands_since = None

    def seconds_left(self) -> float:
        """Until `max_minutes` are over, but for what is kept for the end; infinite without them."""
        limit = self.budget.max_minutes
        return math.inf if limit is None else 60 * limit - self.seconds_kept - self.seconds

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the run ends. Raises RunStopped."""
        self._stopping.wait(min(seconds, max(0.0, self.seconds_left())))
        self.check()
