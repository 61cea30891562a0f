"""The meaning of an answer of a reflection LM: its lessons or operations.

It reads lines with and without bullets, JSON (also broken), fences, thoughts in tags, and markers
of fields that are damaged. Any other form is a ValueError, and the module asks again.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dspy
import json_repair

from tfgrpo_dspy.text import cleaned_text, n_words

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
    r"\s*(?:\[[a-z_]+\]|#+ .*)$"
    r"|\W*(?:here(?:['\u2019]s| are| is)|sure\b|certainly\b|of course\b|i hope|hope (?:this|these)"
    r"|let me know)",
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
    r"(?:^|\s)[(\[]?(?:learned from \d+ examples?|measured effect on the score [-+]\S+ \S+ [\d.]+)"
    r"(?:[)\]]?$|; (?:measured effect on|on trial[)\]]?$))|(?:^|(?<=[.!?]))\s*[(\[]?on trial[)\]]?$"
    r"|(?:^|\s)from \d+ examples?: (?:no )?scores\b"
    r"|:? ?\beffect [-+][\d.]+ \(standard error [\d.]+, \d+ rollouts"
)
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
    text = _ID.sub("", text)
    if note := _NOTE.search(text):  # of sources, effect and trial, as `texts` writes them
        text = text[: note.start()]
    text = text.removesuffix(",").strip() if text.endswith(('",', "',")) else text.strip()
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
    """True if the line ends with a colon, or is bold and no item of a list."""
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
    """The lessons in a value of JSON: texts, and of objects what holds the lesson."""
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
    """The beginning of the text, without code fences and thoughts."""
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
    """The item with the names that operations have."""
    named = {str(name).strip().lower(): value for name, value in item.items() if value is not None}
    fields = {k: next((named[n] for n in names if n in named), "") for k, names in _FIELDS.items()}
    texts: dict[str, Any] = {"lessons": [*map(int, _WHOLE.findall(str(fields.pop("lessons"))))]}
    for name, value in fields.items():  # of several the first; a whole number as its digits
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        is_text = isinstance(value, str) or (type(value) is int and name != "text")
        text = str(value).strip() if is_text else ""
        texts[name] = "" if text.casefold() in ("null", "none") else text
    return {**texts, "op": texts["op"].upper(), "scope": texts["scope"] or None}
