"""The schedule of a run, derived from its budget and its data; the plan of what it will take.

What a call takes is assumed: agents take more or fewer turns, and answers are longer or shorter.
Retries after the faults of a provider are in no row of a plan, nor prompts that must be split.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import dspy

from tfgrpo_dspy.budget import price_of, token_price
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.events import Listener
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.gate.protocol import Gate
from tfgrpo_dspy.gate.race import FIRST_ROUND
from tfgrpo_dspy.metric import held_lms
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.sampling.fields import Example, as_fields
from tfgrpo_dspy.settings import Execution, Reflection, Settings
from tfgrpo_dspy.strategies.base import Strategy
from tfgrpo_dspy.text import aligned, counted, printable

USUAL_THREADS, FEWEST_IN_BATCH = 8, 5
CALLS_PER_GROUP = 4
GROUPS_PER_CALL = 2  # on simulated tasks they taught as much as one in a call; three taught less
EXAMPLES_OF_DRAFT, EXAMPLES_OF_BRIEF = 10, 30
UPDATES_KEPT = 3
"""Drafts take the dollars that so many updates and the final choice leave, as estimated; one is
made anyway. So is one brief, and another one for each four drafts that are paid for."""
MIN_PROGRAMS_MEASURED = 2  # with the reserve: at least student and best library
CALLS_FOR_AN_ANSWER = 2  # at most: DSPy asks again, in JSON, for an answer that does not parse
MOST_SHARE = 1 / 2
"""Of a limit that pays for fewer rollouts than was assumed, and of the time, the reserve is at most
this share."""
MIN_GROUP_SIZE, MIN_BATCH_SIZE, MIN_VALIDATION = 2, 2, 2  # a small budget reduces them to these

DERIVED = ("group_size", "batch_size", "epochs", "max_staleness", "drafts", "groups_per_call",
           "max_demos")  # fmt: skip
"""The settings that are derived where they are not given."""


@dataclass(frozen=True, slots=True)
class RunData:
    """Figures from which a schedule is derived, beside the arguments."""

    n_training: int
    n_validation: int = 0  # examples that are available for validation; 0: nothing is measured
    n_test: int = 0  # examples on which student and result are measured at the end
    is_test_on_top: bool = False  # whether the budget, by `auto`, was made larger for these
    n_labelled: int = 0  # training examples that have labels
    is_recorded: bool = False  # whether all training rollouts were made elsewhere
    n_metric_calls: int = 1  # for each training rollout; more if the metric is asked of predictors
    calls_per_rollout: int = 1  # this and what follows: as assumed, see `plan.assumed`
    tokens_of_example: int = 0  # inputs and labels
    tokens_of_attempt: int = 0  # that prompts for lessons show of a rollout
    dollars_per_rollout: float = math.nan
    dollars_per_draft: float = math.nan
    most_calls_per_rollout: int = 1  # of a program whose agents take all of their turns
    unpriced: tuple[str, ...] = ()  # what is missing to know the dollars, in words
    dollars_of_dearest_call: float = 0.0  # of the program, if its answer is as long as it may get

    @property
    def n_of_test_set(self) -> int:
        """The most rollouts of the test set: those of the student and of the result."""
        return 2 * self.n_test

    @property
    def smallest_end(self) -> int:
        """The number of rollouts of the smallest end of a run, which may be more than its share."""
        return MIN_PROGRAMS_MEASURED * min(10, self.n_validation)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The settings of one run, with everything derived."""

    temperature: Literal["own"] | float
    strategies: Sequence[Strategy]
    gate: Gate
    reflection: Reflection
    execution: Execution
    group_size: int
    batch_size: int
    epochs: int
    max_staleness: int
    drafts: int
    groups_per_call: int
    reserve: int  # rollouts for measuring student and candidates
    n_validation: int  # examples that these pay for; what is left, for more
    max_demos: int
    data: RunData
    derived: frozenset[str] = frozenset()  # those of `DERIVED` not set
    trackers: Sequence[Listener] = ()  # told of the run beside `on_event`

    @property
    def schedule(self) -> dict[str, int]:
        """The derived figures by name."""
        return {name: getattr(self, name) for name in (*DERIVED, "reserve", "n_validation")}

    @property
    def shows_labels(self) -> bool:
        """True if the reflection LM may be shown labels."""
        return self.reflection.use_labels and self.metric is not None

    @property
    def most_on_trial(self) -> int:
        """The number of experiences on trial from which on no more lessons are drawn.

        More could not be tested; a large budget tests one for each 50 rollouts that it pays for.
        """
        n_paid = _calls(self, self.data) / self.data.calls_per_rollout
        n_rollouts = min(self.epochs * self.data.n_training * self.group_size, n_paid)
        return max(16, int(n_rollouts / 50))

    @property
    def n_briefs(self) -> int:
        """How many first briefs are written; 0: none is tried."""
        is_tried = type(self.gate).briefs is not Gate.briefs and self.reflection.brief is not None
        if not (is_tried and self.measures and self.data.n_validation) or self.data.is_recorded:
            return 0
        n_paid = max(1, _paid_drafts(self, self.data) / 4)
        return int(min(3, n_paid, _calls(self, self.data) / 50))

    @property
    def learning_limits(self) -> dict[str, float | None]:
        """The limits, without the LM calls that `auto` adds for the test set."""
        n_calls, data = self.max_lm_calls, self.data
        if n_calls is not None and data.is_test_on_top:
            n_calls -= data.n_of_test_set * data.calls_per_rollout
        return {**asdict(self.budget), "max_lm_calls": n_calls}

    @property
    def rollouts_of_update(self) -> int:
        """The number of rollouts that are run for one update."""
        return 0 if self.data.is_recorded else self.batch_size * self.group_size

    def result_scalars(self) -> dict[str, Any]:
        """The scalars that a result may depend on, without those of the run store."""
        scalars = {k: v for k, v in self.scalars().items() if k not in ("log_dir", "offline")}
        names = ", ".join(type(strategy).__name__ for strategy in self.strategies)
        return scalars | ({"strategies": names} if names else {})


