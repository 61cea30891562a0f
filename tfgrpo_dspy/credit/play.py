"""Rollouts that go on from a step of another one, for the strategies that value steps."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

from tfgrpo_dspy.calls.rollouts import NO_MORE, Rollouts, Sample
from tfgrpo_dspy.errors import NotReplayedError, StrategyError, UnpaidError
from tfgrpo_dspy.group import Group
from tfgrpo_dspy.identity import digest
from tfgrpo_dspy.rollout import FailureKind, Rollout, rollout_id_for
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.sampling.replay import OF_A_TOOL, Start, checks
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.tasks.loop import Loop, Priority


class Turn:
    """A group's verdict on the program, for the groups after it: whether it can be replayed at all.

    It is "" if it can, else the reason, and None if the group does not know. Groups ask in the
    order of their batches, whatever is done first; so the first check of the run decides for all.
    """

    def __init__(self, before: "Turn | None") -> None:
        self._before = before
        self.verdict: asyncio.Future[str | None] = asyncio.Future()

    async def verdict_before(self) -> str | None:
        """The verdict of the groups before this one."""
        return await asyncio.shield(self._before.verdict) if self._before else None

    def say(self, verdict: str | None) -> None:
        """Set the verdict; the first one stands."""
        if not self.verdict.done():
            self.verdict.set_result(verdict)

    def pass_on(self) -> None:
        """Take over the verdict of the groups before this one, as soon as it is there."""
        if self._before is None:
            self.say(None)
        else:
            self._before.verdict.add_done_callback(lambda before: self.say(before.result()))


class Player:
    """`strategies.base.Play` for one group; it verifies first that a rollout can be replayed."""

    def __init__(
        self,
        settings: RunSettings,
        loop: Loop,
        sampler: Rollouts | None,  # None if the group comes from traces: it gets no more rollouts
        priority: Priority,
        sampled: SampledGroup,
        visit: int,  # how many batches had its example before
        asks_predictors: bool,
        reward: Callable[[Sequence[Rollout]], list[Rollout]],  # with what they count with
        turn: Turn,
    ) -> None:
        self._settings, self._loop = settings, loop
        self._sampler, self._priority = sampler, priority
        self._group, self._reward, self._turn = sampled.group, reward, turn
        self._visit, self._asks_predictors = visit, asks_predictors
        ids = [rollout.rollout_id for rollout in sampled.group.all_rollouts]
        self._additions = dict(zip(ids, sampled.additions, strict=True))
        self._tasks: dict[tuple[object, ...], asyncio.Task[Rollout]] = {}
        self._made: dict[int, Rollout] = {}

    async def __call__(
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
        if not answers_now:
            await self._verify(rollout)
        start = Start(rollout, n_steps, answers_now, ends_if_same)
        samples = [self._sample(start, k) for k in range(n)]
        async with self._sampler.paying(samples, is_extra=True) as is_paid:
            if not is_paid:
                raise UnpaidError(f"example {self._group.example}: {NO_MORE.message}")
            begun = [self._begun(start, k) for k in range(n)]
            rollouts = [await each for each in begun]
        self._made |= {each.rollout_id: each for each in rollouts}
        for each in rollouts:
            _check_replayed(each)
        return self._counted(rollouts)

    async def _verify(self, rollout: Rollout) -> None:
        """Raises NotReplayedError: the program does not repeat its steps, or some tool does not."""
        if verdict := await self._turn.verdict_before():
            raise NotReplayedError(verdict)
        try:
            for start in checks(rollout):
                _check_replayed(await self._begun(start, 1 + (start.called or 0)), is_check=True)
        except NotReplayedError as error:
            self._turn.say(None if str(error).startswith(OF_A_TOOL) else str(error))
            raise
        self._turn.say("")

    def _begun(self, start: Start, index: int) -> "asyncio.Task[Rollout]":
        """The rollout, which is made once."""
        source = start.source.rollout_id
        key = (source, start.n_steps, start.answers_now, start.ends_if_same, index)
        if key not in self._tasks:
            self._tasks[key] = self._loop.spawn(self._rollout(start, index))
        return self._tasks[key]

    async def _rollout(self, start: Start, index: int) -> Rollout:
        assert self._sampler is not None  # noqa: S101 - `__call__` has looked
        sample = self._sample(start, index)
        self._additions[sample.rollout_id] = sample.additions
        (rollout,) = await self._sampler.make([sample], self._priority)
        return rollout

    def _sample(self, start: Start, index: int) -> Sample:
        example, source = self._group.example, start.source
        steps = [asdict(replace(s, value=None)) for s in source.steps[: start.n_steps]]
        kind = f"{start.answers_now:d}{start.ends_if_same:d}{start.is_check:d}"
        purpose = f"from/{source.rollout_id}/{kind}/{digest(steps)}"
        rollout_id = rollout_id_for(self._settings.seed, self._visit, example, index, purpose)
        additions = self._additions[source.rollout_id]
        temperature, asks = self._settings.temperature, self._asks_predictors
        return Sample(additions, example, rollout_id, temperature, start, asks)

    def _counted(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with a score; without a metric, all that ran."""
        if self._settings.metric is None:
            return [rollout for rollout in rollouts if rollout.counts]
        score_range = self._group.score_range.including(self._group.scores)
        rewarded = self._reward(rollouts)
        return list(Group.of(self._group.example, rewarded, True, score_range).rollouts)

    def additions_of(self, rollout: Rollout) -> Additions | None:
        """The additions of a rollout that was made here; None for another one."""
        return self._additions[rollout.rollout_id] if rollout.rollout_id in self._made else None

    def others(self, group: Group) -> tuple[Rollout, ...]:
        """The rollouts that were made here, and are not in the group."""
        ids = {rollout.rollout_id for rollout in group.all_rollouts}
        return tuple(rollout for id_, rollout in sorted(self._made.items()) if id_ not in ids)


def _check_replayed(rollout: Rollout, is_check: bool = False) -> None:
    """Raises NotReplayedError: the program did not repeat its steps, or nobody knows."""
    failure = rollout.failure
    if failure is None:
        return
    kind = failure.kind
    if kind is FailureKind.REPLAY or (is_check and not kind.is_programs_own):
        raise NotReplayedError(failure.message)


def with_beside(sampled: SampledGroup, beside: Iterable[Rollout], player: Player) -> SampledGroup:
    """The group with further rollouts. Raises StrategyError: `play` did not make one of them."""
    for rollout in beside:
        additions, group = player.additions_of(rollout), sampled.group
        if additions is None:
            raise StrategyError(f"beside={rollout!r:.200}: pass only rollouts that `play` gave.")
        if rollout.rollout_id not in {each.rollout_id for each in group.all_rollouts}:
            measured = sampled.measured and _with(sampled.measured, rollout)
            group, of_all = _with(group, rollout), (*sampled.additions, additions)
            sampled = replace(sampled, group=group, additions=of_all, measured=measured)
    return sampled


def _with(group: Group, rollout: Rollout) -> Group:
    every = (*group.all_rollouts, rollout)
    return Group(group.example, (*group.rollouts, rollout), every, group.score_range)
