"""The schedule that a budget pays for: what an expert would set, derived from a few facts.

Pure arithmetic: nothing here knows a program, an LM or a store. What one rollout takes in LM calls
is assumed before a run (`Facts.calls_per_rollout`), so what is counted here in LM calls is an
estimate; the budget itself is kept by `budget`, call by call.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tfgrpo_dspy.errors import SettingsError

CALLS_FOR_THREE = 15
"""From so many LM calls for each training example on, groups have 3 rollouts. On simulated
tasks groups of 2 to 5 did not differ much, and small groups see more examples."""
SMALL_GROUP, GROUP = 2, 3
LEAST_BATCH, MOST_BATCH, BATCH_SHARE = 5, 8, 8
"""A batch is an eighth of the training set, between 5 and 8: on simulated tasks small
steps learned more from the same calls."""
USUAL_THREADS, LARGEST_SHARE = 8, 4
"""More threads than 8 have larger batches, in proportion, up to a quarter of the training set: they
are busier than with more staleness; neither scored clearly more (`benchmarks/utilisation.py`)."""
EPOCHS, EPOCHS_OF_A_BUDGET = 5, 50
"""Without a budget 5 epochs; with one, the budget or a finished run ends it long before 50."""
STALENESS, MOST_STALENESS = 1, 4
THREADS_IN_USE = 1.5
"""Batches in flight hold so many rollouts for each thread: long rollouts leave no thread idle."""
MOST_DRAFTS, CALLS_FOR_A_DRAFT = 12, 16
"""One draft for each 16 LM calls, so that drafts take at most a sixteenth of a budget."""
DEMOS = 4
RESERVE_SHARE = 1 / 5
"""What the final choice may take of a budget."""
PASSES, MOST_PASSES = 2, 4
"""How often the validation set is run for the final choice: at least for the student and the best
library; at most for four programs."""
LEAST_VALIDATION = 10
SMALLEST = 2
"""Examples in the smallest batch, rollouts in the smallest group, and validation examples."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a schedule is derived from; of a limit, None is no limit."""

    n_training: int
    n_validation: int  # examples that are kept for validation; 0: nothing is measured
    n_test: int = 0  # examples on which student and result are measured at the end
    is_split: bool = False  # whether the validation examples are split from the trainset
    can_draft: bool = False  # whether there are labels to draw drafts from
    can_demonstrate: bool = False  # whether demos could be tried
    is_sampled: bool = True  # False where the training rollouts are there already
    calls_per_rollout: float = 1.0  # LM calls, as assumed
    n_threads: int = 8  # tasks that may be under way at once
    lm_calls: int | None = None
    assumed_calls: float | None = None  # LM calls that the dollars pay for, as assumed
    metric_calls: int | None = None  # rollouts
    has_budget: bool = False  # whether anything ends the run, such as a number of minutes

    def limits(self, calls_per_rollout: float) -> list[tuple[float, float, float]]:
        """Each limit there is, and what a rollout and a reflection take of it."""
        on_calls = (self.lm_calls, self.assumed_calls)
        found = [(limit, calls_per_rollout, 1.0) for limit in on_calls if limit is not None]
        return found if self.metric_calls is None else [*found, (self.metric_calls, 1.0, 0.0)]

    @property
    def calls(self) -> float | None:
        """The budget in LM calls, without the test's; half a reflection goes with each rollout."""
        given = [
            (limit - 2 * self.n_test * each) * (1 if reflection else self.calls_per_rollout + 0.5)
            for limit, each, reflection in self.limits(self.calls_per_rollout)
        ]
        return max(0.0, min(given)) if given else None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a run goes through its data; `str` is a table of what was chosen, and why.

    `reserve` is how many rollouts are kept for the final choice, `n_validation` how many validation
    examples these pay for; what training leaves of the budget measures more.
    """

    group_size: int
    batch_size: int
    epochs: int
    max_staleness: int
    drafts: int
    max_demos: int
    groups_per_call: int
    n_validation: int
    reserve: int
    facts: Facts = field(repr=False)
    reasons: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def derive(cls, facts: Facts, **given: int | None) -> "Schedule":
        """The schedule for these facts; a figure that is given (not None) is kept.

        A budget that does not pay for a whole update makes the schedule smaller.

        Raises:
            SettingsError: the budget does not pay for the smallest run that could learn; names
                the smallest budget that does.
        """
        kept = {name: value for name, value in given.items() if value is not None}
        chosen: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for name, choose in _CHOICES.items():
            value, reason = choose(facts, chosen)
            chosen[name] = kept.get(name, value)
            reasons[name] = "as you set it" if name in kept else reason
        for schedule in _smaller(cls(**chosen, facts=facts, reasons=reasons), kept):
            if schedule.is_paid:
                return schedule
        refusal = schedule.refusal()
        if refusal:
            raise SettingsError(refusal)
        return schedule

    def choices(self) -> dict[str, int]:
        """The figures by name."""
        names = [f.name for f in fields(self) if f.name not in ("facts", "reasons")]
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Each figure with the reason for it, for a result."""
        return {
            name: {"value": value, "reason": self.reasons[name]}
            for name, value in self.choices().items()
        }

    @property
    def batch(self) -> int:
        """How many examples a batch has: all of them where `batch_size` is larger."""
        return min(self.batch_size, self.facts.n_training)

    @property
    def rollouts_of_update(self) -> int:
        """How many rollouts one update is made from."""
        return self.batch * self.group_size * self.facts.is_sampled

    @property
    def reflections_of_update(self) -> int:
        """How many answers of the reflection LM one update takes: lessons, then operations."""
        return math.ceil(self.batch / self.groups_per_call) + 1

    @property
    def reflections_of_drafts(self) -> int:
        """How many answers the drafts take, with the update that they make."""
        return self.drafts + (self.drafts > 0)

    @property
    def rollouts_besides(self) -> int:
        """How many rollouts are not for learning: the reserve and the test set."""
        return self.reserve + 2 * self.facts.n_test

    def n_updates(self, calls_per_rollout: float) -> int:
        """How many updates from batches there are: those of all epochs, or what is paid for."""
        n_batches = math.ceil(self.facts.n_training / self.batch_size)
        paid = [float(self.epochs * n_batches)]
        for limit, rollout, reflection in self.facts.limits(calls_per_rollout):
            fixed = self.rollouts_besides * rollout + self.reflections_of_drafts * reflection
            each = self.rollouts_of_update * rollout + self.reflections_of_update * reflection
            paid += [(limit - fixed) / each] if each else []
        return max(0, math.floor(min(paid)))

    @property
    def least(self) -> tuple[int, int]:
        """Rollouts and reflections of one whole update, with drafts, reserve and test."""
        n_reflections = self.reflections_of_update + self.reflections_of_drafts
        return self.rollouts_of_update + self.rollouts_besides, n_reflections

    @property
    def is_paid(self) -> bool:
        """Whether the budget pays for the least."""
        n_rollouts, n_reflections = self.least
        return all(
            n_rollouts * rollout + n_reflections * reflection <= limit
            for limit, rollout, reflection in self.facts.limits(self.facts.calls_per_rollout)
        )

    def refusal(self) -> str:
        """Which budget is too small, and what would do; "" if none is.

        What rollouts take, and what calls cost, is only assumed; so a budget is refused only where
        it would not even pay if each rollout took one LM call.
        """
        facts, (n_rollouts, n_reflections) = self.facts, self.least
        made = (
            f"the smallest run that can learn makes {n_rollouts} rollouts and {n_reflections} "
            f"reflections"
        )
        if facts.metric_calls is not None and facts.metric_calls < n_rollouts:
            return f"max_metric_calls={facts.metric_calls}: {made}; pass at least {n_rollouts}."
        if facts.lm_calls is not None and facts.lm_calls < n_rollouts + n_reflections:
            n_calls = math.ceil(n_rollouts * facts.calls_per_rollout) + n_reflections
            return (
                f"max_lm_calls={facts.lm_calls}: {made}, {n_calls} LM calls if a rollout takes "
                f"{facts.calls_per_rollout:g}; pass at least {n_calls}."
            )
        return ""

    def __str__(self) -> str:
        shown = self.choices() | {"batch_size": self.batch}
        lines = [f"{name:<16}{n:>6}  {self.reasons[name]}" for name, n in shown.items()]
        return "\n".join(lines)


