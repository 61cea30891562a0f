"""Labelled examples become lessons, before the first rollout.

What several drafts say comes first: each is shown other examples together, and what only one of
them sees is less likely to be so.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.experience import Evidence, ExperienceLibrary, named_predictors
from tfgrpo_dspy.reflection import NO_EXPERIENCES, Lesson, clip, merge_lessons
from tfgrpo_dspy.rollout import fields_text, rollout_id_for
from tfgrpo_dspy.run.asking import Answer, Question, ReflectionClient
from tfgrpo_dspy.run.batches import Batch
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.extracting import MAX_HALVINGS, lessons_in, sifted
from tfgrpo_dspy.sampling import as_fields

ORDER = (1,)
"""Everything waits for a draft, but for an update of the library."""


class Drafter:
    """Draws lessons from labels, for one run; `training` are the positions that it may see."""

    def __init__(
        self,
        run: RunContext,
        trainset: Sequence[Any],
        training: Sequence[int],
        asker: ReflectionClient,
    ) -> None:
        module = run.settings.reflection.draft
        self._settings = run.settings
        self._recorder = run.recorder
        self._trainset = trainset
        self._training = [i for i in training if len(trainset[i].labels())]
        self._asker = asker
        self._predictors = [name for name, _ in named_predictors(run.student)]
        self._n_shown = getattr(module, "n_examples", 10)
        self._n_tokens = getattr(module, "examples_tokens", 12_000)

    async def lessons(self, batch: Batch) -> list[Lesson]:
        """What several drafts say, what most of them say first; it has no rollouts for evidence.

        Each draft is shown other examples, so that a mistake is seldom made twice. Only where no
        lesson is repeated, all count.
        """
        shown = list(itertools.islice(self._parts(), self._settings.drafts))
        answers = await self._answers(shown, batch)
        drawn: list[Lesson] = []
        for number, (examples, answer) in enumerate(zip(shown, answers, strict=True)):
            source = Evidence(batch.update, number, (), ())  # sets the drafts apart, for merging
            sources = [source] * len(examples)
            found, left_out = lessons_in(answer, self._predictors, sources, self._recorder)
            kept, refused = sifted(
                found,
                [self._trainset[index] for index in examples],
                self._settings.reflection.max_experience_words,
            )
            drawn += kept
            batch.refused_lessons += [*left_out, *refused]
        merged = merge_lessons(drawn)
        repeated = [lesson for lesson in merged if len(lesson.evidence) > 1]
        batch.lessons = [replace(lesson, evidence=()) for lesson in repeated or merged]
        return batch.lessons

    async def _answers(self, shown: Sequence[Sequence[int]], batch: Batch) -> list[Answer]:
        """What each draft says; prompts too long for the LM are shortened."""
        answers: dict[int, Answer] = {}
        open_ones = list(range(len(shown)))
        for halving in range(MAX_HALVINGS + 1):
            n_tokens = self._n_tokens >> halving
            questions = [self._question(shown[n], n, batch.library, n_tokens) for n in open_ones]
            found = await self._asker.ask(questions, ORDER, batch.update)
            answers |= dict(zip(open_ones, found, strict=True))
            open_ones = [n for n in open_ones if answers[n].is_too_long]
        return [answers[n] for n in range(len(shown))]

    def _parts(self) -> Iterator[list[int]]:
        """The examples that each draft is shown: all of them once, then once more, ..."""
        for number in itertools.count() if self._training else ():
            order = list(self._training)
            random.Random(f"{self._settings.seed}/drafts/{number}").shuffle(order)
            for start in range(0, len(order), self._n_shown):
                yield order[start : start + self._n_shown]

    def _question(
        self, examples: Sequence[int], number: int, library: ExperienceLibrary, n_tokens: int
    ) -> Question:
        share = n_tokens // len(examples)
        texts = [
            f"Example {place}\n{clip(self._text(self._trainset[index]), share)}"
            for place, index in enumerate(examples, start=1)
        ]
        inputs = {
            **self._asker.common,
            "experiences": library.render() or NO_EXPERIENCES,
            "examples": "\n\n".join(texts),
        }
        return Question(
            "draft",
            self._settings.reflection.draft,
            "lessons",
            rollout_id_for(self._settings.seed, 0, number, 0, "draft"),
            f"draft {number}",
            inputs,
        )

    @staticmethod
    def _text(example: Any) -> str:
        inputs, labels = as_fields(example.inputs()), as_fields(example.labels())
        return f"{fields_text(inputs)}\nLabels:\n{fields_text(labels)}"
