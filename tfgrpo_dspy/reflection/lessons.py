"""Lessons and operations: how they are read, which are held back, say the same, and rest on what.

Lines are read with and without bullets, JSON (also broken), fences, thoughts in tags, and damaged
markers of fields. Any other form is a ValueError, and the module asks again.

Advice that copies an example is held back; the gate judges all other advice by what it adds. What
belongs to the task is no copy: what stands in the user's own program, a label that names a class, a
form that many inputs have.
"""

import contextlib
import functools
import inspect
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
import json_repair

from tfgrpo_dspy import experience
from tfgrpo_dspy.errors import LibraryError
from tfgrpo_dspy.experience import ALL, Add, ExperienceLibrary, Keep, Modify, Operation, Refusal
from tfgrpo_dspy.text import cleaned_text, letter_groups, n_words, says_same, words_of
from tfgrpo_dspy.user_code import named_predictors, schema_of

LONGEST_ANSWER, LONGEST_REPAIR = 20_000, 5_000
"""Characters of an answer that are read; of broken JSON, whose repair takes their square."""
NAMES_OF_A_LESSON = ("lessons", "lesson", "text", "advice", "rule", "content", "description")
SHORTEST_WRAPPED = 40  # characters of a line that goes on in the next one
_THOUGHT = re.compile(
    r"^[^\S\n]*<(think|thinking|thought|reasoning|reflection|analysis|scratchpad)>"
    r".*?(?:(</\1>)|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_ENDED = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u201d\u00bb)\]*`]*$|##\s*\]\]$")
_NOTHING = re.compile(
    r"(?:none|n/a|(?:there (?:is|was) )?nothing(?: new| more)?(?: to (?:learn|add)\b[^.]*)?)"
    r"(?:\s*[.,;:(\u2013\u2014-].*)?|none (?:needed|required|found)|null|<[\w -]+>"
    r"|(?:there (?:are|were) )?no (?:\w+ )?lessons?(?:[.,;:(].*| (?:are|can|from|here|found)\b.*)?"
    r"|no (?:operations?|changes?)(?: (?:are )?(?:needed|necessary|required))?"
    r"|keine|nichts|aucune?|rien|ninguna?|nada|nessuna?|nenhuma?|нет|无|無|没有|沒有|なし|없음"
    r"|##[^#\n]*##"  # the marker of a field
)
_BULLET = re.compile(
    r"(?:[-*+\u2013]\s+|[\u2022\u25cf\u25aa\u30fb]\s*|[(\[]\d{1,3}[)\]]:?"
    r"|#?\d{1,3}(?:[.):](?=\s|$|\*)|[\u3001\uff0e\uff1a\uff09])"
    r"|\[?(?:lesson|example) #?\d{1,3}(?:\]:?|\s*[:.)])|lesson:)\s*",
    re.IGNORECASE,
)
_IN_JSON = re.compile(r"\[\s*(?:[\"'{]|\])|\{\s*[\"']")
_JSON = re.compile(
    r"^(?:[^\n:]{0,80}\blessons?\b[^\n:]{0,80}:|```\w*)?\s*(?:\d{1,2}[.)]\s+(?=\{))?"
    rf"(?={_IN_JSON.pattern})",
    re.IGNORECASE | re.MULTILINE,
)
"""Where JSON begins that is an answer; brackets in the middle of a line belong to a lesson."""
_BETWEEN_OBJECTS = re.compile(r"\}\s*,?\s*(?:[-*]\s|\d{1,2}[.)])?\s*(?=\{)")
_TALK = re.compile(
    r"\s*(?:\[[a-z_]+\]|#+ .*)$|\W*(?:here(?:['\u2019]s| are| is)|(?:sure|certainly|of course)\b"
    r"|i hope|hope (?:this|these)|let me know)",
    re.IGNORECASE,
)
"""Markers, headings of Markdown, and talk."""
_CONDITION = re.compile(
    r"(?:when|whenever|if|wenn|falls|si|quand|cuando|se|quando|если|когда)\b|[当當若]|如果",
    re.IGNORECASE,
)
_BOLD = re.compile(r"(?<![A-Za-z0-9])\*\*(?=\S)(.{1,300}?)(?<=\S)\*\*|^\*\*(?=\w)|(?<=\S)\*\*$")
_ID = re.compile(r"^(?:\[E\d+\*?(?:\]|$)|E\d+(?:\*|$))\s*")
_NOTE = re.compile(
    r"(?:^|\s)[(\[]?(?:learned from \d+ examples?(?:[;)\]]|$)|measured effect on the score [-+]\d"
    r"|from \d+ examples?: (?:no )?scores\b).*|(?:^|(?<=[.!?]))\s*[(\[]?on trial[)\]]?$"
    r"|:? ?\beffect [-+][\d.]+ \(standard error [\d.]+, \d+ rollouts.*"
)
"""Notes of sources, effect and trial, as they stand below experiences and lessons in prompts."""
_QUOTES = ('""', "''", "``", "\u201c\u201d", "\u300c\u300d", "\u00ab\u00bb")
_CLOSED = re.compile(r"[.!?\u3002\uff01\uff1f:\uff1a;]$")
_WHOLE = re.compile(r"(?<![\d.])(?<!\W-)\d{1,6}(?!\d)")
_FIELDS = {
    "op": ("op", "operation", "action", "type"),
    "id": ("id", "experience_id"),
    "text": ("text", "new_text", "content", "advice", "lesson"),
    "lessons": ("lessons", "lesson_numbers", "sources"),
    "scope": ("scope", "predictor"),
    "reason": ("reason", "why"),
}
"""The names that LMs give the fields of an operation."""