@dataclass(frozen=True, eq=False)
class RunInputs:
    """The settings of a run, its student (in the run a copy of the user's), and its examples."""

    settings: RunSettings
    student: Any
    examples: Sequence[Example]  # the training set
    training: tuple[int, ...]  # the positions of those that it trains on
    valset: Sequence[Example] = ()
    testset: Sequence[Example] = ()

    @cached_property
    def trainset(self) -> list[Any]:
        """The user's own examples, which strategies are given."""
        return [example.raw for example in self.examples]

    @cached_property
    def predictors(self) -> list[str]:
        """The names of the student's predictors."""
        return [name for name, _ in named_predictors(self.student)]


def derive(settings: Settings, data: RunData) -> RunSettings:
    """The settings with the schedule that these data and the budget give. Raises SettingsError."""
    arguments = settings.arguments
    chosen = {name: arguments[name] for name in DERIVED if arguments[name] is not None}
    if settings.metric is None or not arguments["use_labels"] or not data.n_labelled:
        chosen["drafts"] = 0
    if not settings.measures or not data.n_validation:
        chosen["max_demos"] = 0
    derived = frozenset({*DERIVED} - chosen.keys())
    usual = _usual(settings, data, chosen)
    run_settings = RunSettings(**vars(settings) | usual, data=data, derived=derived)
    n_batch, n_valid = usual["batch_size"], usual["n_validation"]
    reductions: list[dict[str, int]] = [  # in the order in which they are tried for the budget
        *({}, {"drafts": 0}, {"group_size": MIN_GROUP_SIZE}),
        *({"batch_size": n} for n in range(n_batch, MIN_BATCH_SIZE - 1, -1)),
        *({"n_validation": n, "reserve": MIN_PROGRAMS_MEASURED * n, "max_demos": 0}
          for n in range(n_valid, min(MIN_VALIDATION, n_valid) - 1, -1)),
    ]  # fmt: skip
    for smaller in reductions:
        changes: dict[str, Any] = {
            name: value
            for name, value in smaller.items()
            if name not in chosen and value < getattr(run_settings, name)
        }
        run_settings = replace(run_settings, **changes)
        if not _unpaid(run_settings, data.calls_per_rollout):
            return run_settings
    if settings.max_cost is not None and settings.max_cost < data.dollars_of_dearest_call:
        raise SettingsError(
            f"max_cost={settings.max_cost} is too small: one call may cost "
            f"${data.dollars_of_dearest_call:.2g}. Pass more, or a lower max_tokens to the LM."
        )
    # more than one call per rollout, and what a call costs, are assumptions: they refuse nothing
    if unpaid := _unpaid(replace(run_settings, max_cost=None), 1):
        raise SettingsError(unpaid)
    return run_settings


