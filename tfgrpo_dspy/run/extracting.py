"""Groups become lessons: what ExtractAdvantage is shown of them, and which lines are lessons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfgrpo_dspy.experience import Evidence, named_predictors
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
    given_texts,
    merge_lessons,
    names_unknown_predictor,
    read_lesson,
    read_lessons,
    recurring_feedback,
    unfit_reason,
)
from tfgrpo_dspy.rollout import Group, Rollout, fields_text, rollout_id_for
from tfgrpo_dspy.run.asking import Answer, Question, ReflectionClient
from tfgrpo_dspy.run.batches import Batch
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.run_report import RunReport
from tfgrpo_dspy.sampling import as_fields

ORDER = (2,)
"""Reflections are begun before training rollouts, the earlier update's first."""
MAX_HALVINGS = 4
"""How often what is shown is cut to half where the LM says that the prompt is too long."""
LESSONS_PER_EXAMPLE = 10
"""So many lessons of an answer are read for each example that it was shown."""
REASON_TOKENS, EXAMPLE_TOKENS = 60, 25
"""How long (estimated) the reason and the example of a lesson may be in the prompt of an update."""
SEVERAL = "(several examples; each stands above its attempts)"


@dataclass(frozen=True, slots=True)
class Taught:
    """The groups that one call of ExtractAdvantage was shown, in their order, and its answer."""

    groups: tuple[Group, ...]
    answer: Answer


class Extractor:
    """Draws lessons from groups, for one run."""

    def __init__(self, run: RunContext, trainset: Sequence[Any], asker: ReflectionClient) -> None:
        self._settings = run.settings
        self._recorder = run.recorder
        self._trainset = trainset
        self._asker = asker
        self._predictors = [name for name, _ in named_predictors(run.student)]
        self._budget = getattr(run.settings.reflection.extract, "attempts_tokens", 12_000)

    async def answer(self, batch: Batch, groups: Sequence[Group]) -> Answer:
        """What ExtractAdvantage says of the groups; a prompt too long for the LM is shortened."""
        order = (*ORDER, batch.update)
        texts = await self._attempts(batch, groups)
        question = self._question(batch, groups, texts)
        (answer,) = await self._asker.ask([question], order, batch.update)
        for halving in range(1, MAX_HALVINGS + 1):
            if not answer.is_too_long:
                break
            share = (self._budget >> halving) // sum(map(len, texts))
            shorter = [[clip(text, share) for text in of_group] for of_group in texts]
            question = self._question(batch, groups, shorter)
            (answer,) = await self._asker.ask([question], order, batch.update)
        return answer

    def lessons(
        self, taught: Sequence[Taught], update: int
    ) -> tuple[list[Lesson], list[RefusedLesson]]:
        """The lessons of the groups, near-duplicates merged; and those that are refused.

        Of groups whose answer could not be read, they are what the metric said of several.
        """
        kept: list[Lesson] = []
        refused: list[RefusedLesson] = []
        for each in taught:
            drawn, left_out = self._read(each, update)
            kept += drawn
            refused += left_out
        unread = [group for each in taught if each.answer.is_unread for group in each.groups]
        drawn, left_out = self._held_back(self._said(unread, update), unread)
        return merge_lessons([*kept, *drawn]), [*refused, *left_out]

    def _read(self, taught: Taught, update: int) -> tuple[list[Lesson], list[RefusedLesson]]:
        evidence = [_evidence(group, update) for group in taught.groups]
        drawn, left_out = lessons_in(taught.answer, self._predictors, evidence, self._recorder)
        kept, refused = self._held_back(drawn, taught.groups)
        return [self._with_source(lesson) for lesson in kept], [*left_out, *refused]

    def _held_back(
        self, lessons: Sequence[Lesson], groups: Sequence[Group]
    ) -> tuple[list[Lesson], list[RefusedLesson]]:
        examples = [self._trainset[group.example] for group in groups]
        return sifted(lessons, examples, self._settings.reflection.max_experience_words)

    def _with_source(self, lesson: Lesson) -> Lesson:
        """The lesson with how its first example begins, on one line."""
        inputs = as_fields(self._trainset[lesson.evidence[0].example].inputs())
        return replace(lesson, example=_shortened(fields_text(inputs), EXAMPLE_TOKENS))

    def _said(self, groups: Sequence[Group], update: int) -> list[Lesson]:
        """What the metric itself says, in the same words, of several of the groups."""
        found = []
        for sentence, where in recurring_feedback(groups).items():
            lesson = read_lesson(encodable(sentence), self._predictors, ())
            evidence = tuple(_evidence(group, update) for group in where)
            found.append(replace(lesson, evidence=evidence))
        return found

    def _question(
        self, batch: Batch, groups: Sequence[Group], texts: Sequence[Sequence[str]]
    ) -> Question:
        attempts = [
            attempts_text(group, of_group, self._given(batch, group))
            for group, of_group in zip(groups, texts, strict=True)
        ]
        first = groups[0]
        about = self._about(first)
        if len(groups) > 1:
            attempts = [
                self._titled(*pair) for pair in enumerate(zip(groups, attempts, strict=True))
            ]
            about |= {"example": SEVERAL, "expected": SEVERAL}
        inputs = {
            **about,
            "experiences": batch.library.render() or NO_EXPERIENCES,
            "attempts": "\n\n".join(attempts),
            "feedback": "\n".join(filter(None, map(feedback_text, groups))),
            "is_scored": bool(first.scores),
        }
        return Question(
            "lesson",
            self._settings.reflection.extract,
            "lessons",
            rollout_id_for(self._settings.seed, batch.epoch, first.example, 0, "lesson"),
            f"example {', '.join(str(group.example) for group in groups)}",
            inputs,
        )

    def _titled(self, index: int, shown: tuple[Group, str]) -> str:
        """The attempts of one group below its example, where a prompt shows several."""
        group, attempts = shown
        about = self._about(group)
        labels = "" if group.scores == () else f"Labels:\n{about['expected']}\n"
        return f"Example {index + 1}\n{about['example']}\n{labels}\n{attempts}"

    def _given(self, batch: Batch, group: Group) -> Mapping[int, str]:
        libraries = batch.assigned.get(group.example)
        return {} if libraries is None else given_texts(group, libraries, batch.library)

    async def _attempts(self, batch: Batch, groups: Sequence[Group]) -> list[list[str]]:
        """A text for each rollout: whole where all fit, a summary where they are too long."""
        texts = [[attempt_text(rollout) for rollout in group.rollouts] for group in groups]
        places = [(i, k) for i, of_group in enumerate(texts) for k in range(len(of_group))]
        share = self._budget // len(places)
        sizes = {(i, k): estimate_tokens(texts[i][k]) for i, k in places}
        longest = share if sum(sizes.values()) > self._budget else self._budget
        too_long = [
            at for at in places if sizes[at] > longest or self._settings.reflection.summarize_always
        ]
        questions = [self._summary_of(groups[i], k, batch.epoch) for i, k in too_long]
        answers = await self._asker.ask(questions, (*ORDER, batch.update), batch.update)
        for (i, k), answer in zip(too_long, answers, strict=True):
            texts[i][k] = _summarised(groups[i].rollouts[k], texts[i][k], answer, share)
        return texts

    def _summary_of(self, group: Group, index: int, epoch: int) -> Question:
        rollout = group.rollouts[index]
        score = "" if rollout.score is None else f"Score: {rollout.score:.3g}\n"
        text = clip(attempt_text(rollout), self._budget)
        return Question(
            "summary",
            self._settings.reflection.summarize,
            "summary",
            rollout_id_for(self._settings.seed, epoch, group.example, index, "summary"),
            f"rollout {index} of example {group.example}",
            {**self._about(group), "attempt": f"{score}{text}"},
        )

    def _about(self, group: Group) -> dict[str, Any]:
        example = self._trainset[group.example]
        expected = fields_text(as_fields(example.labels())) or UNKNOWN
        if self._settings.metric is None:
            expected = UNKNOWN
        elif not self._settings.reflection.use_labels:
            expected = HIDDEN
        inputs = fields_text(as_fields(example.inputs()))
        return {**self._asker.common, "example": inputs, "expected": expected}


