"""Texts of programs, groups, libraries and lessons for the reflection LM, and their lengths."""

import enum
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from tfgrpo_dspy.dspy_seam import get_annotation_name
from tfgrpo_dspy.experience import ExperienceLibrary, scope_note
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.reading import encodable
from tfgrpo_dspy.rollout import Group, Rollout, fields_text, trajectory_text
from tfgrpo_dspy.text import counted, without_markers

BYTES_PER_TOKEN = 3.5  # of UTF-8: an estimate, on the low side for English text
NO_EXPERIENCES, UNKNOWN, HIDDEN = "(none yet)", "(not known)", "(hidden)"
LEAST_SHOWN = 10  # rollouts, from which on an effect is told
MOST_SOURCES, MOST_DROPPED = 3, 20  # scores of a lesson, dropped texts that are shown


def estimate_tokens(text: str) -> int:
    """About how many tokens the text has, from its UTF-8 length; rather too many than too few."""
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)


def as_input(text: str, tags: Iterable[str] = ()) -> str:
    """The text as it may stand in a prompt of DSPy's adapters; `tags`: fields of one in XML."""
    return without_markers(encodable(text), tags)


def clip(text: str, max_tokens: int) -> str:
    """The text, or its beginning and end with a note of what was left out between them."""
    if estimate_tokens(text) <= max_tokens:
        return text
    encoded, half = text.encode("utf-8", "replace"), int(max_tokens * BYTES_PER_TOKEN) // 2
    head = encoded[:half].decode("utf-8", "ignore")
    tail = encoded[len(encoded) - half :].decode("utf-8", "ignore")
    return f"{head}\n[... {len(text) - len(head) - len(tail)} characters left out ...]\n{tail}"


def tokens_of(inputs: Mapping[str, Any]) -> int:
    """About how many tokens the texts among these inputs have together."""
    return sum(estimate_tokens(text) for text in inputs.values() if isinstance(text, str))


def shorter(inputs: Mapping[Any, Any], max_tokens: int) -> dict[Any, Any]:
    """The inputs with their longest texts clipped, all to one length, so that they fit."""
    sizes = sorted(estimate_tokens(text) for text in inputs.values() if isinstance(text, str))
    room, longest = max_tokens, max(sizes, default=0)
    for place, size in enumerate(sizes):
        if size * (len(sizes) - place) > room:
            longest = room // (len(sizes) - place)
            break
        room -= size
    return {k: clip(v, longest) if isinstance(v, str) else v for k, v in inputs.items()}