def n_unlike_drafts(n_labelled: int, n_shown: int) -> int:
    """The number of unlike sets of `n_shown` that labelled examples make; `12, 10 -> 132`."""
    sizes = {min(n_labelled, n_shown), n_labelled % n_shown} - {0}  # of ten, and of two
    return sum(math.comb(n_labelled, size) for size in sizes)


def usual_demos(tokens_of_example: float) -> int:
    """The number of examples of this size in a set of demos, where the user does not say it."""
    return max(1, min(16, int(8_000 / max(1, tokens_of_example))))  # tokens of a prompt


def _usual(settings: Settings, data: RunData, chosen: dict[str, int]) -> dict[str, Any]:
    """The figures for a budget that is large enough."""
    n, calls, n_threads = data.n_training, _calls(settings, data), settings.threads
    n_groups = calls / CALLS_PER_GROUP
    has_budget = calls < math.inf or settings.max_cost or settings.max_minutes
    n_shown = getattr(settings.arguments["draft"], "n_examples", EXAMPLES_OF_DRAFT)
    most_drafts = min(12, n_unlike_drafts(data.n_labelled, n_shown))
    n_programs = 4 if settings.measures else MIN_PROGRAMS_MEASURED
    # a fifth of the budget measures the student and chooses the result
    share = max(data.smallest_end, 1 / 5 * calls / data.calls_per_rollout)
    reserve = int(min(n_programs * data.n_validation, share))
    # Small batches learn more (simulated). With more threads they grow in proportion
    # (`benchmarks/utilisation.py` compares), but an epoch has at least four, and the calls pay for
    # six; with thousands of examples within reach, as each decision reads all rollouts so far.
    size = min(8, max(FEWEST_IN_BATCH, math.ceil(n / 8)))
    for_threads = min(math.ceil(size * n_threads / USUAL_THREADS), n / 4, n_groups / 6)
    n_reached = 0 if has_budget and calls == math.inf else min(n, n_groups)
    sizes = {
        "group_size": 3 if calls >= 15 * n else 2,  # groups of two see more examples
        "batch_size": max(size, math.ceil(for_threads), math.ceil(n_reached / 64)),
    } | chosen
    has_many = n_groups / sizes["batch_size"] >= 12
    fewest = 1 + (n_threads > USUAL_THREADS and has_many)
    # 1.5 rollouts of the batches made at once for a thread: one that ends early finds another
    staleness = math.ceil(1.5 * n_threads / (sizes["batch_size"] * sizes["group_size"])) - 1
    return {
        "temperature": settings.temperature or 0.7,
        "epochs": 1 if data.is_recorded else 50 if has_budget else 5,
        "max_staleness": min(4, max(fewest, staleness)),
        "drafts": int(min(most_drafts, calls / 16, max(1, _paid_drafts(settings, data)))),
        "groups_per_call": GROUPS_PER_CALL,
        "reserve": reserve,
        "n_validation": min(data.n_validation, reserve // MIN_PROGRAMS_MEASURED),
        "max_demos": usual_demos(data.tokens_of_example),
        **sizes,
        "batch_size": min(n, sizes["batch_size"]),
    }


def _calls(settings: Settings, data: RunData) -> float:
    """The budget in LM calls without those of the test set; infinite without a limit on calls.

    Dollars are converted with the assumed cost of a call, a limit on rollouts with half a
    reflection per rollout.
    """
    calls, n_test = math.inf, data.n_of_test_set * data.calls_per_rollout
    if settings.max_lm_calls is not None:
        calls = settings.max_lm_calls - n_test
    if settings.max_cost is not None and data.dollars_per_rollout > 0:
        n_rollouts = settings.max_cost / data.dollars_per_rollout
        calls = min(calls, n_rollouts * data.calls_per_rollout - n_test)
    if settings.max_metric_calls is not None:
        n_rollouts = (settings.max_metric_calls - data.n_of_test_set) / data.n_metric_calls
        calls = min(calls, n_rollouts * (data.calls_per_rollout + 0.5))
    return max(0, calls)


def _paid_drafts(settings: Settings, data: RunData) -> float:
    """How many drafts the dollars pay for beside the first updates and the final choice."""
    if settings.max_cost is None or not data.dollars_per_draft > 0:
        return math.inf
    n_rollouts = data.smallest_end + UPDATES_KEPT * FEWEST_IN_BATCH * MIN_GROUP_SIZE
    n_reflections = UPDATES_KEPT * (1 + FEWEST_IN_BATCH / GROUPS_PER_CALL)
    left = settings.max_cost - n_rollouts * data.dollars_per_rollout
    return left / data.dollars_per_draft - n_reflections


def _unpaid(run_settings: RunSettings, calls_per_rollout: int) -> str:
    """A limit that does not pay for one whole update and the final choice; "": all pay."""
    data, n_training = run_settings.data, run_settings.rollouts_of_update
    n_rollouts = n_training + run_settings.reserve + data.n_of_test_set
    n_reflections = run_settings.batch_size + 1 + run_settings.drafts + (run_settings.drafts > 0)
    n_reflections += n_training * run_settings.reflection.summarize_always
    enough_calls = n_rollouts * data.calls_per_rollout + n_reflections
    dollars = enough_calls * data.dollars_per_rollout / data.calls_per_rollout
    dollars += data.dollars_of_dearest_call
    n_scores = n_rollouts + n_training * (data.n_metric_calls - 1)
    for name, needed, enough in (
        ("max_metric_calls", n_scores, n_scores),
        ("max_lm_calls", n_rollouts * calls_per_rollout + n_reflections, enough_calls),
        ("max_cost", dollars, dollars),
    ):
        limit = getattr(run_settings, name)
        if limit is not None and limit < needed:
            smallest = f"{n_rollouts} rollouts and {n_reflections} reflection calls"
            needs = f"The smallest run needs {smallest}. Pass {name}={enough} or more."
            return f"{name}={limit} is too small. {needs}"
    return ""


# ------------------------------------------------------------------------------------- the plan

FORMAT_TOKENS, FIELD_TOKENS = 150, 8  # of DSPy's adapters: of a prompt; of a field of an answer
TEXT_TOKENS = 80  # of a text that an LM writes, where no label says how long it is
TURN_TOKENS = 100  # of a turn of an agent in the prompts of those that follow
AGENT_TURNS = 4  # how many calls an agent is likely to make, unless `max_iters` allows fewer
LIBRARY_TOKENS = 100  # of the experiences in a prompt, on average
DEMOS_SHARE = 0.8  # of the rollouts show demos, in runs in twelve random worlds
REFLECTION_TOKENS, ADVICE_TOKENS = 900, 200
"""Of the prompt of a reflection without what it shows, and of its answer (48 real runs)."""
MOST_SHOWN_TOKENS = 12_000  # of a group in a prompt for lessons
FEWEST_UPDATES = 20
"""An easy task is learned in about 20 updates; a hard one takes all epochs, or all that the
budget pays for, and most are hard. This and the next were chosen with simulated tasks."""
CONTRAST_SHARE, CHANGE_SHARE = 0.5, 0.5  # of groups that teach; of updates with new lessons
LIKELY_CANDIDATES, LIKELY_FINALISTS = 8, 5  # of the first round of the race, and of the others

Taken = tuple[float, float, float]
"""Rollouts, LM calls and US dollars, which are nan where a price is missing."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """The whole rollouts and LM calls that one purpose is likely to take, and the US dollars."""

    purpose: str
    n_rollouts: int
    n_lm_calls: int
    cost: float | None  # None: a price is missing, which the plan names


@dataclass(frozen=True, slots=True)
class Plan:
    """The likely course of a compile; `str` is a table, with the schedule below it.

    Where one lesson solves the task, a run takes less. What strategies try and ask besides is in no
    row.
    """

    rows: tuple[PlanRow, ...]  # the last one is their sum, within the limits
    n_updates: int
    schedule: Mapping[str, int]
    limits: Mapping[str, float]  # those that are set
    has_strategies: bool = False
    unpriced: tuple[str, ...] = ()  # what is missing to know the dollars

    @property
    def total(self) -> PlanRow:
        """All rollouts, all LM calls and all dollars."""
        return self.rows[-1]

    @property
    def _limits(self) -> str:
        limits = (f"{name}={limit:.9g}" for name, limit in self.limits.items())
        return ", ".join(limits) or "none is set"

    def __repr__(self) -> str:
        return f"<Plan: likely {self.total.n_lm_calls:,} LM calls; limits: {self._limits}>"

    def __str__(self) -> str:
        cells = [("likely", "rollouts", "calls", "dollars")]
        for row in self.rows:
            dollars = "?" if row.cost is None else f"{row.cost:.3g}"
            cells.append((row.purpose, f"{row.n_rollouts:,}", f"{row.n_lm_calls:,}", dollars))
        lines = [
            *aligned(cells, range(1, 4)),
            f"in {counted(self.n_updates, 'update')}; limits: {self._limits}",
            *(f"?: {why}" for why in self.unpriced if self.total.cost is None),
            *["what the strategies try and ask besides is not known"] * self.has_strategies,
            "",
            *(f"{name:<16}{value:>6}" for name, value in self.schedule.items()),
        ]
        return printable("\n".join(lines))


def assumed(settings: Settings, student: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """The assumptions about a rollout, as fields of `RunData`; the first examples stand for all."""
    examples, prices = examples[:100], settings.arguments["prices"] or {}
    iterations = [getattr(each, "max_iters", 0) for _, each in student.named_sub_modules()]
    n_besides = sum(min(n, AGENT_TURNS - 1) for n in iterations)
    most = sum(iterations) - n_besides  # turns that an agent may take besides
    inputs = _mean_tokens(each.inputs for each in examples)
    whole = _mean_tokens(as_fields(dict(each.raw.items())) for each in examples)
    n_demos = settings.arguments["max_demos"]
    demos = whole * (usual_demos(whole) if n_demos is None else n_demos) * settings.measures
    beside, calls, attempt, dollars, longest = LIBRARY_TOKENS + DEMOS_SHARE * demos, 0, 0.0, 0.0, 0
    lms: list[Any] = []
    for _, predictor in named_predictors(student):
        lms.append(lm := predictor.lm or dspy.settings.lm)
        n = predictor.config.get("n") or getattr(lm, "kwargs", {}).get("n") or 1
        n_calls, n_turns = n * (1 + n_besides), n_besides
        n_besides = 0  # the first predictor is that of the agent
        answer = 0.0  # as long as the labels, where there are any
        for name, field in predictor.signature.output_fields.items():
            labels = [{name: each.labels[name]} for each in examples if name in each.labels]
            usual = TEXT_TOKENS if field.annotation is str else FIELD_TOKENS
            answer += FIELD_TOKENS + (_mean_tokens(labels) if labels else usual)
        longest = int(estimate_tokens(bare_instructions(predictor)) + FORMAT_TOKENS + inputs)
        prompt = longest + beside + n_turns * TURN_TOKENS / 2
        calls, most = calls + n_calls, most + n_calls
        attempt += n_calls * answer + n_turns * TURN_TOKENS
        dollars += n_calls * _cost(lm, settings, prompt, answer)
    judges = {id(lm): lm for lm in held_lms(settings.metric)}.values()  # a call each
    dollars += sum(_cost(lm, settings, longest, TEXT_TOKENS) for lm in judges)
    calls, most, lms = calls + len(judges), most + len(judges), [*lms, *judges]
    lms += [lm for strategy in settings.strategies for lm in held_lms(strategy)]  # a teacher's
    dearest = [(longest + int(demos)) * price.prompt + price.max_tokens * price.completion
               for lm in lms if not isinstance(price := price_of(lm, prices), str)]  # fmt: skip
    every = (*lms, settings.reflection_lm or dspy.settings.lm)
    unpriced = (price for lm in every if isinstance(price := token_price(lm, prices), str))
    return {
        "calls_per_rollout": calls,
        "most_calls_per_rollout": most,
        "tokens_of_example": int(whole),
        "tokens_of_attempt": int(attempt),
        "dollars_per_rollout": dollars,
        "dollars_per_draft": _reflection_cost(settings, EXAMPLES_OF_DRAFT * whole),
        "dollars_of_dearest_call": max(dearest, default=0.0) if len(dearest) == len(lms) else 0.0,
        "unpriced": tuple(dict.fromkeys(unpriced)),
    }


def _mean_tokens(fields: Iterable[Mapping[str, str]]) -> float:
    return statistics.fmean(estimate_tokens(" ".join(texts.values())) for texts in fields)


def _cost(lm: Any, settings: Settings, prompt: float, answer: float) -> float:
    """Dollars of a call with so many tokens."""
    price = token_price(lm, settings.arguments["prices"] or {})
    if isinstance(price, str):
        return math.nan
    return prompt * price.prompt + min(answer, price.max_tokens or math.inf) * price.completion


def _reflection_cost(settings: Settings, n_shown: float) -> float:
    """Dollars of a call of the reflection LM that is shown so many tokens of examples."""
    lm = settings.reflection_lm or dspy.settings.lm
    return _cost(lm, settings, REFLECTION_TOKENS + n_shown, ADVICE_TOKENS)


def plan_of(settings: RunSettings) -> Plan:
    """The plan of a run within its limits."""
    data, budget, n_kept = settings.data, settings.budget, settings.reserve
    most = (budget.max_metric_calls, budget.max_lm_calls, budget.max_cost)
    n_scores, n_calls, cost = (math.inf if limit is None else limit for limit in most)
    limits = (min(n_scores / data.n_metric_calls, n_calls), n_calls, cost)

    def taken(n_updates: int, n_final: float) -> list[float]:
        return [*map(sum, zip(*_rows(settings, n_updates, n_final).values(), strict=True))]

    def affordable(fixed: list[float], with_one: list[float]) -> float:
        """The number of times that the limits pay for one more beside what is fixed."""
        numbers = zip(limits, fixed, with_one, strict=True)
        return min((max(0.0, (m - a) / (b - a)) for m, a, b in numbers if b > a), default=math.inf)

    n_batches = math.ceil(data.n_training / settings.batch_size)
    every = (settings.drafts > 0) + settings.epochs * n_batches
    n_paid = min(every, affordable(taken(0, n_kept), taken(1, n_kept)))
    n_updates = math.ceil(min(n_paid, FEWEST_UPDATES**0.25 * n_paid**0.75))
    n_validation = data.n_validation if n_kept else 0
    n_first = min(FIRST_ROUND, n_validation)
    n_race = LIKELY_CANDIDATES * n_first + LIKELY_FINALISTS * (n_validation - n_first)
    n_left = max(n_kept, affordable(taken(n_updates, 0), taken(n_updates, 1)))
    n_final = min(n_race, n_left) if settings.measures else n_kept
    rows = [_row(name, each) for name, each in _rows(settings, n_updates, n_final).items()]
    whole = (sum(r.n_rollouts for r in rows), sum(r.n_lm_calls for r in rows))
    in_all = (*whole, taken(n_updates, n_final)[2])
    return Plan(
        rows=(*rows, _row("in all", map(min, in_all, limits))),
        n_updates=n_updates,
        schedule=settings.schedule,
        limits={name: most for name, most in asdict(budget).items() if most is not None},
        has_strategies=bool(settings.strategies),
        unpriced=data.unpriced,
    )


def _rows(settings: RunSettings, n_updates: int, n_final: float) -> dict[str, Taken]:
    """By purpose, what `n_updates` and `n_final` rollouts of the final choice take."""
    data, example = settings.data, settings.data.tokens_of_example
    n_training = n_updates * settings.rollouts_of_update
    n_lessons = math.ceil(settings.batch_size / settings.groups_per_call) * CONTRAST_SHARE
    shown_tokens = min(MOST_SHOWN_TOKENS, example + settings.group_size * data.tokens_of_attempt)
    has_drafts, is_summarized = settings.drafts > 0, settings.reflection.summarize_always
    of_test = "test set, on top of auto" if data.n_test and data.is_test_on_top else "test set"
    rollouts: dict[str, float] = {
        "student and final choice": n_final,
        of_test: data.n_of_test_set,
        "training rollouts": n_training,
    }
    reflections: dict[str, tuple[float, float]] = {  # their number, and the tokens that each shows
        "briefs": (settings.n_briefs * has_drafts, EXAMPLES_OF_BRIEF * example),
        "drafts from labels": (settings.drafts, EXAMPLES_OF_DRAFT * example),
        "summaries": (n_training * is_summarized, data.tokens_of_attempt),
        "lessons": (n_updates * n_lessons, settings.groups_per_call * shown_tokens),
        "updates of the library": (CHANGE_SHARE * (n_updates + has_drafts), ADVICE_TOKENS),
    }
    taken: dict[str, Taken] = {
        name: (n, n * data.calls_per_rollout, n and n * data.dollars_per_rollout)
        for name, n in rollouts.items()
    }
    return taken | {
        name: (0, n, n and n * _reflection_cost(settings, n_shown))
        for name, (n, n_shown) in reflections.items()
    }


def _row(purpose: str, taken: Iterable[float]) -> PlanRow:
    n_rollouts, n_calls, dollars = taken
    cost = None if math.isnan(dollars) else dollars
    return PlanRow(purpose, math.ceil(n_rollouts - 1e-9), math.ceil(n_calls - 1e-9), cost)
