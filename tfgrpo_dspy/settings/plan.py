"""The plan of a run: rollouts, LM calls and dollars by purpose, before the first call.

How many LM calls and tokens a rollout takes is assumed (the constants say what). Not in the plan:
second calls for answers that do not parse, retries after a provider's faults, summaries of long
trajectories, and prompts that must be split.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import dspy

from tfgrpo_dspy.budget import price_of
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings import RunSettings

COMPLETION_TOKENS = 150
FORMAT_TOKENS = 200
"""What DSPy's adapters add to a prompt."""
MAX_REFLECTION_TOKENS, UPDATE_TOKENS, EXAMPLES_OF_DRAFT = 12_000, 2_000, 10
AGENT_TURNS = 4
"""How many calls an agent makes in a rollout, unless `max_iters` allows fewer."""
EXAMPLES_READ = 100
"""So many examples give the mean length of the inputs."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """Rollouts, LM calls and dollars for one purpose; `cost` is nan without a known price."""

    purpose: str
    n_rollouts: int
    n_lm_calls: int
    cost: float

    def __str__(self) -> str:
        dollars = "?" if math.isnan(self.cost) else f"{self.cost:.2f}"
        return f"{self.purpose:<30}{self.n_rollouts:>10,}{self.n_lm_calls:>10,}{dollars:>10}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a compile would do; `str` is a table, with the schedule below it.

    A run may end earlier, when nothing is left to learn, and never exceeds its budget.
    """

    rows: tuple[PlanRow, ...]
    n_updates: int
    schedule: Mapping[str, int]

    @property
    def total(self) -> PlanRow:
        """All rollouts, each scored once, all LM calls and all dollars."""
        figures = zip(*(astuple(row)[1:] for row in self.rows), strict=True)
        return PlanRow("in all", *map(sum, figures))

    def __str__(self) -> str:
        lines = [
            f"{'purpose':<30}{'rollouts':>10}{'LM calls':>10}{'dollars':>10}",
            *map(str, (*self.rows, self.total)),
            f"an estimate, with {self.n_updates} updates; what a call takes is assumed",
            "",
            *(f"{name:<16}{value:>6}" for name, value in self.schedule.items()),
        ]
        return "\n".join(lines)


def plan_of(settings: RunSettings, student: Any, examples: Sequence[Any]) -> Plan:
    """The plan of a run that trains on these examples: all epochs, or what the budget pays for."""
    tokens, dollars = _one_rollout(settings, student, examples)
    calls = settings.data.calls_per_rollout
    lm = settings.reflection_lm or dspy.settings.lm

    def rollouts(purpose: str, n: int) -> PlanRow:
        return PlanRow(purpose, n, n * calls, n * dollars)

    def reflections(purpose: str, n: int, prompt: int) -> PlanRow:
        prompt = min(MAX_REFLECTION_TOKENS, prompt) + FORMAT_TOKENS
        return PlanRow(purpose, 0, n, _cost(lm, settings, n, prompt))

    def plan(n_updates: int) -> Plan:
        n_training = n_updates * settings.rollouts_of_update
        n_lessons = n_updates * settings.batch_size
        n_summaries = n_training if settings.reflection.summarize_always else 0
        n_updates += settings.drafts > 0
        rows = (
            rollouts("student and final choice", settings.reserve),
            rollouts("test set", 2 * settings.data.n_test),
            rollouts("training rollouts", n_training),
            reflections("drafts from labels", settings.drafts, EXAMPLES_OF_DRAFT * tokens),
            reflections("summaries", n_summaries, tokens),
            reflections("lessons", n_lessons, settings.group_size * tokens),
            reflections("updates of the library", n_updates, UPDATE_TOKENS),
        )
        return Plan(rows, n_updates, settings.schedule)

    n_updates = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    fixed, with_one = (astuple(plan(n).total)[1:] for n in (0, 1))
    limits = (settings.max_metric_calls, settings.max_lm_calls, settings.max_cost)
    for limit, at_first, more in zip(limits, fixed, with_one, strict=True):
        if limit is not None and more > at_first:
            n_updates = min(n_updates, max(0, math.floor((limit - at_first) / (more - at_first))))
    return plan(n_updates)


def assumed_calls(student: Any) -> Iterator[tuple[Any, int]]:
    """Each predictor, and how many LM calls it is assumed to make in a rollout.

    The first predictor of an agent is called up to `AGENT_TURNS` times.
    """
    turns = 1 + sum(
        min(getattr(module, "max_iters", 0), AGENT_TURNS - 1)
        for _, module in student.named_sub_modules()
    )
    for _, predictor in named_predictors(student):
        lm = predictor.lm or dspy.settings.lm
        n = predictor.config.get("n") or getattr(lm, "kwargs", {}).get("n") or 1
        yield predictor, n * turns
        turns = 1


def _one_rollout(settings: RunSettings, student: Any, examples: Sequence[Any]) -> tuple[int, float]:
    """Tokens and dollars of one rollout."""
    inputs = statistics.fmean(
        estimate_tokens(" ".join(as_fields(example.inputs()).values()))
        for example in examples[:EXAMPLES_READ]
    )
    tokens, dollars = 0, 0.0
    for predictor, n in assumed_calls(student):
        prompt = int(estimate_tokens(bare_instructions(predictor)) + FORMAT_TOKENS + inputs)
        tokens += n * (prompt + COMPLETION_TOKENS)
        dollars += _cost(predictor.lm or dspy.settings.lm, settings, n, prompt)
    return tokens, dollars


def _cost(lm: Any, settings: RunSettings, n_calls: int, prompt: int) -> float:
    """Dollars of calls with so many prompt tokens each."""
    price = price_of(lm, settings.execution.prices or {})
    if isinstance(price, str):
        return math.nan
    return n_calls * (prompt * price.prompt + COMPLETION_TOKENS * price.completion)
