"""Which task runs when: the only place that knows threads.

A `Pipeline` is one run: it holds what changes while `optimizer`'s loop goes on. Its methods are
the verbs of that loop.
"""

import functools
import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.errors import RunFailedError, RunStopped, StoreError
from tfgrpo_dspy.experience import (
    ExperienceLibrary,
    Operation,
    Refusal,
    copy_program,
    sift,
)
from tfgrpo_dspy.gate import Decision, GroupPlan, Trials
from tfgrpo_dspy.pipeline.archive import Archive
from tfgrpo_dspy.pipeline.asking import Asker
from tfgrpo_dspy.pipeline.batches import Batch
from tfgrpo_dspy.pipeline.concerns import Concerns
from tfgrpo_dspy.pipeline.deciding import Decider, assigned, has_trials
from tfgrpo_dspy.pipeline.demonstrating import Demonstrator
from tfgrpo_dspy.pipeline.drafting import Drafter
from tfgrpo_dspy.pipeline.extracting import Extractor
from tfgrpo_dspy.pipeline.heldout import Scores, chance_of_gain, gain_between, held_out, summary_of
from tfgrpo_dspy.pipeline.measuring import Measurements
from tfgrpo_dspy.pipeline.notes import Notes
from tfgrpo_dspy.pipeline.proposing import Proposer
from tfgrpo_dspy.pipeline.recorder import Recorder, operation_record
from tfgrpo_dspy.pipeline.remote import IN_FLIGHT_PER_WORKER, RemoteWorkers, workers_of
from tfgrpo_dspy.pipeline.rollouts import Rollouts, Sample
from tfgrpo_dspy.pipeline.run import Run
from tfgrpo_dspy.pipeline.schedule import Handle, Schedule, Turn
from tfgrpo_dspy.pipeline.shares import VALIDATION_SHARE, affordable, used_up
from tfgrpo_dspy.pipeline.signals import handing_on_sigterm
from tfgrpo_dspy.pipeline.teaching import Teacher
from tfgrpo_dspy.pipeline.workers import Workers
from tfgrpo_dspy.pipeline.worth import with_worth
from tfgrpo_dspy.reflection import Lesson
from tfgrpo_dspy.results import DemoTrial, GroupRecord, UpdateRecord
from tfgrpo_dspy.rollout import Group, Rollout, Usage, rollout_id_for
from tfgrpo_dspy.sampling import Demo, with_demos
from tfgrpo_dspy.settings import LEAST_VALIDATION, Settings

logger = logging.getLogger(__name__)

RESERVE_MARGIN = 1.5
"""What is kept for measuring the result, in terms of what measuring the student took: the prompts
with the library are longer."""
N_PROBED = 2
"""How many rollouts a probe makes."""
LIKELY = 0.8
"""How likely it must be that demos help: every later call pays for them."""


