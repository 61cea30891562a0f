"""Which task runs when: the only place that knows threads.

A `Run` is one run: it holds what changes while `optimizer`'s loop goes on. Its methods are
the verbs of that loop.
"""

import asyncio
import logging
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

import dspy
from tqdm.auto import tqdm

from tfgrpo_dspy.budget import Amount, Ledger, Meter, watching
from tfgrpo_dspy.errors import RunFailedError, RunStopped, StoreError
from tfgrpo_dspy.experience import (
    ExperienceLibrary,
    Operation,
    Refusal,
    check_operations,
    copy_program,
)
from tfgrpo_dspy.gate import Decision, GroupPlan
from tfgrpo_dspy.reflection import Lesson
from tfgrpo_dspy.results import GroupRecord, UpdateRecord
from tfgrpo_dspy.rollout import Group, Rollout, Usage, rollout_id_for
from tfgrpo_dspy.run.asking import ReflectionClient
from tfgrpo_dspy.run.batches import Batch
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.deciding import Decider, assigned, proposed_finalists
from tfgrpo_dspy.run.demonstrating import Demonstrator
from tfgrpo_dspy.run.drafting import Drafter
from tfgrpo_dspy.run.executors import RemoteRollouts, workers_of
from tfgrpo_dspy.run.extracting import Extractor
from tfgrpo_dspy.run.final_choice import Choice, FinalChoice, with_prices
from tfgrpo_dspy.run.heldout import Scores, held_out
from tfgrpo_dspy.run.loop import Loop
from tfgrpo_dspy.run.manifest import RunManifest
from tfgrpo_dspy.run.measuring import Measurements
from tfgrpo_dspy.run.proposing import Proposer
from tfgrpo_dspy.run.records import RunRecords
from tfgrpo_dspy.run.rollouts import Rollouts, Sample
from tfgrpo_dspy.run.run_report import RunReport, operation_record
from tfgrpo_dspy.run.teaching import Teacher
from tfgrpo_dspy.settings import RunSettings
from tfgrpo_dspy.settings.checks import all_lms

logger = logging.getLogger(__name__)

N_PROBED = 2
"""How many rollouts a probe makes."""
WITHOUT_DRAFTS = 8
"""How many examples are sampled at most before the drafts are decided: more would mostly teach what
the drafts say."""


