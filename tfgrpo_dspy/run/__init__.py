"""Which task runs when: the only place that knows threads.

A `Run` is one run. Its methods are the verbs of `optimizer`'s loop; each returns its result.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.errors import RunFailedError, RunStopped, StoreError, sentence
from tfgrpo_dspy.events import Proposal
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Operation, Refusal, carry_out
from tfgrpo_dspy.rollout import FailureKind, Group, Rollout, rollout_id_for
from tfgrpo_dspy.run.approval import approved
from tfgrpo_dspy.run.asking import ReflectionClient
from tfgrpo_dspy.run.batches import Batch, Extracted
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.continuing import continued
from tfgrpo_dspy.run.dead_ends import FIRST_ROLLOUTS, why_unreadable, why_useless
from tfgrpo_dspy.run.final_choice import finish, unmeasured
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.play import Player, Turn, Turns
from tfgrpo_dspy.run.records import RunRecords
from tfgrpo_dspy.run.reflecting import (
    draft_lessons,
    extract_lessons,
    guard_of_update,
    propose,
)
from tfgrpo_dspy.run.rollouts import Rollouts, Sample
from tfgrpo_dspy.run.strategies import Strategies
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.scores import NO_SCORES
from tfgrpo_dspy.settings.checks import policy_lms
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.strategies.base import GroupContext

logger = logging.getLogger(__name__)

N_FIRST = 3  # rollouts that show whether the metric works at all
TRAINING_PRIORITY = (3,)  # training rollouts are begun last, those of the earlier update first


class Run:
    """One run over a student and its data, which trains on the examples at these positions.

    `recorded` are rollouts that were made elsewhere, for each example; None: the run makes them.
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
        records = RunRecords(settings, student, [*trainset, *valset, *testset])
        self._recorded = recorded and [[*map(records.cleaned, group)] for group in recorded]
        sets = {"training": [trainset[i] for i in training], "validation": valset}
        self.settings = settings = continued(records, settings, student, sets, self._recorded)
        self._run = RunContext(settings, student, trainset, records)
        self._training = training
        self._valset, self._testset = valset, testset
        self._client = ReflectionClient(self._run)
        self._sampler = Rollouts(self._run, "rollout", trainset, settings.temperature)
        start = ExperienceLibrary.from_program(student)
        self._strategies = Strategies(self._client)
        args = (start, training, recorded is not None)
        self._history = History(self._run, self._strategies, *args)
        self._is_readable, self._turns = False, Turns()
        self._updates: list[Awaitable[ExperienceLibrary]] = []
        self._opened: asyncio.Future[None]
        self._first: asyncio.Future[None]

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        """What is in flight is dropped, not waited for; every later call of it is refused."""
        self._run.ledger.stop("the run is over")
        try:
            self._run.manifest.close(self._run.report.unfinished)
        except StoreError as error:  # what is recorded is intact, and the result is not lost to it
            logger.warning("what this run has paid could not be noted: %s", error)
        self._run.records.close()
        self._run.report.close()

    def run(self, loop: Coroutine[Any, Any, None]) -> Any:
        """Run the loop, which a budget or the clock may end at any point; then choose the result.

        Raises RunFailedError, StoreError, KeyboardInterrupt: they ended it, and hold the best
        program so far.
        """
        run = self._run
        try:
            try:
                run.loop.run(loop)
                if run.ledger.is_failure:  # the loop may end with the results that end the run
                    run.ledger.check()
                if run.ledger.cut_because:
                    run.report.ended_because = run.ledger.cut_because
            except RunStopped:
                run.report.ended_because = run.ledger.stopped_because
                logger.info("the run ends: %s", run.ledger.stopped_because)
            program = finish(run, self._history, self._valset, self._testset)
        except StoreError as error:
            if run.report.updates and not self.settings.offline:
                run.records.store = None  # the rest is not recorded
                error.program = finish(run, self._history, self._valset, self._testset)
            raise
        except BaseException as error:  # an interrupt, or what nobody has thought of
            vars(error)["program"] = unmeasured(run, self._history)
            raise
        if run.ledger.is_failure:  # before or during the final choice
            failed = RunFailedError(
                f"The run was ended by failures: {sentence(run.ledger.stopped_because)} What was "
                f"finished is kept in log_dir, if there is one; `.program` of this error is the "
                f"best so far."
            )
            failed.program = program
            raise failed
        return program

    async def batches(self) -> AsyncIterator[Batch]:
        """Epochs times shuffled batches, each when its library is there; a draft may be first.

        Ends early when a budget does not reach for the next batch, or where an epoch's worth of
        batches could teach nothing.
        """
        history, run = self._history, self._run
        run.manifest.begin(run.student)
        self._opened = asyncio.get_running_loop().create_future()
        self._first = asyncio.get_running_loop().create_future()
        if self._recorded is not None:
            self._open()
        for update in range(history.n_updates):
            is_first = update == history.n_drafts
            if n_awaited := history.n_awaited(update):
                if is_first:  # its rollouts need the drafts, which cannot wait for them
                    self._open()
                await self._updates[n_awaited - 1]
                if is_first:
                    self._opened = asyncio.get_running_loop().create_future()
            batch = history.batch(update)
            if batch is None:
                if is_first:
                    self._open()  # there will be no rollouts
                return
            yield batch

    def _open(self) -> None:
        """Let everything begin that waits for the first rollouts."""
        if not self._opened.done():
            self._opened.set_result(None)

    def begin(self, batch: Batch, update: Coroutine[Any, Any, ExperienceLibrary]) -> None:
        """Begin what gives the library after this batch."""
        self._history.batches.append(batch)
        self._updates.append(self._run.loop.spawn(update))

    def sample(self, batch: Batch) -> Sequence[Awaitable[SampledGroup]]:
        """The groups of the batch: `group_size` rollouts of each example with its library."""
        spawn = self._run.loop.spawn
        if self._recorded is not None:
            made = [spawn(self._recorded_group(batch, example)) for example in batch.examples]
            return self._rewarded(batch, made)
        groups = [self._samples(batch, example) for example in batch.examples]
        if batch.update == self._history.n_drafts:
            by_turns = filter(None, itertools.chain(*itertools.zip_longest(*groups)))
            spawn(self._first_rollouts(list(itertools.islice(by_turns, FIRST_ROLLOUTS)), batch))
        return self._rewarded(batch, [spawn(self._group(batch, samples)) for samples in groups])

    async def _recorded_group(self, batch: Batch, example: int) -> SampledGroup:
        """Rollouts that were made elsewhere, and knew nothing of what this run has learned."""
        rollouts = (self._recorded or ())[example]
        every = (r.score for of_example in self._recorded or () for r in of_example)
        known = NO_SCORES.including(every)
        group = Group.of(example, rollouts, self.settings.metric is not None, known)
        given = (Additions(self._history.start),) * len(rollouts)
        return SampledGroup(group, given, batch.update)

    def _samples(
        self, batch: Batch, example: int, given: Sequence[Additions] = (), start: int = 0
    ) -> list[Sample]:
        """The samples of an example; or its extra ones, which are given these."""
        size, visit = batch.size_and_visit(example)
        given = given or self._history.assigned(batch, example, size)
        return [
            Sample(each, example, id_, asks_predictors=batch.asks_predictors)
            for k, each in enumerate(given, start)
            for id_ in [rollout_id_for(self.settings.seed, visit, example, k, "training")]
        ]

    async def _first_rollouts(self, samples: Sequence[Sample], batch: Batch) -> None:
        """Begin the first rollouts of the run before anything else is paid for.

        The rest begins with the first of them that can be read and that the metric does not fail
        on. If the metric fails on all of the first three, or none of the first ten can be read, the
        run ends: it cannot work.
        """
        priority, made = (*TRAINING_PRIORITY, batch.update), []
        for wave in filter(None, (samples[:N_FIRST], samples[N_FIRST:])):
            begun = self._sampler.make_early(wave, priority)
            if self._run.reserve.is_tight:  # what they take says what may begin besides
                await asyncio.wait(begun)
            for done in asyncio.as_completed(begun):
                (rollout,) = await done
                kind = rollout.failure and rollout.failure.kind
                if kind is not FailureKind.METRIC and not rollout.is_unreadable:
                    self._open()
                    return
            made += [rollout for task in begun for rollout in await task]
            failures = [rollout.failure for rollout in made if rollout.failure]
            messages = [f.message for f in failures if f.kind is FailureKind.METRIC]
            if len(messages) == len(made):
                what = f"the metric gave no score to any of the first {len(made)} rollouts"
                self._run.fail(f"{what}: {min(messages)}")
        self._check_readable(made)
        self._open()

    def _check_readable(self, made: Sequence[Rollout]) -> None:
        """End the run where none of its first rollouts could be read. Raises RunStopped."""
        if len(made) >= FIRST_ROLLOUTS:
            if why := why_unreadable(made, policy_lms(self._run.student)):
                self._run.fail(why)
            self._is_readable = True

    async def _group(self, batch: Batch, samples: list[Sample]) -> SampledGroup:
        """The group, with extra attempts; without rollouts where a limit has ended the training."""
        await self._opened
        example, priority = samples[0].example, (*TRAINING_PRIORITY, batch.update)
        sampled = SampledGroup(Group(example, (), ()), (), batch.update)
        rollouts: list[Rollout] = []
        while samples:
            n = self._sampler.n_missing(samples)
            planned = None if rollouts else batch.planned
            async with self._run.reserve.paying(n, planned) as is_paid:
                if not is_paid:
                    break
                rollouts += await self._sampler.make(samples, priority)
            given = (*sampled.given, *(sample.given for sample in samples))
            has_metric = self.settings.metric is not None
            group = Group.of(example, rollouts, has_metric, batch.measured)
            sampled = SampledGroup(group, given, batch.update)
            attempts = await self._strategies.attempts(self._context(batch, sampled), batch)
            more = [Additions(batch.decision.result, (), a.hint, a.teacher) for a in attempts]
            samples = self._samples(batch, example, more, len(given)) if more else []
        return sampled

    def _context(self, batch: Batch, sampled: SampledGroup) -> GroupContext:
        known = self._history.groups_before(self._history.n_awaited(batch.update))
        data = tuple(self._training), self._run.trainset, self._history.shows_labels
        return GroupContext(sampled, known, batch.decision.result, *data)

    def _rewarded(
        self, batch: Batch, groups: Sequence[Awaitable[SampledGroup]]
    ) -> Sequence[Awaitable[SampledGroup]]:
        """The groups with what their rollouts count with, which is known when all are made."""
        if not self._strategies.overriding("reward") or self.settings.metric is None:
            return groups
        spawn = self._run.loop.spawn
        together = spawn(self._rewarded_together(batch, groups))

        async def one(place: int) -> SampledGroup:
            return (await together)[place]

        return [spawn(one(place)) for place in range(len(groups))]

    async def _rewarded_together(
        self, batch: Batch, groups: Sequence[Awaitable[SampledGroup]]
    ) -> list[SampledGroup]:
        made = [await group for group in groups]
        rollouts = [rollout for each in made for rollout in each.group.all_rollouts]
        is_first = batch.update == self._history.n_drafts
        if is_first:
            self._history.first = tuple(r for r in rollouts if r.score is not None)
            self._first.set_result(None)
        await self._first
        aided = [bool(aid) for each in made for aid in each.aids]
        first = self._history.first
        rewarded = iter(self._strategies.rewarded(rollouts, first, aided, is_first))
        return [
            replace(each, group=group, measured=each.group)
            for each in made
            for of_group in [list(itertools.islice(rewarded, len(each.given)))]
            for group in [Group.of(each.group.example, of_group, True, batch.known)]
        ]

    async def draft(self, batch: Batch) -> Extracted:
        """The lessons of the labels alone, unless the first rollouts wait for them."""
        await self._opened
        context = self._history.context(batch, Extracted((), ()))
        note = (await self._strategies.proposed(context, batch)).note
        return await draft_lessons(self._client, batch, self._training, note)

    async def extract(self, batch: Batch, groups: Sequence[Awaitable[SampledGroup]]) -> Extracted:
        """The lessons of the groups that can teach, which share calls of the reflection LM."""

        async def show(sampled: SampledGroup) -> tuple[SampledGroup, str]:
            return await self._strategies.shown(self._context(batch, sampled), batch)

        if self._strategies.overriding("credit"):
            own = [self._credited(batch, group, self._turns.next()) for group in groups]
            groups = [self._run.loop.spawn(each) for each in own]
        return await extract_lessons(self._client, batch, groups, show)

    async def _credited(
        self, batch: Batch, group: Awaitable[SampledGroup], turn: Turn
    ) -> SampledGroup:
        """The group with the values of its steps."""
        sampled = await group
        sampler = self._sampler if self._recorded is None else None
        priority = (*TRAINING_PRIORITY, batch.update)
        player = Player(self._run, sampler, priority, batch, sampled, self._history.reward, turn)
        try:
            if not sampled.given:  # a limit has ended the training
                return sampled
            return await self._strategies.credited(self._context(batch, sampled), batch, player)
        finally:
            turn.pass_on()

    async def propose(self, batch: Batch, extracted: Extracted) -> list[Operation | Refusal]:
        """The operations that lessons call for, after the update before; also those refused."""
        if batch.update:
            await self._updates[batch.update - 1]
        if self._is_cut(batch, extracted):
            return []
        library, dropped = self._history.last.library, self._history.dropped()
        context = self._history.context(batch, extracted)
        proposed = await self._strategies.proposed(context, batch)
        lessons, added = proposed.lessons, proposed.operations
        shown = replace(extracted, lessons=tuple(lessons))
        guard = guard_of_update(self._run, batch, shown, added)
        given = batch, library, lessons, dropped, added, guard
        operations, refused = await propose(self._client, *given)
        limits = self.settings.limits
        _, taken, refusals = carry_out(operations, library, library.next_number, limits)
        compared = self._history.changes.compared(taken, extracted)
        proposal = Proposal(batch.update, library, tuple(taken), compared)
        taken, rejected = await approved(self._run, proposal, guard)
        return [*taken, *refused, *refusals, *rejected]

    async def decide(
        self, batch: Batch, extracted: Extracted, proposed: Sequence[Operation | Refusal]
    ) -> ExperienceLibrary:
        """The library after the gate has decided on the operations."""
        if self._is_cut(batch, extracted):
            return self._history.last.library
        library = self._history.decide(batch, extracted, proposed)
        if self._recorded is None and not self._is_readable:
            self._check_readable(self._history.rollouts)
        self._check_answers(batch)
        return library

    def _is_cut(self, batch: Batch, extracted: Extracted) -> bool:
        """Whether a limit ended the training before any rollout of the batch was made."""
        return not (batch.is_draft or extracted.groups) and bool(self._run.ledger.cut_because)

    def _check_answers(self, batch: Batch) -> None:
        """End the training where the reflection LM is of no use, and go on to the final choice.

        Drafts alone say too little of that. Raises RunStopped.
        """
        answers = self._client.answers
        is_new = not batch.is_draft and batch.update in answers
        if is_new and (why := why_useless(answers, self.settings.reflection_lm)):
            logger.warning("no more is learned: %s", why)
            self._run.ledger.stop(why)
            self._run.ledger.check()

    async def all_updates(self) -> None:
        """Wait until every update is decided."""
        for update in self._updates:
            await update
