"""Groups become lessons: which groups teach, and what ExtractAdvantage is shown of them."""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfgrpo_dspy.experience.values import Evidence
from tfgrpo_dspy.reflection.answers import check_lessons, lessons_in, shortened
from tfgrpo_dspy.reflection.feedback import recurring_feedback
from tfgrpo_dspy.reflection.lessons import (
    CopyGuard,
    Lesson,
    merge_lessons,
    read_lesson,
)
from tfgrpo_dspy.reflection.texts import (
    HIDDEN,
    NO_EXPERIENCES,
    UNKNOWN,
    attempt_text,
    attempts_text,
    clip,
    encodable,
    estimate_tokens,
    feedback_text,
    given_texts,
)
from tfgrpo_dspy.rollout import (
    FAILURE_SCORE,
    MIN_CONTRAST,
    Group,
    fields_text,
    rollout_id_for,
)
from tfgrpo_dspy.run.asking import Answer, Question, ReflectionClient
from tfgrpo_dspy.run.batches import TEACHING, Batch, Extracted, SampledGroup
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.sampling.fields import as_fields

EXTRACT_PRIORITY = (2,)
"""Reflections are begun before training rollouts, the earlier update's first."""
EXAMPLE_TOKENS = 25
"""How long (estimated) the example of a lesson may be in the prompt of an update."""
SEVERAL = "(several examples; each stands above its attempts)"

