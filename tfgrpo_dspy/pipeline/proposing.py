"""Lessons become operations: what UpdateLibrary is asked, in a tree where lessons are many."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.errors import LibraryError
from tfgrpo_dspy.experience import (
    ALL,
    Add,
    Delete,
    Evidence,
    ExperienceLibrary,
    Keep,
    Modify,
    Operation,
    Refusal,
    named_predictors,
    operation_from,
)
from tfgrpo_dspy.pipeline.asking import Answer, Asker, Question
from tfgrpo_dspy.pipeline.run import Run
from tfgrpo_dspy.reflection import (
    NO_EXPERIENCES,
    Lesson,
    estimate_tokens,
    is_same_lesson,
    merge_lessons,
)
from tfgrpo_dspy.rollout import rollout_id_for

ORDER = (0,)
"""Questions on the library are begun before all else: everything waits for them."""


class Proposer:
    """Proposes operations on the library, for one run."""

    def __init__(self, run: Run, asker: Asker) -> None:
        self._settings = run.settings
        self._asker = asker
        self._predictors = [name for name, _ in named_predictors(run.student)]

    async def operations(
        self,
        lessons: Sequence[Lesson],
        library: ExperienceLibrary,
        update: int,
        epoch: int,
        *,
        is_asked: bool = True,
    ) -> tuple[list[Operation], list[Refusal]]:
        """What the lessons call for; refused is here what is malformed or of an unknown scope.

        A lesson that the library has already, in nearly the same words, is a KEEP with its
        evidence. The others are consolidated by UpdateLibrary, in a tree where they are too many
        for one prompt: what one level proposes are the lessons of the next. Of several operations
        on one experience, KEEPs give way to a MODIFY or DELETE, which takes their evidence.
        Where UpdateLibrary is not asked, they are ADDs as they stand.
        """
        keeps: list[Operation] = []
        new: list[Lesson] = []
        for lesson in lessons:
            known = next(
                (e for e in library if is_same_lesson(Lesson(e.text, e.scope), lesson)), None
            )
            if known is None:
                new.append(lesson)
            else:
                keeps.append(Keep(known.id, "seen again", lesson.evidence))
        if not is_asked:
            return _folded([*keeps, *_additions(new)]), []
        refused: list[Refusal] = []
        level = 0
        chunks = self._chunks(new)
        while chunks:
            found = await self._level(chunks, library, update, epoch, level)
            refused += [item for item in found if isinstance(item, Refusal)]
            proposed = [item for item in found if not isinstance(item, Refusal)]
            additions = [op for op in proposed if isinstance(op, Add)]
            is_first_of_two = self._settings.update_per_group and level == 0
            if len(chunks) == 1 or (len(additions) >= len(new) and not is_first_of_two):
                return _folded([*keeps, *proposed]), refused
            keeps += [op for op in proposed if not isinstance(op, Add)]
            new = merge_lessons(Lesson(op.text, op.scope, op.evidence) for op in additions)
            chunks = self._packed(new)
            level += 1
        return _folded(keeps), refused

    def _chunks(self, lessons: Sequence[Lesson]) -> list[list[Lesson]]:
        if not self._settings.update_per_group:
            return self._packed(lessons)
        by_example: dict[int | None, list[Lesson]] = {}
        for lesson in lessons:  # those of drafts have no example, and are one group
            example = lesson.evidence[0].example if lesson.evidence else None
            by_example.setdefault(example, []).append(lesson)
        return [chunk for of_one in by_example.values() for chunk in self._packed(of_one)]

    def _packed(self, lessons: Sequence[Lesson]) -> list[list[Lesson]]:
        """The lessons in their order, in as few chunks as the prompt's budget allows."""
        budget = getattr(self._settings.update_library, "lessons_tokens", 4_000)
        chunks: list[list[Lesson]] = []
        room = 0
        for lesson in lessons:
            size = estimate_tokens(_numbered([lesson])) + 2  # its number may have more digits
            if size > room:
                chunks.append([])
                room = budget
            chunks[-1].append(lesson)
            room -= size
        return chunks

    async def _level(
        self,
        chunks: Sequence[list[Lesson]],
        library: ExperienceLibrary,
        update: int,
        epoch: int,
        level: int,
    ) -> list[Operation | Refusal]:
        found: list[Operation | Refusal] = []
        waiting = list(chunks)
        n_asked = 0
        while waiting:
            questions = [
                self._question(chunk, library, update, epoch, f"{level}/{n_asked + index}")
                for index, chunk in enumerate(waiting)
            ]
            n_asked += len(questions)
            answers = await self._asker.ask(questions, ORDER, update)
            halves: list[list[Lesson]] = []
            for chunk, answer in zip(waiting, answers, strict=True):
                if answer.is_too_long and len(chunk) > 1:
                    halves += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
                else:
                    found += self._read(answer, chunk)
            waiting = halves
        return found

    def _question(
        self, lessons: list[Lesson], library: ExperienceLibrary, update: int, epoch: int, place: str
    ) -> Question:
        inputs = {
            **self._asker.common,
            "experiences": library.render() or NO_EXPERIENCES,
            "lessons": _numbered(lessons),
        }
        return Question(
            "update",
            self._settings.update_library,
            "operations",
            rollout_id_for(self._settings.seed, epoch, update, 0, f"update/{place}"),
            f"update {update}",
            inputs,
        )

    def _read(self, answer: Answer, lessons: Sequence[Lesson]) -> list[Operation | Refusal]:
        if answer.output is None:  # the lessons themselves then, for the gate to sort out
            return [*_additions(lessons)]
        return [self._operation(item, lessons) for item in answer.output]

    def _operation(self, item: Any, lessons: Sequence[Lesson]) -> Operation | Refusal:
        if not isinstance(item, Mapping):
            return Refusal(item, f"{item!r} is no operation; give a mapping with an 'op'")
        given = dict(item)
        if isinstance(given.get("text"), str):
            given["text"] = " ".join(given["text"].split())  # an experience is one line
        rests_on = given.pop("lessons", None)
        numbers = [n for n in range(1, len(lessons) + 1) if n in _listed(rests_on)]
        sources = [lessons[n - 1] for n in numbers] or lessons  # none named: any of them
        evidence = tuple(dict.fromkeys(e for lesson in sources for e in lesson.evidence))
        if str(given.get("op")).strip().upper() != "ADD" and given.get("scope") == ALL:
            given["scope"] = None  # the default of the answer's form: the scope stays as it is
        try:
            operation = operation_from(given, evidence)
        except LibraryError as error:
            return Refusal(given, str(error))
        if not isinstance(operation, Add | Modify) or operation.scope is None:
            return operation
        if len(self._predictors) == 1:
            return replace(operation, scope=ALL)
        if operation.scope in (ALL, *self._predictors):
            return operation
        return Refusal(operation, f"scope {operation.scope!r} names none of {self._predictors}")


