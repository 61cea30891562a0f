"""Rollouts of a batch become groups: made or recorded, helped by strategies, rewarded, valued."""

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from dataclasses import replace

from tfgrpo_dspy.calls.paid import Calls
from tfgrpo_dspy.calls.rollouts import Rollouts, Sample
from tfgrpo_dspy.rollout import NO_SCORES, FailureKind, Group, Rollout, rollout_id_for
from tfgrpo_dspy.run.endings import FIRST_ROLLOUTS, N_FIRST, why_unreadable, why_unscored
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.playing import Player
from tfgrpo_dspy.run.strategy_calls import Strategies
from tfgrpo_dspy.run.updates import Batch, is_cut
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.settings.checks import policy_lms
from tfgrpo_dspy.settings.schedule import RunInputs
from tfgrpo_dspy.strategies.base import Attempt, GroupContext

TRAINING_PRIORITY = (3,)  # training rollouts are begun last, those of the earlier update first


class Groups:
    """Makes the groups of one run; `recorded` as in `Run`."""

    def __init__(
        self,
        inputs: RunInputs,
        calls: Calls,
        history: History,
        strategies: Strategies,
        recorded: Sequence[Sequence[Rollout]] | None,
    ) -> None:
        self._inputs, self._settings, self._calls = inputs, inputs.settings, calls
        self._history, self._strategies, self._recorded = history, strategies, recorded
        self._sampler = Rollouts(inputs, calls, "rollout", inputs.examples)
        self._has_first = asyncio.Event()
        self._is_tried = self._is_readable = False

    async def try_out(self, batch: Batch) -> None:
        """Make the first rollouts of the first batch, once, until one works. Raises RunStopped."""
        if self._is_tried:
            return
        self._is_tried = True
        groups = [self._samples(batch, example) for example in batch.examples]
        by_turns = filter(None, itertools.chain(*itertools.zip_longest(*groups)))
        samples = list(itertools.islice(by_turns, FIRST_ROLLOUTS))
        rollouts: list[Rollout] = []
        for wave in filter(None, (samples[:N_FIRST], samples[N_FIRST:])):
            begun = self._sampler.make_early(wave, (*TRAINING_PRIORITY, batch.update))
            if self._calls.reserve.is_tight:  # what they take says what may begin besides
                await asyncio.wait(begun)
            for done in asyncio.as_completed(begun):
                (rollout,) = await done
                if _works(rollout):
                    return
            rollouts += [rollout for task in begun for rollout in await task]
            if why := why_unscored(rollouts):
                self._calls.ledger.fail(why)
        self._check(rollouts)

    def check_readable(self, rollouts: Sequence[Rollout]) -> None:
        """End the run where none of its rollouts so far could be read. Raises RunStopped."""
        if self._recorded is None and not self._is_readable:
            self._check(rollouts)

    def _check(self, rollouts: Sequence[Rollout]) -> None:
        if len(rollouts) >= FIRST_ROLLOUTS:
            if why := why_unreadable(rollouts, policy_lms(self._inputs.student)):
                self._calls.ledger.fail(why)
            self._calls.report.count_without_output(rollouts)
            self._is_readable = True

    def of(self, batch: Batch) -> Sequence[Awaitable[SampledGroup]]:
        """A group for each example of the batch, begun now; rewarded, where strategies do that."""
        spawn, strategies = self._calls.loop.spawn, self._strategies
        make = self._made if self._recorded is None else self._recorded_group
        groups = [spawn(make(batch, example)) for example in batch.examples]
        if not (groups and strategies.overriding("reward")) or self._settings.metric is None:
            return groups
        together = spawn(self._rewarded(batch, groups))

        async def rewarded(place: int) -> SampledGroup:
            return (await together)[place]

        return [spawn(rewarded(place)) for place in range(len(groups))]

    async def _recorded_group(self, batch: Batch, example: int) -> SampledGroup:
        """Rollouts that were made elsewhere, and knew nothing of what this run has learned."""
        recorded = self._recorded or ()
        scores = NO_SCORES.including(r.score for of_example in recorded for r in of_example)
        rollouts = recorded[example]
        group = Group.of(example, rollouts, self._settings.metric is not None, scores)
        additions = (Additions(self._history.start),) * len(rollouts)
        return SampledGroup(group, additions, batch.update)

    def _sample(self, batch: Batch, example: int, k: int, additions: Additions) -> Sample:
        """The sample of rollout `k` of the example's group.

        The first is made as the result will be called, at the program's own temperature: what helps
        at the temperature of the others, which are to differ, may help less there. A gate that
        measures no result has no use for that.
        """
        settings, (_, visit) = self._settings, batch.size_and_visit(example)
        is_as_result = k == 0 and settings.measures
        return Sample(
            additions,
            example,
            rollout_id_for(settings.seed, visit, example, k, "training"),
            temperature=None if is_as_result else settings.temperature,
            asks_predictors=batch.asks_predictors,
        )

    def _samples(self, batch: Batch, example: int) -> list[Sample]:
        """One `Sample` for each rollout of the example."""
        size, _ = batch.size_and_visit(example)
        return [
            self._sample(batch, example, k, additions)
            for k, additions in enumerate(self._history.assigned(batch, example, size))
        ]

    def _extra(
        self, batch: Batch, example: int, attempts: Sequence[Attempt], n: int
    ) -> list[Sample]:
        """One `Sample` for each extra attempt at the example, after `n` rollouts."""
        usual, library = self._settings.temperature, batch.base.decision.result
        samples = []
        for k, attempt in enumerate(attempts, n):
            additions = Additions(library, (), attempt.hint, attempt.teacher)
            sample = self._sample(batch, example, k, additions)
            warmer = usual if isinstance(usual, str) else max(usual, attempt.temperature)
            samples.append(replace(sample, temperature=warmer))
        return samples

    async def _made(self, batch: Batch, example: int) -> SampledGroup:
        """The group, with extra attempts; without rollouts where a limit has ended the training."""
        priority = (*TRAINING_PRIORITY, batch.update)
        samples = self._samples(batch, example)
        sampled = SampledGroup(Group(example, (), ()), (), batch.update)
        rollouts: list[Rollout] = []
        while samples:
            async with self._sampler.paying(samples, is_extra=bool(rollouts)) as is_paid:
                if not is_paid:
                    break
                latest = await self._sampler.make(samples, priority)
            if all(map(is_cut, latest)):
                break
            rollouts += latest
            additions = (*sampled.additions, *(sample.additions for sample in samples))
            has_metric = self._settings.metric is not None
            group = Group.of(example, rollouts, has_metric, batch.base.by_metric)
            sampled = SampledGroup(group, additions, batch.update)
            if not self._strategies.overriding("rescue"):
                break
            attempts = await self._strategies.attempts(self._context(batch, sampled), batch)
            samples = self._extra(batch, example, attempts, len(additions))
        return sampled

    async def shown(self, batch: Batch, sampled: SampledGroup) -> tuple[SampledGroup, str]:
        """The rollouts of the group that the reflection LM compares, and a note on it."""
        if not self._strategies.overriding("show"):
            return sampled, sampled.note
        return await self._strategies.shown(self._context(batch, sampled), batch)

    def _context(self, batch: Batch, sampled: SampledGroup) -> GroupContext:
        """What strategies know of the group."""
        return GroupContext(
            sampled=sampled,
            past=batch.base.groups,
            library=batch.base.decision.result,
            training=self._inputs.training,
            examples=self._inputs.examples,
            shows_labels=self._history.shows_labels,
            group_size=self._settings.group_size,
        )

    async def _rewarded(
        self, batch: Batch, groups: Sequence[Awaitable[SampledGroup]]
    ) -> list[SampledGroup]:
        """The groups with what their rollouts count with; those of the first batch come first."""
        sampled_groups = [await group for group in groups]
        rollouts = [rollout for sampled in sampled_groups for rollout in sampled.group.all_rollouts]
        is_first = batch.update == self._history.plan.n_drafts
        if is_first:
            self._history.first = tuple(r for r in rollouts if r.score is not None)
            self._has_first.set()
        await self._has_first.wait()
        aided = [bool(aid) for sampled in sampled_groups for aid in sampled.aids]
        rewarded = iter(self._strategies.rewarded(rollouts, self._history.first, aided, is_first))
        return [
            replace(
                sampled,
                group=Group.of(
                    sampled.group.example,
                    list(itertools.islice(rewarded, len(sampled.additions))),
                    True,
                    batch.base.score_range,
                ),
                measured=sampled.group,
            )
            for sampled in sampled_groups
        ]

    def credited(
        self, batch: Batch, groups: Sequence[Awaitable[SampledGroup]]
    ) -> Sequence[Awaitable[SampledGroup]]:
        """The groups with the values of their steps, where a strategy gives such."""
        if not self._strategies.overriding("credit"):
            return groups
        return [self._calls.loop.spawn(self._credited(batch, group)) for group in groups]

    async def _credited(self, batch: Batch, group: Awaitable[SampledGroup]) -> SampledGroup:
        sampled = await group
        if not sampled.additions:  # a limit has ended the training
            return sampled
        sampler = self._sampler if self._recorded is None else None
        priority = (*TRAINING_PRIORITY, batch.update)
        _, visit = batch.size_and_visit(sampled.group.example)
        asks, reward, loop = batch.asks_predictors, self._history.reward, self._calls.loop
        player = Player(self._settings, loop, sampler, priority, sampled, visit, asks, reward)
        return await self._strategies.credited(self._context(batch, sampled), batch, player)


def _works(rollout: Rollout) -> bool:
    """Whether the program gave an answer, and the metric did not fail on it."""
    is_refused = rollout.failure is not None and rollout.failure.kind is FailureKind.METRIC
    return not is_refused and not rollout.is_unreadable
