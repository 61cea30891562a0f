"""Events that a run tells a listener, and its question before updates: `on_event=` and `approve=`.

A listener is called with one event after the other, in the order of the updates, and the run waits
for it. An exception of it is counted as a failure of kind "listener", and the run goes on. A run
that is resumed or replayed tells all of its events again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfgrpo_dspy.experience import NO_LIMITS, ExperienceLibrary, Operation
from tfgrpo_dspy.results import Change, Comparison, Row, RunResults, UpdateRecord


@dataclass(frozen=True, slots=True)
class ExperienceChanged:
    """An experience was born, changed, settled or dropped: `change.kind` says which."""

    update: int
    change: Change


@dataclass(frozen=True, slots=True)
class UpdateDecided:
    """An update was decided, and left this library; its changes were told before."""

    record: UpdateRecord
    library: ExperienceLibrary
    rollouts: tuple[Row, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BudgetUsed:
    """The part of the limits that are set (`max_lm_calls`, ...) that is used after an update."""

    n_lm_calls: int
    n_metric_calls: int
    cost_usd: float
    minutes: float
    limits: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run has ended; `results` are the `detailed_results` of the program.

    `rollouts` are those on the validation and the test set.
    """

    results: RunResults
    rollouts: tuple[Row, ...] = field(default=(), compare=False, repr=False)


Event = ExperienceChanged | UpdateDecided | BudgetUsed | RunEnded
Listener = Callable[[Event], Any]


@dataclass(frozen=True, slots=True)
class Proposal:
    """The operations that an update is about to make, for `approve`.

    `library` is the library before, with effects; each operation has its `reason` and `evidence`.
    `comparisons` holds, for each operation, the best and the worst rollouts that it rests on.
    """

    update: int
    library: ExperienceLibrary
    operations: tuple[Operation, ...]
    comparisons: tuple[tuple[Comparison, ...], ...]

    @property
    def diff(self) -> str:
        """The changes that the operations would make, a line for each experience."""
        return self.library.diff(self.library.apply(self.operations, NO_LIMITS))


Approval = bool | Sequence[Operation | Mapping[str, Any]]
"""True: make the operations; False: make none; a list: make these instead."""
Approve = Callable[[Proposal], Approval]
