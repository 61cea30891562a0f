"""What a run is likely to take, and what it takes at most: rollouts, LM calls, dollars.

How many LM calls and tokens a rollout takes is assumed. Retries after the faults of a provider are
in no column, prompts that must be split neither.
"""

import html
import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import dspy

from tfgrpo_dspy.budget.meter import price_of
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.metric import held_lms
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings import Settings
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.wording import aligned

COMPLETION_TOKENS, FORMAT_TOKENS = 150, 200  # DSPy's adapters add the second to a prompt
REFLECTION_TOKENS, UPDATE_TOKENS, EXAMPLES_OF_DRAFT = 12_000, 2_000, 10
AGENT_TURNS = 4  # how many calls an agent is likely to make, unless `max_iters` allows fewer
FEWEST_UPDATES = 20
"""An easy task is learned in about so many updates; a hard one takes all that the budget pays for.
What is likely is the geometric mean. This and the next two were chosen with simulated tasks."""
CONTRAST_SHARE, CHANGE_SHARE = 0.6, 0.5  # of groups that teach; of updates with new lessons
LIKELY_FINALISTS, MOST_FINALISTS = 3, 12
TEST_ON_TOP = "test set, on top of auto"
CALLS_FOR_AN_ANSWER = 2  # at most: DSPy asks again, in JSON, for an answer that does not parse