def without_thoughts(text: str) -> tuple[str, bool]:
    """The text without thoughts in tags; whether one of them never ends."""
    is_open = any(not thought[2] for thought in _THOUGHT.finditer(text))
    return _THOUGHT.sub("", text).rpartition("</think>")[2], is_open  # it began in the prompt


def finished(text: str) -> str:
    """The text that was cut off, without its last line, sentence or item if that has no end."""
    if "[[ ## completed" in text:
        return text
    if start := _JSON.search(text):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(text[start.end() :].strip().removesuffix("```"))
            return text
        end = max(text.rfind("},"), text.rfind("}\n"))
        end = end if end > start.end() else text.rfind('",')
        return text[: end + 1] if end > start.end() else text[: start.end()]
    lines = text.rstrip().splitlines()
    if not lines or _ENDED.search(lines[-1]):
        return text
    last = lines.pop()
    while lines and last[:1].isspace() and not _ENDED.search(lines[-1]):
        last = lines.pop()  # an item of several lines
    return "\n".join(lines)


def fields_in(signature: Any, answer: str) -> dict[str, Any]:
    """The output fields of an answer in JSON, or below other headings, such as "**Lessons:**"."""
    names = {name.replace("_", " "): name for name in signature.output_fields}
    either = "|".join(re.escape(name).replace(r"\ ", "[ _]") for name in names)
    inline = r"[\s*_#\]]*[:\uff1a][\s*]*(.+)"
    heading = rf"^[^\w\n]*({either})(?: learned)?(?:[^\w\n]*|{inline})$"

    def marker(match: re.Match[str]) -> str:
        return f"[[ ## {names[match[1].casefold().replace('_', ' ')]} ## ]]\n{match[2] or ''}"

    marked = re.sub(heading, marker, answer, flags=re.MULTILINE | re.IGNORECASE)
    of_json, of_text = dspy.JSONAdapter(), dspy.ChatAdapter()
    for adapter, text in ((of_json, answer[:LONGEST_REPAIR]), (of_text, marked)):
        with contextlib.suppress(dspy.AdapterParseError, RecursionError, ValueError):
            return dict(adapter.parse(signature, text))
    return {}


