"""Which task runs when: the only place that knows threads.

A `Run` is one run. Its methods are the verbs of `optimizer`'s loop; each gives back what comes of
it.
"""

import logging
import math
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from tfgrpo_dspy.errors import RunFailedError, RunStopped, StoreError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.operations import carry_out
from tfgrpo_dspy.experience.values import Operation, Refusal
from tfgrpo_dspy.results import GroupRecord, UpdateRecord
from tfgrpo_dspy.rollout import Group, Rollout, rollout_id_for
from tfgrpo_dspy.run.asking import ReflectionClient
from tfgrpo_dspy.run.batches import Batch, Extracted, SampledGroup
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.final_choice import finish
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.reflecting import draft_lessons, extract_lessons, propose
from tfgrpo_dspy.run.rollouts import Rollouts, Sample
from tfgrpo_dspy.run.run_report import operation_record
from tfgrpo_dspy.sampling.demos import BestRollouts
from tfgrpo_dspy.settings import RunSettings

logger = logging.getLogger(__name__)

WITHOUT_DRAFTS = 8
"""How many examples are sampled at most before the drafts are decided: more would mostly teach what
the drafts say."""
TRAINING_PRIORITY = (3,)
"""Training rollouts are begun last, those of the earlier update first."""


class Run:
    """One run over a student and its data.

    Args:
        settings: with everything derived.
        student: the user's program; it is not changed.
        trainset: all examples.
        training: the positions of those to train on.
        valset, testset: what the result is chosen on, and what it is measured on in the end.
        recorded: rollouts that were made elsewhere, for each example; None: the run makes them.
    """

    def __init__(
        self,
        settings: RunSettings,
        student: Any,
        trainset: Sequence[Any],
        training: Sequence[int],
        valset: Sequence[Any],
        testset: Sequence[Any] = (),
        recorded: Sequence[Sequence[Rollout]] | None = None,
    ) -> None:
        self.settings = settings
        self._run = RunContext.of(settings, student, trainset)
        self._training = training
        self._valset, self._testset = valset, testset
        self._recorded = recorded
        self._client = ReflectionClient(self._run)
        self._sampler = Rollouts(self._run, "rollout", trainset, settings.temperature)
        start = ExperienceLibrary.from_program(student)
        self._history = History(self._run, start, training, len(testset))
        self._best_rollouts = BestRollouts()
        self._updates: list[Awaitable[ExperienceLibrary]] = []
        self._progress: Any = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        """What is in flight is dropped, not waited for; every later call of it is refused."""
        self._run.ledger.stop("the run is over")
        try:
            self._run.manifest.close()
        except StoreError as error:  # what is recorded is intact, and the result is not lost to it
            logger.warning("what this run has paid could not be noted: %s", error)
        self._run.records.close()
        if self._progress is not None:
            self._progress.close()

    # ------------------------------------------------------------------ beginning and end

    def run(self, loop: Coroutine[Any, Any, None]) -> Any:
        """Run the loop, which a budget or the clock may end at any point; then `finish`.

        Raises:
            RunFailedError, StoreError: failures, or the run store, ended it; the best program so
                far is on the error.
        """
        run = self._run
        try:
            with self._until_stopped():
                run.loop.run(loop)
                if run.ledger.is_failure:  # the loop may end with the results that end the run
                    run.ledger.check()
            return self.finish()
        except StoreError as error:
            if run.report.updates and not self.settings.offline:
                run.records.store = None  # the rest is not recorded
                error.program = self.finish()
            raise

    @contextmanager
    def _until_stopped(self) -> Iterator[None]:
        ledger = self._run.ledger
        try:
            yield
        except RunStopped:
            self._run.report.ended_because = ledger.stopped_because
            if not ledger.is_failure:
                logger.info("the run ends: %s", ledger.stopped_because)
                return
            failed = RunFailedError(
                f"The run was ended by failures: {ledger.stopped_because}. What was finished is "
                f"kept in log_dir, if there is one; `.program` of this error is the best so far."
            )
            failed.program = self.finish()
            raise failed from None

    # ------------------------------------------------------------------ batches

    async def batches(self) -> AsyncIterator[Batch]:
        """Epochs times shuffled batches, each when its library is there; a draft may be first.

        Ends early when a budget does not reach for the next batch, or where an epoch's worth of
        batches could teach nothing.
        """
        settings, history = self.settings, self._history
        size = min(settings.batch_size, len(self._training))
        n_batches = math.ceil(len(self._training) / size)
        n_drafts = int(settings.drafts > 0)
        epochs, group_size = settings.epochs, settings.group_size
        if self._recorded is not None:
            epochs, group_size = 1, 0
        self._begin(n_drafts + epochs * n_batches)
        for update in range(n_drafts + epochs * n_batches):
            last_known = update - 1 - settings.max_staleness
            if n_drafts and update * size > WITHOUT_DRAFTS:
                last_known = max(last_known, 0)
            await self._library_after(last_known)
            decision = history.decisions[max(0, last_known + 1)]
            if update < n_drafts:
                yield Batch(update, 0, (), decision, is_draft=True)
                continue
            if reason := history.why_to_end(update, n_batches):
                self._run.report.ended_because = reason
                return
            epoch, index = divmod(update - n_drafts, n_batches)
            examples = self._order(epoch)[index * size : (index + 1) * size]
            n, limit = history.n_affordable(update, group_size)
            if n < len(examples):
                most = getattr(settings, limit)
                reason = f"{limit}={most} is used up: it does not reach for another update"
                self._run.report.ended_because = reason
            if n < 1:
                return
            yield Batch(update, epoch, tuple(examples[: int(min(n, size))]), decision)

    def _begin(self, n_updates: int) -> None:
        run = self._run
        run.manifest.begin(run.student, run.trainset, self._training, self._valset)
        self._progress = tqdm(
            total=n_updates,
            desc="Training-Free GRPO",
            unit="update",
            disable=not self.settings.progress,
        )
        self._history.set_reserve()

    def _order(self, epoch: int) -> list[int]:
        """The training examples as this epoch goes through them."""
        order = list(self._training)
        random.Random(f"{self.settings.seed}/{epoch}").shuffle(order)
        return order

    async def _library_after(self, update: int) -> ExperienceLibrary:
        """The library when this update is decided; before the first, the student's."""
        return await self._updates[update] if update >= 0 else self._history.start

    # ------------------------------------------------------------------ the verbs of an update

    def begin(self, batch: Batch, update: Coroutine[Any, Any, ExperienceLibrary]) -> None:
        """Begin what gives the library after this batch."""
        self._history.batches.append(batch)
        self._updates.append(self._run.loop.spawn(update))

    def sample(self, batch: Batch) -> list[Awaitable[SampledGroup]]:
        """The groups of the batch: `group_size` rollouts of each example with its library."""
        if self._recorded is not None:
            return [self._run.loop.spawn(self._given(example)) for example in batch.examples]
        self._sampler.admit(len(batch.examples) * self.settings.group_size)
        return [self._run.loop.spawn(self._sampled(batch, index)) for index in batch.examples]

    async def _given(self, example: int) -> SampledGroup:
        """A group of rollouts that were made elsewhere, without what this run has learned."""
        rollouts = (self._recorded or ())[example]
        group = Group.of(example, rollouts, self.settings.metric is not None)
        return SampledGroup(group, (self._history.start,) * len(rollouts))

    async def _sampled(self, batch: Batch, example: int) -> SampledGroup:
        samples = self._samples(batch, example)
        priority = (*TRAINING_PRIORITY, batch.update)
        rollouts = await self._sampler.make(samples, priority)
        group = Group.of(example, rollouts, self.settings.metric is not None)
        return SampledGroup(group, tuple(sample.library for sample in samples))

    def _samples(self, batch: Batch, example: int) -> list[Sample]:
        seed, epoch = self.settings.seed, batch.epoch
        return [
            Sample(library, example, rollout_id_for(seed, epoch, example, index, "training"))
            for index, library in enumerate(self._history.assigned(batch, example))
        ]

    async def draft(self, batch: Batch) -> Extracted:
        """The lessons of the labels alone."""
        return await draft_lessons(self._client, batch, self._training)

    async def extract(self, batch: Batch, groups: Sequence[Awaitable[SampledGroup]]) -> Extracted:
        """The lessons of the groups that can teach, each drawn as soon as its group is there."""
        return await extract_lessons(self._client, batch, groups, self._history.best_score(batch))

    async def propose(self, batch: Batch, extracted: Extracted) -> list[Operation | Refusal]:
        """The operations that the lessons call for, once the update before is decided.

        Those that the library does not take come as refusals.
        """
        library = await self._library_after(batch.update - 1)
        operations, refused = await propose(
            self._client, batch, library, extracted.lessons, self._history.dropped()
        )
        _, taken, refusals = carry_out(
            operations, library, library.next_number, self.settings.limits
        )
        return [*taken, *refused, *refusals]

    async def decide(
        self, batch: Batch, extracted: Extracted, proposed: Sequence[Operation | Refusal]
    ) -> ExperienceLibrary:
        """The library after the gate has decided on the operations."""
        history, before = self._history, self._history.last.library
        is_paid = self._recorded is None
        if is_paid:
            self._sampler.settle(extracted.rollouts)
        if self.settings.max_demos:
            for sampled in extracted.groups:
                self._best_rollouts.add(sampled.group)
        operations = [op for op in proposed if not isinstance(op, Refusal)]
        decision = history.decide(batch, extracted, operations, is_paid)
        record = UpdateRecord(
            update=batch.update,
            epoch=batch.epoch,
            groups=tuple(map(_group_record, extracted.groups, extracted.uses)),
            lessons=tuple(lesson.text for lesson in extracted.lessons),
            refused_lessons=extracted.refused,
            operations=tuple(map(operation_record, proposed)),
            accepted=list(decision.library) != list(before),
            reason=decision.reason,
            dropped=dict(decision.dropped),
            library_size=len(decision.library),
        )
        self._run.report.add_update(record)
        self._show(record)
        self._run.manifest.note(history.result(), "")
        return decision.library

    def _show(self, record: UpdateRecord) -> None:
        scores = [s for group in record.groups for s in group.scores if s is not None]
        shown: dict[str, Any] = {"training": f"{statistics.fmean(scores):.3f}"} if scores else {}
        n_calls = self._run.ledger.n_lm_calls
        self._progress.update()
        self._progress.set_postfix({**shown, "experiences": record.library_size, "calls": n_calls})

    async def all_updates(self) -> None:
        """Wait until every update is decided."""
        for update in self._updates:
            await update

    # ------------------------------------------------------------------ the end

    def finish(self) -> Any:
        """The student with the library that wins on validation, and `detailed_results` on it.

        With `NoGate`, the last library is returned, whether it is better or not.
        """
        run = self._run
        demos = self._best_rollouts.demos(
            run.student, self.settings.max_demos, lambda i: run.trainset[i] not in self._valset
        )
        return finish(run, self._history, self._valset, self._testset, demos)


def _group_record(sampled: SampledGroup, use: str) -> GroupRecord:
    group = sampled.group
    return GroupRecord(
        group.example,
        tuple(rollout.score for rollout in group.rollouts),
        tuple(r.failure.kind for r in group.all_rollouts if r.failure is not None),
        use,
    )
