"""Labelled examples become lessons, before the first rollout."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tfgrpo_dspy.experience.values import Evidence
from tfgrpo_dspy.reflection.lessons import Lesson, merge_lessons
from tfgrpo_dspy.reflection.texts import NO_EXPERIENCES, clip
from tfgrpo_dspy.rollout import fields_text, rollout_id_for
from tfgrpo_dspy.run.asking import Answer, Question, ReflectionClient
from tfgrpo_dspy.run.batches import Batch, Extracted
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.extracting import lessons_of_answer
from tfgrpo_dspy.sampling.fields import as_fields

DRAFTS_PRIORITY = (1,)
"""Everything waits for a draft, but for an update of the library."""


async def draft_lessons(
    client: ReflectionClient, batch: Batch, training: Sequence[int]
) -> Extracted:
    """What several drafts say of the labels, what most of them say first; without evidence.

    Each draft is shown other examples, so that a mistake is seldom made twice. Only where no
    lesson is repeated, all count.
    """
    run = client.run
    parts = list(itertools.islice(_draft_parts(run, training), run.settings.drafts))

    async def answer(number: int, examples: Sequence[int]) -> Answer:
        def question(halving: int) -> Question:
            return _draft_question(client, batch, examples, number, halving)

        return await client.ask_shorter(question, DRAFTS_PRIORITY, batch.update)

    tasks = [run.loop.spawn(answer(*pair)) for pair in enumerate(parts)]
    drawn: list[Lesson] = []
    refused: list[str] = []
    for number, (examples, task) in enumerate(zip(parts, tasks, strict=True)):
        source = Evidence(batch.update, number, (), ())  # sets the drafts apart, for merging
        shown = [run.trainset[index] for index in examples]
        taken, not_taken = lessons_of_answer(run, await task, [source] * len(shown), shown)
        drawn += taken
        refused += not_taken
    merged = merge_lessons(drawn)
    repeated = [lesson for lesson in merged if len(lesson.evidence) > 1]
    return Extracted(
        tuple(replace(lesson, evidence=()) for lesson in repeated or merged), tuple(refused)
    )


def _draft_parts(run: RunContext, training: Sequence[int]) -> Iterator[list[int]]:
    """The examples that each draft is shown: all of them once, then once more, ..."""
    labelled = [index for index in training if len(run.trainset[index].labels())]
    n_shown = getattr(run.settings.reflection.draft, "n_examples", 10)
    for number in itertools.count() if labelled else ():
        order = list(labelled)
        random.Random(f"{run.settings.seed}/drafts/{number}").shuffle(order)
        for start in range(0, len(order), n_shown):
            yield order[start : start + n_shown]


def _draft_question(
    client: ReflectionClient, batch: Batch, examples: Sequence[int], number: int, halving: int
) -> Question:
    settings = client.run.settings
    max_tokens = getattr(settings.reflection.draft, "examples_tokens", 12_000)
    texts = []
    for place, index in enumerate(examples, start=1):
        example = client.run.trainset[index]
        inputs, labels = as_fields(example.inputs()), as_fields(example.labels())
        text = f"{fields_text(inputs)}\nLabels:\n{fields_text(labels)}"
        texts.append(f"Example {place}\n{clip(text, (max_tokens >> halving) // len(examples))}")
    shown = {
        **client.common,
        "experiences": batch.library.render() or NO_EXPERIENCES,
        "examples": "\n\n".join(texts),
    }
    about = f"draft {number}"
    return Question("draft", rollout_id_for(settings.seed, 0, number, 0, "draft"), about, shown)
