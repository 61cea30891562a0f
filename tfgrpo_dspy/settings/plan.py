"""What is derived before a run: LM calls for `auto`, the schedule, and the plan of the calls.

What a rollout takes in LM calls and dollars is only known by running it; without a probe it is
assumed, as said beside the constants. Not in the plan: answers that are asked for again, retries
after a provider's faults, summaries of long trajectories, and prompts that must be split.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import dspy

from tfgrpo_dspy.budget import price_of
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings import AUTO, Execution, RunSettings, Settings
from tfgrpo_dspy.settings.schedule import Facts, Schedule

ASSUMED_COMPLETION_TOKENS = 150
ASSUMED_FORMAT_TOKENS = 200
"""What DSPy's adapters add to a prompt, about."""
ASSUMED_TURNS = 4
"""How many calls an agent makes in a rollout, if it may make as many."""
LOOKED_AT = 100
"""About so many examples give the mean length of inputs."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One purpose: about so many rollouts and LM calls; dollars where prices are known."""

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
        return _sum(row.cost for row in self.rows)

    def __str__(self) -> str:
        basis = "two probe rollouts" if self.is_probed else "assumptions: pass probe=True"
        lines = [
            f"{'purpose':<30}{'rollouts':>10}{'LM calls':>10}{'dollars':>10}",
            *self.rows,
            PlanRow("in all", self.n_metric_calls, self.n_lm_calls, self.cost),
            f"about, in {self.n_updates} updates; calls and costs from {basis}",
            "",
            self.schedule,
        ]
        return "\n".join(map(str, lines))


def plan_of(
    settings: RunSettings, student: Any, examples: Sequence[Any], probed: Sequence[Usage] = ()
) -> Plan:
    """The plan of a run that trains on these examples.

    Calls and costs are those of the `probed` rollouts, as far as there are any.
    """
    schedule, reflection = settings.schedule, settings.reflection
    rollout = _mean(probed) if probed else _assumed(settings, student, examples)
    n_updates = schedule.n_updates(rollout.calls)
    n_training = n_updates * schedule.rollouts_of_update
    longest = getattr(reflection.extract, "attempts_tokens", 12_000)
    attempts = min(longest, settings.group_size * int(rollout.prompt + rollout.completion))
    longest = getattr(reflection.draft, "examples_tokens", 12_000)
    drafted = min(longest, 10 * int(rollout.prompt))
    n_lessons = n_updates * (schedule.reflections_of_update - 1)
    n_summaries = n_training if reflection.summarize_always else 0
    n_updates += schedule.drafts > 0
    of_rollouts = {
        "student and final choice": schedule.reserve,
        "test set": 2 * schedule.facts.n_test,
        "training rollouts": n_training,
    }
    of_reflections = {
        "drafts from labels": (schedule.drafts, drafted),
        "summaries": (n_summaries, attempts // settings.group_size),
        "lessons": (n_lessons, attempts),
        "updates of the library": (n_updates, 2_000),
    }
    lm = settings.reflection_lm or dspy.settings.lm
    rows = [
        PlanRow(purpose, n, math.ceil(n * rollout.calls), rollout.cost and n * rollout.cost)
        for purpose, n in of_rollouts.items()
    ]
    for purpose, (n, prompt) in of_reflections.items():
        cost = _cost(lm, settings, n, prompt + ASSUMED_FORMAT_TOKENS)
        rows.append(PlanRow(purpose, 0, n, cost))
    return Plan(tuple(rows), n_updates, bool(probed), schedule)


def derived(
    settings: Settings, student: Any, examples: Sequence[Any], n_validation: int, **others: Any
) -> RunSettings:
    """The settings with the LM calls that `auto` stands for, and with the schedule.

    Dollars become LM calls by what one is assumed to cost. Minutes cannot: what a call takes is
    not known. `others` are fields of `Facts`.

    Raises:
        SettingsError: the budget is too small to learn anything.
    """
    calls = float(sum(times for _, times in _asked(student)))
    if settings.auto is not None and settings.max_lm_calls is None:
        each, least = AUTO[settings.auto]
        n_calls = max(least, math.ceil(each * len(examples) * calls))
        settings = replace(settings, max_lm_calls=n_calls)
    cost = None
    if settings.max_cost is not None:
        cost = _assumed(settings, student, examples).cost
    facts = Facts(
        n_training=len(examples),
        n_validation=n_validation if settings.metric is not None else 0,
        can_demonstrate=settings.measures and n_validation > 0,
        calls_per_rollout=calls,
        n_threads=settings.threads,
        lm_calls=settings.max_lm_calls,
        assumed_calls=settings.max_cost / cost * calls if settings.max_cost and cost else None,
        metric_calls=settings.max_metric_calls,
        has_budget=settings.max_minutes is not None or settings.max_cost is not None,
        **others,
    )
    return RunSettings.of(settings, facts)


class _PerRollout(NamedTuple):
    """LM calls, tokens and dollars of one rollout; `cost` None: a price is not known."""

    calls: float
    prompt: float
    completion: float
    cost: float | None


def _mean(probed: Sequence[Usage]) -> _PerRollout:
    return _PerRollout(
        statistics.fmean(usage.n_lm_calls + usage.n_cached_calls for usage in probed),
        statistics.fmean(usage.prompt_tokens for usage in probed),
        statistics.fmean(usage.completion_tokens for usage in probed),
        statistics.fmean(usage.cost_usd for usage in probed) or None,
    )


def _assumed(settings: Settings, student: Any, examples: Sequence[Any]) -> _PerRollout:
    inputs = statistics.fmean(
        estimate_tokens(" ".join(as_fields(example.inputs()).values()))
        for example in examples[:: math.ceil(len(examples) / LOOKED_AT)]
    )
    calls, prompts = 0, 0.0
    costs: list[float | None] = []
    for predictor, times in _asked(student):
        prompt = estimate_tokens(bare_instructions(predictor)) + ASSUMED_FORMAT_TOKENS + inputs
        calls, prompts = calls + times, prompts + times * prompt
        costs.append(_cost(predictor.lm or dspy.settings.lm, settings, times, prompt))
    return _PerRollout(calls, prompts, calls * ASSUMED_COMPLETION_TOKENS, _sum(costs))


def _asked(student: Any) -> Iterator[tuple[Any, int]]:
    """Each predictor, and how often it is assumed to be asked in a rollout.

    An agent's first predictor is asked up to `ASSUMED_TURNS` times.
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
    """Dollars of so many calls with prompts of so many tokens; None: the price is not known."""
    price = price_of(lm, (settings.execution or Execution()).prices or {}) if lm else "no LM"
    if isinstance(price, str):
        return None
    completion = n_calls * ASSUMED_COMPLETION_TOKENS
    return n_calls * prompt * price.prompt + completion * price.completion


def _sum(costs: Iterable[float | None]) -> float | None:
    """None where one of them is None."""
    given = list(costs)
    return None if None in given else math.fsum(cost or 0.0 for cost in given)
