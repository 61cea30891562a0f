"""Derives group size, batch size, epochs ... from the budget and the sizes of the data.

Arithmetic only: nothing here knows a program, an LM or a store. How many LM calls a rollout takes
is assumed (`ScheduleInputs.calls_per_rollout`), so LM calls are estimates here; `budget` counts the
real ones.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.errors import SettingsError

CALLS_PER_EXAMPLE_FOR_GROUPS_OF_3 = 15
"""From so many LM calls per training example on, groups have 3 rollouts instead of 2. On simulated
tasks groups of 2 to 5 did not differ much, and small groups see more examples."""
USUAL_BATCHES_PER_EPOCH, MIN_USUAL_BATCH_SIZE, MAX_USUAL_BATCH_SIZE = 8, 5, 8
"""A batch is an eighth of the training set, between 5 and 8 examples: on simulated tasks small
batches learned more from the same calls."""
USUAL_THREADS, MIN_BATCHES_PER_EPOCH = 8, 4
"""With more than 8 threads, batches grow in proportion, up to a quarter of the training set. That
uses the threads better than more staleness does; neither scored clearly more
(`benchmarks/utilisation.py`)."""
EPOCHS, MAX_EPOCHS_WITHIN_BUDGET = 5, 50
"""5 epochs without a budget. With one, the budget or the lack of lessons ends the run before 50."""
MIN_STALENESS, MAX_STALENESS = 1, 4
ROLLOUTS_PER_THREAD = 1.5
"""The batches that run at once have so many rollouts per thread, so that a thread that ends a short
rollout finds another while long ones still run."""
MAX_DRAFTS, CALLS_PER_DRAFT = 12, 16
"""One draft per 16 LM calls: drafts take at most a sixteenth of the budget."""
MAX_DEMOS = 4
RESERVE_SHARE = 1 / 5
"""The share of the budget that is reserved for measuring the student and choosing the result."""
MIN_PROGRAMS_MEASURED, MAX_PROGRAMS_MEASURED = 2, 4
"""On how many programs the reserve runs the validation set: at least student and best library."""
USUAL_MIN_VALIDATION = 10
"""The reserve pays for so many validation examples even where its share would not."""
MIN_GROUP_SIZE, MIN_BATCH_SIZE, MIN_VALIDATION = 2, 2, 2
"""What a small budget is reduced to at most."""
REDUCED = "reduced, because the budget is small"


@dataclass(frozen=True, slots=True)
class ScheduleInputs:
    """What a schedule is derived from. A limit of None is no limit."""

    n_training: int
    n_validation: int  # examples that are available for validation; 0: nothing is measured
    n_test: int = 0  # examples on which student and result are measured at the end
    is_split: bool = False  # whether the validation examples are split from the trainset
    can_draft: bool = False  # whether there are labels from which lessons can be drafted
    can_try_demos: bool = False  # whether a validation set can tell if demos help
    runs_rollouts: bool = True  # False for `learn`: rollouts are recorded
    calls_per_rollout: float = 1.0  # LM calls, as assumed
    n_threads: int = 8  # rollouts and reflections that run at once
    lm_calls: int | None = None
    calls_for_max_cost: float | None = None  # LM calls that `max_cost` pays for, as assumed
    metric_calls: int | None = None  # rollouts
    has_budget: bool = False  # whether dollars or minutes limit the run

    def limits(self, calls_per_rollout: float) -> list[tuple[float, float, float]]:
        """Each limit that is set, and what a rollout and a reflection take of it."""
        on_calls = (self.lm_calls, self.calls_for_max_cost)
        found = [(limit, calls_per_rollout, 1.0) for limit in on_calls if limit is not None]
        return found if self.metric_calls is None else [*found, (self.metric_calls, 1.0, 0.0)]

    @property
    def calls(self) -> float | None:
        """The budget in LM calls without those of the test set; None: no limit on calls.

        A limit on rollouts is converted with half a reflection per rollout.
        """
        calls_per_metric_call = self.calls_per_rollout + 0.5
        found = [
            (limit - 2 * self.n_test * rollout) * (1 if reflection else calls_per_metric_call)
            for limit, rollout, reflection in self.limits(self.calls_per_rollout)
        ]
        return max(0.0, min(found)) if found else None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a run goes through its data; `str` is a table of the settings and their reasons.

    `reserve` rollouts are kept for measuring the student and choosing the result; they pay for
    `n_validation` validation examples. What training leaves of the budget measures more.
    """

    group_size: int
    batch_size: int
    epochs: int
    max_staleness: int
    drafts: int
    reserve: int
    n_validation: int
    max_demos: int
    inputs: ScheduleInputs = field(repr=False)
    reasons: Mapping[str, str] = field(compare=False, repr=False)

    @classmethod
    def derive(cls, inputs: ScheduleInputs, **given: int | None) -> "Schedule":
        """The schedule for these inputs; a setting that is given (not None) is kept.

        A budget that does not pay for a whole update makes the schedule smaller.

        Raises:
            SettingsError: the budget does not pay for the smallest run that could learn; names
                the smallest budget that does.
        """
        set_by_user = {name: value for name, value in given.items() if value is not None}
        values: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for name, derive in _DERIVATIONS.items():
            value, reason = derive(inputs, values)
            values[name] = set_by_user.get(name, value)
            reasons[name] = "set by you" if name in set_by_user else reason
        for schedule in _smaller(cls(**values, inputs=inputs, reasons=reasons), set_by_user):
            if schedule.is_paid:
                return schedule
        schedule.check()
        return schedule

    def values(self) -> dict[str, int]:
        """The settings by name."""
        return {name: getattr(self, name) for name in self.reasons}

    def to_dict(self) -> dict[str, Any]:
        """Each setting with the reason for it."""
        return {
            name: {"value": value, "reason": self.reasons[name]}
            for name, value in self.values().items()
        }

    @property
    def actual_batch_size(self) -> int:
        """How many examples a batch has: all of them where `batch_size` is larger."""
        return min(self.batch_size, self.inputs.n_training)

    @property
    def rollouts_of_update(self) -> int:
        """How many rollouts are run for one update."""
        return self.actual_batch_size * self.group_size * self.inputs.runs_rollouts

    @property
    def reflections_of_update(self) -> int:
        """How many calls of the reflection LM one update takes: lessons, then operations."""
        return self.actual_batch_size + 1

    @property
    def smallest_run(self) -> tuple[int, int]:
        """Rollouts and reflections of a run with one whole update."""
        n_reflections = self.reflections_of_update + self._reflections_of_drafts
        return self.rollouts_of_update + self._rollouts_not_for_training, n_reflections

    @property
    def _reflections_of_drafts(self) -> int:
        return self.drafts + (self.drafts > 0)  # one turns the drafts into an update

    @property
    def _rollouts_not_for_training(self) -> int:
        return self.reserve + 2 * self.inputs.n_test

    def n_updates(self, calls_per_rollout: float) -> int:
        """How many updates are made from batches: those of all epochs, or what is paid for."""
        n_batches = math.ceil(self.inputs.n_training / self.batch_size)
        paid = [float(self.epochs * n_batches)]
        for limit, rollout, reflection in self.inputs.limits(calls_per_rollout):
            fixed = self._rollouts_not_for_training * rollout
            fixed += self._reflections_of_drafts * reflection
            each = self.rollouts_of_update * rollout + self.reflections_of_update * reflection
            paid += [(limit - fixed) / each] if each else []
        return max(0, math.floor(min(paid)))

    @property
    def is_paid(self) -> bool:
        """Whether the budget pays for the smallest run."""
        n_rollouts, n_reflections = self.smallest_run
        return all(
            n_rollouts * rollout + n_reflections * reflection <= limit
            for limit, rollout, reflection in self.inputs.limits(self.inputs.calls_per_rollout)
        )

    def check(self) -> None:
        """Refuse a budget that would not pay for the smallest run if a rollout took one LM call.

        More LM calls per rollout, and the price of a call, are assumptions: they refuse nothing.

        Raises:
            SettingsError: names the budget and what would be enough.
        """
        inputs, (n_rollouts, n_reflections) = self.inputs, self.smallest_run
        n_calls = math.ceil(n_rollouts * inputs.calls_per_rollout) + n_reflections
        for name, limit, needed, enough in (
            ("max_metric_calls", inputs.metric_calls, n_rollouts, n_rollouts),
            ("max_lm_calls", inputs.lm_calls, n_rollouts + n_reflections, n_calls),
        ):
            if limit is not None and limit < needed:
                raise SettingsError(
                    f"{name}={limit} is too small. The smallest run needs {n_rollouts} rollouts "
                    f"and {n_reflections} reflection calls. Pass {name}={enough} or more."
                )

    def __str__(self) -> str:
        shown = self.values() | {"batch_size": self.actual_batch_size}
        lines = [f"{name:<16}{n:>6}  {self.reasons[name]}" for name, n in shown.items()]
        return "\n".join(lines)


