"""What is derived before a run: LM calls for `auto`, the schedule, and the plan of the calls.

How many LM calls and dollars a rollout takes is assumed (the constants say what), or measured by a
probe. Not in the plan: second calls for answers that do not parse, retries after a provider's
faults, summaries of long trajectories, and prompts that must be split.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import dspy

from tfgrpo_dspy.budget import price_of
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings import AUTO, Execution, RunSettings, Settings
from tfgrpo_dspy.settings.schedule import Schedule, ScheduleInputs

ASSUMED_COMPLETION_TOKENS = 150
ASSUMED_FORMAT_TOKENS = 200
"""What DSPy's adapters add to a prompt."""
ASSUMED_TURNS = 4
"""How many calls an agent makes in a rollout, unless `max_iters` allows fewer."""
EXAMPLES_READ = 100
"""From about so many examples the mean length of the inputs is taken."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """Rollouts, LM calls and dollars for one purpose; `cost` None: a price is not known."""

    purpose: str
    n_rollouts: int
    n_lm_calls: int
    cost: float | None

    def __str__(self) -> str:
        dollars = "?" if self.cost is None else f"{self.cost:.2f}"
        return f"{self.purpose:<30}{self.n_rollouts:>10,}{self.n_lm_calls:>10,}{dollars:>10}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a compile would do; `str` is a table, with the schedule below it.

    A run may end earlier, when nothing is left to learn, and never exceeds its budget.
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
        return _sum([row.cost for row in self.rows])

    def __str__(self) -> str:
        basis = "two probe rollouts" if self.is_probed else "assumptions: pass probe=True"
        lines = [
            f"{'purpose':<30}{'rollouts':>10}{'LM calls':>10}{'dollars':>10}",
            *self.rows,
            PlanRow("in all", self.n_metric_calls, self.n_lm_calls, self.cost),
            f"an estimate, with {self.n_updates} updates; calls and dollars from {basis}",
            "",
            self.schedule,
        ]
        return "\n".join(map(str, lines))


def plan_of(
    settings: RunSettings, student: Any, examples: Sequence[Any], probed: Sequence[Usage] = ()
) -> Plan:
    """The plan of a run that trains on these examples.

    Calls and costs of a rollout are the means of the `probed` rollouts; without these, assumed.
    """
    schedule, reflection = settings.schedule, settings.reflection
    rollout = _mean_of(probed) if probed else _assumed(settings, student, examples)
    n_updates = schedule.n_updates(rollout.calls)
    n_training = n_updates * schedule.rollouts_of_update
    longest = getattr(reflection.extract, "attempts_tokens", 12_000)
    group_tokens = min(longest, settings.group_size * int(rollout.prompt + rollout.completion))
    longest = getattr(reflection.draft, "examples_tokens", 12_000)
    draft_tokens = min(longest, 10 * int(rollout.prompt))
    n_lessons = n_updates * (schedule.reflections_of_update - 1)
    n_summaries = n_training if reflection.summarize_always else 0
    n_updates += schedule.drafts > 0
    lm = settings.reflection_lm or dspy.settings.lm

    def of_rollouts(purpose: str, n: int) -> PlanRow:
        return PlanRow(purpose, n, math.ceil(n * rollout.calls), rollout.cost and n * rollout.cost)

    def of_reflections(purpose: str, n: int, prompt: int) -> PlanRow:
        return PlanRow(purpose, 0, n, _cost(lm, settings, n, prompt + ASSUMED_FORMAT_TOKENS))

    rows = (
        of_rollouts("student and final choice", schedule.reserve),
        of_rollouts("test set", 2 * schedule.inputs.n_test),
        of_rollouts("training rollouts", n_training),
        of_reflections("drafts from labels", schedule.drafts, draft_tokens),
        of_reflections("summaries", n_summaries, group_tokens // settings.group_size),
        of_reflections("lessons", n_lessons, group_tokens),
        of_reflections("updates of the library", n_updates, 2_000),
    )
    return Plan(rows, n_updates, bool(probed), schedule)


def derive_settings(
    settings: Settings, student: Any, examples: Sequence[Any], n_validation: int, **others: Any
) -> RunSettings:
    """The settings with the LM calls that `auto` stands for, and with the schedule.

    `max_cost` is converted to LM calls with an assumed cost per call. `max_minutes` is not: how
    long a call takes is not known. `others` are fields of `ScheduleInputs`.

    Raises:
        SettingsError: the budget is too small to learn anything.
    """
    calls = float(sum(n for _, n in _assumed_calls(student)))
    if settings.auto is not None and settings.max_lm_calls is None:
        per_example, at_least = AUTO[settings.auto]
        n_calls = max(at_least, math.ceil(per_example * len(examples) * calls))
        settings = replace(settings, max_lm_calls=n_calls)
    cost = None
    if settings.max_cost is not None:
        cost = _assumed(settings, student, examples).cost
    inputs = ScheduleInputs(
        n_training=len(examples),
        n_validation=n_validation if settings.metric is not None else 0,
        can_try_demos=settings.measures and n_validation > 0,
        calls_per_rollout=calls,
        n_threads=settings.threads,
        lm_calls=settings.max_lm_calls,
        calls_for_max_cost=settings.max_cost / cost * calls if settings.max_cost and cost else None,
        metric_calls=settings.max_metric_calls,
        has_budget=settings.max_minutes is not None or settings.max_cost is not None,
        **others,
    )
    return RunSettings.of(settings, inputs)


class _PerRollout(NamedTuple):
    """LM calls, tokens and dollars of one rollout; `cost` None: a price is not known."""

    calls: float
    prompt: float
    completion: float
    cost: float | None


def _mean_of(probed: Sequence[Usage]) -> _PerRollout:
    return _PerRollout(
        statistics.fmean(usage.n_lm_calls + usage.n_cached_calls for usage in probed),
        statistics.fmean(usage.prompt_tokens for usage in probed),
        statistics.fmean(usage.completion_tokens for usage in probed),
        statistics.fmean(usage.cost_usd for usage in probed) or None,
    )


def _assumed(settings: Settings, student: Any, examples: Sequence[Any]) -> _PerRollout:
    inputs = statistics.fmean(
        estimate_tokens(" ".join(as_fields(example.inputs()).values()))
        for example in examples[:: math.ceil(len(examples) / EXAMPLES_READ)]
    )
    calls, prompts = 0, 0.0
    costs: list[float | None] = []
    for predictor, n in _assumed_calls(student):
        prompt = estimate_tokens(bare_instructions(predictor)) + ASSUMED_FORMAT_TOKENS + inputs
        calls, prompts = calls + n, prompts + n * prompt
        costs.append(_cost(predictor.lm or dspy.settings.lm, settings, n, prompt))
    return _PerRollout(calls, prompts, calls * ASSUMED_COMPLETION_TOKENS, _sum(costs))


def _assumed_calls(student: Any) -> Iterator[tuple[Any, int]]:
    """Each predictor, and how many LM calls it is assumed to make in a rollout.

    The first predictor of an agent is called up to `ASSUMED_TURNS` times.
    """
    turns = 1 + sum(
        min(getattr(module, "max_iters", 0), ASSUMED_TURNS - 1)
        for _, module in student.named_sub_modules()
    )
    for _, predictor in named_predictors(student):
        lm = predictor.lm or dspy.settings.lm
        n = predictor.config.get("n") or getattr(lm, "kwargs", {}).get("n") or 1
        yield predictor, n * turns
        turns = 1


def _cost(lm: Any, settings: Settings, n_calls: int, prompt: float) -> float | None:
    """Dollars of calls with so many prompt tokens each; None: the price is not known."""
    price = price_of(lm, (settings.execution or Execution()).prices or {}) if lm else "no LM"
    if isinstance(price, str):
        return None
    completion = n_calls * ASSUMED_COMPLETION_TOKENS
    return n_calls * prompt * price.prompt + completion * price.completion


def _sum(costs: Sequence[float | None]) -> float | None:
    """None if one of them is None."""
    known = [cost for cost in costs if cost is not None]
    return math.fsum(known) if len(known) == len(costs) else None
