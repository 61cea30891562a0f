"""The values that the steps of a run pass on: a batch, what it teaches, the update it becomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfgrpo_dspy.calls import Account
from tfgrpo_dspy.experience import Applied, ExperienceLibrary, Operation, Refusal
from tfgrpo_dspy.gate.protocol import Decision
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.results.records import Change, GroupRecord, OperationRecord, UpdateRecord
from tfgrpo_dspy.rollout import NO_SCORES, Rollout, ScoreRange
from tfgrpo_dspy.sampling.examples import SampledGroup

TEACHING = ("contrast", "failure analysis", "no ground truth")
"""The uses of a group of which the reflection LM is asked for lessons."""
NOT_ASKED, LEFT, EXPLAINED = "no lesson of late", "left to the brief", "explained"
"""The uses of a group of which it is not asked: because the groups before gave no lesson; because
the brief that leads is revised instead; because its best attempts had more advice than the others.
"""
MOST_UNWRITTEN = 3  # briefs that were asked for in vain, before no more are asked for


@dataclass(frozen=True, slots=True)
class Brief:
    """By predictor, the text that takes the place of its instructions; none: it was not written."""

    texts: tuple[tuple[str, str], ...] = ()
    parent: int = 0  # the number of the brief that it revises; 0: the student's own instructions


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a batch teaches: lessons; refused texts with reasons; the `used_as` of each group."""

    lessons: tuple[Lesson, ...] = ()
    refused: tuple[str, ...] = ()
    groups: tuple[SampledGroup, ...] = ()
    uses: tuple[str, ...] = ()
    briefs: tuple[Brief, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The examples (positions in the training set) of one update; numbers are counted from 0.

    `base` is the latest update that is decided by then however fast the threads are. Its library,
    which lacks at most the last `max_staleness` updates, is that of the rollouts. They, their
    groups and the lessons rest on `base` and the updates before it alone; the operations and the
    decision rest on every update before their own.
    """

    update: int
    base: "Update" = field(repr=False)
    epoch: int = 0
    sizes: Mapping[int, int] = field(default_factory=dict)  # rollouts by example
    visits: Mapping[int, int] = field(default_factory=dict)  # earlier batches, by example
    is_draft: bool = False  # the batch has no examples: its lessons come from labels
    asks_predictors: bool = False  # whether the metric is also asked about each predictor

    @property
    def examples(self) -> tuple[int, ...]:
        """Its examples in their order."""
        return tuple(self.sizes)

    @property
    def library(self) -> ExperienceLibrary:
        """The library that its rollouts are made with."""
        return self.base.decision.library


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """A decided update, and what the run knows with it; the first one is the start of the run."""

    number: int  # how many updates are decided with it: 0 at the start
    decision: Decision  # the gate's; at the start, the library of the student
    account: Account  # what the run has taken
    batch: Batch | None = None  # None at the start
    extracted: Extracted = Extracted()  # what the batch taught
    best: tuple[Rollout, ...] = ()  # the best rollouts of the run, for making demos
    score_range: ScoreRange = NO_SCORES  # that of the scores of the run
    by_metric: ScoreRange = NO_SCORES  # of the metric's scores, where strategies change those
    n_in_vain: int = 0  # how many groups in a row were asked for lessons and gave nothing new
    groups: tuple[SampledGroup, ...] = ()  # of the run: its own, and those of all updates before
    briefs: tuple[Brief, ...] = ()  # of the run, in the order of their numbers
    n_unwritten: int = 0  # how many briefs were asked for in vain

    @property
    def may_brief(self) -> bool:
        """Whether the reflection LM can write a brief, as far as is known."""
        return self.n_unwritten < (MOST_UNWRITTEN if self.briefs else 1)

    def briefed(self, library: ExperienceLibrary, number: int) -> ExperienceLibrary:
        """The library with the brief of this number; 0: as it is."""
        return library.briefed(self.briefs[number - 1].texts) if number else library


def rollouts_of(groups: Sequence[SampledGroup]) -> list[Rollout]:
    """All rollouts of these groups."""
    return [rollout for sampled in groups for rollout in sampled.group.all_rollouts]


def record_of(update: Update, proposed: Applied, changes: tuple[Change, ...]) -> UpdateRecord:
    """What the results say of a decided update."""
    extracted, decision, used = update.extracted, update.decision, update.account.used
    batch, groups = update.batch, list[GroupRecord]()
    assert batch is not None  # noqa: S101 - only the start has none
    for sampled, use in zip(extracted.groups, extracted.uses, strict=True):
        group, unaided = sampled.group, sampled.unaided.rollouts
        ids = {rollout.rollout_id for rollout in unaided}
        failures = tuple(str(r.failure.kind) for r in group.all_rollouts if r.failure is not None)
        aided = tuple(r.score for r in group.rollouts if r.rollout_id not in ids)
        scores = tuple(rollout.score for rollout in unaided)
        groups.append(GroupRecord(group.example, scores, failures, use, aided))
    return UpdateRecord(
        update=batch.update,
        epoch=batch.epoch,
        groups=tuple(groups),
        lessons=tuple(lesson.text for lesson in extracted.lessons),
        refused_lessons=extracted.refused,
        operations=tuple(map(_operation_record, (*proposed.operations, *proposed.refused))),
        reason=decision.reason,
        library_size=len(decision.library),
        changes=changes,
        n_lm_calls=int(used.n_lm_calls),
        cost_usd=used.cost,
    )


def _operation_record(operation: Operation | Refusal) -> OperationRecord:
    """The record of an operation, or of its refusal."""
    proposed: Any = operation.operation if isinstance(operation, Refusal) else operation
    is_mapping, values = isinstance(proposed, Mapping), dict[str, str]()
    for name in ("op", "id", "text", "scope", "reason"):
        value = proposed.get(name) if is_mapping else getattr(proposed, name, None)
        values[name] = str(value or "")
    refused = operation.reason if isinstance(operation, Refusal) else ""
    return OperationRecord(**values, refused=refused)
