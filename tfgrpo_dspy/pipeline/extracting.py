"""Groups become lessons: what ExtractAdvantage is shown of a group, and which lines are lessons."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.experience import Evidence, ExperienceLibrary, n_words, named_predictors
from tfgrpo_dspy.pipeline.asking import Answer, Asker, Question
from tfgrpo_dspy.pipeline.run import Run
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
    recurring_feedback,
)
from tfgrpo_dspy.rollout import Group, Rollout, fields_text, rollout_id_for
from tfgrpo_dspy.sampling import as_fields

ORDER = (2,)
"""Reflections are begun before training rollouts, the earlier update's first."""
MAX_HALVINGS = 4
"""How often what is shown is cut to half where the LM says that the prompt is too long."""
LONGEST_LESSON = 3
"""How many times as long as an experience may be a lesson may be."""


class Extractor:
    """Draws lessons from groups, for one run."""

    def __init__(self, run: Run, trainset: Sequence[Any], asker: Asker) -> None:
        self._settings = run.settings
        self._trainset = trainset
        self._asker = asker
        self._predictors = [name for name, _ in named_predictors(run.student)]
        self._budget = getattr(run.settings.extract_advantage, "attempts_tokens", 12_000)

    async def answer(
        self, group: Group, library: ExperienceLibrary, update: int, epoch: int
    ) -> Answer:
        """What ExtractAdvantage says of a group; a prompt too long for the LM is shortened."""
        order = (*ORDER, update)
        texts = await self._attempts(group, epoch, update)
        (answer,) = await self._asker.ask(
            [self._question(group, texts, library, epoch)], order, update
        )
        for halving in range(1, MAX_HALVINGS + 1):
            if not answer.is_too_long:
                break
            share = (self._budget >> halving) // len(texts)
            shorter = self._question(group, [clip(t, share) for t in texts], library, epoch)
            (answer,) = await self._asker.ask([shorter], order, update)
        return answer

    def lessons(
        self, groups: Sequence[Group], answers: Sequence[Answer], update: int
    ) -> tuple[list[Lesson], list[RefusedLesson]]:
        """The lessons of the groups, near-duplicates merged; and those that copy the examples.

        Of groups whose answer could not be read, they are what the metric said of several.
        """
        drawn = [
            self._read(group, answer, update) for group, answer in zip(groups, answers, strict=True)
        ]
        unread = [group for group, answer in zip(groups, answers, strict=True) if answer.is_unread]
        everything = [*itertools.chain(*drawn), *self._said(unread, update)]
        examples = [self._trainset[group.example] for group in groups]
        kept, refused = sifted(everything, examples, self._settings.max_experience_words)
        return merge_lessons(kept), refused

    def _said(self, groups: Sequence[Group], update: int) -> list[Lesson]:
        """What the metric itself says, in the same words, of several of the groups."""
        found = []
        for sentence, where in recurring_feedback(groups).items():
            evidence = [_evidence(group, update) for group in where]
            lesson = read_lesson(encodable(sentence), self._predictors, evidence[0])
            found.append(replace(lesson, evidence=tuple(evidence)))
        return found

    def _question(
        self, group: Group, texts: list[str], library: ExperienceLibrary, epoch: int
    ) -> Question:
        inputs = {
            **self._about(group),
            "experiences": library.render() or NO_EXPERIENCES,
            "attempts": attempts_text(group, texts),
            "feedback": feedback_text(group),
            "is_scored": bool(group.scores),
        }
        return Question(
            "lesson",
            self._settings.extract_advantage,
            "lessons",
            rollout_id_for(self._settings.seed, epoch, group.example, 0, "lesson"),
            f"example {group.example}",
            inputs,
        )

    def _read(self, group: Group, answer: Answer, update: int) -> list[Lesson]:
        return lessons_in(answer, self._predictors, _evidence(group, update))

    async def _attempts(self, group: Group, epoch: int, update: int) -> list[str]:
        """A text for each rollout: whole where the group fits, a summary where it is too long."""
        texts = [attempt_text(rollout) for rollout in group.rollouts]
        too_long = self._too_long(texts)
        questions = [self._summary_of(group, index, epoch) for index in too_long]
        answers = await self._asker.ask(questions, (*ORDER, update), update)
        share = self._budget // len(texts)
        for index, answer in zip(too_long, answers, strict=True):
            rollout = group.rollouts[index]
            texts[index] = self._summarised(rollout, texts[index], answer, share)
        return texts

    def _too_long(self, texts: Sequence[str]) -> list[int]:
        if self._settings.summarize_always:
            return list(range(len(texts)))
        sizes = [estimate_tokens(text) for text in texts]
        if sum(sizes) <= self._budget:
            return []
        return [i for i, size in enumerate(sizes) if size > self._budget // len(texts)]

    def _summary_of(self, group: Group, index: int, epoch: int) -> Question:
        rollout = group.rollouts[index]
        score = "" if rollout.score is None else f"Score: {rollout.score:.3g}\n"
        text = clip(attempt_text(rollout), self._budget)
        return Question(
            "summary",
            self._settings.summarize_trajectory,
            "summary",
            rollout_id_for(self._settings.seed, epoch, group.example, index, "summary"),
            f"rollout {index} of example {group.example}",
            {**self._about(group), "attempt": f"{score}{text}"},
        )

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


def lessons_in(answer: Answer, predictors: Sequence[str], evidence: Evidence) -> list[Lesson]:
    """The lessons that an answer holds, a line each; a text for an answer is one."""
    lines = [answer.output] if isinstance(answer.output, str) else answer.output or []
    lessons = [read_lesson(encodable(str(line)), predictors, evidence) for line in lines]
    return [lesson for lesson in lessons if lesson.text]


def sifted(
    lessons: Sequence[Lesson], examples: Sequence[Any], max_words: int
) -> tuple[list[Lesson], list[RefusedLesson]]:
    """Which are lessons, and which are not: copies of the examples that were shown, for instance.

    UpdateLibrary may shorten what is a little longer than the words of an experience.
    """
    guard = CopyGuard(
        [text for example in examples for text in as_fields(example.inputs()).values()],
        [text for example in examples for text in as_fields(example.labels()).values()],
    )
    kept, refused = [], []
    for lesson in lessons:
        if reason := guard.reason(lesson.text) or _unfit(lesson, max_words):
            refused.append(RefusedLesson(lesson.text, reason))
        else:
            kept.append(lesson)
    return kept, refused


def _unfit(lesson: Lesson, max_words: int) -> str:
    if lesson.text.endswith(":"):
        return "a heading"
    too_long = n_words(lesson.text) > LONGEST_LESSON * max_words
    return f"more than {LONGEST_LESSON} times as long as an experience" if too_long else ""


def _evidence(group: Group, update: int) -> Evidence:
    return Evidence(
        update,
        group.example,
        tuple(rollout.rollout_id for rollout in group.rollouts),
        tuple(rollout.score for rollout in group.rollouts),
    )
