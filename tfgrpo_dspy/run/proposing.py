"""Lessons become operations: what UpdateLibrary is asked, in a tree where lessons are many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from tfgrpo_dspy.reflection import (
    CopyGuard,
    DroppedExperience,
    Lesson,
    ProposedOperation,
    dropped_text,
    estimate_tokens,
    is_same_lesson,
    lessons_text,
    library_text,
    merge_lessons,
    read_operations,
    resolve_scope,
    sources_of,
    unsafe_reason,
)
from tfgrpo_dspy.rollout import rollout_id_for
from tfgrpo_dspy.run.asking import Answer, Question, ReflectionClient
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.extracting import guard_of

ORDER = (0,)
"""Questions on the library are begun before all else: everything waits for them."""


class Proposer:
    """Proposes operations on the library, for one run."""

    def __init__(
        self, run: RunContext, asker: ReflectionClient, trainset: Sequence[Any] = ()
    ) -> None:
        self._settings = run.settings
        self._recorder = run.recorder
        self._asker = asker
        self._trainset = trainset
        self._predictors = [name for name, _ in named_predictors(run.student)]

    async def operations(
        self,
        lessons: Sequence[Lesson],
        library: ExperienceLibrary,
        update: int,
        epoch: int,
        *,
        is_asked: bool = True,
        dropped: Sequence[DroppedExperience],
    ) -> tuple[list[Operation], list[Refusal]]:
        """What the lessons call for, and what is refused: malformed, a copy, or held back.

        A lesson that the library has already, in nearly the same words, is a KEEP with its
        evidence. The others are consolidated by UpdateLibrary, in a tree where they are too many
        for one prompt: what one level proposes are the lessons of the next. Of several operations
        on one experience, KEEPs give way to a MODIFY or DELETE, which takes their evidence.
        Where UpdateLibrary is not asked, they are ADDs as they stand.

        Args:
            lessons: what the groups of the batch teach.
            library: the library to change.
            update: the number of the update.
            epoch: the number of the epoch.
            is_asked: whether UpdateLibrary is asked.
            dropped: what was tried and dropped, which UpdateLibrary is told.
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
            level_of = _Level(library, dropped, update, epoch, level)
            found = await self._level(chunks, level_of)
            refused += [item for item in found if isinstance(item, Refusal)]
            proposed = [item for item in found if not isinstance(item, Refusal)]
            additions = [op for op in proposed if isinstance(op, Add)]
            is_first_of_two = self._settings.reflection.update_per_group and level == 0
            if len(chunks) == 1 or (len(additions) >= len(new) and not is_first_of_two):
                return _folded([*keeps, *proposed]), refused
            keeps += [op for op in proposed if not isinstance(op, Add)]
            new = merge_lessons(
                Lesson(op.text, op.scope, op.evidence, op.reason) for op in additions
            )
            chunks = self._packed(new)
            level += 1
        return _folded(keeps), refused

    def _chunks(self, lessons: Sequence[Lesson]) -> list[list[Lesson]]:
        if not self._settings.reflection.update_per_group:
            return self._packed(lessons)
        by_example: dict[int | None, list[Lesson]] = {}
        for lesson in lessons:  # those of drafts have no example, and are one group
            example = lesson.evidence[0].example if lesson.evidence else None
            by_example.setdefault(example, []).append(lesson)
        return [chunk for of_one in by_example.values() for chunk in self._packed(of_one)]

    def _packed(self, lessons: Sequence[Lesson]) -> list[list[Lesson]]:
        """The lessons in their order, in as few chunks as the prompt's budget allows."""
        budget = getattr(self._settings.reflection.update, "lessons_tokens", 4_000)
        chunks: list[list[Lesson]] = []
        room = 0
        for lesson in lessons:
            size = estimate_tokens(lessons_text([lesson])) + 2  # its number may have more digits
            if size > room:
                chunks.append([])
                room = budget
            chunks[-1].append(lesson)
            room -= size
        return chunks

    async def _level(
        self, chunks: Sequence[list[Lesson]], level: "_Level"
    ) -> list[Operation | Refusal]:
        found: list[Operation | Refusal] = []
        waiting = list(chunks)
        n_asked = 0
        while waiting:
            questions = [
                self._question(chunk, level, n_asked + index) for index, chunk in enumerate(waiting)
            ]
            n_asked += len(questions)
            answers = await self._asker.ask(questions, ORDER, level.update)
            halves: list[list[Lesson]] = []
            for chunk, answer in zip(waiting, answers, strict=True):
                if answer.is_too_long and len(chunk) > 1:
                    halves += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
                else:
                    found += self._read(answer, chunk, level.library)
            waiting = halves
        return found

    def _question(self, lessons: list[Lesson], level: "_Level", place: int) -> Question:
        inputs = {
            **self._asker.common,
            "experiences": library_text(level.library),
            "dropped": dropped_text(level.dropped),
            "lessons": lessons_text(lessons),
        }
        purpose = f"update/{level.number}/{place}"
        return Question(
            "update",
            self._settings.reflection.update,
            "operations",
            rollout_id_for(self._settings.seed, level.epoch, level.update, 0, purpose),
            f"update {level.update}",
            inputs,
        )

    def _read(
        self, answer: Answer, lessons: Sequence[Lesson], library: ExperienceLibrary
    ) -> list[Operation | Refusal]:
        try:
            items = None if answer.output is None else read_operations(answer.output)
        except ValueError:  # a module of the user's own may answer anything
            items = None
        if items is None:  # the lessons themselves then, for the gate to sort out
            return [*_additions(lessons)]
        known = {own.id: own.text for own in library}
        shown = {e.example for lesson in lessons for e in lesson.evidence}
        guard = guard_of([self._trainset[i] for i in sorted(shown) if i < len(self._trainset)])
        return [self._operation(item, lessons, known, guard) for item in items]

    def _operation(
        self,
        item: Any,
        lessons: Sequence[Lesson],
        known: Mapping[str, str],
        guard: CopyGuard,
    ) -> Operation | Refusal:
        if not isinstance(item, ProposedOperation):
            return Refusal(item, f"{item!r} is no operation; give a mapping with an 'op'")
        given = item.model_dump(exclude={"lessons"})
        given["text"] = " ".join(item.text.split())  # an experience is one line
        given["scope"] = self._scope(item)
        try:
            operation = operation_from(given)
        except LibraryError as error:
            return Refusal(given, str(error))
        if not isinstance(operation, Add | Modify):
            about = known.get(operation.id, "")
        elif reason := guard.reason(operation.text) or unsafe_reason(operation.text):
            return Refusal(given, reason)
        else:
            about = operation.text
        sources = [lessons[n - 1] for n in sorted(set(item.lessons)) if 0 < n <= len(lessons)]
        sources = sources or sources_of(about, lessons)
        evidence = dict.fromkeys(e for lesson in sources for e in lesson.evidence)
        return replace(operation, evidence=tuple(evidence))

    def _scope(self, item: ProposedOperation) -> str | None:
        """The predictor that is named, "*" for all; None, which leaves it as it is, if none is.

        A name that no predictor has, or several, is counted, and taken for none.
        """
        if item.scope is None:
            return None
        if len(self._predictors) == 1:
            return ALL
        scope = resolve_scope(item.scope, self._predictors)
        if scope is None:
            message = f"scope {item.scope!r} of {item.text!r} names none of {self._predictors}"
            self._recorder.count_failure("unknown scope", message)
        return scope


@dataclass(frozen=True, slots=True)
class _Level:
    """What the prompts of one level of the tree have in common."""

    library: ExperienceLibrary
    dropped: Sequence[DroppedExperience]
    update: int
    epoch: int
    number: int


def _additions(lessons: Sequence[Lesson]) -> list[Add]:
    return [Add(les.text, les.scope, "", les.evidence) for les in lessons]


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