class Pipeline:
    """One run over a student and its data; `training` are the positions to train on."""

    def __init__(
        self,
        settings: Settings,
        student: Any,
        trainset: Sequence[Any],
        training: Sequence[int],
        valset: Sequence[Any],
        testset: Sequence[Any] = (),
    ) -> None:
        self.settings = settings
        self.start_library = ExperienceLibrary.from_program(student)
        own_student = copy_program(student)
        ledger = Ledger(settings.budget)
        archive = Archive(settings, own_student)
        schedule = _schedule(settings, ledger, archive)
        recorder = Recorder(settings.max_errors)
        notes = Notes(settings, archive, ledger)
        self._run = Run(settings, own_student, ledger, archive, notes, schedule, recorder)
        self._recorder = recorder
        self._schedule = schedule
        self._training = training
        self._trainset = trainset
        asker = Asker(self._run)
        extractor = Extractor(self._run, trainset, asker)
        self._teacher = Teacher(self._run, extractor, self._decided_before)
        self._drafter = Drafter(self._run, trainset, training, asker)
        self._proposer = Proposer(self._run, asker)
        self._sampler = Rollouts(
            self._run, "rollout", trainset, settings.metric, settings.temperature
        )
        self._valset = valset
        self._measured = Measurements.of_gate(self._run, valset, trainset)
        self._tested = Measurements.of_test(self._run, testset)
        self._concerns = Concerns(settings, trainset)
        self._demonstrator = Demonstrator(own_student, trainset, valset, settings.max_demos)
        self._decider = Decider(
            self._run,
            self._measured,
            self._concerns,
            self.start_library,
            training,
            len(trainset),
        )
        self._batches: list[Batch] = []
        self._updates: list[Handle[ExperienceLibrary]] = []
        self._student_took = (0, Usage(), 0.0)
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
        if self._run.ledger.is_failure:  # the loop may end with the very results that end the run
            self._run.ledger.check()

    async def _measure_student(self) -> None:
        """Measure it, and keep back what measuring the result will take.

        Without a validation set nobody knows yet what a rollout takes: one call at least.
        """
        n, n_test = self._measured.n_examples, self._tested.n_examples
        if self.settings.gate_metric is None or not n + n_test:
            return
        started = time.monotonic()
        await self._measured.run_everywhere([self.start_library], LEAST_VALIDATION)
        most = affordable(self.settings, VALIDATION_SHARE, self._spent(), min(n, LEAST_VALIDATION))
        if most is not None and max(most, LEAST_VALIDATION) < n:
            n = self._measured.limit(max(most, LEAST_VALIDATION))
            logger.info("the budget reaches for %d of %d validation examples", n, len(self._valset))
        await self._measured.run_everywhere([self.start_library])
        self._student_took = (n, self._spent(), time.monotonic() - started)
        may_try_settled = hasattr(self.settings.gate, "assign") and most is not None and most >= n
        self._keep_back(n + n * may_try_settled + self._n_at_the_end)

    def _spent(self) -> Usage:
        """What trials and their scores have taken."""
        return self._recorder.usage["gate"] + self._recorder.usage["metric"]

    @property
    def _n_at_the_end(self) -> int:
        """How many rollouts are made when the library is chosen: with demos, and for the test."""
        n_demonstrated = self._student_took[0] if self.settings.max_demos else 0
        return n_demonstrated + 2 * self._tested.n_examples

    def _keep_back(self, n_rollouts: int) -> None:
        """Keep back what so many rollouts will take, by what those of the student took."""
        n, spent, seconds = self._student_took
        share = n_rollouts / max(n, 1)
        n_calls = math.ceil(share * (spent.n_lm_calls if n else 1))
        cost = RESERVE_MARGIN * share * spent.cost_usd
        self._run.ledger.keep_back(
            n_rollouts, n_calls, cost, RESERVE_MARGIN * share * seconds if n else 0.0
        )
        kept = Usage(n_lm_calls=n_calls, cost_usd=cost)
        self._decider.pace.kept_back = used_up(self.settings, kept, n_rollouts)

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
        with self._run.archive.together():
            self._run.notes.begin(self._run.student, self._trainset, self._training, self._valset)

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

    def memory_after(self, update: int) -> Any:
        """What the gate left at this update, which is decided; None before the first."""
        return self._decider.memories[max(0, update + 1)]

    def why_to_end(self, update: int, n_batches: int, n_rollouts: int) -> str:
        """Why the batch of this update is not to be made; "" if it is.

        An epoch's worth of batches, of those that are decided for sure, had nothing to teach; or
        the budget does not reach.
        """
        decided = self._batches[: max(0, update - self.settings.max_staleness)]
        last = decided[-n_batches:]
        if len(last) == n_batches and not any(b.teaches or b.assigned for b in last):
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
        samples = self._samples(batch, example)
        return self.group(
            example, await self._sampler.make(samples, (3, batch.update), batch.update)
        )

    def _decided_before(self, batch: Batch) -> list[Batch]:
        """The batches whose updates are decided for sure when this one is made."""
        return self._batches[: max(0, batch.update - self.settings.max_staleness)]

    def _samples(self, batch: Batch, example: int) -> list[Sample]:
        """The gate may give an experience on trial to some of them only."""
        n, libraries = self.settings.group_size, [batch.library] * self.settings.group_size
        gate = self.settings.gate
        if hasattr(gate, "assign") and has_trials(batch.library):
            on_trial = [experience for experience in batch.library if experience.is_on_trial]
            concerned = self._concerns.of(on_trial) or {}
            own = tuple(e for e in on_trial if example in concerned.get(e.id, ()))
            plan = GroupPlan(batch.library, example, batch.update, n, own, batch.memory)
            batch.assigned[example] = assigned(gate, plan)
            libraries = [*batch.assigned[example]]
        return [
            Sample(
                library,
                example,
                rollout_id_for(self.settings.seed, batch.epoch, example, index, "training"),
            )
            for index, library in enumerate(libraries)
        ]

    def group(self, example: int, rollouts: Sequence[Rollout]) -> Group:
        """The group that rollouts of an example form."""
        settings = self.settings
        return Group.of(example, rollouts, settings.failure_score, settings.metric is not None)

    def given(self, batch: Batch, example: int, rollouts: Sequence[Rollout]) -> "Handle[Group]":
        """A group of rollouts that were made elsewhere, and without what this run has learned."""
        batch.assigned[example] = (self.start_library,) * len(rollouts)
        handle: Handle[Group] = Handle()
        handle.fulfil(self.group(example, rollouts))
        return handle

    def probe(self) -> list[Usage]:
        """What the first rollouts that a compile makes cost on average: the student's."""
        n = N_PROBED
        self._begin_notes()
        with self.until_stopped():
            if self._valset:
                n = min(n, len(self._valset))
                trials = Trials.of([self.start_library], range(n)).trials
                self._schedule.run(self._measured.run(trials))
            else:
                example = self.order(0)[0]
                first = Batch(0, 0, 1, (example,), self.start_library)
                self._sampler.admit(n)
                samples = self._samples(first, example)[:n]
                self._schedule.run(self._sampler.make(samples, (3, 0)))
        spent = self._recorder.usage["rollout"] + self._recorder.usage["gate"]
        return [Usage(*(getattr(spent, name) / n for name in Usage.__slots__))] * n

    def draft(self, batch: Batch) -> "Handle[list[Lesson]]":
        """The lessons of the labels alone."""
        return self._schedule.spawn(self._drafter.lessons(batch))

    def extract(self, batch: Batch, groups: "Sequence[Handle[Group]]") -> "Handle[list[Lesson]]":
        """The lessons of the groups that can teach, each drawn as soon as its group is there."""
        return self._schedule.spawn(self._teacher.lessons(batch, groups))

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
            lessons, library, batch.update, batch.epoch, is_asked=not self._teacher.gave_up(batch)
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
        operations = [op for op in proposed if not isinstance(op, Refusal)]
        self._demonstrator.see(batch.groups)
        decision = await self._decider.decide(batch, library, operations)
        self._record(batch, library, proposed, decision)
        self._run.notes.note(self._decider.exported[-1], len(self._recorder.updates), "")
        return decision.library

    def _record(
        self,
        batch: Batch,
        before: ExperienceLibrary,
        proposed: Sequence[Operation | Refusal],
        decision: Decision,
    ) -> None:
        library = decision.library
        record = UpdateRecord(
            update=batch.update,
            epoch=batch.epoch,
            groups=tuple(map(_group_record, batch.groups, batch.uses)),
            lessons=tuple(lesson.text for lesson in batch.lessons),
            refused_lessons=tuple(f"{les.text} ({les.reason})" for les in batch.refused_lessons),
            operations=tuple(operation_record(operation) for operation in proposed),
            accepted=list(library) != list(before),
            reason=decision.reason,
            dropped=dict(decision.dropped),
            library_size=len(library),
            validation=self._measured.summary(library),
        )
        self._recorder.updates.append(record)
        logger.info(
            "update %d: %d lessons, %d operations, %s (%s), %d experiences, %d LM calls so far",
            record.update,
            len(record.lessons),
            len(record.operations),
            "accepted" if record.accepted else "not accepted",
            record.reason,
            len(library),
            self._run.ledger.n_lm_calls,
        )
        mean = record.validation.mean if record.validation else None
        batch.groups = []  # a run is long, and their texts are
        training = statistics.fmean(batch.scores) if batch.scores else None
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
        start, last = self.start_library, self._decider.exported[-1]
        ledger = self._run.ledger
        ledger.open_reserve()
        if self.settings.gate_metric is not None:
            with suppress(RunStopped):  # what cannot be measured any more is not returned
                self._schedule.run(self._measure_results(last))
        is_measured = self._measured.summary(start) is not None
        if self.settings.gate_metric is not None and self._valset and not is_measured:
            logger.warning(
                "nothing was measured: %s before the student was scored on the validation set; "
                "allow more, or pass a smaller valset",
                self._recorder.ended_because,
            )
        best = with_worth(self._best(), self._decider.groups, self._measured.scores)
        shown = self._demonstrated(best)
        ended_because = self._recorder.ended_because
        self._run.notes.note(best, len(self._recorder.updates), ended_because, shown.demos)
        before, after = self._measured.everywhere(start), shown.scores
        test = held_out(*self._test(best, shown.run))
        optimized = shown.run.bake(best)
        optimized.detailed_results = self._recorder.results(
            start,
            best,
            (summary_of(before), summary_of(after), gain_between(before, after)),
            test,
            shown.trial,
            self.settings.of_result(),
            ledger,
        )
        return optimized

    async def _measure_results(self, last: ExperienceLibrary) -> None:
        """Measure student and last library; where that is worse, what is settled of it, too.

        What is on trial may be given to a program before it is proven, and may be what is wrong.
        """
        await self._measured.run_everywhere([self.start_library, last])
        settled = self._decider.like_start(
            ExperienceLibrary(
                [own for own in last if not own.is_on_trial], next_number=last.next_number
            )
        )
        if settled != last and self._measured.best([self.start_library, last]) != last:
            self._decider.exported.insert(-1, settled)
            self._keep_back(self._n_at_the_end)
            await self._measured.run_everywhere([settled])

    def _demonstrated(self, best: ExperienceLibrary) -> "_Demonstrated":
        """The student with demos of the best rollouts, if they likely help; else as it is.

        They are tried with the best library, on the validation set.
        """
        before = self._measured.everywhere(best)
        demos = self._demonstrator.demos() if before else ()
        if not demos:
            return _Demonstrated(self._run, before)
        run = replace(self._run, student=with_demos(self._run.student, demos))
        measured = self._measured.beside(run)
        self._keep_back(2 * self._tested.n_examples)
        with suppress(RunStopped):
            self._schedule.run(measured.run_everywhere([best]))
        after = measured.everywhere(best)
        chance = chance_of_gain(before, after) if after else None
        is_kept = chance is not None and chance >= LIKELY
        trial = DemoTrial(len(demos), gain_between(before, after), chance, is_kept)
        logger.info("%d demos were tried: %s", trial.n, trial.gain or "the budget does not reach")
        if is_kept:
            return _Demonstrated(run, after, demos, trial)
        return _Demonstrated(self._run, before, trial=trial)

    def _test(self, best: ExperienceLibrary, run: Run) -> tuple[Scores, Scores]:
        """Student and result on the test set, when everything is chosen; empty: not measured."""
        if self.settings.gate_metric is None or not self._tested.n_examples:
            return (), ()
        tested = self._tested if run is self._run else self._tested.beside(run)
        own = [self.start_library, best] if run is self._run else [self.start_library]
        self._run.ledger.open_reserve()
        with suppress(RunStopped):
            self._schedule.run(self._tested.run_everywhere(own))
            self._schedule.run(tested.run_everywhere([best]))
        scores = self._tested.everywhere(self.start_library), tested.everywhere(best)
        if not all(scores):
            logger.warning("the test set was not measured: %s", self._run.ledger.stopped_because)
        return scores

    def _best(self) -> ExperienceLibrary:
        """Of the libraries that stood the best measured; without a gate the last."""
        exported = self._decider.exported
        if not self.settings.measures:
            return exported[-1]
        best = self._measured.best(exported)
        return exported[-1] if best == exported[-1] else best


