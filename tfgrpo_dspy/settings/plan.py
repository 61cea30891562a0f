"""What a run is likely to take, and what it takes at most: rollouts, LM calls, dollars.

How many LM calls and tokens a rollout takes is assumed (`costs.py`). Retries after the faults of a
provider are in no column, prompts that must be split neither.
"""

import html
import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

import dspy

from tfgrpo_dspy.budget.account import COST_MARGIN, LIMITS
from tfgrpo_dspy.gate.bayesian import N_ALONE
from tfgrpo_dspy.gate.race import FIRST_ROUND
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.sampling.demos import N_SETS
from tfgrpo_dspy.settings.costs import FORMAT_TOKENS, UPDATE_TOKENS, answer_cost
from tfgrpo_dspy.settings.schedule import (
    CALLS_FOR_AN_ANSWER,
    EXAMPLES_OF_DRAFT,
    MIN_BATCH_SIZE,
    MIN_GROUP_SIZE,
    MIN_PROGRAMS_MEASURED,
    MOST_SHARE,
    RunData,
    RunSettings,
)
from tfgrpo_dspy.wording import aligned, counted

Maxima = tuple[float, float, float]
COUNTS, ROUNDING, ROUNDING_UP = ("n_rollouts", "n_lm_calls"), 1e-9, 1e-4
REFLECTION_TOKENS = 12_000
FEWEST_UPDATES = 20
"""An easy task is learned in about 20 updates; a hard one takes all epochs, or all that the
budget pays for, and most are hard. This and the next were chosen with simulated tasks."""
CONTRAST_SHARE, CHANGE_SHARE = 0.6, 0.5  # of groups that teach; of updates with new lessons
EASY_UPDATES, EASY_FINALISTS = 12, 4  # where one lesson solves the task
LIKELY_CANDIDATES, LIKELY_FINALISTS = 8, 5  # of the first round of the race, and of the others
EASY = "where one lesson solves the task"
ENOUGH = "surely measure student and result"
TEST_ON_TOP = "test set, on top of auto"


@dataclass(frozen=True, slots=True)
class Planned:
    """Whole rollouts and LM calls, and dollars (None: a price is missing, which the plan names)."""

    n_rollouts: int
    n_lm_calls: int
    cost: float | None

    @property
    def texts(self) -> tuple[str, str, str]:
        """The three figures as a table shows them."""
        dollars = "?" if self.cost is None else f"{self.cost:.2f}"
        return f"{self.n_rollouts:,}", f"{self.n_lm_calls:,}", dollars


@dataclass(frozen=True, slots=True)
class _Mean:
    """Mean rollouts, LM calls and dollars, which are nan where a price is missing."""

    n_rollouts: float = 0.0
    n_lm_calls: float = 0.0
    cost: float = 0.0

    def __add__(self, other: "_Mean") -> "_Mean":
        return _Mean(*map(operator.add, astuple(self), astuple(other)))

    def __mul__(self, times: float) -> "_Mean":
        return _Mean(*(times * value for value in astuple(self))) if times else _Mean()

    def within(self, limits: Maxima) -> Planned:
        """Whole numbers of these, no limit exceeded."""
        n, calls, cost = map(min, zip(astuple(self), limits, strict=True))
        cost = None if math.isnan(cost) else cost
        return Planned(math.ceil(n - ROUNDING), math.ceil(calls - ROUNDING), cost)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """What one purpose is likely to take, and what it takes at most."""

    purpose: str
    likely: Planned
    at_most: Planned


