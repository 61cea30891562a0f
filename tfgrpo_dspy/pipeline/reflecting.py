"""Asks the reflection modules: groups become lessons, lessons become operations.

Nothing that a module does can end the run: what it raises is counted and costs its own answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from tfgrpo_dspy.budget import Meter, metered
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
    n_words,
    named_predictors,
    operation_from,
)
from tfgrpo_dspy.pipeline.recorder import Recorder
from tfgrpo_dspy.pipeline.workers import Workers
from tfgrpo_dspy.reflection import (
    HIDDEN,
    UNKNOWN,
    CopyGuard,
    Lesson,
    RefusedLesson,
    as_input,
    attempt_text,
    attempts_text,
    clip,
    describe_program,
    encodable,
    estimate_tokens,
    feedback_text,
    is_same_lesson,
    merge_lessons,
    read_lesson,
)
from tfgrpo_dspy.rollout import Group, Rollout, Usage, fields_text, rollout_id_for
from tfgrpo_dspy.sampling import as_fields, sampling_copy
from tfgrpo_dspy.settings import Settings

NO_EXPERIENCES = "(none yet)"
LONGEST_LESSON = 3
DEFAULT_OBJECTIVE = "Whatever raises the score on examples that are not seen here."


@dataclass(frozen=True, slots=True)
class Answer:
    """What a module answered (None: nothing that could be used), and what went wrong."""

    output: Any
    usage: Usage
    parse_failures: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class GroupLessons:
    """The lessons of one group, and every answer that they took."""

    lessons: tuple[Lesson, ...]
    answers: tuple[Answer, ...]


class Reflector:
    """Draws lessons from groups and proposes operations, for one run."""

    def __init__(
        self,
        settings: Settings,
        student: Any,
        trainset: Sequence[Any],
        workers: Workers,
        recorder: Recorder,
    ) -> None:
        self._settings = settings
        self._trainset = trainset
        self._workers = workers
        self._recorder = recorder
        self._lm = settings.reflection_lm or dspy.settings.lm
        self._predictors = [name for name, _ in named_predictors(student)]
        self._common = {
            "program": describe_program(student),
            "objective": settings.objective or DEFAULT_OBJECTIVE,
            "max_words": settings.max_experience_words,
            "limits": (
                f"at most {settings.max_experiences} experiences of at most "
                f"{settings.max_experience_words} words each"
            ),
        }

    # ------------------------------------------------------------------ lessons

    def lessons(
        self, groups: Sequence[Group], library: ExperienceLibrary, update: int, epoch: int
    ) -> tuple[list[Lesson], list[RefusedLesson]]:
        """The lessons of the groups, near-duplicates merged; and those that copy the examples."""
        drawn = self._workers.map(
            lambda group: self._extract(group, library, update, epoch), groups
        )
        for group_lessons in drawn:
            self._count(group_lessons.answers)
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
        answer = self._ask(
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
                answer = self._ask(
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
        return {**self._common, "example": inputs, "expected": expected}

    def _guard(self, groups: Sequence[Group]) -> CopyGuard:
        """Guards against what the reflection LM was shown: the examples of this batch."""
        examples = [self._trainset[group.example] for group in groups]
        return CopyGuard(
            [text for example in examples for text in as_fields(example.inputs()).values()],
            [text for example in examples for text in as_fields(example.labels()).values()],
        )

    # ------------------------------------------------------------------ operations

    def operations(
        self, lessons: Sequence[Lesson], library: ExperienceLibrary, update: int, epoch: int
    ) -> tuple[list[Operation], list[Refusal]]:
        """What the lessons call for; refused is here what is malformed or of an unknown scope.

        A lesson that the library has already, in nearly the same words, is a KEEP with its
        evidence. The others are consolidated by UpdateLibrary, in a tree where they are too many
        for one prompt: what one level proposes are the lessons of the next. Of several operations
        on one experience, KEEPs give way to a MODIFY or DELETE, which takes their evidence.
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
        refused: list[Refusal] = []
        level = 0
        chunks = self._chunks(new)
        while chunks:
            found = self._level(chunks, library, update, epoch, level)
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
        by_example: dict[int, list[Lesson]] = {}
        for lesson in lessons:
            by_example.setdefault(lesson.evidence[0].example, []).append(lesson)
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

    def _level(
        self,
        chunks: Sequence[list[Lesson]],
        library: ExperienceLibrary,
        update: int,
        epoch: int,
        level: int,
    ) -> list[Operation | Refusal]:
        seed = self._settings.seed

        def ask(index: int) -> Answer:
            return self._ask(
                self._settings.update_library,
                "operations",
                rollout_id_for(seed, epoch, update, index, f"update/{level}"),
                **self._common,
                experiences=library.render() or NO_EXPERIENCES,
                lessons=_numbered(chunks[index]),
            )

        answers = self._workers.map(ask, range(len(chunks)))
        self._count(answers)
        return [
            operation
            for answer, chunk in zip(answers, chunks, strict=True)
            for operation in self._read(answer, chunk)
        ]

    def _read(self, answer: Answer, lessons: Sequence[Lesson]) -> list[Operation | Refusal]:
        if answer.output is None:  # the lessons themselves then, for the gate to sort out
            return [Add(les.text, les.scope, "", les.evidence) for les in lessons]
        return [self._operation(item, lessons) for item in answer.output]

    def _operation(self, item: Any, lessons: Sequence[Lesson]) -> Operation | Refusal:
        given = item.model_dump() if hasattr(item, "model_dump") else item
        if not isinstance(given, Mapping):
            return Refusal(given, f"{given!r} is no operation; give a mapping with an 'op'")
        given = dict(given)
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

    # ------------------------------------------------------------------ one question

    def _ask(self, module: Any, output: str, rollout_id: int, **inputs: Any) -> Answer:
        """The module's output of that name: a text, a list, or None where it gave neither."""
        meter = Meter()
        lm = metered(sampling_copy(self._lm, rollout_id, None), meter)
        inputs = {k: as_input(v) if isinstance(v, str) else v for k, v in inputs.items()}
        try:
            with dspy.context(lm=lm, trace=[], disable_history=False):
                prediction = module(**inputs)
            given = getattr(prediction, output, None)
            given = given if given is None or isinstance(given, str) else list(given)
        except Exception as error:  # noqa: BLE001 - a user's own module may raise anything
            failure = meter.provider_failure
            message = failure.message if failure else f"{type(error).__name__}: {error}"
            return Answer(None, meter.usage, error=message)
        return Answer(given, meter.usage, getattr(prediction, "parse_failures", 0))

    def _count(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._recorder.usage["reflection"] += answer.usage
            self._recorder.count_failure("reflection error", answer.error, bool(answer.error))
            message = "an answer of the reflection LM did not parse"
            self._recorder.count_failure("reflection parse", message, answer.parse_failures)


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
