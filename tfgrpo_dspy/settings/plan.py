"""The plan of a run: the rollouts, LM calls and dollars that it is likely to take.

What a call takes is assumed: agents take more or fewer turns, and answers are longer or shorter.
Retries after the faults of a provider are in no row, nor prompts that must be split.
"""

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dspy

from tfgrpo_dspy.budget.prices import price_of, token_price
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.gate.race import FIRST_ROUND
from tfgrpo_dspy.metric import held_lms
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.sampling.fields import Example, as_fields
from tfgrpo_dspy.settings import Settings
from tfgrpo_dspy.settings.schedule import (
    EXAMPLES_OF_BRIEF,
    EXAMPLES_OF_DRAFT,
    RunSettings,
    usual_demos,
)
from tfgrpo_dspy.wording import aligned, counted

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
    """The whole rollouts and LM calls that one purpose is likely to take, and the US dollars.

    `cost` is None where a price is missing, which the plan names.
    """

    purpose: str
    n_rollouts: int
    n_lm_calls: int
    cost: float | None

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """The row as a table shows it."""
        dollars = "?" if self.cost is None else f"{self.cost:.3g}"
        return self.purpose, f"{self.n_rollouts:,}", f"{self.n_lm_calls:,}", dollars


@dataclass(frozen=True, slots=True)
class Plan:
    """The likely course of a compile; `str` is a table, with the schedule below it.

    The last row of `rows` is their sum, `total`, which is within the `limits` that are set. Where
    one lesson solves the task, a run takes less. What strategies try and ask besides is in no row.
    `unpriced` says what is missing to know the dollars.
    """

    rows: tuple[PlanRow, ...]
    n_updates: int
    schedule: Mapping[str, int]
    limits: Mapping[str, float]
    has_strategies: bool = False
    unpriced: tuple[str, ...] = ()

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

    def _repr_html_(self) -> str:
        style = "font-family: monospace; white-space: pre-wrap"
        return f'<pre style="{style}">{html.escape(str(self))}</pre>'

    def __str__(self) -> str:
        head = ("likely", "rollouts", "calls", "dollars")
        lines = [
            *aligned([head, *(row.texts for row in self.rows)], range(1, 4)),
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
    lms = []
    for _, predictor in named_predictors(student):
        lms.append(lm := predictor.lm or dspy.settings.lm)
        n = predictor.config.get("n") or getattr(lm, "kwargs", {}).get("n") or 1
        n_calls, n_turns = n * (1 + n_besides), n_besides
        n_besides = 0  # the first predictor is that of the agent
        answer = _answer_tokens(predictor, examples)
        longest = int(estimate_tokens(bare_instructions(predictor)) + FORMAT_TOKENS + inputs)
        prompt = longest + beside + n_turns * TURN_TOKENS / 2
        calls, most = calls + n_calls, most + n_calls
        attempt += n_calls * answer + n_turns * TURN_TOKENS
        dollars += n_calls * answer_cost(lm, settings, prompt, answer)
    for lm in {id(lm): lm for lm in held_lms(settings.metric)}.values():  # a judge's, a call each
        lms.append(lm)
        calls, most = calls + 1, most + 1
        dollars += answer_cost(lm, settings, longest, TEXT_TOKENS)
    lms += [lm for strategy in settings.strategies for lm in held_lms(strategy)]  # a teacher's
    prices_of_calls = [price_of(lm, prices) for lm in lms]
    dearest = [(longest + int(demos)) * each.prompt + each.max_tokens * each.completion
               for each in prices_of_calls if not isinstance(each, str)]  # fmt: skip
    reflection_lm = settings.reflection_lm or dspy.settings.lm
    unknown = (token_price(lm, prices) for lm in (*lms, reflection_lm))
    draft = EXAMPLES_OF_DRAFT * whole
    return {
        "calls_per_rollout": calls,
        "most_calls_per_rollout": most,
        "tokens_of_example": int(whole),
        "tokens_of_attempt": int(attempt),
        "dollars_per_rollout": dollars,
        "dollars_per_draft": reflection_cost(settings, draft),
        "dollars_of_dearest_call": max(dearest, default=0.0) if len(dearest) == len(lms) else 0.0,
        "unpriced": tuple(dict.fromkeys(each for each in unknown if isinstance(each, str))),
    }


def _answer_tokens(predictor: Any, examples: Sequence[Example]) -> float:
    """The tokens of an answer: as many as the labels have, where there are any."""
    n_tokens = 0.0
    for name, field in predictor.signature.output_fields.items():
        texts = [{name: each.labels[name]} for each in examples if name in each.labels]
        usual = TEXT_TOKENS if field.annotation is str else FIELD_TOKENS
        n_tokens += FIELD_TOKENS + (_mean_tokens(texts) if texts else usual)
    return n_tokens


def _mean_tokens(fields: Iterable[Mapping[str, str]]) -> float:
    return statistics.fmean(estimate_tokens(" ".join(texts.values())) for texts in fields)


def answer_cost(lm: Any, settings: Settings, prompt: float, answer: float) -> float:
    """Dollars of a call with so many tokens."""
    price = token_price(lm, settings.arguments["prices"] or {})
    if isinstance(price, str):
        return math.nan
    return prompt * price.prompt + min(answer, price.max_tokens or math.inf) * price.completion


def reflection_cost(settings: Settings, n_shown: float) -> float:
    """Dollars of a call of the reflection LM that is shown so many tokens of examples."""
    lm = settings.reflection_lm or dspy.settings.lm
    return answer_cost(lm, settings, REFLECTION_TOKENS + n_shown, ADVICE_TOKENS)


def plan_of(settings: RunSettings) -> Plan:
    """The plan of a run within its limits."""
    data, n_kept = settings.data, settings.reserve
    n_calls = math.inf if settings.max_lm_calls is None else settings.max_lm_calls
    n_scores = math.inf if settings.max_metric_calls is None else settings.max_metric_calls
    cost = math.inf if settings.max_cost is None else settings.max_cost
    limits = (min(n_scores / data.n_metric_calls, n_calls), n_calls, cost)
    every = (settings.drafts > 0) + settings.epochs * math.ceil(
        data.n_training / settings.batch_size
    )
    fixed, first = (_sum(_rows(settings, n, n_kept)) for n in (0, 1))
    affordable = min(every, _affordable(limits, fixed, first))
    n = math.ceil(min(affordable, FEWEST_UPDATES**0.25 * affordable**0.75))
    n_validation = data.n_validation if n_kept else 0
    n_first = min(FIRST_ROUND, n_validation)
    n_final = LIKELY_CANDIDATES * n_first + LIKELY_FINALISTS * (n_validation - n_first)
    learned, measured = (_sum(_rows(settings, n, n_rollouts)) for n_rollouts in (0, 1))
    n_left = max(n_kept, _affordable(limits, learned, measured))
    rows = _rows(settings, n, min(n_final, n_left) if settings.measures else n_kept)
    whole = [_row(purpose, taken) for purpose, taken in rows.items()]
    n_rollouts, n_lm_calls = sum(r.n_rollouts for r in whole), sum(r.n_lm_calls for r in whole)
    in_all = map(min, (n_rollouts, n_lm_calls, _sum(rows)[2]), limits)
    return Plan(
        rows=(*whole, _row("in all", in_all)),
        n_updates=n,
        schedule=settings.schedule,
        limits={name: most for name, most in asdict(settings.budget).items() if most is not None},
        has_strategies=bool(settings.strategies),
        unpriced=data.unpriced,
    )


def _rows(settings: RunSettings, n_updates: int, n_final: float) -> dict[str, Taken]:
    """By purpose, what `n_updates` and `n_final` rollouts of the final choice take."""
    data = settings.data

    def rollouts(n: float) -> Taken:
        return (n, n * data.calls_per_rollout, n and n * data.dollars_per_rollout)

    def reflections(n: float, n_shown: float) -> Taken:
        return (0, n, n and n * reflection_cost(settings, n_shown))

    n_training = n_updates * settings.rollouts_of_update
    n_lessons = math.ceil(settings.batch_size / settings.groups_per_call) * CONTRAST_SHARE
    group = data.tokens_of_example + settings.group_size * data.tokens_of_attempt
    n_changes = CHANGE_SHARE * (n_updates + (settings.drafts > 0))
    n_drafts, n_briefs = settings.drafts, settings.n_briefs * (settings.drafts > 0)
    is_summarized = settings.reflection.summarize_always
    of_test = "test set, on top of auto" if data.n_test and data.is_test_on_top else "test set"
    return {
        "student and final choice": rollouts(n_final),
        of_test: rollouts(data.n_of_test_set),
        "training rollouts": rollouts(n_training),
        "briefs": reflections(n_briefs, EXAMPLES_OF_BRIEF * data.tokens_of_example),
        "drafts from labels": reflections(n_drafts, EXAMPLES_OF_DRAFT * data.tokens_of_example),
        "summaries": reflections(n_training * is_summarized, data.tokens_of_attempt),
        "lessons": reflections(
            n_updates * n_lessons, settings.groups_per_call * min(MOST_SHOWN_TOKENS, group)
        ),
        "updates of the library": reflections(n_changes, ADVICE_TOKENS),
    }


def _sum(rows: Mapping[str, Taken]) -> Taken:
    n_rollouts, n_lm_calls, dollars = map(sum, zip(*rows.values(), strict=True))
    return n_rollouts, n_lm_calls, dollars


def _affordable(limits: Taken, fixed: Taken, with_one: Taken) -> float:
    """The number of times that the limits pay for one more beside what is fixed."""
    numbers = zip(limits, fixed, with_one, strict=True)
    fitting = (max(0.0, (most - a) / (b - a)) for most, a, b in numbers if b > a)
    return min(fitting, default=math.inf)


def _row(purpose: str, taken: Iterable[float]) -> PlanRow:
    """The row with whole rollouts and LM calls."""
    n_rollouts, n_lm_calls, dollars = taken
    cost = None if math.isnan(dollars) else dollars
    return PlanRow(purpose, math.ceil(n_rollouts - 1e-9), math.ceil(n_lm_calls - 1e-9), cost)