def describe_program(program: Any) -> str:
    """The program's task: its own docstring, then its predictors, each field with its type."""
    kind = type(program)
    about = "" if kind.__module__.startswith("dspy.") else inspect.cleandoc(kind.__doc__ or "")
    parts = [f"Program {kind.__name__}: {clip(about, max_tokens=300)}"] if about else []
    for name, predictor in named_predictors(program):
        signature = predictor.signature
        lines = [f"Predictor {name}: {bare_instructions(predictor)}"]
        for kind_of_field in ("input", "output"):
            for field, info in getattr(signature, f"{kind_of_field}_fields").items():
                desc = (info.json_schema_extra or {}).get("desc", "")
                meaning = f": {desc}" if desc not in ("", f"${{{field}}}") else ""
                annotation = get_annotation_name(info.annotation) + _values_text(info.annotation)
                lines.append(f"- {kind_of_field} {field} ({annotation}){meaning}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _values_text(annotation: Any) -> str:
    """The values of each Enum in an annotation, in words; "" where there is none."""
    if isinstance(annotation, enum.EnumMeta):
        values = ", ".join(str(member.value) for member in list(annotation))  # type: ignore[var-annotated]
        return f"; {annotation.__name__} is one of {values}"
    return "".join(dict.fromkeys(map(_values_text, get_args(annotation))))


def attempt_text(rollout: Rollout, steps: str | None = None) -> str:
    """Feedback, steps (or their summary, where it is given) and outputs; nothing is said twice."""
    shows_steps = steps is None and (len(rollout.steps) > 1 or rollout.failure is not None)
    feedback = rollout.feedback if shows_steps else rollout.words
    parts = [f"Feedback: {feedback}"] if feedback else []
    steps = trajectory_text(rollout) if shows_steps else steps
    parts += [steps] if steps else []
    outputs = dict(rollout.outputs)
    if any(step.kind == "tool" for step in rollout.steps):
        outputs.pop("trajectory", None)
        outputs.pop("history", None)
    parts += [f"Outputs:\n{fields_text(outputs)}"] if outputs else []
    return "\n".join(parts) or "(no outputs)"


def by_example(parts: Sequence[str]) -> str:
    """The parts, each below the number of its example; one alone has no number."""
    numbered = (f"Example {n}\n{part}" for n, part in enumerate(parts, start=1))
    return "\n\n".join(numbered if len(parts) > 1 else parts)


def feedback_text(group: Group) -> str:
    """The word of the metric, or of an error, on the worst attempt; "" if there is none."""
    worst = min(group.rollouts, key=lambda rollout: (rollout.score or 0.0, rollout.failure is None))
    return worst.words or getattr(worst.failure, "message", "")


def attempts_text(
    group: Group,
    texts: Sequence[str],
    libraries: Sequence[ExperienceLibrary],
    aids: Sequence[str],
    shown: ExperienceLibrary,
) -> str:
    """The attempts of a group, the best first, each with its score, its advantage and its text.

    It says which experiences it had; one in other words than those that are shown is told with
    them. `libraries` holds the library of each of `all_rollouts`, `aids` what it had besides, in
    words: a brief, demos, a hint, a teacher ("": nothing).
    """
    ids = [rollout.rollout_id for rollout in group.all_rollouts]
    aid_of = dict(zip(ids, aids, strict=True))
    library_of = dict(zip(ids, libraries, strict=True))
    usual = {experience.id: experience.text for experience in shown}
    scores, shown_scores, advantages = group.scores, group.score_texts, group.advantages
    order = sorted(range(len(texts)), key=lambda index: -scores[index] if scores else index)
    parts = []
    for place, index in enumerate(order, start=1):
        rollout, about = group.rollouts[index], list[str]()
        if scores:
            about = [f"score {shown_scores[index]}", f"advantage {advantages[index]:+z.2f}"]
        had = [
            e.id if usual.get(e.id) == e.text else f'{e.id} as "{e.text}"'
            for e in library_of[rollout.rollout_id]
        ]
        about += [f"with {', '.join(had) or 'no experience'}"] if usual or had else []
        about += [aid] if (aid := aid_of[rollout.rollout_id]) else []
        decisive = rollout.decisive_step(group.least_decisive)
        about += [] if decisive is None else [f"decided by step {decisive + 1}"]
        title = f" ({', '.join(about)})" if about else ""
        parts.append(f"Attempt {place}{title}\n{texts[index]}")
    if not scores:
        parts.append(f"The answer that most attempts give:\n{group.majority_answer}")
    return "\n\n".join(parts)


def library_text(library: ExperienceLibrary) -> str:
    """The library for UpdateLibrary: below each experience its support and its measured effect."""
    lines = []
    for line, experience in zip(library.render().split("\n"), library, strict=False):
        about = []
        if experience.evidence:
            about = [f"learned from {counted(len(experience.evidence), 'example')}"]
        effect = experience.effect
        if effect is not None and effect.n_rollouts >= LEAST_SHOWN:
            measured = f"{effect.estimate:+z.2f} \N{PLUS-MINUS SIGN} {effect.standard_error:.2f}"
            about.append(f"measured effect on the score {measured}")
        about += ["on trial"] if experience.is_on_trial else []
        lines += [line, f"    {'; '.join(about)}"] if about else [line]
    return "\n".join(lines) or NO_EXPERIENCES


def lessons_text(lessons: Iterable[Lesson]) -> str:
    """The lessons, numbered; below each the examples that it comes from, and the reason."""
    lines = []
    reasons: dict[str, int] = {}
    for number, lesson in enumerate(lessons, start=1):
        lines.append(f"{number}. {lesson.text}{scope_note(lesson.scope)}")
        if lesson.evidence:
            n, sources = len(lesson.evidence), list[str]()
            for evidence in lesson.evidence[:MOST_SOURCES]:
                scores = ", ".join(f"{s:.3g}" for s in evidence.scores if s is not None)
                sources.append(f"scores {scores}" if scores else "no scores")
            sources[0] += f' at "{lesson.example}"' if lesson.example else ""
            sources += ["..."] * (n > MOST_SOURCES)
            lines.append(f"    from {counted(n, 'example')}: {'; '.join(sources)}")
        if lesson.reason:
            first = reasons.setdefault(lesson.reason, number)
            lines.append(f"    why: {lesson.reason if first == number else f'as lesson {first}'}")
    return "\n".join(lines)


def packed_lessons(lessons: Iterable[Lesson], max_tokens: int) -> list[list[Lesson]]:
    """The lessons in their order, in as few prompts as the size of one allows."""
    parts, room = list[list[Lesson]](), 0
    for lesson in lessons:
        size = estimate_tokens(lessons_text([lesson])) + 2  # its number may have more digits
        if size > room:
            parts, room = [*parts, []], max_tokens
        parts[-1].append(lesson)
        room -= size
    return parts


def dropped_text(dropped: Sequence[Lesson]) -> str:
    """The lessons that were tried and dropped, as text; of many the first, the most tried ones."""
    return (
        "\n".join(
            f"- {each.text}{scope_note(each.scope)}{each.reason and f': {each.reason}'}"
            for each in dropped[:MOST_DROPPED]
        )
        or "(none)"
    )
