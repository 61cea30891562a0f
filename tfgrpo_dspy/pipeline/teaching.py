"""Which groups teach: from the groups of a batch to its lessons."""

from collections.abc import Callable, Sequence

from tfgrpo_dspy.pipeline.asking import Answer
from tfgrpo_dspy.pipeline.batches import TEACHING, Batch
from tfgrpo_dspy.pipeline.deciding import group_evidence
from tfgrpo_dspy.pipeline.extracting import Extractor
from tfgrpo_dspy.pipeline.run import Run
from tfgrpo_dspy.pipeline.schedule import Handle
from tfgrpo_dspy.reflection import Lesson
from tfgrpo_dspy.rollout import Group

HOPELESS = 5
"""Where so many answers about groups could not be read, and none could, the reflection LM is asked
no more: all of them would be paid for, and say nothing."""


class Teacher:
    """Has lessons drawn from the groups that can teach, for one run.

    `decided_before` are the batches whose updates are decided for sure when a batch is made: what
    depends on them only is the same for any number of threads.
    """

    def __init__(
        self, run: Run, extractor: Extractor, decided_before: Callable[[Batch], Sequence[Batch]]
    ) -> None:
        self._settings = run.settings
        self._schedule = run.schedule
        self._recorder = run.recorder
        self._extractor = extractor
        self._decided_before = decided_before

    async def lessons(self, batch: Batch, groups: Sequence[Handle[Group]]) -> list[Lesson]:
        """The lessons of the batch, each drawn as soon as its group is there."""
        all_groups = self._schedule.spawn(_all_of(groups))
        parts = [self._schedule.spawn(self._taught(batch, group, all_groups)) for group in groups]
        taught = [await part for part in parts]
        batch.groups, batch.uses = await all_groups, [use for use, _ in taught]
        batch.scores = [score for group in batch.groups for score in group.scores]
        teaching = [
            (group, answer)
            for group, (_, answer) in zip(batch.groups, taught, strict=True)
            if answer is not None
        ]
        if not self.gave_up(batch):
            batch.n_asked = len(teaching)
            batch.n_unread = sum(answer.is_unread for _, answer in teaching)
        batch.lessons, batch.refused_lessons = self._extractor.lessons(
            [group for group, _ in teaching], [answer for _, answer in teaching], batch.update
        )
        return batch.lessons

    def gave_up(self, batch: Batch) -> bool:
        """Whether the reflection LM is asked no more: it was often, and could never be read.

        Lessons are then what the metric itself says of several examples.
        """
        decided = self._decided_before(batch)
        n_asked = sum(earlier.n_asked for earlier in decided)
        if n_asked < HOPELESS or n_asked > sum(earlier.n_unread for earlier in decided):
            return False
        self._recorder.give_up(n_asked)
        return True

    async def _taught(
        self, batch: Batch, group_handle: Handle[Group], all_groups: Handle[list[Group]]
    ) -> tuple[str, Answer | None]:
        """What the group is used as, and what ExtractAdvantage says of it."""
        group = await group_handle
        use = self._use_of(group)
        if use == "no contrast" and self._settings.failure_analysis and group.has_feedback:
            use = self._use_beside(group, batch, await all_groups)
        if use in TEACHING:
            use = self._skipped(batch, group) or use
        if use not in TEACHING:
            return use, None
        if self.gave_up(batch):
            return (use, Answer(None)) if group.has_feedback else ("not reflected on", None)
        return use, await self._extractor.answer(group, batch.library, batch.update, batch.epoch)

    def _skipped(self, batch: Batch, group: Group) -> str:
        """Why the gate wants no lesson of this group; "" if it has nothing against it."""
        skips = getattr(self._settings.gate, "skips", None)
        reason = "" if skips is None else skips(group_evidence(batch, group), batch.memory)
        return f"skipped: {reason}" if reason else ""

    def _use_of(self, group: Group) -> str:
        """What the group is for, by itself."""
        if len(group.rollouts) < 2:
            return "too few rollouts"
        if self._settings.metric is None:
            return "no ground truth"
        return "contrast" if group.has_contrast(self._settings.min_contrast) else "no contrast"

    def _use_beside(self, group: Group, batch: Batch, beside: Sequence[Group]) -> str:
        """What a group without contrast is for: it may be bad beside the best seen.

        Seen are the groups of its own batch, and those of the updates that are decided for sure.
        """
        own = [score for other in beside for score in other.scores]
        best = max([*own, *(other.best_score for other in self._decided_before(batch))])
        highest = max(group.scores)
        is_bad = highest < best - self._settings.min_contrast
        is_failing = highest <= self._settings.failure_score
        return "failure analysis" if is_bad or is_failing else "no contrast"


async def _all_of(handles: Sequence[Handle[Group]]) -> list[Group]:
    return [await handle for handle in handles]