def read_instructions(answer: Any) -> str:
    """The text of instructions, without a fence around it. Raises ValueError: there is none."""
    text, _ = without_thoughts(str(answer))
    fenced = re.fullmatch(r"\s*```[\w-]*\n(.*?)\n?```\s*", text, re.DOTALL)
    text = (fenced[1] if fenced else text).strip()
    if _is_nothing(text) or not any(map(str.isalpha, text)):
        raise ValueError(f"{text[:80]!r} holds no instructions.")
    return text[:LONGEST_ANSWER]


def bare_line(text: str) -> str:
    """The text of one lesson: without bullet, bold, id, notes and quotes; "" for "None"."""
    text = _BOLD.sub(r"\1", " ".join(text.split()))
    for _ in range(2):  # "- Lesson 1: ..."
        text = text[bullet.end() :] if (bullet := _BULLET.match(text)) else text
    text = _NOTE.sub("", _ID.sub("", text)).strip()
    if len(text) > 2 and text[0] + text[-1] in _QUOTES and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return "" if _is_nothing(text) or not any(map(str.isalpha, text)) else text


def encodable(text: str) -> str:
    """The text without unseen letters, and "?" for half a character, which no provider takes."""
    return cleaned_text(text).encode("utf-8", "replace").decode()


def _is_nothing(text: str) -> bool:
    """True if a text only says that there is nothing ("None: all is right."), or is a marker."""
    return _NOTHING.fullmatch(text.strip(" \t\n.!-*_()[]\"'`\u3002").casefold()) is not None


def _has_bullet(line: str) -> bool:
    starts = line.lstrip(), line.lstrip(" \t*_>")  # "* Say please.", "**1.** Say please."
    return any(map(_BULLET.match, starts))


def _is_heading(line: str) -> bool:
    is_bold = re.fullmatch(r"\W{0,9}\*\*[^*]+\*\*\W{0,9}", line) and not _has_bullet(line)
    bare = bare_line(line)
    return bare.endswith((":", "\uff1a")) or (bool(is_bold) and not _CLOSED.search(bare))


def read_lessons(answer: Any) -> list[str]:
    """The lessons of an answer, in their order: from lines, bullets, JSON or a Python list.

    `"1. Say please.\\n2. **Be brief.**" -> ["Say please.", "Be brief."]`; "None" gives [].
    Raises ValueError: it holds no lesson, and does not say that there is none.
    """
    content, text = answer, ""
    if isinstance(answer, str):
        text = _without_fences(encodable(answer))
        start = _JSON.search(text)
        content = json_in(text[start.end() :]) if start else None
    items = [*_strings_in(content)]
    if isinstance(answer, str) and (
        content is None or (items and max(map(n_words, items)) < 2)  # a lesson shows this JSON
    ):
        return _lines_of(text)
    bare = (bare_line(encodable(item)) for item in items if not _is_heading(item))
    lessons = [each for each in bare if each and not _TALK.match(each)]
    says_none = content in ([], {"lessons": []}) or (items and all(map(_is_nothing, items)))
    if text and not lessons and not says_none:
        raise ValueError(f"{text[:80]!r} holds no lesson.")
    return lessons


