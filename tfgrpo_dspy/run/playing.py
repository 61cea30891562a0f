"""Rollouts that go on from a step of another one, for the strategies that value steps."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

from tfgrpo_dspy.calls.rollouts import NO_MORE, Rollouts, Sample
from tfgrpo_dspy.errors import NotReplayedError, StrategyError, UnpaidError
from tfgrpo_dspy.identity import digest
from tfgrpo_dspy.rollout import FailureKind, Group, Rollout, rollout_id_for
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.sampling.one_rollout import Start, checks
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.tasks.pool import Job, Pool, Priority


class Player:
    """`strategies.base.Play` for one group; it verifies first that a rollout can be replayed."""

    def __init__(
        self,
        settings: RunSettings,
        pool: Pool,
        sampler: Rollouts | None,  # None if the group comes from traces: it gets no more rollouts
        priority: Priority,
        sampled: SampledGroup,
        visit: int,  # how many batches had its example before
        asks_predictors: bool,
        reward: Callable[[Sequence[Rollout]], list[Rollout]],  # with what they count with
    ) -> None:
        self._settings, self._pool = settings, pool
        self._sampler, self._priority = sampler, priority
        self._group, self._reward = sampled.group, reward
        self._visit, self._asks_predictors = visit, asks_predictors
        ids = [rollout.rollout_id for rollout in sampled.group.all_rollouts]
        self._additions = dict(zip(ids, sampled.additions, strict=True))
        self._made: dict[int, Rollout] = {}

    def __call__(
        self,
        rollout: Rollout,
        n_steps: int,
        n: int = 1,
        *,
        answers_now: bool = False,
        ends_if_same: bool = False,
    ) -> list[Rollout]:
        """The first `n` rollouts that go on from there. Raises NotReplayedError, UnpaidError."""
        most = len(rollout.steps) - (not answers_now)
        if rollout.rollout_id not in self._additions or not 0 <= n_steps <= most or n < 1:
            raise StrategyError(
                f"play(rollout {rollout.rollout_id}, n_steps={n_steps}, n={n}): pass a rollout of "
                f"the group, or one that play gave; from 0 to {most} steps; n from 1."
            )
        if self._sampler is None:
            raise NotReplayedError(f"example {self._group.example}: rollouts were made elsewhere")
        for k, check in enumerate([] if answers_now else checks(rollout)):
            failure = self._pool.result(self._begun(check, k)).failure
            if failure is not None and not failure.kind.is_programs_own:  # or nobody knows
                raise NotReplayedError(failure.message)
        start = Start(rollout, n_steps, answers_now, ends_if_same)
        samples = [self._sample(start, k) for k in range(n)]
        jobs = self._sampler.begin_extra(samples, self._priority)
        if jobs is None:
            raise UnpaidError(f"example {self._group.example}: {NO_MORE.message}")
        rollouts = [self._pool.result(job) for job in jobs]
        self._made |= {each.rollout_id: each for each in rollouts}
        for each in rollouts:
            if each.failure is not None and each.failure.kind is FailureKind.REPLAY:
                raise NotReplayedError(each.failure.message)
        if self._settings.metric is None:
            return [each for each in rollouts if each.counts]
        score_range = self._group.score_range.including(self._group.scores)
        rewarded = self._reward(rollouts)
        return list(Group.of(self._group.example, rewarded, True, score_range).rollouts)

    def _begun(self, start: Start, index: int) -> Job[Rollout]:
        assert self._sampler is not None  # noqa: S101 - `__call__` has looked
        return self._sampler.begin(self._sample(start, index), self._priority)

    def _sample(self, start: Start, index: int) -> Sample:
        example, source = self._group.example, start.source
        steps = [asdict(replace(s, value=None)) for s in source.steps[: start.n_steps]]
        kind = f"{start.answers_now:d}{start.ends_if_same:d}{start.is_check:d}"
        purpose = f"from/{source.rollout_id}/{kind}/{digest(steps)}"
        rollout_id = rollout_id_for(self._settings.seed, self._visit, example, index, purpose)
        additions = self._additions[rollout_id] = self._additions[source.rollout_id]
        temperature, asks = self._settings.temperature, self._asks_predictors
        return Sample(additions, example, rollout_id, temperature, start, asks)

    def with_beside(self, sampled: SampledGroup, beside: Iterable[Rollout]) -> SampledGroup:
        """The group with further rollouts. Raises StrategyError: one of them was not made here."""
        for rollout in beside:
            if rollout.rollout_id not in self._made:
                raise StrategyError(
                    f"beside={rollout!r:.200}: pass only rollouts that `play` gave."
                )
            if rollout.rollout_id not in {each.rollout_id for each in sampled.group.all_rollouts}:
                sampled = replace(
                    sampled,
                    group=_with(sampled.group, rollout),
                    additions=(*sampled.additions, self._additions[rollout.rollout_id]),
                    measured=sampled.measured and _with(sampled.measured, rollout),
                )
        return sampled

    def others(self, group: Group) -> tuple[Rollout, ...]:
        """The rollouts that were made here, and are not in the group."""
        ids = {rollout.rollout_id for rollout in group.all_rollouts}
        return tuple(rollout for id_, rollout in sorted(self._made.items()) if id_ not in ids)


def _with(group: Group, rollout: Rollout) -> Group:
    every = (*group.all_rollouts, rollout)
    return Group(group.example, (*group.rollouts, rollout), every, group.score_range)
