"""Lessons become operations on the library."""

import itertools
from collections.abc import Sequence

from tfgrpo_dspy.calls.context import RunContext
from tfgrpo_dspy.calls.reflections import ReflectionClient
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Operation, Refusal
from tfgrpo_dspy.reflection import texts
from tfgrpo_dspy.reflection.guard import Guard
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.operations import (
    admitted,
    known_lessons,
    merge_keeps,
    operations_in,
    retold,
)
from tfgrpo_dspy.run.reflecting import guard_of
from tfgrpo_dspy.run.updates import Batch, Extracted


def guard_of_update(
    run: RunContext, batch: Batch, extracted: Extracted, added: Sequence[Operation] = ()
) -> Guard:
    """The guard of an update: against copies of all that the reflection LM was shown for it."""
    based = (*extracted.lessons, *added)
    sources = {evidence.example for each in based for evidence in each.evidence}
    if batch.is_draft or any(getattr(each, "text", "") and not each.evidence for each in added):
        sources.update(range(len(run.trainset)))  # it may copy any
    examples = sorted(sources.union(batch.examples))
    return guard_of(run, [run.trainset[index] for index in examples])


async def propose(
    client: ReflectionClient,
    batch: Batch,
    library: ExperienceLibrary,
    lessons: Sequence[Lesson],
    dropped: Sequence[Lesson],
    added: Sequence[Operation] = (),
    guard: Guard | None = None,
) -> tuple[list[Operation], list[Refusal]]:
    """What the lessons call for, and what is refused: malformed, a copy, or held back.

    A lesson that the library has already, in nearly the same words, is a KEEP with its evidence.
    UpdateLibrary is asked about the others, and told what was tried and dropped; where they are too
    many for one prompt, it is asked several times. `added` are operations of strategies.
    """
    run, tell = client.run, client.run.report.unknown_scope
    guard = guard or guard_of_update(run, batch, Extracted(tuple(lessons), ()), added)
    keeps, new = known_lessons(lessons, library)
    shown = {"experiences": texts.library_text(library), "dropped": texts.dropped_text(dropped)}

    async def operations_of(part: Sequence[Lesson]) -> list[Operation | Refusal]:
        inputs = {**shown, "lessons": texts.lessons_text(part)}
        if len(part) > 1:
            answer = await client.ask("update", batch, batch.update, inputs)
        else:
            answer = await client.ask_shorter("update", batch, batch.update, lambda _: inputs)
        if answer.is_too_long and len(part) > 1:
            middle = len(part) // 2
            return [*await operations_of(part[:middle]), *await operations_of(part[middle:])]
        return operations_in(answer.output, part, library, run.predictors, guard, tell)

    max_tokens = getattr(run.settings.reflection.update, "shown_tokens", 4_000)
    answered = await client.at_once(map(operations_of, texts.packed_lessons(new, max_tokens)))
    allowed, refused = admitted(added, run.predictors, guard)
    every = [*itertools.chain(*answered), *allowed, *refused]
    operations = [retold(each, dropped) for each in every if not isinstance(each, Refusal)]
    return merge_keeps([*keeps, *operations]), [x for x in every if isinstance(x, Refusal)]