def lessons_in(
    answer: Answer, predictors: Sequence[str], evidence: Sequence[Evidence], recorder: RunReport
) -> tuple[list[Lesson], list[RefusedLesson]]:
    """The lessons that an answer holds, and one entry for those above the limit.

    Args:
        answer: what the module gave.
        predictors: the names of the program's predictors.
        evidence: the groups, or the examples, that it was shown, in their order.
        recorder: counts scopes that name no predictor.
    """
    try:
        lines = [encodable(line) for line in read_lessons(answer.output)]
    except ValueError:  # a module of the user's own may answer anything
        lines = []
    most = LESSONS_PER_EXAMPLE * len(evidence)
    lessons = [read_lesson(line, predictors, evidence) for line in lines[:most]]
    for lesson in lessons:
        if names_unknown_predictor(lesson, predictors):
            message = f"{lesson.text!r} names none of {list(predictors)}; it is taken for all"
            recorder.count_failure("unknown scope", message)
    reason = _shortened(answer.explanation, REASON_TOKENS)
    n_more = len(lines) - most
    why = f"{LESSONS_PER_EXAMPLE} lessons of an answer are read for each example"
    left_out = [RefusedLesson(f"{n_more} more lessons", why)] if n_more > 0 else []
    return [replace(lesson, reason=reason) for lesson in lessons if lesson.text], left_out


def sifted(
    lessons: Sequence[Lesson], examples: Sequence[Any], max_words: int
) -> tuple[list[Lesson], list[RefusedLesson]]:
    """The lessons that are taken, and those that are refused, such as copies of these examples."""
    guard = guard_of(examples)
    kept, refused = [], []
    for lesson in lessons:
        if reason := guard.reason(lesson.text) or unfit_reason(lesson, max_words):
            refused.append(RefusedLesson(lesson.text, reason))
        else:
            kept.append(lesson)
    return kept, refused


def guard_of(examples: Sequence[Any]) -> CopyGuard:
    """Refuses copies of these examples."""
    return CopyGuard(
        (as_fields(each.inputs()).values(), as_fields(each.labels()).values()) for each in examples
    )


def _summarised(rollout: Rollout, text: str, answer: Answer, share: int) -> str:
    summary = answer.output
    return clip(attempt_text(rollout, steps=str(summary)) if summary else text, share)


def _shortened(text: str, max_tokens: int) -> str:
    """The beginning of the text, on one line."""
    line = " ".join(text.split())
    if estimate_tokens(line) <= max_tokens:
        return line
    while estimate_tokens(line) > max_tokens:
        line = line[: len(line) * 9 // 10]
    return f"{line.rstrip()} ..."


def _evidence(group: Group, update: int) -> Evidence:
    return Evidence(
        update,
        group.example,
        tuple(rollout.rollout_id for rollout in group.rollouts),
        tuple(rollout.score for rollout in group.rollouts),
    )