class Run:
    """One run over a student and its data; `training` are the positions to train on."""

    def __init__(
        self,
        settings: RunSettings,
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
        archive = RunRecords(settings, own_student)
        loop, remote = _loop(settings, ledger, archive.close)
        recorder = RunReport(settings.execution.max_errors)
        notes = RunManifest(settings, archive, ledger)
        self._run = RunContext(
            settings, own_student, ledger, archive, notes, loop, remote, recorder
        )
        self._recorder = recorder
        self._loop = loop
        self._training = training
        self._trainset = trainset
        asker = ReflectionClient(self._run)
        extractor = Extractor(self._run, trainset, asker)
        self._teacher = Teacher(self._run, extractor, self._decided_before)
        self._drafter = Drafter(self._run, trainset, training, asker)
        self._proposer = Proposer(self._run, asker, trainset)
        self._sampler = Rollouts(
            self._run, "rollout", trainset, settings.metric, settings.temperature
        )
        self._valset = valset
        self._measured = Measurements(self._run, "validation", valset)
        self._tested = Measurements(self._run, "test", testset)
        self._demonstrator = Demonstrator(own_student, trainset, valset, settings.max_demos)
        self._decider = Decider(self._run, self.start_library, trainset, training)
        self._batches: list[Batch] = []
        self._updates: list[Awaitable[ExperienceLibrary]] = []
        self._started_s = time.monotonic()
        self._progress: Any = None
        self._closing = ExitStack()

    @property
    def n_training(self) -> int:
        """How many examples there are to train on."""
        return len(self._training)

    def __enter__(self) -> "Run":
        self._closing.callback(self._close)
        lms = [*all_lms(self.settings, self._run.student), dspy.settings.lm]
        meter = Meter(self._run.ledger, self.settings.execution.prices)
        self._closing.enter_context(watching(lms, meter))
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
        self._loop.run(loop)
        if self._run.ledger.is_failure:  # the loop may end with the very results that end the run
            self._run.ledger.check()

    @property
    def _n_kept(self) -> int:
        """How many rollouts are kept for the end: the final choice and the test set."""
        if self.settings.metric is None:
            return 0
        return self.settings.schedule.reserve + 2 * self._tested.n_examples

    def _set_reserve(self) -> None:
        """Let nothing else take what the end of the run needs, by what rollouts took so far."""
        account, n = self._decider.accounts[-1], self._n_kept
        kept = account.reserve(n)
        seconds = (time.monotonic() - self._started_s) / max(1, account.n_rollouts)
        self._run.ledger.set_reserve(
            math.ceil(kept.n_metric_calls),
            math.ceil(kept.n_lm_calls),
            kept.cost,
            n * seconds / self.settings.threads if account.n_rollouts else 0.0,
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
        with self._run.archive.together():
            self._run.notes.begin(self._run.student, self._trainset, self._training, self._valset)

    async def begin(self, n_updates: int) -> None:
        """Begin the run: its note, the progress bar, what is kept for the end."""
        self._begin_notes()
        self._progress = tqdm(
            total=n_updates,
            desc="Training-Free GRPO",
            unit="update",
            disable=not self.settings.progress,
        )
        self._set_reserve()

    def order(self, epoch: int) -> list[int]:
        """The training examples as this epoch goes through them."""
        order = list(self._training)
        random.Random(f"{self.settings.seed}/{epoch}").shuffle(order)
        return order

    async def library_after(self, update: int) -> ExperienceLibrary:
        """The library when this update is decided; before the first, the student's."""
        return await self._updates[update] if update >= 0 else self.start_library

    def decision_after(self, update: int) -> Decision:
        """The decision on this update, which is made; before the first, the student's library."""
        return self._decider.decisions[max(0, update + 1)]

    def why_to_end(self, update: int, n_batches: int) -> str:
        """Why no batch is made for this update; "" if one is.

        A whole epoch of batches, of those that are decided for sure, had nothing to teach, and no
        experience is worth more rollouts.
        """
        decided = self._batches[: max(0, update - self.settings.max_staleness)]
        last = decided[-n_batches:]
        decision = self.decision_after(update - 1 - self.settings.max_staleness)
        if len(last) == n_batches and not any(b.teaches for b in last) and not decision.is_open:
            return "no group of a whole epoch had anything to teach"
        return ""

    def n_affordable(self, update: int, group_size: int) -> tuple[float, str]:
        """How many examples the next batch may have; and the limit that says so ("": none).

        It depends on the updates that are decided for sure when the batch is made, and on what the
        batches between these and this one are expected to take.
        """
        n_decided = max(0, update - self.settings.max_staleness)
        account = self._decider.accounts[n_decided]
        batches = self._batches[n_decided:update]
        under_way = sum(len(batch.examples) for batch in batches)
        each = account.per_example(group_size)
        operations = Amount(1.0) * (len(batches) + 1)  # an answer for each update
        n, name = account.n_fitting(each, account.reserve(self._n_kept) + operations)
        if update == 0:  # what a rollout takes is only assumed
            return max(1.0, n), name
        return n - under_way, name

    def end(self, reason: str) -> None:
        """No batch is made any more, for this reason."""
        self._recorder.ended_because = reason

    def sample(self, batch: Batch) -> "list[Awaitable[Group]]":
        """The groups of the batch: `group_size` rollouts of each example with its library."""
        self._sampler.admit(len(batch.examples) * self.settings.group_size)
        batch.is_sampled = True
        return [self._loop.spawn(self._sampled(batch, example)) for example in batch.examples]

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
        if any(experience.is_on_trial for experience in batch.library):
            plan = GroupPlan(batch.decision, example, batch.update, n)
            batch.assigned[example] = assigned(self.settings.gate, plan)
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
        return Group.of(example, rollouts, settings.metric is not None)

    def given(self, batch: Batch, example: int, rollouts: Sequence[Rollout]) -> "Awaitable[Group]":
        """A group of rollouts that were made elsewhere, and without what this run has learned."""
        batch.assigned[example] = (self.start_library,) * len(rollouts)
        group: asyncio.Future[Group] = asyncio.get_running_loop().create_future()
        group.set_result(self.group(example, rollouts))
        return group

    def probe(self) -> list[Usage]:
        """What the first rollouts that a compile makes cost on average."""
        self._begin_notes()
        with self.until_stopped():
            example = self.order(0)[0]
            first = Batch(0, 0, 1, (example,), self.decision_after(-1))
            self._sampler.admit(N_PROBED)
            samples = self._samples(first, example)[:N_PROBED]
            self._loop.run(self._sampler.make(samples, (3, 0)))
        spent = self._recorder.usage["rollout"]
        return [Usage(*(getattr(spent, name) / N_PROBED for name in Usage.__slots__))] * N_PROBED

    def draft(self, batch: Batch) -> "Awaitable[list[Lesson]]":
        """The lessons of the labels alone."""
        return self._loop.spawn(self._drafter.lessons(batch))

    def extract(
        self, batch: Batch, groups: "Sequence[Awaitable[Group]]"
    ) -> "Awaitable[list[Lesson]]":
        """The lessons of the groups that can teach, each drawn as soon as its group is there."""
        return self._loop.spawn(self._teacher.lessons(batch, groups))

    def begin_update(self, batch: Batch, update: Coroutine[Any, Any, ExperienceLibrary]) -> None:
        """Begin what gives the library after this batch."""
        self._batches.append(batch)
        self._updates.append(self._loop.spawn(update))

    async def library_before(self, batch: Batch) -> ExperienceLibrary:
        """The library that the batch's update changes, when the update before is decided."""
        library = await self.library_after(batch.update - 1)
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
            lessons,
            library,
            batch.update,
            batch.epoch,
            dropped=self._decider.dropped(),
            is_asked=not self._teacher.gave_up(batch),
        )
        taken, refusals = check_operations(library, operations, self.settings.limits)
        return [*taken, *refused, *refusals]

    async def decide(
        self,
        batch: Batch,
        library: ExperienceLibrary,
        proposed: Sequence[Operation | Refusal],
    ) -> ExperienceLibrary:
        """The library after the gate has decided on the operations."""
        operations = [op for op in proposed if not isinstance(op, Refusal)]
        self._demonstrator.see(batch.groups)
        decision = self._decider.decide(batch, operations)
        self._set_reserve()
        self._record(batch, library, proposed, decision)
        result = self._decider.result_after(decision)
        self._run.notes.note(result, len(self._recorder.updates), "")
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
        batch.groups = []  # a run is long, and their texts are
        training = statistics.fmean(batch.scores) if batch.scores else None
        shown = {"training": training}
        self._progress.update()
        self._progress.set_postfix(
            {name: f"{score:.3f}" for name, score in shown.items() if score is not None}
            | {"experiences": len(library), "calls": self._run.ledger.n_lm_calls}
        )

    # ------------------------------------------------------------------ the end

    def finish(self) -> Any:
        """The student with the library that wins on validation, and `detailed_results` on it.

        With `NoGate`, the last library is returned, whether it is better or not.
        """
        start, ledger = self.start_library, self._run.ledger
        ledger.open_reserve()
        choice = replace(self._choice(), tried=self._decider.tried())
        library = with_prices(choice.library)
        ended_because = self._recorder.ended_because
        self._run.notes.note(library, len(self._recorder.updates), ended_because, choice.demos)
        test = held_out(*self._test(library, choice.run))
        optimized = choice.run.bake(library)
        optimized.detailed_results = self._recorder.results(
            start, library, choice, test, self.settings, ledger
        )
        return optimized

    def _choice(self) -> Choice:
        decision = self._decider.decisions[-1]
        last = self._decider.result_after(decision)
        if self.settings.metric is None or not self._measured.n_examples:
            return Choice(self._run, last)
        if not self.settings.measures:
            return self._unchosen(last)
        n_kept = 2 * self._tested.n_examples
        account, demos = self._decider.accounts[-1], self._demonstrator.demos()
        final = FinalChoice(self._run, self._measured, demos, account, n_kept)
        proposed = proposed_finalists(self.settings.gate, decision)
        if not account.n_rollouts:  # of rollouts made elsewhere none has tried what was learned
            proposed = (*proposed, decision.library)
        libraries = map(self._decider.like_start, proposed)
        choice = final.make(self.start_library, [*libraries], self._decider.scaled(decision))
        if len(choice.finalists) < 2 and last != self.start_library:
            logger.warning(
                "the result could not be measured, so the student is returned: %s; allow more, or "
                "pass a smaller valset",
                self._recorder.ended_because,
            )
        return choice

    def _unchosen(self, last: ExperienceLibrary) -> Choice:
        """The last library, with its scores and the student's on the whole validation set."""
        n, start = self._measured.n_examples, self.start_library
        with suppress(RunStopped):
            pairs = ((library, place) for library in (start, last) for place in range(n))
            self._loop.run(self._measured.run(pairs))
        floor = self._measured.lowest
        before, after = (self._measured.of_library(library, n, floor) for library in (start, last))
        return Choice(self._run, last, before=before, after=after)

    def _test(self, best: ExperienceLibrary, run: RunContext) -> tuple[Scores, Scores]:
        """Student and result on the test set, when everything is chosen; empty: not measured."""
        n = self._tested.n_examples
        if self.settings.metric is None or not n:
            return (), ()
        tested = self._tested if run is self._run else self._tested.beside(run)
        with suppress(RunStopped):
            self._loop.run(self._tested.run((self.start_library, i) for i in range(n)))
            self._loop.run(tested.run((best, i) for i in range(n)))
        floor = min(self._tested.lowest, tested.lowest)
        scores = (
            self._tested.of_library(self.start_library, n, floor),
            tested.of_library(best, n, floor),
        )
        if not all(scores):
            logger.warning("the test set was not measured: %s", self._run.ledger.stopped_because)
        return scores


class Batches:
    """Makes the batches of a run, one after another (`async for`); the first may be a draft.

    Args:
        run: the run.
        epochs: how often each example comes.
        group_size: how many rollouts an example takes, for the budget; 0: they are there already.
    """

    def __init__(self, run: Run, epochs: int, group_size: int) -> None:
        self._run = run
        self._group_size = group_size
        n_examples = run.n_training
        self._size = min(run.settings.batch_size, n_examples)
        self._n_batches = math.ceil(n_examples / self._size)
        self._n_drafts = int(run.settings.drafts > 0)
        self._n_updates = self._n_drafts + epochs * self._n_batches
        self._update = 0
        self._order: list[int] = []

    def __aiter__(self) -> "Batches":
        return self

    async def __anext__(self) -> Batch:
        run, update = self._run, self._update
        if update == 0:
            await run.begin(self._n_updates)
        if update == self._n_updates:
            raise StopAsyncIteration
        last_known = self._last_known(update)
        await run.library_after(last_known)
        decision = run.decision_after(last_known)
        if update < self._n_drafts:
            self._update += 1
            return Batch(update, 0, self._n_updates, (), decision, is_draft=True)
        if reason := run.why_to_end(update, self._n_batches):
            run.end(reason)
            raise StopAsyncIteration
        epoch, index = divmod(update - self._n_drafts, self._n_batches)
        if index == 0:
            self._order = run.order(epoch)
        examples = self._order[index * self._size : (index + 1) * self._size]
        n, limit = run.n_affordable(update, self._group_size)
        if n < len(examples):
            most = getattr(run.settings, limit)
            run.end(f"{limit}={most} is used up: it does not reach for another update")
        if n < 1:
            raise StopAsyncIteration
        examples = examples[: int(min(n, len(examples)))]
        self._update += 1
        return Batch(
            update,
            epoch,
            self._n_updates,
            tuple(examples),
            decision,
            n_rollouts=len(examples) * self._group_size,
        )

    def _last_known(self, update: int) -> int:
        """The update after which the batch of this one is made."""
        last_known = update - 1 - self._run.settings.max_staleness
        if self._n_drafts and update * self._size > WITHOUT_DRAFTS:
            return max(last_known, 0)
        return last_known


def _loop(
    settings: RunSettings, ledger: Ledger, at_end: Callable[[], None]
) -> tuple[Loop, RemoteRollouts | None]:
    """Over threads: new ones, or those of the user's executor; rollouts over its processes."""
    executor, timeout_s = settings.execution.executor, settings.execution.rollout_timeout_s
    if isinstance(executor, ThreadPoolExecutor):
        n_threads = settings.num_threads or workers_of(executor) or settings.threads
        return Loop(ledger, n_threads, timeout_s, executor, at_end), None
    loop = Loop(ledger, settings.threads, timeout_s, at_end=at_end)
    if executor is None:
        return loop, None
    n_at_once = settings.num_threads or workers_of(executor) or settings.threads
    return loop, RemoteRollouts(loop, executor, n_at_once, timeout_s)


def _group_record(group: Group, use: str) -> GroupRecord:
    return GroupRecord(
        group.example,
        tuple(rollout.score for rollout in group.rollouts),
        tuple(r.failure.kind for r in group.all_rollouts if r.failure is not None),
        use,
    )
