"""Which task runs when: the only place that knows threads.

A `Pipeline` is one run: it holds what changes while `optimizer`'s loop goes on. Its methods are
the verbs of that loop.
"""

import logging
import math
import random
import statistics
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import dspy
from tqdm.auto import tqdm

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.errors import GateError, RunFailedError, RunStopped, StoreError
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
from tfgrpo_dspy.pipeline.asking import Answer, Asker
from tfgrpo_dspy.pipeline.extracting import Extractor
from tfgrpo_dspy.pipeline.notes import Notes
from tfgrpo_dspy.pipeline.proposing import Proposer
from tfgrpo_dspy.pipeline.recorder import Recorder, operation_record
from tfgrpo_dspy.pipeline.rollouts import Rollouts, Sample
from tfgrpo_dspy.pipeline.run import Run
from tfgrpo_dspy.pipeline.schedule import Handle, Schedule, Turn
from tfgrpo_dspy.pipeline.signals import handing_on_sigterm
from tfgrpo_dspy.pipeline.validation import Validation
from tfgrpo_dspy.pipeline.workers import Workers
from tfgrpo_dspy.reflection import Lesson, RefusedLesson
from tfgrpo_dspy.results import GroupRecord, UpdateRecord
from tfgrpo_dspy.rollout import Group, Rollout, Usage, rollout_id_for
from tfgrpo_dspy.settings import Settings

logger = logging.getLogger(__name__)

TEACHING = ("contrast", "failure analysis", "no ground truth")
"""What a group that is sent to ExtractAdvantage is used as."""
RESERVE_MARGIN = 1.5
"""What is kept for measuring the result, in terms of what measuring the student took: the prompts
with the library are longer."""
N_PROBED = 2
"""How many rollouts a probe makes."""