@dataclass(frozen=True, slots=True)
class Plan:
    """What a compile would do; `str` is a table, with the schedule below it.

    The last row of `rows` is their sum, `total`; no limit of the budget is exceeded there. What
    strategies try and ask besides is in no row. Where one lesson solves the task, `easy` LM calls
    are likelier than those of the `total`. Where each limit that is set is at least that of
    `enough`, student and result are surely measured, on at least ten examples or all (it is empty
    without a metric: they never are). `unpriced` says what is missing to know the dollars.
    """

    rows: tuple[PlanRow, ...]
    n_updates: int
    schedule: Mapping[str, int]
    has_strategies: bool = False
    easy: int = 0
    enough: Mapping[str, float] = field(default_factory=dict)
    unpriced: tuple[str, ...] = ()

    @property
    def total(self) -> PlanRow:
        """All rollouts, all LM calls and all dollars."""
        return self.rows[-1]

    def __repr__(self) -> str:
        calls = f"likely {self.total.likely.n_lm_calls:,}"
        return f"<Plan: {calls}, at most {self.total.at_most.n_lm_calls:,} LM calls>"

    def _repr_html_(self) -> str:
        style = "font-family: monospace; white-space: pre-wrap"
        return f'<pre style="{style}">{html.escape(str(self))}</pre>'

    def __str__(self) -> str:
        rows = [(row.purpose, *row.likely.texts, *row.at_most.texts) for row in self.rows]
        units, total = ("rollouts", "calls", "dollars"), self.total.likely.n_lm_calls
        enough = ", ".join(f"{name}={limit:.9g}" for name, limit in self.enough.items())
        head = [("", "", "", "likely", "", "", "at most"), ("purpose", *units, *units)]
        lines = [
            *aligned([*head, *rows], range(1, 7)),
            f"likely: {counted(self.n_updates, 'update')}",
            *([f"easy: {self.easy:,} LM calls {EASY}"] if self.easy < total else []),
            *([f"enough: {enough} {ENOUGH}"] if enough else []),
            *(f"?: {why}" for why in self.unpriced if "?" in itertools.chain(*rows)),
            *["what the strategies try and ask besides is not known"] * self.has_strategies,
            "",
            *(f"{name:<16}{value:>6}" for name, value in self.schedule.items()),
        ]
        return printable("\n".join(lines))


def plan_of(settings: RunSettings) -> Plan:
    """The plan of a run within its limits."""
    data, limits = settings.data, _limits(settings)
    n_batches = math.ceil(data.n_training / settings.batch_size)
    every = (settings.drafts > 0) + settings.epochs * n_batches
    n_kept = settings.reserve
    fixed = _sum(_rows(settings, 0, n_kept, is_likely=True))
    of_update = _sum(_rows(settings, 1, n_kept, is_likely=True)) + fixed * -1
    affordable = min(every, _affordable(limits, fixed, of_update))
    n = math.ceil(min(affordable, FEWEST_UPDATES**0.25 * affordable**0.75))
    n_left = _affordable(limits, _sum(_rows(settings, n, 0, is_likely=True)), _rollout(data))
    n_final, n_most = _race(settings)
    likely = _rows(settings, n, min(n_final, max(n_left, n_kept)), is_likely=True)
    most = _rows(settings, every, n_most, is_likely=False)
    n_final = min(n_final, EASY_FINALISTS * data.n_validation)
    easy = _rows(settings, min(n, EASY_UPDATES), n_final, is_likely=True)
    columns = [_column(rows, limits) for rows in (likely, most, easy)]
    return Plan(
        rows=tuple(map(PlanRow, (*likely, "in all"), columns[0], columns[1])),
        n_updates=n,
        schedule=settings.schedule,
        has_strategies=bool(settings.strategies),
        easy=columns[2][-1].n_lm_calls,
        enough=_enough(settings) if n_kept else {},
        unpriced=data.unpriced,
    )


def _enough(settings: RunSettings) -> dict[str, float]:
    """Limits for a smallest update, and for student and result, with all turns and second tries.

    They are measured on as many examples as the reserve pays for even where its share would not,
    of which it keeps no more than `MOST_SHARE`. Dollars stand there where prices are known: each
    call is the dearest, and made with a library.
    """
    data, derived = settings.data, settings.derived
    size = settings.batch_size
    size = min(size, MIN_BATCH_SIZE) if "batch_size" in derived else size
    group = MIN_GROUP_SIZE if "group_size" in derived else settings.group_size
    n_training = 0 if data.is_recorded else size * group
    n_final, calls = data.smallest_end, CALLS_FOR_AN_ANSWER * data.most_calls_per_rollout
    n_learning = n_training * calls + CALLS_FOR_AN_ANSWER * (size + 1)
    n_learning = max(n_learning, math.ceil(n_final * calls * (1 / MOST_SHARE - 1)))
    n_calls = n_learning + (n_final + data.n_of_test_set) * calls
    n_scores = n_training * data.n_metric_calls + n_final + data.n_of_test_set
    dollars = COST_MARGIN * n_calls * data.dollars_of_dearest_call
    limits = (n_calls, n_scores, math.ceil(dollars / ROUNDING_UP) * ROUNDING_UP)
    return {name: limit for name, limit in zip(LIMITS, limits, strict=True) if limit}


