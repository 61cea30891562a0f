"""The plan of a run: about how many calls it makes, for what, and what they cost; `auto`.

What a rollout takes in LM calls and dollars is only known by running it; without a probe it is
assumed, as said beside the constants. Not in it: answers that are asked for again, retries after a
provider's faults, summaries of long trajectories, and prompts that must be split.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from tfgrpo_dspy.budget import price_of
from tfgrpo_dspy.experience import named_predictors, own_instructions
from tfgrpo_dspy.reflection import estimate_tokens
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.sampling import as_fields
from tfgrpo_dspy.settings import RunSettings, Settings
from tfgrpo_dspy.settings.groups import Execution, Reflection
from tfgrpo_dspy.settings.schedule import Facts, Schedule

ASSUMED_COMPLETION_TOKENS = 150
ASSUMED_FORMAT_TOKENS = 200
"""What DSPy's adapters add to a prompt, about."""
ASSUMED_TURNS = 4
"""How many calls an agent makes in a rollout, if it may make as many."""
AUTO = {"light": (5, 100), "medium": (12, 200), "heavy": (30, 400)}
"""LM calls for each training example and LM call of a rollout, and the least in all."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One purpose: about so many rollouts and LM calls; dollars where prices are known."""

    purpose: str
    n_rollouts: int
    n_lm_calls: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a compile would do; `str` is a table, with the schedule below it.

    A run may end earlier, when nothing is left to learn, and never goes beyond its budget. The
    cost is None where the price of an LM is not known.
    """

    rows: tuple[PlanRow, ...]
    n_updates: int
    is_probed: bool
    schedule: Schedule

    @property
    def n_metric_calls(self) -> int:
        """All rollouts together, each scored once."""
        return sum(row.n_rollouts for row in self.rows)

    @property
    def n_lm_calls(self) -> int:
        """All LM calls together."""
        return sum(row.n_lm_calls for row in self.rows)

    @property
    def cost(self) -> float | None:
        """US dollars; None where a price is not known."""
        costs = [row.cost for row in self.rows]
        return None if None in costs else math.fsum(cost or 0.0 for cost in costs)

    def __str__(self) -> str:
        total = PlanRow("in all", self.n_metric_calls, self.n_lm_calls, self.cost)
        lines = [f"{'purpose':<30}{'rollouts':>10}{'LM calls':>10}{'dollars':>10}"]
        for row in (*self.rows, total):
            dollars = "?" if row.cost is None else f"{row.cost:.2f}"
            lines.append(
                f"{row.purpose:<30}{row.n_rollouts:>10,}{row.n_lm_calls:>10,}{dollars:>10}"
            )
        basis = "two probe rollouts" if self.is_probed else "assumptions: pass probe=True"
        lines.append(f"about, in {self.n_updates} updates; calls and costs from {basis}")
        return "\n".join([*lines, "", str(self.schedule)])


def plan_of(
    settings: RunSettings,
    student: Any,
    examples: Sequence[Any],
    probed: Sequence[Usage] = (),
) -> Plan:
    """The plan.

    Args:
        settings: of the run.
        student: the program.
        examples: those to train on.
        probed: the usage of some rollouts, from which calls and costs are taken.
    """
    schedule = settings.schedule
    per_rollout = _mean(probed) if probed else _assumed(settings, student, examples)
    n_updates = schedule.n_updates(per_rollout.calls)
    n_training = n_updates * schedule.rollouts_of_update
    n_lessons = n_updates * (schedule.reflections_of_update - 1)
    n_summaries = n_training if settings.reflection.summarize_always else 0
    of_reflection = settings.reflection
    budget = getattr(of_reflection.extract, "attempts_tokens", 12_000)
    shown = getattr(of_reflection.draft, "examples_tokens", 12_000)
    attempts = min(budget, settings.group_size * int(per_rollout.prompt + per_rollout.completion))
    drafted = min(shown, 10 * int(per_rollout.prompt))
    rows = (
        per_rollout.row("student and final choice", schedule.reserve),
        per_rollout.row("test set", 2 * schedule.facts.n_test),
        per_rollout.row("training rollouts", n_training),
        _reflections("drafts from labels", schedule.drafts, drafted, settings),
        _reflections("summaries", n_summaries, attempts // settings.group_size, settings),
        _reflections("lessons", n_lessons, attempts, settings),
        _reflections("updates of the library", n_updates + (schedule.drafts > 0), 2_000, settings),
    )
    return Plan(rows, n_updates + (schedule.drafts > 0), bool(probed), schedule)


def with_preset(settings: Settings, student: Any, n_training: int) -> Settings:
    """The settings with the LM calls that `auto` stands for; an explicit `max_lm_calls` stays."""
    if settings.auto is None or settings.max_lm_calls is not None:
        return settings
    each, least = AUTO[settings.auto]
    n_calls = each * n_training * calls_per_rollout(student)
    return replace(settings, max_lm_calls=max(least, math.ceil(n_calls)))


def facts_of(
    settings: Settings, student: Any, examples: Sequence[Any], n_validation: int, **others: Any
) -> Facts:
    """What the schedule is derived from; `others` are fields of `Facts`.

    Dollars become LM calls by what one is assumed to cost. Minutes cannot: what a call takes is
    not known.
    """
    assumed_calls = None
    if settings.max_cost is not None:
        assumed = _assumed(settings, student, examples)
        if assumed.cost:
            assumed_calls = settings.max_cost / assumed.cost * assumed.calls
    return Facts(
        n_training=len(examples),
        n_validation=n_validation if settings.metric is not None else 0,
        can_demonstrate=settings.measures and n_validation > 0,
        calls_per_rollout=calls_per_rollout(student),
        n_threads=settings.threads,
        lm_calls=settings.max_lm_calls,
        assumed_calls=assumed_calls,
        metric_calls=settings.max_metric_calls,
        has_budget=settings.max_minutes is not None or settings.max_cost is not None,
        **others,
    )


def schedule_of(settings: Settings, facts: Facts) -> Schedule:
    """The schedule for these facts, with the figures that the user set."""
    reflection, execution = settings.reflection or Reflection(), settings.execution or Execution()
    return Schedule.derive(
        facts,
        group_size=settings.group_size,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        max_demos=settings.max_demos,
        max_staleness=execution.max_staleness,
        drafts=reflection.drafts,
        groups_per_call=reflection.groups_per_call,
    )


def calls_per_rollout(student: Any) -> float:
    """How many LM calls one rollout is assumed to make: each predictor asked once.

    An agent's first predictor is asked up to `ASSUMED_TURNS` times.
    """
    return float(sum(times for _, times in _asked(student)))


def _asked(student: Any) -> list[tuple[Any, int]]:
    """Each predictor, and how often it is assumed to be asked in a rollout."""
    loops = sum(
        min(getattr(module, "max_iters", 0), ASSUMED_TURNS - 1)
        for _, module in student.named_sub_modules()
    )
    asked = []
    for index, (_, predictor) in enumerate(named_predictors(student)):
        lm = predictor.lm or dspy.settings.lm
        n = predictor.config.get("n") or getattr(lm, "kwargs", {}).get("n") or 1
        asked.append((predictor, n * (1 + (loops if index == 0 else 0))))
    return asked


@dataclass(frozen=True, slots=True)
class _PerRollout:
    """LM calls, tokens and dollars of one rollout; `cost` None: a price is not known."""

    calls: float
    prompt: float
    completion: float
    cost: float | None

    def row(self, purpose: str, n: int) -> PlanRow:
        """The row of so many rollouts."""
        cost = None if self.cost is None else n * self.cost
        return PlanRow(purpose, n, math.ceil(n * self.calls), cost)


def _mean(probed: Sequence[Usage]) -> _PerRollout:
    cost = statistics.fmean(usage.cost_usd for usage in probed)
    return _PerRollout(
        statistics.fmean(usage.n_lm_calls + usage.n_cached_calls for usage in probed),
        statistics.fmean(usage.prompt_tokens for usage in probed),
        statistics.fmean(usage.completion_tokens for usage in probed),
        cost or None,
    )


LOOKED_AT = 100
"""About so many examples give the mean length of inputs."""


def _assumed(settings: Settings, student: Any, examples: Sequence[Any]) -> _PerRollout:
    inputs = statistics.fmean(
        estimate_tokens(" ".join(as_fields(example.inputs()).values()))
        for example in examples[:: math.ceil(len(examples) / LOOKED_AT)]
    )
    calls, prompt, completion = 0.0, 0.0, 0.0
    costs: list[float | None] = []
    for predictor, times in _asked(student):
        own = times * (
            estimate_tokens(own_instructions(predictor)) + ASSUMED_FORMAT_TOKENS + inputs
        )
        calls, prompt = calls + times, prompt + own
        completion += times * ASSUMED_COMPLETION_TOKENS
        lm = predictor.lm or dspy.settings.lm
        costs.append(_cost(lm, settings, own, times * ASSUMED_COMPLETION_TOKENS))
    total = None if None in costs else math.fsum(cost or 0.0 for cost in costs)
    return _PerRollout(calls, prompt, completion, total)


def _reflections(purpose: str, n: int, prompt: int, settings: Settings) -> PlanRow:
    lm = settings.reflection_lm or dspy.settings.lm
    tokens = n * (prompt + ASSUMED_FORMAT_TOKENS)
    return PlanRow(purpose, 0, n, _cost(lm, settings, tokens, n * ASSUMED_COMPLETION_TOKENS))


def _cost(lm: Any, settings: Settings, prompt: float, completion: float) -> float | None:
    prices = settings.execution.prices if settings.execution is not None else None
    price = price_of(lm, prices or {}) if lm is not None else "no LM"
    if isinstance(price, str):
        return None
    return prompt * price.prompt + completion * price.completion