def _smaller(schedule: Schedule, set_by_user: Mapping[str, int]) -> Iterator[Schedule]:
    """Yields the schedule, then smaller ones, down to one that can still learn."""

    def reduced(**values: int) -> Schedule:
        smaller: dict[str, Any] = {
            name: value
            for name, value in values.items()
            if name not in set_by_user and value < getattr(schedule, name)
        }
        reasons = {**schedule.reasons, **dict.fromkeys(smaller, REDUCED)}
        return replace(schedule, **smaller, reasons=reasons)

    yield schedule
    yield (schedule := reduced(drafts=0))
    yield (schedule := reduced(group_size=MIN_GROUP_SIZE))
    for size in range(schedule.actual_batch_size, MIN_BATCH_SIZE - 1, -1):
        yield (schedule := reduced(batch_size=size))
    for n in range(schedule.n_validation, min(MIN_VALIDATION, schedule.n_validation) - 1, -1):
        reserve = MIN_PROGRAMS_MEASURED * n
        yield (schedule := reduced(n_validation=n, reserve=reserve, max_demos=0))


# ---------------------------------------------- one function per setting: its value and the reason


def _group_size(inputs: ScheduleInputs, _: Mapping[str, int]) -> tuple[int, str]:
    if inputs.calls is None:
        return 3, "no limit on calls"
    calls = inputs.calls / inputs.n_training
    is_rich = calls >= CALLS_PER_EXAMPLE_FOR_GROUPS_OF_3
    side = f"{'at least' if is_rich else 'below'} {CALLS_PER_EXAMPLE_FOR_GROUPS_OF_3}"
    return 3 if is_rich else 2, f"{calls:.1f} LM calls per training example, {side}"