def _lines_of(text: str) -> list[str]:
    """The lessons of plain lines; if some have bullets, these, but none that explains a lesson.

    A condition ("When it is late:") stands before each bullet, or the one line, below.
    """
    lines: list[str] = []
    for line in text.splitlines():
        above, bare = lines[-1] if lines else "", bare_line(line)
        is_open = not _has_bullet(line) and not _CLOSED.search(bare_line(above))
        is_wrapped = len(above) >= SHORTEST_WRAPPED or above.rstrip().endswith(",")
        goes_on = _has_bullet(above) or (bare[:1].islower() and is_wrapped)
        if above and (_IN_JSON.match(bare) or (bare and is_open and goes_on)):
            lines[-1] += f" {line.strip()}"
        elif line.strip() and not _TALK.match(line):
            lines.append(line)
    if lines and not _has_bullet(lines[0]) and _is_nothing(lines[0]) and "##" not in lines[0]:
        return []
    items: list[tuple[int, bool, str]] = []  # indentation, whether it has a bullet, text
    condition, level = "", 0
    for line in lines:
        bare, indent, is_item = bare_line(line), len(line) - len(line.lstrip()), _has_bullet(line)
        if _is_heading(line):
            condition, level = bare if _CONDITION.match(bare) else "", indent + is_item
        elif bare:
            condition = "" if is_item and indent < level else condition
            items.append((level if condition else indent, is_item, f"{condition} {bare}".strip()))
            condition = condition if is_item else ""
    bullets = [indent for indent, is_item, _ in items if is_item]
    lessons = [
        bare
        for indent, is_item, bare in items
        if not bullets or (is_item and indent <= min(bullets) + 1)
    ]
    if not lessons and any(map(bare_line, text.splitlines())):
        raise ValueError(f"{text[:80]!r} holds no lesson.")
    return lessons


