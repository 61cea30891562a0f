"""Lessons become operations: what UpdateLibrary is asked, in a tree where lessons are many."""

from collections.abc import Sequence

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Add, Operation, Refusal
from tfgrpo_dspy.reflection.answers import (
    additions,
    known_lessons,
    merge_keeps,
    operations_in,
    packed_lessons,
)
from tfgrpo_dspy.reflection.lessons import DroppedExperience, Lesson, merge_lessons
from tfgrpo_dspy.reflection.texts import dropped_text, lessons_text, library_text
from tfgrpo_dspy.rollout import rollout_id_for
from tfgrpo_dspy.run.asking import Question, ReflectionClient
from tfgrpo_dspy.run.batches import Batch
from tfgrpo_dspy.run.extracting import copy_guard

PRIORITY = (0,)
"""Questions on the library are begun before all else: everything waits for them."""


async def propose(
    client: ReflectionClient,
    batch: Batch,
    library: ExperienceLibrary,
    lessons: Sequence[Lesson],
    dropped: Sequence[DroppedExperience],
) -> tuple[list[Operation], list[Refusal]]:
    """What the lessons call for, and what is refused: malformed, a copy, or held back.

    A lesson that the library has already, in nearly the same words, is a KEEP with its evidence.
    The others are consolidated by UpdateLibrary, in a tree where they are too many for one prompt:
    what one level proposes are the lessons of the next. Of several operations on one experience,
    KEEPs give way to a MODIFY or DELETE, which takes their evidence.

    Args:
        client: asks.
        batch: that of the update.
        library: the library to change.
        lessons: what the batch teaches.
        dropped: what was tried and dropped; UpdateLibrary is shown it.
    """
    found, new = known_lessons(lessons, library)
    operations: list[Operation] = [*found]
    refused: list[Refusal] = []
    of_reflection = client.run.settings.reflection
    max_tokens = getattr(of_reflection.update, "lessons_tokens", 4_000)
    chunks = packed_lessons(new, max_tokens)
    if of_reflection.update_per_group:
        chunks = [c for group in _by_example(new) for c in packed_lessons(group, max_tokens)]
    level = 0
    while chunks:
        answers = await _ask_level(client, batch, library, chunks, dropped, level)
        refused += [item for item in answers if isinstance(item, Refusal)]
        proposed = [item for item in answers if not isinstance(item, Refusal)]
        adding = [operation for operation in proposed if isinstance(operation, Add)]
        is_first_of_two = of_reflection.update_per_group and level == 0
        if len(chunks) == 1 or (len(adding) >= len(new) and not is_first_of_two):
            operations += proposed
            break
        operations += [operation for operation in proposed if not isinstance(operation, Add)]
        new = merge_lessons(Lesson(op.text, op.scope, op.evidence, op.reason) for op in adding)
        chunks = packed_lessons(new, max_tokens)
        level += 1
    return merge_keeps(operations), refused


def as_additions(library: ExperienceLibrary, lessons: Sequence[Lesson]) -> list[Operation]:
    """The operations where UpdateLibrary is not asked: each new lesson is an ADD as it stands."""
    found, new = known_lessons(lessons, library)
    return merge_keeps([*found, *additions(new)])


def _by_example(lessons: Sequence[Lesson]) -> list[list[Lesson]]:
    """The lessons of each group; those of drafts, which have no example, are one group."""
    found: dict[int | None, list[Lesson]] = {}
    for lesson in lessons:
        example = lesson.evidence[0].example if lesson.evidence else None
        found.setdefault(example, []).append(lesson)
    return [*found.values()]


async def _ask_level(
    client: ReflectionClient,
    batch: Batch,
    library: ExperienceLibrary,
    chunks: Sequence[list[Lesson]],
    dropped: Sequence[DroppedExperience],
    level: int,
) -> list[Operation | Refusal]:
    """What UpdateLibrary makes of the lessons; of too many for the LM, it is asked in halves."""
    run = client.run
    found: list[Operation | Refusal] = []
    n_asked = 0
    while chunks:
        questions = [
            Question(
                "update",
                rollout_id_for(
                    run.settings.seed, batch.epoch, batch.update, 0, f"update/{level}/{place}"
                ),
                f"update {batch.update}",
                {
                    **client.common,
                    "experiences": library_text(library),
                    "dropped": dropped_text(dropped),
                    "lessons": lessons_text(chunk),
                },
            )
            for place, chunk in enumerate(chunks, start=n_asked)
        ]
        n_asked += len(questions)
        halves: list[list[Lesson]] = []
        answers = await client.ask_all(questions, PRIORITY, batch.update)
        for chunk, answer in zip(chunks, answers, strict=True):
            if answer.is_too_long and len(chunk) > 1:
                halves += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
                continue
            sources = sorted({e.example for lesson in chunk for e in lesson.evidence})
            examples = [run.trainset[i] for i in sources if i < len(run.trainset)]
            found += operations_in(
                answer.output,
                chunk,
                library,
                run.predictors,
                copy_guard(examples),
                run.report.unknown_scope,
            )
        chunks = halves
    return found
