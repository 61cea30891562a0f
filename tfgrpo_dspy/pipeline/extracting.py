"""Groups become lessons: what ExtractAdvantage is shown of a group, and which lines are lessons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.experience import Evidence, ExperienceLibrary, n_words, named_predictors
from tfgrpo_dspy.pipeline.asking import Answer, Asker
from tfgrpo_dspy.pipeline.workers import Workers
from tfgrpo_dspy.reflection import (
    HIDDEN,
    NO_EXPERIENCES,
    UNKNOWN,
    CopyGuard,
    Lesson,
    RefusedLesson,
    attempt_text,
    attempts_text,
    clip,
    encodable,
    estimate_tokens,
    feedback_text,
    merge_lessons,
    read_lesson,
)
from tfgrpo_dspy.rollout import Group, Rollout, fields_text, rollout_id_for
from tfgrpo_dspy.sampling import as_fields
from tfgrpo_dspy.settings import Settings

LONGEST_LESSON = 3
"""How many times as long as an experience may be a lesson may be."""


@dataclass(frozen=True, slots=True)
class GroupLessons:
    """The lessons of one group, and every answer that they took."""

    lessons: tuple[Lesson, ...]
    answers: tuple[Answer, ...]


class Extractor:
    """Draws lessons from groups, for one run."""

    def __init__(
        self,
        settings: Settings,
        student: Any,
        trainset: Sequence[Any],
        workers: Workers,
        asker: Asker,
    ) -> None:
        self._settings = settings
        self._trainset = trainset
        self._workers = workers
        self._asker = asker
        self._predictors = [name for name, _ in named_predictors(student)]

    def lessons(
        self, groups: Sequence[Group], library: ExperienceLibrary, update: int, epoch: int
    ) -> tuple[list[Lesson], list[RefusedLesson]]:
        """The lessons of the groups, near-duplicates merged; and those that copy the examples."""
        drawn = self._workers.map(
            lambda group: self._extract(group, library, update, epoch), groups
        )
        for group_lessons in drawn:
            self._asker.count(group_lessons.answers)
        guard = self._guard(groups)
        kept, refused = [], []
        for lesson in (lesson for found in drawn for lesson in found.lessons):
            if reason := guard.reason(lesson.text) or self._unfit(lesson):
                refused.append(RefusedLesson(lesson.text, reason))
            else:
                kept.append(lesson)
        return merge_lessons(kept), refused

    def _unfit(self, lesson: Lesson) -> str:
        """Why a line is no lesson; UpdateLibrary may shorten what is a little too long."""
        if lesson.text.endswith(":"):
            return "a heading"
        too_long = n_words(lesson.text) > LONGEST_LESSON * self._settings.max_experience_words
        return f"more than {LONGEST_LESSON} times as long as an experience" if too_long else ""

    def _extract(
        self, group: Group, library: ExperienceLibrary, update: int, epoch: int
    ) -> GroupLessons:
        texts, answers = self._attempts(group, epoch)
        answer = self._asker.ask(
            self._settings.extract_advantage,
            "lessons",
            rollout_id_for(self._settings.seed, epoch, group.example, 0, "lesson"),
            **self._about(group),
            experiences=library.render() or NO_EXPERIENCES,
            attempts=attempts_text(group, texts),
            feedback=feedback_text(group),
            is_scored=bool(group.scores),
        )
        evidence = Evidence(
            update,
            group.example,
            tuple(rollout.rollout_id for rollout in group.rollouts),
            tuple(rollout.score for rollout in group.rollouts),
        )
        lines = [answer.output] if isinstance(answer.output, str) else answer.output or []
        lessons = [read_lesson(encodable(str(line)), self._predictors, evidence) for line in lines]
        return GroupLessons(tuple(les for les in lessons if les.text), (*answers, answer))

    def _attempts(self, group: Group, epoch: int) -> tuple[list[str], list[Answer]]:
        """A text for each rollout: whole where the group fits, a summary where it is too long."""
        texts = [attempt_text(rollout) for rollout in group.rollouts]
        budget = getattr(self._settings.extract_advantage, "attempts_tokens", 12_000)
        too_long = sum(map(estimate_tokens, texts)) > budget
        share = budget // len(texts)
        answers = []
        for index, text in enumerate(texts):
            if self._settings.summarize_always or (too_long and estimate_tokens(text) > share):
                rollout = group.rollouts[index]
                score = "" if rollout.score is None else f"Score: {rollout.score:.3g}\n"
                answer = self._asker.ask(
                    self._settings.summarize_trajectory,
                    "summary",
                    rollout_id_for(self._settings.seed, epoch, group.example, index, "summary"),
                    **self._about(group),
                    attempt=f"{score}{clip(text, budget)}",
                )
                answers.append(answer)
                texts[index] = self._summarised(rollout, text, answer, share)
        return texts, answers

    def _summarised(self, rollout: Rollout, text: str, answer: Answer, share: int) -> str:
        summary = answer.output
        return clip(attempt_text(rollout, steps=str(summary)) if summary else text, share)

    def _about(self, group: Group) -> dict[str, Any]:
        example = self._trainset[group.example]
        expected = fields_text(as_fields(example.labels())) or UNKNOWN
        if self._settings.metric is None:
            expected = UNKNOWN
        elif not self._settings.use_labels:
            expected = HIDDEN
        inputs = fields_text(as_fields(example.inputs()))
        return {**self._asker.common, "example": inputs, "expected": expected}

    def _guard(self, groups: Sequence[Group]) -> CopyGuard:
        """Guards against what the reflection LM was shown: the examples of this batch."""
        examples = [self._trainset[group.example] for group in groups]
        return CopyGuard(
            [text for example in examples for text in as_fields(example.inputs()).values()],
            [text for example in examples for text in as_fields(example.labels()).values()],
        )