@dataclass(frozen=True, slots=True)
class Planned:
    """Rollouts, LM calls, and dollars (nan: no price is known)."""

    n_rollouts: float = 0
    n_lm_calls: float = 0
    cost: float = 0.0

    def __add__(self, other: "Planned") -> "Planned":
        return Planned(*map(operator.add, astuple(self), astuple(other)))

    def __mul__(self, times: float) -> "Planned":
        return Planned(*(times * value for value in astuple(self)))

    @property
    def texts(self) -> tuple[str, str, str]:
        """The three as whole numbers and cents; "?" where no price is known."""
        dollars = "?" if math.isnan(self.cost) else f"{self.cost:.2f}"
        return f"{math.ceil(self.n_rollouts):,}", f"{math.ceil(self.n_lm_calls):,}", dollars


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
    strategies try and ask besides is in no row.
    """

    rows: tuple[PlanRow, ...]
    n_updates: int
    schedule: Mapping[str, int]
    has_strategies: bool = False

    @property
    def total(self) -> PlanRow:
        """All rollouts, all LM calls and all dollars."""
        return self.rows[-1]

    def __repr__(self) -> str:
        calls = f"likely {self.total.likely.n_lm_calls:,.0f}"
        return f"<Plan: {calls}, at most {self.total.at_most.n_lm_calls:,.0f} LM calls>"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def __str__(self) -> str:
        rows = [(row.purpose, *row.likely.texts, *row.at_most.texts) for row in self.rows]
        units = ("rollouts", "calls", "dollars")
        head = [("", "", "", "likely", "", "", "at most"), ("purpose", *units, *units)]
        lines = [
            *aligned([*head, *rows], range(1, 7)),
            f"likely: {self.n_updates} updates; fewer where one lesson solves the task",
            *["what the strategies try and ask besides is not known"] * self.has_strategies,
            "",
            *(f"{name:<16}{value:>6}" for name, value in self.schedule.items()),
        ]
        return "\n".join(lines)


def plan_of(settings: RunSettings) -> Plan:
    """The plan of a run within its limits."""
    data = settings.data
    every = (settings.drafts > 0) + settings.epochs * math.ceil(
        data.n_training / settings.batch_size
    )
    fixed = _sum(_rows(settings, 0, is_likely=True))
    each = _sum(_rows(settings, 1, is_likely=True)) + fixed * -1
    affordable = min(every, _affordable(settings, fixed, each))
    n = math.ceil(min(affordable, math.sqrt(FEWEST_UPDATES * affordable)))
    likely = _rows(settings, n, is_likely=True)
    most = _rows(settings, every, is_likely=False)
    table = (rows | {"in all": _sum(rows)} for rows in (likely, most))
    columns = [[_within(settings, each) for each in rows.values()] for rows in table]
    rows = map(PlanRow, (*likely, "in all"), *columns)
    return Plan(tuple(rows), n, settings.schedule, bool(settings.strategies))


def _affordable(settings: RunSettings, fixed: Planned, each: Planned) -> float:
    """How many updates the budget pays for."""
    numbers = zip(_limits(settings), astuple(fixed), astuple(each), strict=True)
    fitting = (max(0.0, (most - first) / more) for most, first, more in numbers if more > 0)
    return min(fitting, default=math.inf)


def _limits(settings: RunSettings) -> tuple[float, float, float]:
    """The most rollouts, LM calls and dollars that the budget allows."""
    limits = (settings.max_metric_calls, settings.max_lm_calls, settings.max_cost)
    n, calls, cost = (math.inf if limit is None else limit for limit in limits)
    return min(n / settings.data.n_metric_calls, calls), calls, cost


def _sum(rows: Mapping[str, Planned]) -> Planned:
    return sum(rows.values(), Planned())


def _within(settings: RunSettings, planned: Planned) -> Planned:
    """The plan within every limit that is set."""
    return Planned(*map(min, zip(astuple(planned), _limits(settings), strict=True)))


def _rows(settings: RunSettings, n_updates: int, *, is_likely: bool) -> dict[str, Planned]:
    """What so many updates, and the choice behind them, take for each purpose."""
    data, tokens = settings.data, settings.data.tokens_per_rollout
    lm = settings.reflection_lm or dspy.settings.lm
    rollout = Planned(1, data.calls_per_rollout, data.dollars_per_rollout)
    times = 1 if is_likely else CALLS_FOR_AN_ANSWER
    if not is_likely:
        n_calls = times * data.most_calls_per_rollout
        rollout = Planned(1, n_calls, n_calls * (data.dollars_of_dearest_call or math.nan))

    def reflections(n: float, prompt: int, n_shown: int = 1) -> Planned:
        prompt = n_shown * (min(REFLECTION_TOKENS, prompt) if is_likely else REFLECTION_TOKENS)
        cost = _cost(lm, settings, prompt + FORMAT_TOKENS, is_most=not is_likely)
        return Planned(0, 1, cost) * (n * times)

    n_training = n_updates * settings.rollouts_of_update
    n_lessons: float = n_updates * math.ceil(settings.batch_size / settings.groups_per_call)
    n_changes: float = n_updates + (settings.drafts > 0)
    n_programs = LIKELY_FINALISTS if is_likely else MOST_FINALISTS
    n_final = n_programs * data.n_validation if settings.reserve else 0
    if is_likely:
        n_lessons, n_changes = n_lessons * CONTRAST_SHARE, n_changes * CHANGE_SHARE
        n_final = min(n_final, settings.reserve)
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


def one_rollout(settings: Settings, student: Any, examples: Sequence[Any]) -> dict[str, Any]:
    """What a rollout is assumed to take, as the fields of `RunData` from `calls_per_rollout` on.

    Each predictor makes one call; the first one of an agent up to `AGENT_TURNS`.
    """
    iterations = [getattr(each, "max_iters", 0) for _, each in student.named_sub_modules()]
    turns = 1 + sum(min(n, AGENT_TURNS - 1) for n in iterations)
    most = 1 + sum(iterations) - turns  # turns that an agent may take besides
    inputs = statistics.fmean(
        estimate_tokens(" ".join(as_fields(example.inputs()).values()))
        for example in examples[:100]
    )
    calls, tokens, dollars, dearest = 0, 0, 0.0, 0.0
    for _, predictor in named_predictors(student):
        lm = predictor.lm or dspy.settings.lm
        n = turns * (predictor.config.get("n") or getattr(lm, "kwargs", {}).get("n") or 1)
        most += n
        turns = 1
        prompt = int(estimate_tokens(bare_instructions(predictor)) + FORMAT_TOKENS + inputs)
        calls += n
        tokens += n * (prompt + COMPLETION_TOKENS)
        dollars += n * _cost(lm, settings, prompt)
        price = price_of(lm, settings.arguments["prices"] or {})
        if not isinstance(price, str):
            dearest = max(dearest, prompt * price.prompt + price.max_tokens * price.completion)
    for lm in {id(lm): lm for lm in held_lms(settings.metric)}.values():  # a judge's, a call each
        calls, most = calls + 1, most + 1
        tokens, dollars = tokens + prompt, dollars + _cost(lm, settings, prompt)
    of_strategies = [lm for strategy in settings.strategies for lm in held_lms(strategy)]
    for lm in (*of_strategies, *held_lms(settings.metric)):
        price = price_of(lm, settings.arguments["prices"] or {})  # such as a teacher's
        if not isinstance(price, str):
            dearest = max(dearest, prompt * price.prompt + price.max_tokens * price.completion)
    return {
        "calls_per_rollout": calls,
        "tokens_per_rollout": tokens,
        "dollars_per_rollout": dollars,
        "most_calls_per_rollout": most,
        "dollars_of_dearest_call": dearest,
    }


def _cost(lm: Any, settings: Settings, prompt: int, *, is_most: bool = False) -> float:
    """Dollars of a call with so many prompt tokens, and an answer of the usual or most tokens."""
    price = price_of(lm, settings.arguments["prices"] or {})
    if isinstance(price, str):
        return math.nan
    n_answer = price.max_tokens if is_most else COMPLETION_TOKENS
    return prompt * price.prompt + n_answer * price.completion
