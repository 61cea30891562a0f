"""Which groups teach: from the groups of a batch to its lessons."""

from collections.abc import Awaitable, Callable, Sequence

from tfgrpo_dspy.reflection import Lesson
from tfgrpo_dspy.rollout import FAILURE_SCORE, MIN_CONTRAST, Group
from tfgrpo_dspy.run.asking import Answer
from tfgrpo_dspy.run.batches import TEACHING, Batch
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.extracting import Extractor, Taught

HOPELESS = 5
"""Where so many answers about groups could not be read, and none could, the reflection LM is asked
no more: all of them would be paid for, and say nothing."""


class Teacher:
    """Has lessons drawn from the groups that can teach, for one run.

    `decided_before` are the batches whose updates are decided for sure when a batch is made: what
    depends on them only is the same for any number of threads.
    """

    def __init__(
        self,
        run: RunContext,
        extractor: Extractor,
        decided_before: Callable[[Batch], Sequence[Batch]],
    ) -> None:
        self._settings = run.settings
        self._loop = run.loop
        self._recorder = run.recorder
        self._extractor = extractor
        self._decided_before = decided_before

    async def lessons(self, batch: Batch, groups: Sequence[Awaitable[Group]]) -> list[Lesson]:
        """The lessons of the batch, each drawn as soon as the groups that it comes from are there.

        Groups share a call in the order of their index: what came when changes nothing.
        """
        all_groups = self._loop.spawn(_all_of(groups))
        uses = [self._loop.spawn(self._use(batch, group, all_groups)) for group in groups]
        size = self._settings.schedule.groups_per_call
        if size == 1:  # no group waits for another
            pairs = zip(groups, uses, strict=True)
            alone = [self._loop.spawn(self._alone(batch, *pair)) for pair in pairs]
            answers = [taught for part in alone if (taught := await part)]
        else:
            answers = await self._together(batch, groups, uses, size)
        batch.groups, batch.uses = await all_groups, [await use for use in uses]
        batch.scores = [score for group in batch.groups for score in group.scores]
        if not self.gave_up(batch):
            batch.n_asked = len(answers)
            batch.n_unread = sum(each.answer.is_unread for each in answers)
        batch.lessons, batch.refused_lessons = self._extractor.lessons(answers, batch.update)
        return batch.lessons

    async def _alone(
        self, batch: Batch, group: Awaitable[Group], use: Awaitable[str]
    ) -> Taught | None:
        """What one group teaches, in a call of its own; None if nothing."""
        return await self._taught(batch, [await group]) if await use in TEACHING else None

    async def _together(
        self,
        batch: Batch,
        groups: Sequence[Awaitable[Group]],
        uses: Sequence[Awaitable[str]],
        size: int,
    ) -> list[Taught]:
        """What the groups that teach say, `size` of them in a call."""
        calls: list[Awaitable[Taught]] = []
        waiting: list[Group] = []
        for group, use in zip(groups, uses, strict=True):
            if await use in TEACHING:
                waiting.append(await group)
            if len(waiting) == size:
                calls.append(self._loop.spawn(self._taught(batch, waiting)))
                waiting = []
        if waiting:
            calls.append(self._loop.spawn(self._taught(batch, waiting)))
        return [await call for call in calls]

    async def _taught(self, batch: Batch, groups: Sequence[Group]) -> Taught:
        given_up = self.gave_up(batch)
        answer = Answer(None) if given_up else await self._extractor.answer(batch, groups)
        return Taught(tuple(groups), answer)

    def gave_up(self, batch: Batch) -> bool:
        """Whether the reflection LM is asked no more: it was often, and could never be read.

        Lessons are then what the metric itself says of several examples.
        """
        decided = self._decided_before(batch)
        n_asked = sum(earlier.n_asked for earlier in decided)
        if n_asked < HOPELESS or n_asked > sum(earlier.n_unread for earlier in decided):
            return False
        self._recorder.forfeit(n_asked)
        return True

    async def _use(
        self, batch: Batch, group_handle: Awaitable[Group], all_groups: Awaitable[list[Group]]
    ) -> str:
        """What the group is used as: ExtractAdvantage is shown it, or why not."""
        group = await group_handle
        use = self._use_of(group)
        if (
            use == "no contrast"
            and self._settings.reflection.failure_analysis
            and group.has_feedback
        ):
            use = self._use_beside(group, batch, [group])
            if use not in TEACHING:  # the rest of the batch can only make it look worse
                use = self._use_beside(group, batch, await all_groups)
        if use in TEACHING and self.gave_up(batch) and not group.has_feedback:
            return "not reflected on"
        return use

    def _use_of(self, group: Group) -> str:
        """What the group is for, by itself."""
        if len(group.rollouts) < 2:
            return "too few rollouts"
        if self._settings.metric is None:
            return "no ground truth"
        return "contrast" if group.has_contrast else "no contrast"

    def _use_beside(self, group: Group, batch: Batch, beside: Sequence[Group]) -> str:
        """What a group without contrast is for: it may be bad beside the best seen.

        Seen are the groups of its own batch, and those of the updates that are decided for sure.
        """
        own = [score for other in beside for score in other.scores]
        best = max([*own, *(other.best_score for other in self._decided_before(batch))])
        highest = max(group.scores)
        is_bad = highest < best - MIN_CONTRAST
        is_failing = highest <= FAILURE_SCORE
        return "failure analysis" if is_bad or is_failing else "no contrast"


async def _all_of(handles: Sequence[Awaitable[Group]]) -> list[Group]:
    return [await handle for handle in handles]