def _race(settings: RunSettings) -> tuple[float, float]:
    """How many rollouts the final choice is likely to take where no budget ends it, and at most."""
    n = settings.data.n_validation if settings.reserve else 0
    if not settings.measures:  # student and result are measured, and nothing is chosen
        return settings.reserve, settings.reserve
    n_first = min(FIRST_ROUND, n)
    most = MIN_PROGRAMS_MEASURED + N_ALONE + settings.max_experiences.bit_length()
    most = 2 * most + N_SETS - 1 if settings.max_demos else most
    likely = LIKELY_CANDIDATES * n_first + LIKELY_FINALISTS * (n - n_first)
    return likely, most * n


def _affordable(limits: Maxima, fixed: _Mean, more: _Mean) -> float:
    """How often the budget pays for `more` beside what is fixed."""
    numbers = zip(limits, astuple(fixed), astuple(more), strict=True)
    fitting = (max(0.0, (most - first) / n) for most, first, n in numbers if n > 0)
    return min(fitting, default=math.inf)


def _limits(settings: RunSettings) -> Maxima:
    """The most rollouts, LM calls and dollars that the budget allows."""
    limits = (settings.max_metric_calls, settings.max_lm_calls, settings.max_cost)
    n, calls, cost = (math.inf if limit is None else limit for limit in limits)
    return min(n / settings.data.n_metric_calls, calls), calls, cost


def _sum(rows: Mapping[str, _Mean]) -> _Mean:
    return sum(rows.values(), _Mean())


def _column(rows: Mapping[str, _Mean], limits: Maxima) -> list[Planned]:
    """The rows, and their sum, within the limits."""
    whole = [row.within((math.inf,) * 3) for row in rows.values()]
    n, calls = (sum(map(operator.attrgetter(name), whole)) for name in COUNTS)
    in_all = _Mean(n, calls, _sum(rows).cost)
    return [each.within(limits) for each in (*rows.values(), in_all)]


def _rollout(data: RunData) -> _Mean:
    return _Mean(1, data.calls_per_rollout, data.dollars_per_rollout)


def _rows(
    settings: RunSettings, n_updates: int, n_final: float, *, is_likely: bool
) -> dict[str, _Mean]:
    """By purpose, what `n_updates` and `n_final` rollouts of the final choice take."""
    data, tokens = settings.data, settings.data.tokens_per_rollout
    lm, rollout, times = settings.reflection_lm or dspy.settings.lm, _rollout(data), 1
    if not is_likely:
        times = CALLS_FOR_AN_ANSWER
        n_calls = times * data.most_calls_per_rollout
        rollout = _Mean(1, n_calls, n_calls * (data.dollars_of_dearest_call or math.nan))

    def reflections(n: float, prompt: int, n_shown: int = 1) -> _Mean:
        prompt = n_shown * (min(REFLECTION_TOKENS, prompt) if is_likely else REFLECTION_TOKENS)
        cost = answer_cost(lm, settings, prompt + FORMAT_TOKENS, is_most=not is_likely)
        return _Mean(0, 1, cost) * (n * times)

    n_training = n_updates * settings.rollouts_of_update
    n_lessons: float = n_updates * math.ceil(settings.batch_size / settings.groups_per_call)
    n_changes: float = n_updates + (settings.drafts > 0)
    if is_likely:
        n_lessons, n_changes = n_lessons * CONTRAST_SHARE, n_changes * CHANGE_SHARE
    n_summaries = n_training if settings.reflection.summarize_always else 0
    return {
        "student and final choice": rollout * n_final,
        TEST_ON_TOP if data.n_test and data.is_test_on_top else "test set": rollout
        * data.n_of_test_set,
        "training rollouts": rollout * n_training,
        "drafts from labels": reflections(settings.drafts, EXAMPLES_OF_DRAFT * tokens),
        "summaries": reflections(n_summaries, tokens),
        "lessons": reflections(n_lessons, settings.group_size * tokens, settings.groups_per_call),
        "updates of the library": reflections(n_changes, UPDATE_TOKENS),
    }