def _additions(lessons: Sequence[Lesson]) -> list[Add]:
    return [Add(les.text, les.scope, "", les.evidence) for les in lessons]


def _listed(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list | tuple) else [given]


def _folded(operations: Sequence[Operation]) -> list[Operation]:
    """The KEEPs of an experience as one, or as evidence of the operation that changes it."""
    support: dict[str, list[Evidence]] = {}
    for operation in operations:
        if isinstance(operation, Keep):
            support.setdefault(operation.id, []).extend(operation.evidence)
    changing = {op.id for op in operations if isinstance(op, Modify | Delete)}
    folded: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Add):
            folded.append(operation)
        elif not isinstance(operation, Keep) or operation.id in support.keys() - changing:
            evidence = dict.fromkeys((*operation.evidence, *support.pop(operation.id, ())))
            folded.append(replace(operation, evidence=tuple(evidence)))
    return folded


def _numbered(lessons: Sequence[Lesson]) -> str:
    lines = []
    for number, lesson in enumerate(lessons, start=1):
        scope = "" if lesson.scope == ALL else f" (for {lesson.scope})"
        support = f" (from {len(lesson.evidence)} groups)" if len(lesson.evidence) > 1 else ""
        lines.append(f"{number}. {lesson.text}{scope}{support}")
    return "\n".join(lines)
