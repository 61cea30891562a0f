"""The plan of a run: how many calls at most, for what, and about what they cost; `auto`.

Counts of rollouts are upper bounds. What a rollout takes in LM calls and dollars is only known by
running it; without a probe it is assumed, as said beside the constants. Not in it: retries after a
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
from tfgrpo_dspy.settings import PRESETS, Settings

ASSUMED_COMPLETION_TOKENS = 300
ASSUMED_FORMAT_TOKENS = 200
"""What DSPy's adapters add to a prompt, about."""
ATTEMPTS_AT_ANSWER = 2
"""An adapter, and a reflection module, ask once more where an answer does not parse."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One purpose: at most so many rollouts and LM calls; dollars where prices are known."""

    purpose: str
    n_rollouts: int | None
    n_lm_calls: int | None
    cost: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a compile would do at most, but for faults and overlong prompts; `str` is a table.

    A None is not known: a gate of one's own that does not say how many trials it takes, an LM
    without a price.
    """

    rows: tuple[PlanRow, ...]
    n_updates: int
    is_probed: bool

    @property
    def n_metric_calls(self) -> int:
        """All rollouts together, each scored once; those that are known."""
        return sum(row.n_rollouts or 0 for row in self.rows)

    @property
    def n_lm_calls(self) -> int:
        """All LM calls together; those that are known."""
        return sum(row.n_lm_calls or 0 for row in self.rows)

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
                f"{row.purpose:<30}{_shown(row.n_rollouts):>10}{_shown(row.n_lm_calls):>10}"
                f"{dollars:>10}"
            )
        basis = "two probe rollouts" if self.is_probed else "assumptions: pass probe=True"
        return "\n".join([*lines, f"at most, in {self.n_updates} updates; costs from {basis}"])


def plan_of(
    settings: Settings,
    student: Any,
    examples: Sequence[Any],
    n_validation: int,
    probed: Sequence[Usage] = (),
    *,
    n_test: int = 0,
    is_sampled: bool = True,
) -> Plan:
    """The plan.

    Args:
        settings: of the run.
        student: the program.
        examples: those to train on.
        n_validation: how many examples the gate measures on.
        probed: the usage of some rollouts, from which calls and costs are taken.
        n_test: how many examples student and result are measured on at the end besides.
        is_sampled: False where the training rollouts are there already.
    """
    n_train = len(examples)
    n_drafts = int(settings.drafts > 0)
    n_updates = n_drafts + settings.epochs * math.ceil(n_train / settings.batch_size_for(n_train))
    n_groups = settings.epochs * n_train
    per_rollout = _mean(probed) if probed else _assumed(settings, student, examples)
    n_training = n_groups * settings.group_size if is_sampled else 0
    most_trials = getattr(settings.gate, "most_trials", None)
    n_trials: int | None = 0
    if settings.measures:
        n_each = None if most_trials is None else most_trials(n_validation)
        n_trials = None if n_each is None else n_updates * n_each
    n_passes = 3 if settings.max_demos else 2
    n_measured = 0 if settings.gate_metric is None else n_passes * n_validation + 2 * n_test
    n_summaries = n_training if settings.summarize_always else 0
    reflection = settings.reflection_lm or dspy.settings.lm
    budget = getattr(settings.extract_advantage, "attempts_tokens", 12_000)
    shown = getattr(settings.draft_lessons, "examples_tokens", 12_000)
    attempts = min(budget, settings.group_size * int(per_rollout.prompt + per_rollout.completion))
    rows = (
        per_rollout.row("scores of student and result", n_measured),
        per_rollout.row("training rollouts", n_training),
        per_rollout.row("trials of the gate", n_trials),
        _reflections("drafts from labels", settings.drafts, shown, reflection, settings),
        _reflections("summaries", n_summaries, budget // settings.group_size, reflection, settings),
        _reflections("lessons", n_groups, attempts, reflection, settings),
        _reflections("updates of the library", n_updates, 4_000, reflection, settings),
    )
    return Plan(rows, n_updates, bool(probed))


def with_preset(
    settings: Settings,
    student: Any,
    examples: Sequence[Any],
    n_validation: int,
    *,
    n_test: int = 0,
    is_sampled: bool = True,
) -> Settings:
    """The settings with the budgets that `auto` stands for; explicit ones stay.

    "light", "medium" and "heavy" allow what a third, two thirds and all of the epochs take, where
    each update is tried once on each validation example.
    """
    if settings.auto is None:
        return settings
    share = (PRESETS.index(settings.auto) + 1) / len(PRESETS)
    shorter = replace(settings, epochs=max(1, round(settings.epochs * share)))
    plan = plan_of(shorter, student, examples, n_validation, n_test=n_test, is_sampled=is_sampled)
    measured, training, _, *reflections = plan.rows
    n_trials = plan.n_updates * n_validation if settings.measures else 0
    n_rollouts = (measured.n_rollouts or 0) + (training.n_rollouts or 0) + n_trials
    n_reflection_calls = sum(row.n_lm_calls or 0 for row in reflections)
    per_rollout = _assumed(settings, student, examples)
    return replace(
        settings,
        max_metric_calls=settings.max_metric_calls or max(n_rollouts, 1),
        max_lm_calls=settings.max_lm_calls
        or math.ceil(n_rollouts * per_rollout.calls) + n_reflection_calls,
    )


@dataclass(frozen=True, slots=True)
class _PerRollout:
    """LM calls, tokens and dollars of one rollout; `cost` None: a price is not known."""

    calls: float
    prompt: float
    completion: float
    cost: float | None

    def row(self, purpose: str, n: int | None) -> PlanRow:
        """The row of so many rollouts."""
        if n is None:
            return PlanRow(purpose, None, None, None)
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
    """Each predictor asked once, an agent's as often as it may, and once more where it must."""
    inputs = statistics.fmean(
        estimate_tokens(" ".join(as_fields(example.inputs()).values()))
        for example in examples[:: math.ceil(len(examples) / LOOKED_AT)]
    )
    loops = sum(getattr(module, "max_iters", 0) for _, module in student.named_sub_modules())
    calls, prompt, completion = 0.0, 0.0, 0.0
    costs: list[float | None] = []
    for index, (_, predictor) in enumerate(named_predictors(student)):
        lm = predictor.lm or dspy.settings.lm
        n = predictor.config.get("n") or getattr(lm, "kwargs", {}).get("n") or 1
        times = ATTEMPTS_AT_ANSWER * n * (1 + (loops if index == 0 else 0))
        own = times * (
            estimate_tokens(own_instructions(predictor)) + ASSUMED_FORMAT_TOKENS + inputs
        )
        calls, prompt = calls + times, prompt + own
        completion += times * ASSUMED_COMPLETION_TOKENS
        costs.append(_cost(lm, settings, own, times * ASSUMED_COMPLETION_TOKENS))
    total = None if None in costs else math.fsum(cost or 0.0 for cost in costs)
    return _PerRollout(calls, prompt, completion, total)


def _reflections(purpose: str, n: int, prompt: int, lm: Any, settings: Settings) -> PlanRow:
    calls = n * ATTEMPTS_AT_ANSWER**2  # the module asks twice, and so does its adapter
    tokens = calls * (prompt + ASSUMED_FORMAT_TOKENS)
    cost = _cost(lm, settings, tokens, calls * ASSUMED_COMPLETION_TOKENS)
    return PlanRow(purpose, 0, calls, cost)


def _cost(lm: Any, settings: Settings, prompt: float, completion: float) -> float | None:
    price = price_of(lm, settings.prices or {}) if lm is not None else "no LM"
    if isinstance(price, str):
        return None
    return prompt * price.prompt + completion * price.completion


def _shown(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
