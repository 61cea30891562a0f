"""Which task runs when: the only place that knows threads.

A `Pipeline` is one run: it holds what changes while `optimizer`'s loop goes on. Its methods are
the verbs of that loop.
"""

import logging
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import dspy
from tqdm.auto import tqdm

from tfgrpo_dspy.errors import GateError
from tfgrpo_dspy.experience import (
    ExperienceLibrary,
    Keep,
    Operation,
    Refusal,
    copy_program,
    sift,
)
from tfgrpo_dspy.gate import Decision, TrialEvidence, Trials
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.pipeline.asking import Asker
from tfgrpo_dspy.pipeline.extracting import Extractor
from tfgrpo_dspy.pipeline.proposing import Proposer
from tfgrpo_dspy.pipeline.recorder import Recorder, operation_record
from tfgrpo_dspy.pipeline.validation import Validation
from tfgrpo_dspy.pipeline.workers import Workers
from tfgrpo_dspy.reflection import Lesson, RefusedLesson
from tfgrpo_dspy.results import GroupRecord, UpdateRecord
from tfgrpo_dspy.rollout import Group, rollout_id_for
from tfgrpo_dspy.sampling import RolloutTask, run_rollout
from tfgrpo_dspy.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """The examples (positions in the training set) of one update."""

    update: int
    epoch: int
    examples: tuple[int, ...]


