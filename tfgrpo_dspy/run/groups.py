"""Rollouts of a batch become groups: made or recorded, helped by strategies, rewarded, valued."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from tfgrpo_dspy.calls.paid import Calls, Rollouts, Sample
from tfgrpo_dspy.rollout import NO_SCORES, FailureKind, Group, Rollout, rollout_id_for
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.planning import FIRST_ROLLOUTS, N_FIRST, why_unreadable, why_unscored
from tfgrpo_dspy.run.strategy_calls import Player, Strategies
from tfgrpo_dspy.run.updates import Batch, is_cut
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.settings.checks import policy_lms
from tfgrpo_dspy.settings.schedule import RunInputs
from tfgrpo_dspy.strategies.base import Attempt, GroupContext
from tfgrpo_dspy.tasks.pool import Priority

Waited = Callable[[], SampledGroup]
"""A group that is begun; called, it waits for it."""


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
        self._has_first = self._is_tried = self._is_readable = False

    def try_out(self, batch: Batch) -> None:
        """Make the first rollouts of the first batch, once, until one works. Raises RunStopped."""
        if self._is_tried or self._recorded is not None:
            return
        self._is_tried = True
        groups = self._calls.pool.call(lambda: self._samples(batch))
        by_turns = filter(None, itertools.chain(*itertools.zip_longest(*groups)))
        samples = list(itertools.islice(by_turns, FIRST_ROLLOUTS))
        rollouts: list[Rollout] = []
        for wave in filter(None, (samples[:N_FIRST], samples[N_FIRST:])):
            begun = [self._sampler.begin(each, self._priority(batch)) for each in wave]
            if self._calls.is_tight:  # what they take says what may begin besides
                self._calls.pool.until(lambda: all(job.is_done for job in begun))  # noqa: B023
            for rollout in self._calls.pool.as_done(begun):
                if _works(rollout):
                    return
            rollouts += [job.result() for job in begun]
            if why := why_unscored(rollouts):
                self._calls.ledger.fail(why)
        self._check(rollouts)

    @staticmethod
    def _priority(batch: Batch) -> Priority:
        """Training rollouts are begun last, those of the earlier update first."""
        return 3, batch.update

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

    def of(self, batch: Batch) -> Sequence[Waited]:
        """A group for each example of the batch, begun now; what is given waits for it.

        They are rewarded and credited, where strategies do that.
        """
        beside, overriding = self._calls.pool.beside, self._strategies.overriding
        groups: list[Waited]
        if self._recorded is None:
            samples = self._calls.pool.call(lambda: self._samples(batch))
            groups = [functools.cache(self._begun(batch, each)) for each in samples]
        else:
            groups = [functools.partial(self._recorded_group, batch, e) for e in batch.examples]
        rewards = bool(overriding("reward")) and self._settings.metric is not None
        if rewards or overriding("rescue") or overriding("credit"):
            groups = [beside(group) for group in groups]
        if rewards and groups:
            together = beside(functools.partial(self._rewarded, batch, groups))
            groups = [lambda k=k: together()[k] for k in range(len(groups))]  # type: ignore[misc]
        if overriding("credit"):
            groups = [beside(functools.partial(self._credited, batch, each)) for each in groups]
        return groups

    def _recorded_group(self, batch: Batch, example: int) -> SampledGroup:
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

    def _samples(self, batch: Batch) -> list[list[Sample]]:
        """For each example, one `Sample` for each of its rollouts."""
        return [
            [
                self._sample(batch, example, k, additions)
                for k, additions in enumerate(self._history.assigned(batch, example, size))
            ]
            for example, size in zip(batch.examples, batch.sizes, strict=True)
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

    def _begun(self, batch: Batch, samples: Sequence[Sample]) -> Callable[[], SampledGroup]:
        """Begin these rollouts; what is given waits for their group, with extra attempts.

        It is without rollouts where a limit has ended the training.
        """
        begin, result = self._sampler.begin, self._calls.pool.result
        jobs = [begin(sample, self._priority(batch)) for sample in samples]

        def gathered() -> SampledGroup:
            every, latest = list(samples), [result(job) for job in jobs]
            sampled = SampledGroup(Group(samples[0].example, (), ()), (), batch.update)
            rollouts: list[Rollout] = []
            while not all(map(is_cut, latest)):
                rollouts += latest
                has_metric, scores = self._settings.metric is not None, batch.base.by_metric
                group = Group.of(samples[0].example, rollouts, has_metric, scores)
                additions = tuple(sample.additions for sample in every)
                sampled = SampledGroup(group, additions, batch.update)
                if not self._strategies.overriding("rescue"):
                    break
                attempts = self._strategies.attempts(self._context(batch, sampled), batch)
                extra = self._extra(batch, group.example, attempts, len(every))
                more = self._sampler.begin_extra(extra, self._priority(batch)) if extra else None
                if more is None:
                    break
                every, latest = [*every, *extra], [result(job) for job in more]
            return sampled

        return gathered

    def shown(self, batch: Batch, sampled: SampledGroup) -> tuple[SampledGroup, str]:
        """The rollouts of the group that the reflection LM compares, and a note on it."""
        if not self._strategies.overriding("show"):
            return sampled, sampled.note
        return self._strategies.shown(self._context(batch, sampled), batch)

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

    def _rewarded(self, batch: Batch, groups: Sequence[Waited]) -> list[SampledGroup]:
        """The groups with what their rollouts count with; those of the first batch come first."""
        sampled_groups = [group() for group in groups]
        rollouts = [rollout for sampled in sampled_groups for rollout in sampled.group.all_rollouts]
        is_first = batch.update == self._history.plan.n_drafts
        if is_first:
            self._history.first = tuple(r for r in rollouts if r.score is not None)
            self._has_first = True
            self._calls.pool.wake()
        self._calls.pool.until(lambda: self._has_first)
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

    def _credited(self, batch: Batch, group: Waited) -> SampledGroup:
        """The group with the values of its steps, where a strategy gives such."""
        sampled = group()
        if not sampled.additions:  # a limit has ended the training
            return sampled
        sampler = self._sampler if self._recorded is None else None
        _, visit = batch.size_and_visit(sampled.group.example)
        asks, reward, pool = batch.asks_predictors, self._history.reward, self._calls.pool
        priority = self._priority(batch)
        player = Player(self._settings, pool, sampler, priority, sampled, visit, asks, reward)
        return self._strategies.credited(self._context(batch, sampled), batch, player)


def _works(rollout: Rollout) -> bool:
    """Whether the program gave an answer, and the metric did not fail on it."""
    is_refused = rollout.failure is not None and rollout.failure.kind is FailureKind.METRIC
    return not is_refused and not rollout.is_unreadable