Groups = Sequence[SampledGroup]


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known from the updates that are decided for sure when a batch is made.

    So it is the same for any number of threads. `best_score` is the highest score of their
    rollouts; `has_given_up`: the reflection LM is not asked about groups any more.
    """

    best_score: float
    has_given_up: bool


# ---------------------------------------------------------------------- groups


async def extract_lessons(
    client: ReflectionClient,
    batch: Batch,
    groups: Sequence[Awaitable[SampledGroup]],
    earlier: Earlier,
) -> Extracted:
    """What the groups teach; each is reflected on as soon as it is there.

    Groups share a call in the order of their index: what came when changes nothing.
    """
    run = client.run
    all_groups = run.loop.spawn(_all_of(groups))
    uses = [run.loop.spawn(_use_of(run, group, all_groups, earlier)) for group in groups]

    async def answer(of_call: Groups) -> tuple[Groups, Answer]:
        given_up = earlier.has_given_up
        return of_call, Answer(None) if given_up else await _ask(client, batch, of_call)

    async def answer_alone(
        group: Awaitable[SampledGroup], use: Awaitable[str]
    ) -> tuple[Groups, Answer] | None:
        return await answer([await group]) if await use in TEACHING else None

    size = 1
    pairs = list(zip(groups, uses, strict=True))
    calls: list[Awaitable[tuple[Groups, Answer] | None]] = []
    if size == 1:  # no group waits for another
        calls = [run.loop.spawn(answer_alone(*pair)) for pair in pairs]
    else:
        waiting: list[SampledGroup] = []
        for group, use in pairs:
            waiting += [await group] if await use in TEACHING else []
            if len(waiting) == size:
                calls.append(run.loop.spawn(answer(waiting)))
                waiting = []
        calls += [run.loop.spawn(answer(waiting))] if waiting else []
    answers = [found for call in calls if (found := await call)]
    lessons, refused = _lessons_of(run, answers, batch.update)
    n_unread = sum(answer.is_unread for _, answer in answers)
    return Extracted(
        tuple(lessons),
        tuple(refused),
        tuple(await all_groups),
        tuple([await use for use in uses]),
        n_asked=0 if earlier.has_given_up else len(answers),
        n_unread=0 if earlier.has_given_up else n_unread,
    )


async def _all_of(groups: Sequence[Awaitable[SampledGroup]]) -> Groups:
    return [await group for group in groups]


async def _use_of(
    run: RunContext,
    sampled: Awaitable[SampledGroup],
    all_groups: Awaitable[Groups],
    earlier: Earlier,
) -> str:
    """What a group is used as: one of `TEACHING`, or why it teaches nothing."""
    group = (await sampled).group
    if len(group.rollouts) < 2:
        return "too few rollouts"
    use = "no ground truth" if run.settings.metric is None else "no contrast"
    if group.has_contrast:
        use = "contrast"
    elif group.scores and run.settings.reflection.failure_analysis and group.has_feedback:
        is_bad = _is_bad(group, earlier.best_score) or _is_bad(group, _best(await all_groups))
        use = "failure analysis" if is_bad else use
    if use in TEACHING and earlier.has_given_up and not group.has_feedback:
        return "not reflected on"
    return use


def _is_bad(group: Group, best_score: float) -> bool:
    highest = max(group.scores)
    return highest < best_score - MIN_CONTRAST or highest <= FAILURE_SCORE


def _best(groups: Groups) -> float:
    return max(score for sampled in groups for score in sampled.group.scores)


def _lessons_of(
    run: RunContext, answers: Sequence[tuple[Groups, Answer]], update: int
) -> tuple[list[Lesson], list[str]]:
    """The lessons of the answers, near-duplicates merged; and those that are refused.

    For groups whose answer could not be read, they are the feedback that several groups share.
    """
    kept: list[Lesson] = []
    refused: list[str] = []
    for groups, answer in answers:
        evidence = [_evidence(sampled.group, update) for sampled in groups]
        examples = [run.trainset[each.example] for each in evidence]
        taken, not_taken = lessons_of_answer(run, answer, evidence, examples)
        kept += [_with_example(run, lesson) for lesson in taken]
        refused += not_taken
    unread = [sampled.group for groups, answer in answers if answer.is_unread for sampled in groups]
    drawn = []
    for sentence, of_groups in recurring_feedback(unread).items():
        sources = tuple(_evidence(group, update) for group in of_groups)
        lesson = read_lesson(encodable(sentence), run.predictors, ())
        drawn.append(replace(lesson, evidence=sources))
    guard = copy_guard([run.trainset[group.example] for group in unread])
    max_words = run.settings.reflection.max_experience_words
    taken, not_taken = check_lessons(drawn, guard, max_words)
    return merge_lessons([*kept, *taken]), [*refused, *not_taken]


def lessons_of_answer(
    run: RunContext, answer: Answer, evidence: Sequence[Evidence], examples: Sequence[Any]
) -> tuple[list[Lesson], list[str]]:
    """The lessons of an answer that are taken, and those that are refused.

    Args:
        run: its report counts scopes that name no predictor.
        answer: of the reflection LM.
        evidence: a piece for each of the examples that it was shown.
        examples: these; what copies them is refused.
    """
    drawn, left_out = lessons_in(
        answer.output, answer.explanation, run.predictors, evidence, run.report.unknown_scope
    )
    max_words = run.settings.reflection.max_experience_words
    taken, not_taken = check_lessons(drawn, copy_guard(examples), max_words)
    return taken, [*left_out, *not_taken]


def _evidence(group: Group, update: int) -> Evidence:
    return Evidence(
        update,
        group.example,
        tuple(rollout.rollout_id for rollout in group.rollouts),
        tuple(rollout.score for rollout in group.rollouts),
    )


def _with_example(run: RunContext, lesson: Lesson) -> Lesson:
    """The lesson with how its first example begins, on one line."""
    inputs = as_fields(run.trainset[lesson.evidence[0].example].inputs())
    return replace(lesson, example=shortened(fields_text(inputs), EXAMPLE_TOKENS))


def copy_guard(examples: Sequence[Any]) -> CopyGuard:
    """Refuses copies of these examples."""
    return CopyGuard(
        (as_fields(each.inputs()).values(), as_fields(each.labels()).values()) for each in examples
    )


# ---------------------------------------------------------------------- what is asked of groups


async def _ask(client: ReflectionClient, batch: Batch, groups: Groups) -> Answer:
    """What ExtractAdvantage says of the groups."""
    run, max_tokens = client.run, _attempts_tokens(client.run)
    texts = await _attempts(client, batch, groups)

    def question(halving: int) -> Question:
        share = (max_tokens >> halving) // sum(map(len, texts))
        shown = [[clip(t, share) if halving else t for t in of_group] for of_group in texts]
        first = groups[0].group
        return Question(
            "lesson",
            rollout_id_for(run.settings.seed, batch.epoch, first.example, 0, "lesson"),
            f"example {', '.join(str(sampled.group.example) for sampled in groups)}",
            _shown(client, batch, groups, shown),
        )

    return await client.ask_shorter(question, (*EXTRACT_PRIORITY, batch.update), batch.update)


def _attempts_tokens(run: RunContext) -> int:
    return getattr(run.settings.reflection.extract, "attempts_tokens", 12_000)


def _shown(
    client: ReflectionClient, batch: Batch, groups: Groups, texts: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The inputs of ExtractAdvantage."""
    attempts = [
        attempts_text(
            sampled.group, of_group, given_texts(sampled.group, sampled.libraries, batch.library)
        )
        for sampled, of_group in zip(groups, texts, strict=True)
    ]
    about = [_about(client, sampled.group) for sampled in groups]
    shown = about[0]
    if len(groups) > 1:
        shown = {**shown, "example": SEVERAL, "expected": SEVERAL}
        for index, sampled in enumerate(groups):
            each = about[index]
            labels = f"Labels:\n{each['expected']}\n" if sampled.group.scores else ""
            title = f"Example {index + 1}\n{each['example']}\n{labels}\n"
            attempts[index] = title + attempts[index]
    feedback = [feedback_text(sampled.group) for sampled in groups]
    return {
        **shown,
        "experiences": batch.library.render() or NO_EXPERIENCES,
        "attempts": "\n\n".join(attempts),
        "feedback": "\n".join(filter(None, feedback)),
        "is_scored": bool(groups[0].group.scores),
    }


