"""Whether a text gives away the label of an example, in any language."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.sampling.fields import as_fields

LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A letter or digit of a script that sets spaces between words."""


def gives_away(text: str, labels: Mapping[str, Any]) -> bool:
    """Whether one of these labels stands in the text as whole words, in any case and spacing."""
    wanted = [re.escape(_plain(str(label))) for label in labels.values()]
    said = _plain(text)
    return any(re.search(f"(?<!{LETTER}){each}(?!{LETTER})", said) for each in wanted if each)


def without_giveaways(
    lessons: Sequence[Lesson], hinted: set[int], trainset: Sequence[Any], training: Sequence[int]
) -> tuple[Lesson, ...]:
    """The lessons that give away no label of the `hinted` examples that they rest on.

    A label that other training examples have, too, names a class and may be told. A reason that
    gives a label away is left out; its lesson stays.
    """
    known = {i: as_fields(trainset[i].labels()) for i in training} if hinted else {}
    own = {i: _own_labels(i, known) for i in hinted & known.keys()}
    kept = []
    for lesson in lessons:
        labels = [own[e.example] for e in lesson.evidence if e.example in own]
        if not any(gives_away(lesson.text, each) for each in labels):
            tells = any(gives_away(lesson.reason, each) for each in labels)
            kept.append(replace(lesson, reason="") if tells else lesson)
    return tuple(kept)


def _own_labels(index: int, known: Mapping[int, Mapping[str, str]]) -> dict[str, str]:
    """The labels of the example that no other example has."""
    others = [labels for i, labels in known.items() if i != index]
    return {
        name: text
        for name, text in known[index].items()
        if all(other.get(name) != text for other in others)
    }


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