@dataclass(slots=True)
class Batch:
    """The examples (positions in the training set) of one update, and what came of them so far.

    `library` is the one that its rollouts are made with: as it stood `max_staleness` updates before
    the last.
    """

    update: int
    epoch: int
    examples: tuple[int, ...]
    library: ExperienceLibrary
    is_sampled: bool = False
    best_score: float = -math.inf
    groups: list[Group] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)
    refused_lessons: list[RefusedLesson] = field(default_factory=list)

    @property
    def teaches(self) -> bool:
        """Whether any of its groups was sent to ExtractAdvantage."""
        return any(use in TEACHING for use in self.uses)


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
        workers = Workers(num_threads, until_recorded=archive.store is not None)
        schedule = Schedule(workers, ledger, settings.rollout_timeout_s, archive.together)
        recorder = Recorder(settings.max_errors)
        notes = Notes(settings, archive, ledger)
        self._run = Run(settings, own_student, ledger, archive, notes, schedule, recorder)
        self._recorder = recorder
        self._schedule = schedule
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
        self._batches: list[Batch] = []
        self._updates: list[Handle[ExperienceLibrary]] = []
        self._progress: Any = None
        self._closing = ExitStack()

    @property
    def n_training(self) -> int:
        """How many examples there are to train on."""
        return len(self._training)

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
        self._schedule.close()
        try:
            self._run.notes.close()
        except StoreError as error:  # what is recorded is intact, and the result is not lost to it
            logger.warning("what this run has paid could not be noted: %s", error)
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
            failed.program = self.finish()
            raise failed from None

    def run(self, loop: Coroutine[Any, Any, None]) -> None:
        """Run the loop. Raises RunStopped: a budget, the clock or a failure has ended it."""
        self._schedule.run(loop)

    async def _measure_student(self) -> None:
        settings, ledger, n = self.settings, self._run.ledger, len(self._validation.valset)
        if settings.gate_metric is None or not n:
            return
        started = time.monotonic()
        await self._validation.run([self.start_library], range(n))
        if not settings.measures:  # nothing measures the last library but the end itself
            spent = self._recorder.usage["gate"] + self._recorder.usage["metric"]
            ledger.keep_back(
                n,
                math.ceil(RESERVE_MARGIN * spent.n_lm_calls),
                RESERVE_MARGIN * spent.cost_usd,
                RESERVE_MARGIN * (time.monotonic() - started),
            )

    # ------------------------------------------------------------------ the verbs of the loop

    def batches(self, epochs: int | None = None, group_size: int | None = None) -> "Batches":
        """Epochs times shuffled batches, each as soon as its library is there.

        Ends early when a budget does not reach for the next batch, or where an epoch's worth of
        batches could teach nothing.
        """
        settings = self.settings
        given = settings.group_size if group_size is None else group_size
        return Batches(self, epochs or settings.epochs, given)

    def _begin_notes(self) -> None:
        self._run.notes.begin(
            self._run.student, self._trainset, self._training, self._validation.valset
        )

    async def begin(self, n_updates: int) -> None:
        """Begin the run: its note, the progress bar, the student's scores.

        The student must be measured in any case; so a budget never ends with nothing measured.
        """
        self._begin_notes()
        self._progress = tqdm(
            total=n_updates,
            desc="Training-Free GRPO",
            unit="update",
            disable=not self.settings.progress,
        )
        await self._measure_student()

    def order(self, epoch: int) -> list[int]:
        """The training examples as this epoch goes through them."""
        order = list(self._training)
        random.Random(f"{self.settings.seed}/{epoch}").shuffle(order)
        return order

    async def library_after(self, update: int) -> ExperienceLibrary:
        """The library when this update is decided; before the first, the student's."""
        return await self._updates[update] if update >= 0 else self.start_library

    def why_to_end(self, update: int, n_batches: int, n_rollouts: int) -> str:
        """Why the batch of this update is not to be made; "" if it is.

        An epoch's worth of batches, of those that are decided for sure, had nothing to teach; or
        the budget does not reach.
        """
        decided = self._batches[: max(0, update - self.settings.max_staleness)]
        if len(decided) >= n_batches and not any(b.teaches for b in decided[-n_batches:]):
            return "no group of a whole epoch had anything to teach"
        if self.settings.metric is not None:
            return self._run.ledger.metric_calls_lack(n_rollouts)
        return ""

    def end(self, reason: str) -> None:
        """No batch is made any more, for this reason."""
        self._recorder.ended_because = reason

    def sample(self, batch: Batch) -> "list[Handle[Group]]":
        """The groups of the batch: `group_size` rollouts of each example with its library."""
        self._sampler.admit(len(batch.examples) * self.settings.group_size)
        batch.is_sampled = True
        return [self._schedule.spawn(self._sampled(batch, example)) for example in batch.examples]

    async def _sampled(self, batch: Batch, example: int) -> Group:
        samples = self._samples(batch.epoch, example, batch.library)
        return self.group(
            example, await self._sampler.make(samples, (3, batch.update), batch.update)
        )

    def _samples(self, epoch: int, example: int, library: ExperienceLibrary) -> list[Sample]:
        seed = self.settings.seed
        return [
            Sample(library, example, rollout_id_for(seed, epoch, example, index, "training"))
            for index in range(self.settings.group_size)
        ]

    def group(self, example: int, rollouts: Sequence[Rollout]) -> Group:
        """The group that rollouts of an example form."""
        settings = self.settings
        return Group.of(example, rollouts, settings.failure_score, settings.metric is not None)

    def given(self, example: int, rollouts: Sequence[Rollout]) -> "Handle[Group]":
        """A group of rollouts that were made elsewhere."""
        handle: Handle[Group] = Handle()
        handle.fulfil(self.group(example, rollouts))
        return handle

    def probe(self) -> list[Usage]:
        """What the first rollouts that a compile makes cost on average: the student's."""
        n = N_PROBED
        self._begin_notes()
        with self.until_stopped():
            if self._validation.valset:
                n = min(n, len(self._validation.valset))
                self._schedule.run(self._validation.run([self.start_library], range(n)))
            else:
                first = self._samples(0, self.order(0)[0], self.start_library)
                self._sampler.admit(n)
                self._schedule.run(self._sampler.make(first[:n], (3, 0)))
        spent = self._recorder.usage["rollout"] + self._recorder.usage["gate"]
        return [Usage(*(getattr(spent, name) / n for name in Usage.__slots__))] * n

    def extract(self, batch: Batch, groups: "Sequence[Handle[Group]]") -> "Handle[list[Lesson]]":
        """The lessons of the groups that can teach, each drawn as soon as its group is there."""
        return self._schedule.spawn(self._extracted(batch, groups))

    async def _extracted(self, batch: Batch, groups: "Sequence[Handle[Group]]") -> list[Lesson]:
        all_groups = self._schedule.spawn(_all_of(groups))
        parts = [self._schedule.spawn(self._taught(batch, group, all_groups)) for group in groups]
        taught = [await part for part in parts]
        batch.groups, batch.uses = await all_groups, [use for use, _ in taught]
        scores = [score for group in batch.groups for score in group.scores]
        batch.best_score = max(scores, default=-math.inf)
        teaching = [
            (group, answer)
            for group, (_, answer) in zip(batch.groups, taught, strict=True)
            if answer is not None
        ]
        batch.lessons, batch.refused_lessons = self._extractor.lessons(
            [group for group, _ in teaching], [answer for _, answer in teaching], batch.update
        )
        return batch.lessons

    async def _taught(
        self, batch: Batch, group_handle: "Handle[Group]", all_groups: "Handle[list[Group]]"
    ) -> tuple[str, Answer | None]:
        """What the group is used as, and what ExtractAdvantage says of it."""
        group = await group_handle
        use = self._use_of(group)
        if use == "no contrast" and self.settings.failure_analysis and group.has_feedback:
            use = self._use_beside(group, batch, await all_groups)
        if use not in TEACHING:
            return use, None
        answer = await self._extractor.answer(group, batch.library, batch.update, batch.epoch)
        return use, answer

    def _use_of(self, group: Group) -> str:
        """What the group is for, by itself."""
        if len(group.rollouts) < 2:
            return "too few rollouts"
        if self.settings.metric is None:
            return "no ground truth"
        return "contrast" if group.has_contrast(self.settings.min_contrast) else "no contrast"

    def _use_beside(self, group: Group, batch: Batch, beside: Sequence[Group]) -> str:
        """What a group without contrast is for: it may be bad beside the best seen.

        Seen are the groups of its own batch, and those of the updates that are decided for sure.
        """
        decided = self._batches[: max(0, batch.update - self.settings.max_staleness)]
        own = [score for other in beside for score in other.scores]
        best = max([*own, *(other.best_score for other in decided)])
        highest = max(group.scores)
        is_bad = highest < best - self.settings.min_contrast
        is_failing = highest <= self.settings.failure_score
        return "failure analysis" if is_bad or is_failing else "no contrast"

    def begin_update(self, batch: Batch, update: Coroutine[Any, Any, ExperienceLibrary]) -> None:
        """Begin what gives the library after this batch."""
        self._batches.append(batch)
        self._updates.append(self._schedule.spawn(update))

    async def library_before(self, batch: Batch) -> ExperienceLibrary:
        """The library that the batch's update changes, when the update before is decided."""
        library = await self.library_after(batch.update - 1)
        await Turn()  # a later batch that waited for it is admitted first, whatever was done when
        return library

    async def all_updates(self) -> None:
        """When every update is decided."""
        for update in self._updates:
            await update

    async def propose(
        self, batch: Batch, library: ExperienceLibrary, lessons: Sequence[Lesson]
    ) -> list[Operation | Refusal]:
        """The operations that the lessons call for; those left out come as refusals."""
        if batch.is_sampled:
            self._sampler.settle([r for group in batch.groups for r in group.all_rollouts])
        operations, refused = await self._proposer.operations(
            lessons, library, batch.update, batch.epoch
        )
        taken, refusals = sift(library, operations, self.settings.limits)
        return [*taken, *refused, *refusals]

    async def decide(
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
            decision = await self._asked(evidence)
        keeps = [operation for operation in operations if isinstance(operation, Keep)]
        accepted = decision.library != library
        decided = decision.library if accepted else library.apply(keeps, self.settings.limits)
        self._stood.append(decided)
        self._record(batch, proposed, decided, accepted, decision.reason)
        self._run.notes.note(self._best(), len(self._recorder.updates), "")
        return decided

    async def _asked(self, evidence: TrialEvidence) -> Decision:
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
            if not await self._validation.run(answer.libraries, answer.examples):
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
            groups=tuple(map(_group_record, batch.groups, batch.uses)),
            lessons=tuple(lesson.text for lesson in batch.lessons),
            refused_lessons=tuple(f"{les.text} ({les.reason})" for les in batch.refused_lessons),
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
        scores = [score for group in batch.groups for score in group.scores]
        batch.groups = []  # a run is long, and their texts are
        training = statistics.fmean(scores) if scores else None
        shown = {"validation": mean, "training": training}
        self._progress.update()
        self._progress.set_postfix(
            {name: f"{score:.3f}" for name, score in shown.items() if score is not None}
            | {"experiences": len(library), "calls": self._run.ledger.n_lm_calls}
        )

    # ------------------------------------------------------------------ the end

    def finish(self) -> Any:
        """The student with the best library baked in, and `detailed_results` on it.

        The best is, of those that the gate let stand, the one that gains most on the student over
        the whole validation set; where nothing is gated, it is the last (promise 2 does not apply
        then).
        """
        start, library, everything = (
            self.start_library,
            self._stood[-1],
            range(len(self._validation.valset)),
        )
        ledger = self._run.ledger
        ledger.open_reserve()
        if self.settings.gate_metric is not None:
            with suppress(RunStopped):  # what cannot be measured any more is not returned
                self._schedule.run(self._validation.run([start, library], everything))
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


class Batches:
    """Makes the batches of a run, one after another (`async for`).

    Args:
        pipeline: the run.
        epochs: how often each example comes.
        group_size: how many rollouts an example takes, for the budget; 0: they are there already.
    """

    def __init__(self, pipeline: Pipeline, epochs: int, group_size: int) -> None:
        self._pipeline = pipeline
        self._group_size = group_size
        n_examples = pipeline.n_training
        self._size = pipeline.settings.batch_size_for(n_examples)
        self._n_batches = math.ceil(n_examples / self._size)
        self._n_updates = epochs * self._n_batches
        self._update = 0

    def __aiter__(self) -> "Batches":
        return self

    async def __anext__(self) -> Batch:
        pipeline, update = self._pipeline, self._update
        if update == 0:
            await pipeline.begin(self._n_updates)
        if update == self._n_updates:
            raise StopAsyncIteration
        library = await pipeline.library_after(update - 1 - pipeline.settings.max_staleness)
        epoch, index = divmod(update, self._n_batches)
        examples = pipeline.order(epoch)[index * self._size : (index + 1) * self._size]
        n_rollouts = len(examples) * self._group_size
        if reason := pipeline.why_to_end(update, self._n_batches, n_rollouts):
            pipeline.end(reason)
            raise StopAsyncIteration
        self._update += 1
        return Batch(update, epoch, tuple(examples), library)


async def _all_of(handles: "Sequence[Handle[Group]]") -> list[Group]:
    return [await handle for handle in handles]


def _group_record(group: Group, use: str) -> GroupRecord:
    return GroupRecord(
        group.example,
        tuple(rollout.score for rollout in group.rollouts),
        tuple(r.failure.kind for r in group.all_rollouts if r.failure is not None),
        use,
    )