def _strings_in(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        named = {str(name).strip().lower(): value for name, value in content.items()}
        lesson = next((named[name] for name in NAMES_OF_A_LESSON if name in named), None)
        if isinstance(lesson, str):
            condition = named.get("condition")
            before = f"{condition.rstrip(':')}: " if isinstance(condition, str) else ""
            lesson = f"{before}{lesson}".splitlines()
        yield from _strings_in(list(named.values()) if lesson is None else lesson)
    elif isinstance(content, Iterable):
        for item in content:
            yield from _strings_in(item)


def _without_fences(text: str) -> str:
    text, _ = without_thoughts(text)
    text = re.sub(r"^[^\S\n]*```[\w-]*|```[^\S\n]*$", "", text, flags=re.MULTILINE)
    return text.strip()[:LONGEST_ANSWER]


def json_in(text: str) -> Any:
    """The list or object in a text, in JSON or Python's form; of several objects a list."""
    start = _IN_JSON.search(text)
    if start is None:
        return None
    rest = text[start.start() :]
    if rest.startswith("{") and (joined := _BETWEEN_OBJECTS.sub("},", rest)) != rest:
        rest = f"[{joined}]"
    end = max(rest.rfind("]"), rest.rfind("}"))
    for read, part in ((json.loads, rest[: end + 1]), (json_repair.loads, rest[:LONGEST_REPAIR])):
        with contextlib.suppress(RecursionError, ValueError):  # no JSON, or an endless number
            content = read(part)
            return content if isinstance(content, list | dict) else None
    return None


def read_operations(answer: Any) -> list[Any]:
    """The operations of an answer as mappings: op, id, text, scope (maybe None), reason, lessons.

    An item that is no operation stays as it is, to be refused by itself. Raises ValueError:
    nothing in it can be read as an operation.
    """
    value = answer
    if isinstance(answer, str):
        text = _without_fences(answer)
        if _is_nothing(text) and text.casefold() != "null":
            return []
        value = json_in(text)
    if isinstance(value, Mapping):
        value = value.get("operations", [value])
    items = [item for item in value if item is not None] if isinstance(value, list) else None
    if items is None or (value and not any(isinstance(item, Mapping) for item in items)):
        raise ValueError(f"{str(answer)[:80]!r} holds no operation.")
    return [_operation(item) if isinstance(item, Mapping) else item for item in items]


def _operation(item: Mapping[str, Any]) -> dict[str, Any]:
    named = {str(name).strip().lower(): value for name, value in item.items() if value is not None}
    fields = {k: next((named[n] for n in names if n in named), "") for k, names in _FIELDS.items()}
    texts: dict[str, Any] = {"lessons": [*map(int, _WHOLE.findall(str(fields.pop("lessons"))))]}
    for name, value in fields.items():  # of several the first; a whole number as its digits
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        is_text = isinstance(value, str) or (type(value) is int and name != "text")
        text = str(value).strip() if is_text else ""
        texts[name] = "" if text.casefold() in ("null", "none") else text
    return {**texts, "op": texts["op"].upper(), "scope": texts["scope"] or None}


LESSONS_PER_EXAMPLE = 10  # are read of an answer, for each example that it was shown
TOO_MANY = f"({LESSONS_PER_EXAMPLE} lessons of an answer are read for each example)"
LONGEST_LESSON = 3  # times as long as an experience: UpdateLibrary may shorten it
LIKE_SHARE, LEAST_SHARE = 0.5, 0.2
"""A text rests on each lesson of which it holds the first share of letter groups; if there is
none, on the lesson of which it holds the most, from the second share on."""
COPIED_WORDS, COPIED_LABEL, COPIED_INPUT, COPIED_EXAMPLE = 8, 4, 5, 5
"""Words that make a copy: in a row; of a whole label; of a whole input; of a whole example. In a
script without spaces, where each character is counted as a word, twice as many do."""
SHARED_LABELS = 2  # examples with unlike inputs: what their labels share is no copy
SHARED_INPUTS, SHARED_PART = 3, 0.1
"""Words in the inputs of at least 3 examples, and a tenth of all, are a form, not a copy."""
SETTING = 'Reflection(guard="warn") takes it'
_FOR_ALL = ("", "*", "all", "any", "both", "every", "everything", "program", "the program")
_SCOPED = re.compile(r"[\[\u3010][^\]\u3011]+[\]\u3011]\s*[:\uff1a]?\s*.+")
_END_OF_SCOPE = re.compile(r"[\]\u3011]\s*[:\uff1a]?\s*(?=\S)")  # maybe: a name is `steps[0]`, too
_SOURCES = re.compile(
    r"\s*[\[(\uff08](?:from |see |for )?(?:examples?|groups?|cases?|ex\.?|beispiele?|exemples?"
    r"|ejemplos?|esempi[oe]?|exemplos?|примеры?|示例|例子?)\s*#?"
    r"\d{1,3}(?:\s*(?:,|;|\u3001|&|and|und|et|y|e|и|和)\s*#?\d{1,3})*\s*[\])\uff09]\s*[.\u3002]?$",
    re.IGNORECASE,
)
Fields = tuple[Mapping[str, str], Mapping[str, str]]
"""The input fields and the labels of an example, as texts by name."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A candidate for an experience, with the groups that it was drawn from."""

    text: str
    scope: str = ALL
    evidence: tuple[experience.Evidence, ...] = ()
    reason: str = ""  # the semantic advantage that it rests on, or why it was dropped
    example: str = ""  # how its first one begins


class Task:
    """The user's program (a text) and examples (read when needed): what is no copy."""

    def __init__(self, program: str = "", examples: Callable[[], Iterable[Fields]] = list) -> None:
        self._program, self._read = program, examples
        self.shares = functools.cache(self._shares)

    @functools.cached_property
    def _words(self) -> tuple[str, list[tuple[str, str]]]:
        lines = (["\n".join(part.values()) for part in fields] for fields in self._read())
        folded = [(_folded(inputs), _folded(labels)) for inputs, labels in lines]
        return _folded(self._program), [*dict(folded).items()]

    def _shares(self, phrase: str) -> bool:
        """True if these words belong to the task: to its program, to a class, to a form."""
        program, data = self._words
        sought = f" {phrase} "
        n_inputs = sum(sought in inputs for inputs, _ in data)
        n_labels = sum(sought in labels for _, labels in data)
        is_form = n_inputs >= max(SHARED_INPUTS, SHARED_PART * len(data))
        return sought in program or n_labels >= SHARED_LABELS or is_form


def _folded(text: str) -> str:
    return "\n".join(f" {' '.join(words_of(line))} " for line in text.splitlines())


def task_text(program: Any, objective: str = "") -> str:
    """The user's own text in the program, with the values of a Literal or an Enum."""
    parts = [objective, inspect.getdoc(type(program)) or ""]
    for name, predictor in named_predictors(program):
        parts += [name, experience.bare_instructions(predictor)]
        for field, info in predictor.signature.fields.items():
            parts += [field, str((info.json_schema_extra or {}).get("desc", ""))]
            parts.append(str(schema_of(info.annotation) or info.annotation))
    return "\n".join(parts)


class Guard:
    """Refuses copies of these examples, of their labels, and of long runs of words in them."""

    def __init__(
        self,
        examples: Iterable[Fields],
        task: Task | None = None,
        refuses: Callable[[str, str], bool] = lambda _text, _reason: True,  # the reason against it
    ) -> None:
        self._task, self._refuses = task or Task(), refuses
        self._texts: list[tuple[str, int]] = []  # and how many of its words in a row are a copy
        self._wholes: list[tuple[str, ...]] = []  # a copy holds all texts of one of these
        self._labels: set[tuple[str, ...]] = set()
        for fields in examples:
            inputs, labels = ([words_of(text) for text in each.values()] for each in fields)
            self._labels.update(labels)
            sizes = [COPIED_INPUT] * len(inputs) + [COPIED_LABEL] * len(labels)
            for parts, size in zip(example := [*inputs, *labels], sizes, strict=True):
                if len(parts) >= size * _scale(parts):
                    self._wholes.append((" ".join(parts),))
                self._texts.append((f" {' '.join(parts)} ", COPIED_WORDS * _scale(parts)))
            every = [*itertools.chain(*example)]
            if labels and all(example) and len(every) >= COPIED_EXAMPLE * _scale(every):
                self._wholes.append(tuple(map(" ".join, example)))

    def reason(self, text: str) -> str:
        """The reason to refuse the text, with the words that it copies; "" if there is none."""
        parts = words_of(text)
        copied: list[tuple[str, ...]] = [
            (run,)
            for n in (COPIED_WORDS, 2 * COPIED_WORDS)
            for run in (" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1))
            if any(size == n and f" {run} " in words for words, size in self._texts)
        ]
        sentence = f" {' '.join(parts)} "
        copied += [one for one in self._wholes if all(f" {part} " in sentence for part in one)]
        copied = [one for one in copied if len(one) > 1 or not self._task.shares(one[0])]
        reason = f"copies the training data: '{' ... '.join(copied[0])}'" if copied else ""
        if parts and parts in self._labels:
            reason = f"is nothing but a label: '{' '.join(parts)}'"
        return f"{reason}; {SETTING}" if reason and self._refuses(text, reason) else ""


def _scale(parts: Sequence[str]) -> int:
    """2 where most words are single characters of a script without spaces, else 1."""
    if "".join(parts).isascii():  # as most long documents are
        return 1
    return 2 if sum(len(word) == 1 and word >= "\u0e00" for word in parts) > len(parts) / 2 else 1


def lessons_in(
    lines: Sequence[str],
    blank: Lesson,
    predictors: Sequence[str],
    guard: Guard,
    examples: Sequence[str],
    max_words: int,
) -> tuple[list[Lesson], list[str]]:
    """The lessons of these lines; the texts of those that are refused, each with the reason.

    `blank` has the reason of all of them, the scope of those that name none, and the evidence of
    those that name no examples.
    """
    most = LESSONS_PER_EXAMPLE * len(examples)
    taken = []
    refused = [f"{len(lines) - most} more lessons {TOO_MANY}"] if len(lines) > most else []
    for line in lines[:most]:
        text, scope = read_lesson(line, predictors, blank.scope)
        reason = f"more than {LONGEST_LESSON} times as long as an experience"
        if n_words(text) <= LONGEST_LESSON * max_words:
            reason = guard.reason(text)
        if reason:
            refused.append(f"{text} ({reason})")
        elif text:
            note = _SOURCES.search(" ".join(line.split()))
            named = {*map(int, re.findall(r"\d+", note[0]))} if note else set()
            places = [n for n in range(len(blank.evidence)) if n + 1 in named]
            evidence = tuple(blank.evidence[n] for n in places) or blank.evidence
            taken.append(Lesson(text, scope, evidence, blank.reason, examples[(places or [0])[0]]))
    return taken, refused


def read_lesson(line: str, predictors: Sequence[str], usual: str = ALL) -> tuple[str, str]:
    """Text and scope of the lesson in a line without bullet: `[name]` gives the scope.

    Brackets that name none of the program's predictors stay in the text, and the lesson has the
    `usual` scope. A note on its sources, such as "(examples 1, 3)", is left out.
    """
    text = _SOURCES.sub("", " ".join(line.split()))
    if _SCOPED.fullmatch(text):
        for end in _END_OF_SCOPE.finditer(text):
            if (scope := resolve_scope(text[1 : end.start()], predictors)) is not None:
                return text[end.end() :], scope if len(predictors) > 1 else ALL
    return text, usual


def resolve_scope(name: str, predictors: Sequence[str]) -> str | None:
    """The predictor that a name, or its only beginning or end, stands for; "*": all; None: none."""
    wanted = name.strip(" \"'`*:").removeprefix("predictor ").casefold()
    wanted = wanted[1:-1] if wanted[:1] + wanted[-1:] == "[]" else wanted
    if wanted in _FOR_ALL:
        return ALL
    part, dotted = f".{wanted}.", {each: f".{each}.".casefold() for each in predictors}
    same = [each for each in predictors if dotted[each] == part]
    near = [p for p in predictors if dotted[p].startswith(part) or dotted[p].endswith(part)]
    return (same or near)[0] if len(same or near) == 1 else None


def is_same_lesson(lesson: Lesson, other: Lesson) -> bool:
    """True if two lessons of one scope say the same."""
    return lesson.scope == other.scope and says_same(lesson.text, other.text)


def merge_lessons(lessons: Iterable[Lesson]) -> list[Lesson]:
    """The lessons, near-duplicates as one with the evidence of all; the best supported first."""
    merged: list[Lesson] = []
    for lesson in lessons:
        places = (i for i, earlier in enumerate(merged) if is_same_lesson(earlier, lesson))
        if (same := next(places, None)) is None:
            merged.append(lesson)
        else:
            merged[same] = experience.supported(merged[same], lesson)
    return sorted(merged, key=lambda lesson: -len(lesson.evidence))


def sources_of(text: str, lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons that a text rests on: a single one, or those of whose words it has enough.

    It compares letter pairs and triples, which works in any language. Those that all lessons have
    count next to nothing. Where no lesson reaches `LIKE_SHARE`, it is the best one, if any.
    """
    if len(lessons) < 2:
        return list(lessons)
    groups = [letter_groups(lesson.text) for lesson in lessons]
    uses = Counter(gram for of_lesson in groups for gram in of_lesson)
    weight = {gram: math.log((len(lessons) + 0.1) / n) for gram, n in uses.items()}
    in_text = letter_groups(text)
    pairs = ((grams & in_text, grams) for grams in groups)
    sums = ([math.fsum(map(weight.__getitem__, each)) for each in pair] for pair in pairs)
    shares = [shared / (whole or 1.0) for shared, whole in sums]
    least = LIKE_SHARE if max(shares) >= LIKE_SHARE else max(LEAST_SHARE, *shares)
    return [lesson for lesson, share in zip(lessons, shares, strict=True) if share >= least]


def known_lessons(
    lessons: Iterable[Lesson], library: ExperienceLibrary
) -> tuple[list[Keep], list[Lesson]]:
    """A KEEP for each lesson that the library has already, in nearly the same words; the others."""
    keeps, new = [], []
    for lesson in lessons:
        same = (e.id for e in library if is_same_lesson(Lesson(e.text, e.scope), lesson))
        if id_ := next(same, ""):
            keeps.append(Keep(id_, reason="seen again", evidence=lesson.evidence))
        else:
            new.append(lesson)
    return keeps, new


def operations_in(
    items: Sequence[Any] | None,
    lessons: Sequence[Lesson],
    library: ExperienceLibrary,
    predictors: Sequence[str],
    guard: Guard,
) -> list[Operation | Refusal]:
    """The operations that these items are; what is refused stands in its place.

    Where nothing could be read, they are the lessons as ADDs. The evidence of an operation is that
    of the lessons that it names or, if it names none, resembles. An ADD that names no scope has
    the scope that they share.
    """
    if items is None:
        adds = (Add(each.text, each.scope, evidence=each.evidence) for each in lessons)
        return [admitted(add, predictors, guard) for add in adds]
    operations: list[Operation | Refusal] = []
    for item in items:
        if isinstance(item, Mapping):
            text, in_text = read_lesson(bare_line(item["text"]), predictors, "")
            if scope := item["scope"] or in_text or None:
                scope = resolve_scope(scope, predictors) if len(predictors) > 1 else ALL
            item = {**item, "text": text, "scope": scope}
        try:
            operation = admitted(experience.operation_from(item), predictors, guard)
        except LibraryError as error:
            operation = Refusal(item, str(error))
        if not isinstance(operation, Refusal):
            id_ = getattr(operation, "id", "")
            text = getattr(operation, "text", "") or (library[id_].text if id_ in library else "")
            numbers = sorted({*item["lessons"]})
            based = [lessons[n - 1] for n in numbers if 0 < n <= len(lessons)]
            based = based or sources_of(text, lessons)
            if isinstance(operation, Add) and item["scope"] is None:
                first, *others = {lesson.scope for lesson in based} or {ALL}
                operation = replace(operation, scope=ALL if others else first)
            for lesson in based:
                operation = experience.supported(operation, lesson)
        operations.append(operation)
    return operations


def admitted(operation: Operation, predictors: Sequence[str], guard: Guard) -> Operation | Refusal:
    """The operation, if its scope is a predictor and the guard lets its text in; else why not.

    Everybody's operations come through here: those of the reflection LM, of a person, of a
    strategy. A scope may be written as an LM writes it.
    """
    if isinstance(operation, Add | Modify) and operation.scope is not None:
        scope = resolve_scope(operation.scope, predictors)
        if scope is None:
            names = f"scope {operation.scope!r} names none of {[*predictors]}"
            return Refusal(operation, names)
        operation = replace(operation, scope=scope)
    reason = guard.reason(getattr(operation, "text", ""))
    return Refusal(operation, reason) if reason else operation


def settled(operations: Sequence[Operation], dropped: Sequence[Lesson]) -> list[Operation]:
    """The operations, an ADD that only rewords dropped advice in the words that were tried.

    The KEEPs of an experience are one, or evidence of the operation that changes it.
    """
    keeps: dict[str, Keep] = {}
    others: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Keep):
            keeps[operation.id] = experience.supported(
                keeps.get(operation.id, operation), operation
            )
            continue
        if isinstance(operation, Add):
            new = Lesson(operation.text, operation.scope)
            same = (old.text for old in dropped if is_same_lesson(old, new))
            operation = replace(operation, text=next(same, new.text))
        others.append(operation)
    ids = {getattr(operation, "id", "") for operation in others}
    changed = [experience.supported(op, keeps.get(getattr(op, "id", ""), op)) for op in others]
    return [*(keep for id_, keep in keeps.items() if id_ not in ids), *changed]
