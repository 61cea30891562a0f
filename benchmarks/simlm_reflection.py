"""The reflection side of the simulated LM: weighs what a prompt claims, and writes what follows.

It knows nothing but its prompt. For each item it adds up what is claimed of its codes:

- "expected item=CODE" and "item=CODE is right": +2; "item=CODE is wrong": -2 (each counts once);
- the code stands in a better attempt (a heading says so, or its score is the best shown): +1; in a
  worse one: -1 (each counts once);
- the code stands in a label, a demo, or an answer that nothing is said about: +1 each time
  (`Parameters.unsaid_claim`).

An item whose first code is above 0 and above its second is evident; a lesson about it is written
with the chances of `simlm.Parameters`. Additions (lists, advice by module) leave out what the
program is told already; texts that replace others keep it. Operations are made from lessons and
library as they stand. Where `Parameters` say that merges err, each line that a rewriting or an
update of a library reads may be lost, or come out with another code: the same for both.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simlm_texts import OutputFields, Prompt, sections
from simlm_world import (
    CLAIM,
    LESSON,
    OPENINGS,
    USELESS,
    USELESS_LINES,
    VAGUE,
    draw,
    lesson,
    lessons_in,
    pick,
    random_code,
    vague_lesson,
)

if TYPE_CHECKING:
    from simlm import Parameters

PRESENT = ("experiences", "modules_defn")
"""Input fields that show what the program is told already, where only additions are asked for."""

_CUE = re.compile(
    r"(?P<heading>^\[\[ ## |^Example \d+$)"
    r"|(?P<better>better_(?:program|reward))|(?P<worse>worse_(?:program|reward))"
    r"|(?:score|reward)[^\d\n-]{0,4}(?P<score>-?\d+(?:\.\d+)?)",
    re.MULTILINE,
)
_VERDICT = re.compile(r" is (right|wrong)\b")
_NUMBERED = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)
_KNOWN = re.compile(r"^\[(E\d+)\*?\] (.*)$", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_][\w.]*")

Merge = Callable[[str], str | None]


@dataclass(frozen=True)
class Advice:
    """Lines of advice: a lesson for each item, vague items, useless lines."""

    lessons: dict[str, str]
    vague: tuple[str, ...] = ()
    useless: tuple[str, ...] = ()

    @classmethod
    def found_in(cls, text: str) -> "Advice":
        """The advice that stands in a text; of several lessons about an item, the last."""
        lessons = {lessons_in(found[0])[0][0]: found[0] for found in LESSON.finditer(text)}
        vague = tuple(dict.fromkeys(VAGUE.findall(text)))
        return cls(lessons, vague, tuple(dict.fromkeys(USELESS.findall(text))))

    @property
    def codes(self) -> dict[str, str]:
        """The code that is told for each item."""
        return dict(pair for text in self.lessons.values() for pair in lessons_in(text))

    def lines(self) -> list[str]:
        """The same as lines of text."""
        vague = [vague_lesson(item) for item in self.vague if item not in self.lessons]
        return [*self.lessons.values(), *vague, *self.useless]

    def __or__(self, new: "Advice") -> "Advice":
        """Both; a new lesson takes the place of another on its item."""
        return Advice(
            self.lessons | new.lessons,
            tuple(dict.fromkeys((*self.vague, *new.vague))),
            tuple(dict.fromkeys((*self.useless, *new.useless))),
        )


class Reflector:
    """Answers whatever it is asked, from the evidence in the prompt.

    Args:
        parameters: see `simlm.Parameters`.
    """

    def __init__(self, parameters: "Parameters") -> None:
        self._set = parameters

    def answers(self, prompt: Prompt, fields: OutputFields) -> dict[str, Any]:
        """The values of the output fields."""
        shown = sections(prompt.user)
        if "operations" in fields.names:
            made = operations(shown["experiences"], shown["lessons"], self._merge(prompt))
            return {name: made if name == "operations" else "-" for name in fields.names}
        known = Advice.found_in(prompt.user)
        whole = known | self._new(prompt, known)
        merged = map(self._merge(prompt), whole.lines())
        rewritten = [line for line in merged if line is not None]
        present = Advice.found_in("\n".join(shown.get(name, "") for name in PRESENT)).lines()
        told = [_meaning(line) for line in present]
        additions = [line for line in whole.lines() if _meaning(line) not in told]
        opening = OPENINGS[pick(len(OPENINGS), "opening", prompt.user, prompt.sample)]
        return {
            name: _value(name, type_, opening, rewritten, additions, shown)
            for name, type_ in zip(fields.names, fields.types, strict=True)
        }

    def _new(self, prompt: Prompt, known: Advice) -> Advice:
        """What this call finds out."""
        p, key = self._set, (prompt.user, prompt.sample)
        evident, told = evidence(prompt.user, p.unsaid_claim), known.codes
        open_items = [item for item, code in evident.items() if told.get(item) != code]
        is_seen = min(1.0, p.attention / max(1, len(open_items)))
        lessons, vague = {}, []
        for item in open_items:
            luck = draw("lesson", item, *key)
            if draw("seen", item, *key) >= is_seen:
                continue
            wording = p.wordings[pick(len(p.wordings), "wording", item, *key)]
            codes = [evident[item], random_code("wrong", item, *key)]
            if item in p.misconceived:
                codes = [random_code("misconceived", item), evident[item]]
            if luck < p.lesson_as_claimed:
                lessons[item] = lesson(item, codes[0], wording)
            elif luck < p.lesson_as_claimed + p.lesson_wrong:
                lessons[item] = lesson(item, codes[1], wording)
            elif luck < p.lesson_as_claimed + p.lesson_wrong + p.lesson_vague:
                vague.append(item)
        is_useless = draw("useless", *key) < p.useless_line
        line = USELESS_LINES[pick(len(USELESS_LINES), "line", *key)]
        return Advice(lessons, tuple(vague), (line,) if is_useless else ())

    def _merge(self, prompt: Prompt) -> "Merge":
        """How a line fares that is written anew in this call: mostly it stays as it is."""
        p = self._set

        def merged(line: str) -> str | None:
            key = (line, prompt.user, prompt.sample)
            luck = draw("merged", *key)
            if luck < p.lesson_dropped:
                return None
            about = lessons_in(line)
            if about and luck < p.lesson_dropped + p.lesson_garbled:
                return lesson(about[0][0], random_code("garbled", *key), p.wordings[0])
            return line

        return merged


def evidence(text: str, unsaid_claim: float = 1.0) -> dict[str, str]:
    """For each item that a text makes evident, the code that it claims."""
    weights: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for (item, code), weight in _weights(LESSON.sub("", text), unsaid_claim).items():
        weights[item][code] = weight
    found = {}
    for item, of_code in weights.items():
        (code, first), *others = sorted(of_code.items(), key=lambda pair: -pair[1])
        if first > max([0.0, *(weight for _, weight in others)]):
            found[item] = code
    return found


def _weights(text: str, unsaid_claim: float) -> dict[tuple[str, str], float]:
    cues = list(_CUE.finditer(text))
    scores = [float(cue["score"]) for cue in cues if cue["score"]]
    weights: defaultdict[tuple[str, str], float] = defaultdict(float)
    once: set[tuple[tuple[str, str], int]] = set()
    place, said = 0, None
    for claim in CLAIM.finditer(text):
        while place < len(cues) and cues[place].start() < claim.start():
            said = _said(cues[place], scores)
            place += 1
        pair = (claim[1], claim[2])
        verdict = _VERDICT.match(text, claim.end())
        if verdict:
            once.add((pair, 2 if verdict[1] == "right" else -2))
        elif text.endswith("expected ", 0, claim.start()):
            once.add((pair, 2))
        elif said is None:
            weights[pair] += unsaid_claim
        else:
            once.add((pair, said))
    for pair, weight in once:
        weights[pair] += weight
    return weights


def _said(cue: re.Match[str], scores: Sequence[float]) -> int | None:
    """What a cue says of the attempt that follows: better (1), worse (-1), neither (0), nothing."""
    if cue["heading"]:
        return None
    if not cue["score"]:
        return 1 if cue["better"] else -1
    score = float(cue["score"])
    if score >= 1 or min(scores) < score == max(scores):
        return 1
    return -1 if score <= 0 or score == min(scores) < max(scores) else 0


def _value(
    name: str,
    type_: str,
    opening: str,
    rewritten: Sequence[str],
    additions: Sequence[str],
    shown: dict[str, str],
) -> Any:
    if type_.startswith("dict"):
        return {module: "\n".join(additions) for module in _NAME.findall(shown["module_names"])}
    if type_.startswith("list"):
        return list(additions)
    if name == "lessons":
        return "\n".join(additions) or "None"
    if type_ != "str":
        return 0
    if "prefix" in name:
        return "Answer:"
    if "instruction" in name:
        return "\n".join([opening, *rewritten])
    return "\n".join(rewritten) or "Nothing stands out."


def operations(library: str, lessons: str, merge: Merge = str) -> list[dict[str, Any]]:
    """What numbered lessons do to a library: ADD, MODIFY, KEEP or DELETE, one for each item.

    Of lessons on one item, the code that most of them name; vague ones where there is no other.
    `merge` gives each line, known or new, as it comes out: changed, or None where it is lost.
    """
    known = {id_: _line(text) or text for id_, text in _KNOWN.findall(library)}
    present = {_subject(text): (id_, text) for id_, text in known.items()}
    proposed: dict[str, list[tuple[int, str]]] = {about: [] for about in present}
    for number, line in _NUMBERED.findall(lessons):
        text = _line(line)
        if text is not None:
            proposed.setdefault(_subject(text), []).append((int(number), text))
    made = [_operation(told, present.get(about), merge) for about, told in proposed.items()]
    return [operation for operation in made if operation]


def _operation(
    numbered: Sequence[tuple[int, str]], present: tuple[str, str] | None, merge: Merge
) -> dict[str, Any] | None:
    concrete = [text for _, text in numbered if LESSON.fullmatch(text)]
    text = _commonest(concrete or [text for _, text in numbered])
    rests_on = [number for number, other in numbered if _meaning(other) == _meaning(text)]
    if present is None:
        merged = merge(text)
        return {"op": "ADD", "text": merged, "lessons": rests_on} if merged else None
    id_, old = present
    if not concrete or _meaning(text) == _meaning(old):
        text = old
    merged = merge(text)
    if merged is None:
        return {"op": "DELETE", "id": id_, "lessons": rests_on}
    if merged != old:
        return {"op": "MODIFY", "id": id_, "text": merged, "lessons": rests_on}
    return {"op": "KEEP", "id": id_, "lessons": rests_on} if numbered else None


def _commonest(texts: Sequence[str]) -> str:
    """The first text of those whose meaning is the commonest."""
    n_of_meaning = Counter(map(_meaning, texts))
    return max(texts, key=lambda text: n_of_meaning[_meaning(text)], default="")


def _meaning(text: str) -> str:
    """What a line says, however it is worded."""
    return str(lessons_in(text) or text)


def _line(text: str) -> str | None:
    """The advice in a line, without what is said of its origin."""
    for form in (LESSON, VAGUE, USELESS):
        found = form.search(text)
        if found:
            return found[0]
    return None


def _subject(text: str) -> str:
    """What a line is about: its item, or itself."""
    found = lessons_in(text) or VAGUE.findall(text)
    if not found:
        return text
    return found[0] if isinstance(found[0], str) else found[0][0]
