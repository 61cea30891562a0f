"""Whether a text gives away the label of an example, in any language."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.sampling.examples import Example
from tfgrpo_dspy.strategies.base import GroupContext

LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A letter or digit of a script that sets spaces between words."""


SHORT = 3  # letters: "A", "no", "1" stand in many sentences that do not give them as the answer
_STATED = (
    r"(?:\b(?:is|be|say|answer|choose|pick|write|output|option|label)\W*|[=:\"'(\u201c]\W*"
    r"|(?<=[\u0e00-\uffff]))"
)


def answers_of(context: GroupContext) -> dict[str, str]:
    """The labels of the example that the program puts out; all, where it puts out none of them."""
    labels = context.shown_example.labels
    outputs = {name for rollout in context.group.all_rollouts for name in rollout.outputs}
    return {name: text for name, text in labels.items() if name in outputs} or labels


def gives_away(text: str, labels: Mapping[str, Any]) -> bool:
    """Whether one of these labels stands in the text as whole words, in any case and spacing.

    A label of at most `SHORT` letters must stand there as an answer: behind a word such as "is" or
    "answer", a colon or a quotation mark.
    """
    plain = _plain(text)
    for label in filter(None, (_plain(str(label)) for label in labels.values())):
        before = _STATED if len(label) <= SHORT and label.isascii() else f"(?<!{LETTER})"
        if re.search(f"{before}{re.escape(label)}(?!{LETTER})", plain):
            return True
    return False


def without_giveaways(
    lessons: Sequence[Lesson],
    hinted: set[int],
    examples: Sequence[Example],
    training: Sequence[int],
) -> tuple[Lesson, ...]:
    """The lessons that give away no label of the `hinted` examples that they rest on.

    A label that other training examples have, too, names a class and may be told. A reason that
    gives a label away is left out; its lesson stays.
    """
    by_example = {i: examples[i].labels for i in training} if hinted else {}
    special = {i: _special_labels(i, by_example) for i in hinted & by_example.keys()}
    kept = []
    for lesson in lessons:
        labels = [special[e.example] for e in lesson.evidence if e.example in special]
        if not any(gives_away(lesson.text, each) for each in labels):
            tells = any(gives_away(lesson.reason, each) for each in labels)
            kept.append(replace(lesson, reason="") if tells else lesson)
    return tuple(kept)


def _special_labels(index: int, by_example: Mapping[int, Mapping[str, str]]) -> dict[str, str]:
    """The labels of the example that no other example has."""
    others = [labels for i, labels in by_example.items() if i != index]
    return {
        name: text
        for name, text in by_example[index].items()
        if all(other.get(name) != text for other in others)
    }


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
