"""Which task runs when: the only place that knows threads.

A `Pipeline` is one run: it holds what changes while `optimizer`'s loop goes on. Its methods are
the verbs of that loop.
"""

import logging
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import dspy
from tqdm.auto import tqdm

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.errors import GateError, RunFailedError, RunStopped
from tfgrpo_dspy.experience import (
    ExperienceLibrary,
    Keep,
    Operation,
    Refusal,
    copy_program,
    sift,
)
from tfgrpo_dspy.gate import Decision, TrialEvidence, Trials
from tfgrpo_dspy.pipeline.archive import Archive
from tfgrpo_dspy.pipeline.asking import Asker
from tfgrpo_dspy.pipeline.extracting import Extractor
from tfgrpo_dspy.pipeline.notes import Notes
from tfgrpo_dspy.pipeline.proposing import Proposer
from tfgrpo_dspy.pipeline.recorder import Recorder, operation_record
from tfgrpo_dspy.pipeline.rollouts import Rollouts, Sample
from tfgrpo_dspy.pipeline.run import Run
from tfgrpo_dspy.pipeline.signals import handing_on_sigterm
from tfgrpo_dspy.pipeline.validation import Validation
from tfgrpo_dspy.pipeline.workers import Workers
from tfgrpo_dspy.reflection import Lesson, RefusedLesson
from tfgrpo_dspy.results import GroupRecord, UpdateRecord
from tfgrpo_dspy.rollout import Group, Rollout, Usage, rollout_id_for
from tfgrpo_dspy.settings import Settings

logger = logging.getLogger(__name__)