def _smaller(schedule: Schedule, kept: Mapping[str, int]) -> Iterator[Schedule]:
    """The schedule, then ever smaller ones; what the user set stays. The last one still learns."""
    yield schedule
    sizes = {
        "drafts": range(1),
        "group_size": range(SMALLEST, SMALLEST + 1),
        "batch_size": range(schedule.batch_size - 1, SMALLEST - 1, -1),
    }
    for name in [name for name in sizes if name not in kept]:
        for size in sizes[name]:
            reasons = {**schedule.reasons, name: "fewer, as the budget is small"}
            figures: dict[str, Any] = {name: min(getattr(schedule, name), size)}
            schedule = replace(schedule, **figures, reasons=reasons)
            yield schedule
    n_demos = kept.get("max_demos", 0)
    for n in range(schedule.n_validation, min(SMALLEST, schedule.n_validation) - 1, -1):
        reserve = min(schedule.reserve, PASSES * n)
        schedule = replace(schedule, n_validation=n, reserve=reserve, max_demos=n_demos)
        yield schedule


# ---------------------------------------------------------------------- one function, one figure


def _group_size(facts: Facts, _chosen: Mapping[str, int]) -> tuple[int, str]:
    if facts.calls is None:
        return GROUP, "no limit on calls"
    each = facts.calls / facts.n_training
    size, side = (SMALL_GROUP, "below") if each < CALLS_FOR_THREE else (GROUP, "not below")
    return size, f"{each:.1f} LM calls for each training example, {side} {CALLS_FOR_THREE}"