class Pipeline:
    """One run over a student and its data; `training` are the positions to train on."""

    def __init__(
        self,
        settings: Settings,
        student: Any,
        trainset: Sequence[Any],
        training: Sequence[int],
        valset: Sequence[Any],
    ) -> None:
        self.settings = settings
        self.start_library = ExperienceLibrary.from_program(student)
        self._student = copy_program(student)
        self._trainset = trainset
        self._training = training
        self._score = None if settings.metric is None else adapt_metric(settings.metric)
        self._workers = Workers(settings.num_threads or dspy.settings.num_threads or 8)
        self._recorder = Recorder()
        asker = Asker(settings, self._student, self._recorder)
        self._extractor = Extractor(settings, self._student, trainset, self._workers, asker)
        self._proposer = Proposer(settings, self._student, self._workers, asker)
        gate_metric = settings.gate_metric
        self._validation = Validation(
            valset,
            None if gate_metric is None else adapt_metric(gate_metric),
            self.bake,
            self._workers,
            self._recorder,
            settings.seed,
            settings.failure_score,
        )
        self._stood = [self.start_library]
        self._groups: list[GroupRecord] = []
        self._lessons: list[Lesson] = []
        self._refused_lessons: list[RefusedLesson] = []
        self._best_score = -float("inf")
        self._n_teaching_groups = 0
        self._progress: Any = None

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._workers.close()
        if self._progress is not None:
            self._progress.close()

    def bake(self, library: ExperienceLibrary) -> Any:
        """The student with this library, in a copy."""
        return library.bake(self._student)

    # ------------------------------------------------------------------ the verbs of the loop

    def batches(self) -> Iterator[Batch]:
        """Epochs times shuffled batches; ends early after an epoch that could teach nothing."""
        settings, n_examples = self.settings, len(self._training)
        size = settings.batch_size_for(n_examples)
        starts = range(0, n_examples, size)
        self._progress = tqdm(
            total=settings.epochs * len(starts),
            desc="Training-Free GRPO",
            unit="update",
            disable=not settings.progress,
        )
        for epoch in range(settings.epochs):
            order = list(self._training)
            random.Random(f"{settings.seed}/{epoch}").shuffle(order)
            self._n_teaching_groups = 0
            for index, start in enumerate(starts):
                update = epoch * len(starts) + index
                yield Batch(update, epoch, tuple(order[start : start + size]))
                self._progress.update()
            if not self._n_teaching_groups:
                self._recorder.ended_because = f"no group of epoch {epoch} had anything to teach"
                return

    def sample(self, batch: Batch, library: ExperienceLibrary) -> list[Group]:
        """The groups of the batch: `group_size` rollouts of each example with this library."""
        settings = self.settings
        program = self.bake(library)
        tasks = [
            RolloutTask(
                program=program,
                example=self._trainset[example],
                index=example,
                rollout_id=rollout_id_for(settings.seed, batch.epoch, example, index, "training"),
                temperature=settings.temperature,
                score=self._score,
            )
            for example in batch.examples
            for index in range(settings.group_size)
        ]
        rollouts = self._workers.map(run_rollout, tasks)
        self._recorder.count_rollouts(rollouts)
        per_example = zip(*[iter(rollouts)] * settings.group_size, strict=True)
        return [
            Group.of(example, group, settings.failure_score, self._score is not None)
            for example, group in zip(batch.examples, per_example, strict=True)
        ]

    def extract(
        self, batch: Batch, groups: Sequence[Group], library: ExperienceLibrary
    ) -> list[Lesson]:
        """The lessons of the groups that can teach."""
        scores = [score for group in groups for score in group.scores]
        self._best_score = max([self._best_score, *scores])
        uses = [self._use_of(group) for group in groups]
        teaching = [group for group, (_, teaches) in zip(groups, uses, strict=True) if teaches]
        self._n_teaching_groups += len(teaching)
        self._groups = [
            GroupRecord(
                group.example,
                tuple(rollout.score for rollout in group.rollouts),
                tuple(r.failure.kind for r in group.all_rollouts if r.failure is not None),
                use,
            )
            for group, (use, _) in zip(groups, uses, strict=True)
        ]
        self._lessons, self._refused_lessons = self._extractor.lessons(
            teaching, library, batch.update, batch.epoch
        )
        return self._lessons

    def _use_of(self, group: Group) -> tuple[str, bool]:
        """What the group is for, and whether it is sent to ExtractAdvantage."""
        if len(group.rollouts) < 2:
            return "too few rollouts", False
        if self._score is None:
            return "no ground truth", True
        if group.has_contrast(self.settings.min_contrast):
            return "contrast", True
        is_bad = (
            max(group.scores) < self._best_score - self.settings.min_contrast
            or max(group.scores) <= self.settings.failure_score
        )
        if self.settings.failure_analysis and is_bad and group.has_feedback:
            return "failure analysis", True
        return "no contrast", False

    def propose(
        self, batch: Batch, library: ExperienceLibrary, lessons: Sequence[Lesson]
    ) -> list[Operation | Refusal]:
        """The operations that the lessons call for; those left out come as refusals."""
        operations, refused = self._proposer.operations(lessons, library, batch.update, batch.epoch)
        taken, refusals = sift(library, operations, self.settings.limits)
        return [*taken, *refused, *refusals]

    def decide(
        self,
        batch: Batch,
        library: ExperienceLibrary,
        proposed: Sequence[Operation | Refusal],
    ) -> ExperienceLibrary:
        """What the gate makes of the operations; it is asked until it decides."""
        operations = tuple(op for op in proposed if not isinstance(op, Refusal))
        evidence = TrialEvidence(
            incumbent=library,
            operations=operations,
            n_examples=len(self._validation.valset),
            update=batch.update,
            limits=self.settings.limits,
        )
        if evidence.proposed == library:
            decision = Decision(evidence.proposed, "nothing to decide")
        else:
            decision = self._asked(evidence)
        keeps = [operation for operation in operations if isinstance(operation, Keep)]
        accepted = decision.library != library
        decided = decision.library if accepted else library.apply(keeps, self.settings.limits)
        self._stood.append(decided)
        self._record(batch, proposed, decided, accepted, decision.reason)
        return decided

    def _asked(self, evidence: TrialEvidence) -> Decision:
        gate: Any = self.settings.gate
        while True:
            current = TrialEvidence(
                evidence.incumbent,
                evidence.operations,
                evidence.n_examples,
                evidence.update,
                evidence.limits,
                self._validation.scores,
            )
            answer = gate.next(current)
            if isinstance(answer, Decision) and isinstance(answer.library, ExperienceLibrary):
                return answer
            if not isinstance(answer, Trials):
                raise GateError(
                    f"{gate!r} answered {answer!r}; return Trials or a Decision on a library."
                )
            outside = [i for i in answer.examples if i not in range(evidence.n_examples)]
            if outside:
                raise GateError(
                    f"{gate!r} asks for trials on examples {outside}; there are "
                    f"{evidence.n_examples}, counted from 0."
                )
            if not self._validation.run(answer.libraries, answer.examples):
                raise GateError(f"{gate!r} asks again for trials that it has the scores of.")

    def _record(
        self,
        batch: Batch,
        proposed: Sequence[Operation | Refusal],
        library: ExperienceLibrary,
        accepted: bool,
        reason: str,
    ) -> None:
        record = UpdateRecord(
            update=batch.update,
            epoch=batch.epoch,
            groups=tuple(self._groups),
            lessons=tuple(lesson.text for lesson in self._lessons),
            refused_lessons=tuple(f"{les.text} ({les.reason})" for les in self._refused_lessons),
            operations=tuple(operation_record(operation) for operation in proposed),
            accepted=accepted,
            reason=reason,
            library_size=len(library),
            validation=self._validation.summary(library),
        )
        self._recorder.updates.append(record)
        logger.info(
            "update %d: %d lessons, %d operations, %s (%s), %d experiences, %d LM calls so far",
            record.update,
            len(record.lessons),
            len(record.operations),
            "accepted" if accepted else "not accepted",
            reason,
            len(library),
            self._recorder.n_lm_calls,
        )
        mean = record.validation.mean if record.validation else None
        scores = [score for group in self._groups for score in group.scores if score is not None]
        training = statistics.fmean(scores) if scores else None
        shown = {"validation": mean, "training": training}
        self._progress.set_postfix(
            {name: f"{score:.3f}" for name, score in shown.items() if score is not None}
            | {"experiences": len(library), "calls": self._recorder.n_lm_calls}
        )

    # ------------------------------------------------------------------ the end

    def finish(self, library: ExperienceLibrary) -> Any:
        """The student with the best library baked in, and `detailed_results` on it.

        The best is, of those that the gate let stand, the one that gains most on the student over
        the whole validation set; where nothing is gated, it is the last (promise 2 does not apply
        then).
        """
        start, everything = self.start_library, range(len(self._validation.valset))
        if self.settings.gate_metric is not None:
            self._validation.run([start, library], everything)
        best = self._validation.best(self._stood) if self.settings.measures else library
        best = library if best == library else best
        optimized = self.bake(best)
        optimized.detailed_results = self._recorder.results(
            start,
            best,
            self._validation.summary(start),
            self._validation.summary(best),
            self.settings.scalars(),
        )
        return optimized