RESERVE_MARGIN = 1.5
"""What is kept for measuring the result, in terms of what measuring the student took: the prompts
with the library are longer."""
N_PROBED = 2
"""How many rollouts a probe makes."""


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
        own_student = copy_program(student)
        ledger = Ledger(settings.budget)
        num_threads = settings.num_threads or dspy.settings.num_threads or 8
        archive = Archive(settings, own_student)
        self._run = Run(
            settings,
            own_student,
            ledger,
            archive,
            Notes(settings, archive),
            Workers(num_threads, ledger, settings.rollout_timeout_s),
            Recorder(settings.max_errors),
        )
        self._recorder = self._run.recorder
        self._training = training
        self._trainset = trainset
        asker = Asker(self._run)
        self._extractor = Extractor(self._run, trainset, asker)
        self._proposer = Proposer(self._run, asker)
        self._sampler = Rollouts(
            self._run, "rollout", trainset, settings.metric, settings.temperature
        )
        self._validation = Validation(self._run, valset)
        self._stood = [self.start_library]
        self._groups: list[GroupRecord] = []
        self._lessons: list[Lesson] = []
        self._refused_lessons: list[RefusedLesson] = []
        self._best_score = -float("inf")
        self._n_teaching_groups = 0
        self._progress: Any = None
        self._closing = ExitStack()

    def __enter__(self) -> "Pipeline":
        self._closing.enter_context(handing_on_sigterm())
        self._closing.callback(self._close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.__exit__(kind, error, traceback)

    def _close(self) -> None:
        """What is in flight is dropped, not waited for; every later call of it is refused."""
        self._run.ledger.stop("the run is over")
        self._run.workers.close()
        self._run.archive.close()
        if self._progress is not None:
            self._progress.close()

    # ------------------------------------------------------------------ beginning and end

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """The loop, which a budget or the clock may end at any point.

        Raises:
            RunFailedError: failures ended it; the best program so far is on the error.
        """
        ledger = self._run.ledger
        try:
            yield
        except RunStopped:
            self._recorder.ended_because = ledger.stopped_because
            if not ledger.is_failure:
                logger.info("the run ends: %s", ledger.stopped_because)
                return
            failed = RunFailedError(
                f"The run was ended by failures: {ledger.stopped_because}. What was finished is "
                f"kept in log_dir, if there is one; `.program` of this error is the best so far."
            )
            failed.program = self.finish(self._stood[-1])
            raise failed from None

    def _begin(self) -> None:
        """Measure the student first: it must be, so a budget never ends with nothing measured."""
        self._run.notes.begin(
            self._run.student, self._trainset, self._training, self._validation.valset
        )
        settings, ledger = self.settings, self._run.ledger
        if settings.gate_metric is None or not self._validation.valset:
            return
        started = time.monotonic()
        self._validation.run([self.start_library], range(len(self._validation.valset)))
        if not settings.measures:  # nothing measures the last library but the end itself
            spent = self._recorder.usage["gate"] + self._recorder.usage["metric"]
            ledger.keep_back(
                len(self._validation.valset),
                math.ceil(RESERVE_MARGIN * spent.n_lm_calls),
                RESERVE_MARGIN * spent.cost_usd,
                RESERVE_MARGIN * (time.monotonic() - started),
            )

    # ------------------------------------------------------------------ the verbs of the loop

    def batches(self, epochs: int | None = None) -> Iterator[Batch]:
        """Epochs times shuffled batches; ends early after an epoch that could teach nothing."""
        settings, n_examples = self.settings, len(self._training)
        epochs = epochs or settings.epochs
        self._begin()
        size = settings.batch_size_for(n_examples)
        starts = range(0, n_examples, size)
        self._progress = tqdm(
            total=epochs * len(starts),
            desc="Training-Free GRPO",
            unit="update",
            disable=not settings.progress,
        )
        for epoch in range(epochs):
            order = self._order(epoch)
            self._n_teaching_groups = 0
            for index, start in enumerate(starts):
                update = epoch * len(starts) + index
                yield Batch(update, epoch, tuple(order[start : start + size]))
                self._progress.update()
            if not self._n_teaching_groups:
                self._recorder.ended_because = f"no group of epoch {epoch} had anything to teach"
                return

    def _order(self, epoch: int) -> list[int]:
        """The training examples as this epoch goes through them."""
        order = list(self._training)
        random.Random(f"{self.settings.seed}/{epoch}").shuffle(order)
        return order

    def _samples(
        self, epoch: int, examples: Sequence[int], library: ExperienceLibrary
    ) -> list[Sample]:
        seed = self.settings.seed
        return [
            Sample(library, example, rollout_id_for(seed, epoch, example, index, "training"))
            for example in examples
            for index in range(self.settings.group_size)
        ]

    def sample(self, batch: Batch, library: ExperienceLibrary) -> list[Group]:
        """The groups of the batch: `group_size` rollouts of each example with this library."""
        rollouts = self._sampler.make(self._samples(batch.epoch, batch.examples, library))
        per_example = zip(*[iter(rollouts)] * self.settings.group_size, strict=True)
        return [
            self.group(example, group)
            for example, group in zip(batch.examples, per_example, strict=True)
        ]

    def group(self, example: int, rollouts: Sequence[Rollout]) -> Group:
        """The group that rollouts of an example form."""
        settings = self.settings
        return Group.of(example, rollouts, settings.failure_score, settings.metric is not None)

    def probe(self) -> list[Usage]:
        """What the first rollouts that a compile makes cost on average: the student's."""
        n = N_PROBED
        with self.until_stopped():
            if self._validation.valset:
                n = min(n, len(self._validation.valset))
                self._validation.run([self.start_library], range(n))
            else:
                first = self._samples(0, self._order(0)[:1], self.start_library)
                self._sampler.make(first[:n])
        spent = self._recorder.usage["rollout"] + self._recorder.usage["gate"]
        return [Usage(*(getattr(spent, name) / n for name in Usage.__slots__))] * n

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
        if self.settings.metric is None:
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
        self._run.notes.note(self._best(), len(self._recorder.updates), "")
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
            self._run.ledger.n_lm_calls,
        )
        mean = record.validation.mean if record.validation else None
        scores = [score for group in self._groups for score in group.scores if score is not None]
        training = statistics.fmean(scores) if scores else None
        shown = {"validation": mean, "training": training}
        self._progress.set_postfix(
            {name: f"{score:.3f}" for name, score in shown.items() if score is not None}
            | {"experiences": len(library), "calls": self._run.ledger.n_lm_calls}
        )

    # ------------------------------------------------------------------ the end

    def finish(self, library: ExperienceLibrary) -> Any:
        """The student with the best library baked in, and `detailed_results` on it.

        The best is, of those that the gate let stand, the one that gains most on the student over
        the whole validation set; where nothing is gated, it is the last (promise 2 does not apply
        then).
        """
        start, everything = self.start_library, range(len(self._validation.valset))
        ledger = self._run.ledger
        ledger.open_reserve()
        if self.settings.gate_metric is not None:
            with suppress(RunStopped):  # what cannot be measured any more is not returned
                self._validation.run([start, library], everything)
        is_measured = self._validation.summary(start) is not None
        if self.settings.gate_metric is not None and self._validation.valset and not is_measured:
            logger.warning(
                "nothing was measured: %s before the student was scored on the validation set; "
                "allow more, or pass a smaller valset",
                self._recorder.ended_because,
            )
        best = self._best()
        self._run.notes.note(best, len(self._recorder.updates), self._recorder.ended_because)
        optimized = self._run.bake(best)
        optimized.detailed_results = self._recorder.results(
            start,
            best,
            self._validation.summary(start),
            self._validation.summary(best),
            self.settings.of_result(),
            ledger,
        )
        return optimized

    def _best(self) -> ExperienceLibrary:
        """Of the libraries that stood the best measured; without a gate the last."""
        last = self._stood[-1]
        if not self.settings.measures:
            return last
        best = self._validation.best(self._stood)
        return last if best == last else best