@dataclass(frozen=True, slots=True)
class _Demonstrated:
    """A run whose student shows these demos; the best library's scores with it on validation."""

    run: Run
    scores: Scores
    demos: tuple[Demo, ...] = ()
    trial: DemoTrial | None = None


class Batches:
    """Makes the batches of a run, one after another (`async for`); the first may be a draft.

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
        self._n_drafts = int(pipeline.settings.drafts > 0)
        self._n_updates = self._n_drafts + epochs * self._n_batches
        self._update = 0
        self._order: list[int] = []

    def __aiter__(self) -> "Batches":
        return self

    async def __anext__(self) -> Batch:
        pipeline, update = self._pipeline, self._update
        if update == 0:
            await pipeline.begin(self._n_updates)
        if update == self._n_updates:
            raise StopAsyncIteration
        library = await pipeline.library_after(update - 1 - pipeline.settings.max_staleness)
        if update < self._n_drafts:
            self._update += 1
            n_rollouts = min(self._size, pipeline.n_training) * self._group_size
            return Batch(
                update, 0, self._n_updates, (), library, is_draft=True, n_rollouts=n_rollouts
            )
        epoch, index = divmod(update - self._n_drafts, self._n_batches)
        if index == 0:
            self._order = pipeline.order(epoch)
        examples = self._order[index * self._size : (index + 1) * self._size]
        n_rollouts = len(examples) * self._group_size
        if reason := pipeline.why_to_end(update, self._n_batches, n_rollouts):
            pipeline.end(reason)
            raise StopAsyncIteration
        self._update += 1
        memory = pipeline.memory_after(update - 1 - pipeline.settings.max_staleness)
        return Batch(
            update,
            epoch,
            self._n_updates,
            tuple(examples),
            library,
            memory=memory,
            n_rollouts=n_rollouts,
        )


def _schedule(settings: Settings, ledger: Ledger, archive: Archive) -> Schedule:
    """Over threads: our own, or those of the user's executor; rollouts over its processes."""
    executor, until_recorded = settings.executor, archive.store is not None
    n_threads, n_workers, borrow = settings.threads, None, None
    if executor is not None:
        n_workers = workers_of(executor) or settings.threads
    if isinstance(executor, ThreadPoolExecutor):
        n_threads = settings.num_threads or n_workers or n_threads
        borrow = functools.partial(_borrowed, executor, ledger)
    workers = Workers(n_threads, borrow, until_recorded=until_recorded)
    remote = None
    if executor is not None and n_workers is not None and borrow is None:
        n_in_flight = settings.num_threads or IN_FLIGHT_PER_WORKER * n_workers
        remote = RemoteWorkers(executor, n_workers, n_in_flight, ledger, workers.finished)
    return Schedule(workers, ledger, settings.rollout_timeout_s, remote, archive.together)


def _borrowed(executor: Executor, ledger: Ledger, work: Callable[[], None]) -> None:
    """Have this done by a thread of the user's; where there is none to be had, the run ends."""
    try:
        executor.submit(work)
    except RuntimeError as error:
        ledger.stop(f"the executor cannot go on: {error}", is_failure=True)


def _group_record(group: Group, use: str) -> GroupRecord:
    return GroupRecord(
        group.example,
        tuple(rollout.score for rollout in group.rollouts),
        tuple(r.failure.kind for r in group.all_rollouts if r.failure is not None),
        use,
    )