def _batch_size(inputs: ScheduleInputs, _: Mapping[str, int]) -> tuple[int, str]:
    n, threads = inputs.n_training, inputs.n_threads
    smallest, largest = MIN_USUAL_BATCH_SIZE, MAX_USUAL_BATCH_SIZE
    size = min(largest, max(smallest, math.ceil(n / USUAL_BATCHES_PER_EPOCH)))
    reason = f"an eighth of {n} training examples, from {smallest} to {largest}"
    larger = min(math.ceil(size * threads / USUAL_THREADS), math.ceil(n / MIN_BATCHES_PER_EPOCH))
    if larger > size:
        return larger, f"{reason}; more for {threads} threads, at most a quarter"
    return size, reason


def _epochs(inputs: ScheduleInputs, _: Mapping[str, int]) -> tuple[int, str]:
    if not inputs.runs_rollouts:
        return 1, "recorded rollouts are read once"
    if inputs.has_budget or inputs.calls is not None:
        reason = "at most: ends when the budget is spent or nothing is left to learn"
        return MAX_EPOCHS_WITHIN_BUDGET, reason
    return EPOCHS, "no budget"


def _max_staleness(inputs: ScheduleInputs, values: Mapping[str, int]) -> tuple[int, str]:
    n_rollouts = values["batch_size"] * values["group_size"]
    wanted = math.ceil(ROLLOUTS_PER_THREAD * inputs.n_threads / n_rollouts) - 1
    staleness = min(MAX_STALENESS, max(MIN_STALENESS, wanted))
    enough = "is enough" if staleness >= wanted else "is the most"
    return staleness, f"{enough}: {n_rollouts} rollouts in a batch for {inputs.n_threads} threads"


def _drafts(inputs: ScheduleInputs, _: Mapping[str, int]) -> tuple[int, str]:
    if not inputs.can_draft:
        return 0, "no labels that the reflection LM may see"
    if inputs.calls is None:
        return MAX_DRAFTS, "there are labels, and no limit on calls"
    n = min(MAX_DRAFTS, int(inputs.calls // CALLS_PER_DRAFT))
    reason = f"there are labels: one draft per {CALLS_PER_DRAFT} LM calls, at most {MAX_DRAFTS}"
    return n, reason


def _reserve(inputs: ScheduleInputs, _: Mapping[str, int]) -> tuple[int, str]:
    n = inputs.n_validation
    if not inputs.can_try_demos:
        return 2 * n, f"rollouts: student and result on {n} validation examples"
    largest = MAX_PROGRAMS_MEASURED * n
    if inputs.calls is None or not n:
        return largest, f"rollouts: {MAX_PROGRAMS_MEASURED} programs on {n} validation examples"
    share = int(RESERVE_SHARE * inputs.calls / inputs.calls_per_rollout)
    smallest = MIN_PROGRAMS_MEASURED * min(USUAL_MIN_VALIDATION, n)
    reason = "rollouts to measure student and candidates: about a fifth of the budget"
    return min(largest, max(smallest, share)), reason


def _n_validation(inputs: ScheduleInputs, values: Mapping[str, int]) -> tuple[int, str]:
    n, programs = inputs.n_validation, MIN_PROGRAMS_MEASURED
    source = "split from the trainset" if inputs.is_split else "given"
    reason = f"of {n} {source}; the reserve pays for at least {programs} programs on them"
    return min(n, values["reserve"] // programs), reason


def _max_demos(inputs: ScheduleInputs, values: Mapping[str, int]) -> tuple[int, str]:
    if not inputs.can_try_demos or not values["n_validation"]:
        return 0, "nothing measures whether demos help"
    return MAX_DEMOS, "tried at the end, with rollouts of the reserve"


_DERIVATIONS: dict[str, Callable[[ScheduleInputs, Mapping[str, int]], tuple[int, str]]] = {
    "group_size": _group_size,
    "batch_size": _batch_size,
    "epochs": _epochs,
    "max_staleness": _max_staleness,
    "drafts": _drafts,
    "reserve": _reserve,
    "n_validation": _n_validation,
    "max_demos": _max_demos,
}
"""In the order of their dependence: each sees the values of those before it."""
