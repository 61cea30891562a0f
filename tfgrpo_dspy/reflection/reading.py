"""The meaning of an answer of a reflection LM: its lessons or operations, in whatever form.

Small LMs seldom keep to a form. What can be understood is read, whatever its form; what cannot is
a ValueError, and the module asks again.
"""

import contextlib
import itertools
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
_THOUGHT = (
    r"(?:[a-z]{1,12}:)?(?:think|thinking|thought|thoughts|reasoning|reason|reflection|analysis"
    r"|scratchpad|monologue|inner_monologue|antthinking|chain_of_thought)"
)
_BEGINS = re.compile(
    rf"^[^\S\n]*(?:<{_THOUGHT}\b[^<>\n]{{0,80}}>|\[{_THOUGHT}\]|\u25c1{_THOUGHT}\u25b7"
    r"|<\|(?:start_thinking|begin_of_thought|thinking|think)\|>"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary|thought)\b[^<\n]{0,80}"
    r"<\|message\|>|<\|channel>thought\b)",
    re.IGNORECASE | re.MULTILINE,
)
_ENDS = re.compile(
    rf"</{_THOUGHT}\s*>|\[/{_THOUGHT}\]|\u25c1/{_THOUGHT}\u25b7|<\|(?:end_thinking|end_of_thought"
    r"|/think(?:ing)?)\|>|<\|channel\|>final\b[^<\n]{0,80}<\|message\|>|<channel\|>",
    re.IGNORECASE,
)
"""The end of a thought; of harmony's channels the beginning of the final one."""
_ORPHAN = re.compile(
    rf"(?s)^.*(?:</think>|\[/think\]|\n[^\S\n]*{_ENDS.pattern}[^\S\n]*(?=\n))", re.I
)
_MARKS = re.compile(r"<\|(?:end|return|start|eot_id|im_end|end_of_text)\|>(?:assistant)?", re.I)
_ENDED = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u201d\u00bb)\]*`]*$|##\s*\]\]$")
_JSON = re.compile(r"^[^\S\n]*(?:```\w*\s*)?(?:\[\s*[\"'{]|\{\s*[\"'])", re.MULTILINE)
_NOTHING = re.compile(
    r"(?:none|n/a|(?:there (?:is|was) )?nothing(?: new| more)?(?: to (?:learn|add)\b[^.]*)?)"
    r"(?:\s*[.,;:(\u2013\u2014-].*)?"
    r"|na|null|nil|empty|not applicable|<[\w -]+>|none (?:needed|required|found)"
    r"|(?:there (?:are|were) )?no (?:\w+ )?lessons?(?:[.,;:(].*| (?:are|can|from|here|found)\b.*)?"
    r"|no (?:operations?|changes?)(?: (?:are )?(?:needed|necessary|required))?"
    r"|keine|nichts|aucune?|rien|ninguna?|nada|nessuna?|nenhuma?|нет|ничего|无|無|没有|沒有|なし"
    r"|特になし|없음|##[^#\n]*##"  # the marker of a field
)
_LESSON = "lesson|advice|lektion|leçon|lección|lição|lezione|урок|教训|经验|建议"
_IN_WORDS = "one|two|three|four|five|six|seven|eight|nine|ten"
_BULLET = re.compile(
    r"(?:[-*+\u2013\u2014]\s+|[\u2022\u25cf\u25aa\u2023\u30fb\u2190-\u21ff\u2500-\u27bf]\ufe0f?\s*"
    r"|[\U0001f300-\U0001faff]\s*|\(?[a-h]\)\s"
    r"|\(?#?\d{1,3}(?:[.):](?=\s|$|\*)|[\u3001\uff0e\uff1a\uff09]|\.(?=[A-Z\u3400-\u9fff]))"
    r"|[(\[\uff08]\d{1,3}[)\]\uff09]:?|[\u2460-\u2473]"
    rf"|(?:{_LESSON})\s*(?:[(\[]?#?(?:\d{{1,3}}|{_IN_WORDS})[)\]]?\s*[:.)\uff1a\u2013-]|[:\uff1a])"
    rf"|\[(?:{_LESSON}|example) #?\d{{1,3}}\]:?|(?:from )?example #?\d{{1,3}}\s*[:\uff1a])\s*",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?lessons?(?:\s[^<>\n]*)?/?>", re.IGNORECASE)
_IN_JSON = re.compile(r"\[\s*(?:[\"'{\u201c]|\])|\{\s*[\"'\u201c]")
_LESSONS_IN_JSON = re.compile(
    rf"^(?:[^\n:]{{0,80}}\blessons?\b[^\n:]{{0,80}}:)?[^\S\n]*(?:(?:[-*]|\d{{1,2}}[.)])\s+(?=\{{))?"
    rf"(?={_IN_JSON.pattern})",
    re.IGNORECASE | re.MULTILINE,
)
"""Brackets in the middle of a line belong to a lesson."""
_BETWEEN_OBJECTS = re.compile(r"\}\s*(?:,?\s*(?:[-*\u2022]|(?:\w+\s+)?#?\d{1,2}[.):])\s*)?(?=\{)")
_TALK = re.compile(
    r"\s*(?:\[[a-z_]+\]|#+ .*)$"
    r"|\W*(?:here(?:['\u2019]s| are| is)|sure\b|certainly\b|of course\b|i hope|hope (?:this|these)"
    r"|let me know)",
    re.IGNORECASE,
)
"""Markers, rules, headings of Markdown, and talk."""
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
_ONLY_FIELD = {"ADD": "text", "MODIFY": "text", "DELETE": "id", "KEEP": "id"}
"""The field that is meant by a bare value in place of the fields: `{"DELETE": "E3"}`."""
_OPERATION_LINE = re.compile(
    r"(ADD|MODIFY|UPDATE|DELETE|REMOVE|KEEP)\b[\s:\u2013-]*"
    r"(?:[\[(]?(E[1-9]\d*)\*?[\])]?(?: to\b)?)?[\s:\u2013-]*(.*)"
)
_WHOLE = re.compile(r"(?<![\d.])(?<!\W-)\d{1,6}(?!\d)")
_FIELDS = {
    "op": ("op", "operation", "action", "type", "kind"),
    "id": ("id", "experience_id", "experience", "target"),
    "text": ("text", "new_text", "content", "advice", "lesson"),
    "lessons": ("lessons", "lesson_numbers", "lesson_ids", "sources", "from"),
    "scope": ("scope", "predictor"),
    "reason": ("reason", "why", "rationale"),
}
"""The names that LMs give the fields of an operation."""


def without_thoughts(text: str) -> tuple[str, bool]:
    """The text without thoughts, in whatever tag or channel; whether one of them never ends."""
    kept, rest = "", text
    while begin := _BEGINS.search(rest):
        kept += rest[: begin.start()]
        end = _ENDS.search(rest, begin.end())
        if end is None:
            return kept, True
        rest = rest[end.end() :]
    kept += rest
    if _ENDS.search(kept):  # its beginning stood in the prompt
        kept = _ORPHAN.sub("", kept)
    return _MARKS.sub("", kept) if kept != text else kept, False


def finished(text: str) -> str:
    """The text that was cut off, without its last line, sentence or item if that has no end."""
    if "[[ ## completed" in text:
        return text
    if start := _JSON.search(text):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(re.sub(r"^```\w*|```$", "", text[start.start() :].strip()))
            return text
        end = max(text.rfind("},"), text.rfind("}\n"))
        end = end if end > start.start() else text.rfind('",')
        return text[: end + 1] if end > start.start() else text[: start.start()]
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


# ------------------------------------------------------------------------------------- one line


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


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _ends_open(bare: str) -> bool:
    return bare.endswith((":", "\uff1a"))


# -------------------------------------------------------------------------------------- lessons


def read_lessons(answer: Any) -> list[str]:
    """The lessons of an answer, in their order: from lines, bullets, JSON or a Python list.

    `"1. Say please.\\n2. **Be brief.**" -> ["Say please.", "Be brief."]`; "None" gives [].
    Raises ValueError: it holds no lesson, and does not say that there is none.
    """
    is_text = isinstance(answer, str)
    text = _without_fences(encodable(answer)) if is_text else ""
    start = _LESSONS_IN_JSON.search(text)
    content = json_in(text[start.end() :]) if start else answer
    items = [*_strings_in(content)]
    if is_text and (
        content is None or content is answer or (items and max(map(n_words, items)) < 2)
    ):
        return _lines_of(text)  # few words of JSON are what a lesson shows
    bare = [bare_line(encodable(item)) for item in items]
    lessons = [each for each in bare if each and not _ends_open(each) and not _TALK.match(each)]
    says_none = content in ([], {"lessons": []}) or (items and all(map(_is_nothing, items)))
    if is_text and not lessons and not says_none:
        raise ValueError(f"{text[:80]!r} holds no lesson.")
    return lessons


def _lines_of(text: str) -> list[str]:
    """The lessons of plain lines; if some have bullets, these, but none that explains a lesson.

    A condition ("When it is late:") stands before each bullet, or the one line, below.
    """
    lines: list[str] = []
    for line in _TAG.sub("\n", text).splitlines():
        if lines and _goes_on(lines[-1], line):
            lines[-1] += f" {line.strip()}"
        elif line.strip() and not _TALK.match(line):
            lines.append(line)
    if len(lines) == 1:  # maybe "1. Say please. 2. Be brief."
        parts = re.split(r"\s+(?=\(?\d{1,2}[.)]\s)", lines[0].strip())
        in_turn = (re.match(rf"\(?{n}[.)]", part) for n, part in enumerate(parts, start=1))
        lines = parts if all(in_turn) else lines
    if lines and not _has_bullet(lines[0]) and _is_nothing(lines[0]) and "##" not in lines[0]:
        return []
    items: list[tuple[int, bool, str]] = []  # indentation, whether it has a bullet, text
    condition, level, of_bullet = "", 0, False
    for line, below in itertools.pairwise([*lines, ""]):
        bare, indent, is_item = bare_line(line), _indent(line), _has_bullet(line)
        is_below = bool(condition and bare) and (not is_item or indent >= level)
        if is_below:
            items.append((level, is_item or of_bullet, f"{condition} {bare}"))
        elif bare and not _is_heading(line, below):
            items.append((indent, is_item, bare))
        if _CONDITION.match(bare) and _ends_open(bare):
            condition, level, of_bullet = bare, indent + is_item, is_item
        elif bare and not (is_below and is_item):
            condition = ""
    items = [each for each in items if not _ends_open(each[2])]
    bullets = [indent for indent, is_item, _ in items if is_item]
    lessons = [
        bare
        for indent, is_item, bare in items
        if not bullets or (is_item and indent <= min(bullets) + 1)
    ]
    if not lessons and any(map(bare_line, text.splitlines())):
        raise ValueError(f"{text[:80]!r} holds no lesson.")
    return lessons


def _goes_on(above: str, line: str) -> bool:
    """True if the line goes on with the sentence above: in lower case, or below a bullet."""
    bare = bare_line(line)
    if _IN_JSON.match(bare):  # an example of what the sentence above says
        return True
    if not bare or _has_bullet(line) or _CLOSED.search(bare_line(above)) or _is_heading(above):
        return False
    is_wrapped = len(above) >= SHORTEST_WRAPPED or above.rstrip().endswith(",")
    return _has_bullet(above) or (bare[0].islower() and is_wrapped)


def _is_heading(line: str, below: str = "") -> bool:
    is_bold = re.fullmatch(r"\W{0,9}\d*\W{0,9}\*\*[^*]+\*\*\W{0,9}", line)
    is_item = _has_bullet(line) and _indent(below) <= _indent(line)
    bare = bare_line(line)
    return _ends_open(bare) or (is_bold is not None and not is_item and not _CLOSED.search(bare))


def _strings_in(content: Any) -> Iterator[str]:
    """The lessons in a value of JSON: texts, and of objects what holds the lesson."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        named = {str(name).strip().lower(): value for name, value in content.items()}
        lesson = next((named[name] for name in NAMES_OF_A_LESSON if name in named), None)
        if isinstance(lesson, str):
            scope = named.get("predictor") or named.get("scope")
            condition = named.get("condition") or named.get("when")
            before = f"[{scope}] " if isinstance(scope, str) and scope != "*" else ""
            before += f"{condition.rstrip(':')}: " if isinstance(condition, str) else ""
            lesson = f"{before}{lesson}".splitlines()
        yield from _strings_in(list(named.values()) if lesson is None else lesson)
    elif isinstance(content, Iterable):
        for item in content:
            yield from _strings_in(item)


# ----------------------------------------------------------------------------------------- JSON


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


# ----------------------------------------------------------------------------------- operations


def read_operations(answer: Any) -> list[Any]:
    """The operations of an answer as mappings: op, id, text, scope (maybe None), reason, lessons.

    An item that is no operation stays as it is, to be refused by itself. Raises ValueError:
    nothing in it can be read as an operation.
    """
    if not isinstance(answer, str):
        return [*map(_operation, _items(answer))]
    text = _without_fences(answer)
    if _is_nothing(text) and text.casefold() != "null":
        return []
    value = json_in(text)
    items = [] if value is None else [*_items(value)]
    if value != [] and not any(isinstance(item, Mapping) for item in items):
        items = _operations_in_lines("\n".join(map(str, items))) or _operations_in_lines(text)
        if not items:
            raise ValueError(f"{text[:80]!r} holds no operation.")
    return [*map(_operation, items)]


def _items(value: Any) -> Iterator[Any]:
    """The operations one by one: an object is one itself, or names them: `{"ADD": ...}`."""
    if isinstance(value, Mapping):
        named = {str(name).strip().upper(): value for name, value in value.items()}
        if isinstance(named.get("OPERATIONS"), list | Mapping):
            yield from _items(named["OPERATIONS"])
        elif not named or named.keys() - _ONLY_FIELD.keys():
            yield value
        else:
            for op, items in named.items():
                for item in items if isinstance(items, list) else [items]:
                    is_whole = isinstance(item, Mapping)
                    yield {"op": op, **(item if is_whole else {_ONLY_FIELD[op]: item})}
    elif isinstance(value, list):
        for item in value:
            if item is not None:
                yield from _items(item) if isinstance(item, list | Mapping) else [item]
    else:
        raise ValueError(f"{value!r} holds no operation.")


def _operations_in_lines(text: str) -> list[dict[str, Any]]:
    """The operations of lines such as "- ADD: Say please." or "KEEP [E1]"."""
    lines = (_OPERATION_LINE.fullmatch(bare_line(line)) for line in text.splitlines())
    return [
        {"op": op, "id": id_, "text": None if op == "KEEP" else bare_line(rest)}
        for op, id_, rest in (line.groups() for line in lines if line)
        if id_ or rest
    ]


def _operation(item: Any) -> Any:
    """The item with the names that operations have; it itself if it is none."""
    if isinstance(item, str):
        item = next(iter(_operations_in_lines(item)), item)
    if not isinstance(item, Mapping):
        return item
    named = {str(name).strip().lower(): value for name, value in item.items() if value is not None}
    fields = {k: next((named[n] for n in names if n in named), "") for k, names in _FIELDS.items()}
    texts: dict[str, Any] = {"lessons": [*map(int, _WHOLE.findall(str(fields.pop("lessons"))))]}
    for name, value in fields.items():  # of several the first; a whole number as its digits
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        is_text = isinstance(value, str) or (type(value) is int and name != "text")
        text = str(value).strip() if is_text else ""
        texts[name] = "" if text.casefold() in ("null", "none") else text
    return {**texts, "op": texts["op"].upper(), "scope": texts["scope"] or None}