def _about(client: ReflectionClient, group: Group) -> dict[str, Any]:
    """The example of a group as the reflection LM is shown it."""
    settings, example = client.run.settings, client.run.trainset[group.example]
    expected = fields_text(as_fields(example.labels())) or UNKNOWN
    if settings.metric is None:
        expected = UNKNOWN
    elif not settings.reflection.use_labels:
        expected = HIDDEN
    inputs = fields_text(as_fields(example.inputs()))
    return {**client.common, "example": inputs, "expected": expected}


async def _attempts(client: ReflectionClient, batch: Batch, groups: Groups) -> list[list[str]]:
    """A text for each rollout: whole where all fit, a summary where they are too long."""
    reflection, max_tokens = client.run.settings.reflection, _attempts_tokens(client.run)
    texts = [[attempt_text(r) for r in sampled.group.rollouts] for sampled in groups]
    sizes = {
        (i, k): estimate_tokens(text)
        for i, of_group in enumerate(texts)
        for k, text in enumerate(of_group)
    }
    share = max_tokens // len(sizes)
    longest = share if sum(sizes.values()) > max_tokens else max_tokens
    too_long = [at for at in sizes if sizes[at] > longest or reflection.summarize_always]
    questions = [_summary_question(client, batch, groups[i].group, k) for i, k in too_long]
    priority = (*EXTRACT_PRIORITY, batch.update)
    answers = await client.ask_all(questions, priority, batch.update)
    for (i, k), answer in zip(too_long, answers, strict=True):
        rollout, text = groups[i].group.rollouts[k], texts[i][k]
        if answer.output:
            text = attempt_text(rollout, steps=str(answer.output))
        texts[i][k] = clip(text, share)
    return texts


def _summary_question(client: ReflectionClient, batch: Batch, group: Group, index: int) -> Question:
    rollout = group.rollouts[index]
    score = "" if rollout.score is None else f"Score: {rollout.score:.3g}\n"
    text = clip(attempt_text(rollout), _attempts_tokens(client.run))
    seed = client.run.settings.seed
    return Question(
        "summary",
        rollout_id_for(seed, batch.epoch, group.example, index, "summary"),
        f"rollout {index} of example {group.example}",
        {**_about(client, group), "attempt": f"{score}{text}"},
    )