def _batch_size(facts: Facts, _chosen: Mapping[str, int]) -> tuple[int, str]:
    n, threads = facts.n_training, facts.n_threads
    size = min(MOST_BATCH, max(LEAST_BATCH, math.ceil(n / BATCH_SHARE)))
    reason = f"an eighth of {n} training examples, from {LEAST_BATCH} to {MOST_BATCH}"
    larger = min(math.ceil(size * threads / USUAL_THREADS), math.ceil(n / LARGEST_SHARE))
    if larger > size:
        return larger, f"{reason}; more for {threads} threads, at most a quarter"
    return size, reason


def _epochs(facts: Facts, _chosen: Mapping[str, int]) -> tuple[int, str]:
    if not facts.is_sampled:
        return 1, "recorded rollouts are read once"
    if facts.has_budget or facts.calls is not None:
        return EPOCHS_OF_A_BUDGET, "at most: the budget, or nothing left to learn, ends the run"
    return EPOCHS, "no budget"


def _max_staleness(facts: Facts, chosen: Mapping[str, int]) -> tuple[int, str]:
    in_batch = chosen["batch_size"] * chosen["group_size"]
    wanted = math.ceil(THREADS_IN_USE * facts.n_threads / in_batch) - 1
    staleness = min(MOST_STALENESS, max(STALENESS, wanted))
    return staleness, f"{in_batch} rollouts in a batch, {facts.n_threads} threads"


def _drafts(facts: Facts, _chosen: Mapping[str, int]) -> tuple[int, str]:
    if not facts.can_draft:
        return 0, "no labels that the reflection LM may see"
    if facts.calls is None:
        return MOST_DRAFTS, "labels, and no limit on calls"
    n = min(MOST_DRAFTS, int(facts.calls // CALLS_FOR_A_DRAFT))
    return n, f"labels; one for each {CALLS_FOR_A_DRAFT} LM calls, at most {MOST_DRAFTS}"


def _reserve(facts: Facts, _chosen: Mapping[str, int]) -> tuple[int, str]:
    n = facts.n_validation
    if not facts.can_demonstrate:
        return 2 * n, f"rollouts: student and result on {n} validation examples"
    if facts.calls is None or not n:
        return MOST_PASSES * n, f"rollouts: {n} validation examples, {MOST_PASSES} programs"
    share = int(RESERVE_SHARE * facts.calls / facts.calls_per_rollout)
    reserve = min(MOST_PASSES * n, max(PASSES * min(LEAST_VALIDATION, n), share))
    return reserve, "rollouts for student and final choice: about a fifth of the budget"


def _n_validation(facts: Facts, chosen: Mapping[str, int]) -> tuple[int, str]:
    n = facts.n_validation
    source = "split from the trainset" if facts.is_split else "given"
    return min(n, chosen["reserve"] // PASSES), f"of {n} {source}; the reserve pays for {PASSES}"


def _max_demos(facts: Facts, chosen: Mapping[str, int]) -> tuple[int, str]:
    if not facts.can_demonstrate or not chosen["n_validation"]:
        return 0, "nothing measures whether demos help"
    return DEMOS, "tried at the end, out of the reserve"


_CHOICES: dict[str, Callable[[Facts, Mapping[str, int]], tuple[int, str]]] = {
    "group_size": _group_size,
    "batch_size": _batch_size,
    "epochs": _epochs,
    "max_staleness": _max_staleness,
    "drafts": _drafts,
    "groups_per_call": lambda *_: (1, "each group is read by itself"),
    "reserve": _reserve,
    "n_validation": _n_validation,
    "max_demos": _max_demos,
}
"""In the order of their dependence: a figure sees those before it."""
