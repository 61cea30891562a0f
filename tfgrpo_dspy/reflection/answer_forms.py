"""The lines, or texts of JSON, in the answers of a reflection LM that are lessons.

Small LMs seldom keep to a form. What can be understood is read, whatever its form; what cannot is
a ValueError, and the module asks again.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dspy
import json_repair

from tfgrpo_dspy.experience.values import ALL
from tfgrpo_dspy.outside import cleaned_text
from tfgrpo_dspy.reflection.unfinished import without_thoughts
from tfgrpo_dspy.wording import n_words

LONGEST_ANSWER, LONGEST_REPAIR = 20_000, 5_000
"""Characters of an answer that are read; of broken JSON, whose repair takes their square."""
NAMES_OF_A_LESSON = ("lessons", "lesson", "text", "advice", "rule", "content", "description")
SHORTEST_WRAPPED = 40  # characters of a line that goes on in the next one
_FOR_ALL = frozenset({"*", "all", "any", "both", "every", "everything", "program", "the program"})
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
_NUMBER = "one|two|three|four|five|six|seven|eight|nine|ten"
_BULLET = re.compile(
    r"(?:[-*+\u2013\u2014]\s+|[\u2022\u25cf\u25aa\u2023\u30fb\u2190-\u21ff\u2500-\u27bf]\ufe0f?\s*"
    r"|[\U0001f300-\U0001faff]\s*|\(?[a-h]\)\s"
    r"|\(?#?\d{1,3}(?:[.):](?=\s|$|\*)|[\u3001\uff0e\uff1a\uff09]|\.(?=[A-Z\u3400-\u9fff]))"
    r"|[(\[\uff08]\d{1,3}[)\]\uff09]:?|[\u2460-\u2473]"
    rf"|(?:{_LESSON})\s*(?:[(\[]?#?(?:\d{{1,3}}|{_NUMBER})[)\]]?\s*[:.)\uff1a\u2013-]|[:\uff1a])"
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
_NO_LESSON = re.compile(
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


def is_nothing(text: str) -> bool:
    """True if a text only says that there is nothing ("None: all is right."), or is a marker."""
    return _NOTHING.fullmatch(text.strip(" \t\n.!-*_()[]\"'`\u3002").casefold()) is not None


def encodable(text: str) -> str:
    """The text without unseen letters, and "?" for half a character, which no provider takes."""
    return cleaned_text(text).encode("utf-8", "replace").decode()


def read_lessons(answer: Any) -> list[str]:
    """The lessons of an answer, in their order: from lines, bullets, JSON or a Python list.

    `"1. Say please.\\n2. **Be brief.**" -> ["Say please.", "Be brief."]`; "None" gives [].
    Raises ValueError: it holds no lesson, and does not say that there is none.
    """
    if not isinstance(answer, str):
        return [*_items_of(_strings_in(answer))]
    text = without_fences(answer)
    start = _LESSONS_IN_JSON.search(text)
    content = json_in(text[start.end() :]) if start else None
    items = [*_strings_in(content)]
    if content is None or (items and max(map(n_words, items)) < 2):  # words that a lesson shows
        return _lines_of(text)
    lessons = [*_items_of(items)]
    says_none = content in ([], {"lessons": []}) or (items and all(map(is_nothing, items)))
    if not lessons and not says_none:
        raise ValueError(f"{text[:80]!r} holds no lesson.")
    return lessons


def read_instructions(answer: Any) -> str:
    """The text of instructions, without a fence around it. Raises ValueError: there is none."""
    text, _ = without_thoughts(str(answer))
    fenced = re.fullmatch(r"\s*```[\w-]*\n(.*?)\n?```\s*", text, re.DOTALL)
    text = (fenced[1] if fenced else text).strip()
    if is_nothing(text) or not any(map(str.isalpha, text)):
        raise ValueError(f"{text[:80]!r} holds no instructions.")
    return text[:LONGEST_ANSWER]


def _items_of(texts: Iterable[str]) -> Iterator[str]:
    """The lessons of a list: not its talk, nor the heading of what is no longer there."""
    for text in texts:
        if (line := bare_line(text)) and not _ends_open(line) and not _NO_LESSON.match(line):
            yield line


def resolve_scope(name: str, predictors: Sequence[str]) -> str | None:
    """The predictor that a name, or its only beginning or end, stands for; "*": all; None: none."""
    wanted = name.strip(" \"'`*:").removeprefix("predictor ").casefold()
    wanted = wanted[1:-1] if wanted[:1] + wanted[-1:] == "[]" else wanted
    if wanted in _FOR_ALL or not wanted:
        return ALL
    part = f".{wanted}."
    by_name = {f".{predictor}.".casefold(): predictor for predictor in predictors}
    near = [predictor for name, predictor in by_name.items() if name == part] or [
        predictor
        for name, predictor in by_name.items()
        if name.startswith(part) or name.endswith(part)
    ]
    return near[0] if len(near) == 1 else None


def repaired(signature: Any, answer: str) -> dict[str, Any]:
    """The output fields of an answer in JSON, or below other headings, such as "**Lessons:**"."""
    of_json, of_text = dspy.JSONAdapter(), dspy.ChatAdapter()
    marked = _with_markers(signature, answer)
    for adapter, text in ((of_json, answer[:LONGEST_REPAIR]), (of_text, marked)):
        with contextlib.suppress(dspy.AdapterParseError, RecursionError, ValueError):
            return dict(adapter.parse(signature, text))
    return {}


def _with_markers(signature: Any, answer: str) -> str:
    names = {name.replace("_", " "): name for name in signature.output_fields}
    either = "|".join(re.escape(name).replace(r"\ ", "[ _]") for name in names)
    inline = r"[\s*_#\]]*[:\uff1a][\s*]*(.+)"
    heading = rf"^[^\w\n]*({either})(?: learned)?(?:[^\w\n]*|{inline})$"

    def marked(match: re.Match[str]) -> str:
        return f"[[ ## {names[match[1].casefold().replace('_', ' ')]} ## ]]\n{match[2] or ''}"

    return re.sub(heading, marked, answer, flags=re.MULTILINE | re.IGNORECASE)


def _lines_of(text: str) -> list[str]:
    """The lessons of plain lines; if some have bullets, these, but none that explains a lesson."""
    lines: list[str] = []
    for line in _TAG.sub("\n", text).splitlines():
        if lines and _goes_on(lines[-1], line):
            lines[-1] = f"{lines[-1]} {line.strip()}"
        elif not _NO_LESSON.match(line):
            lines.append(line)
    if len(lines) == 1:
        lines = _split_numbered(lines[0])
    lines = [*_with_conditions(lines)]
    pairs = itertools.pairwise([*lines, ""])
    kept = [line for line, below in pairs if not _is_heading(line, below)]
    bullets = [line for line in kept if _has_bullet(line)]
    first = next(filter(str.strip, kept), "")
    if not bullets and is_nothing(first) and "##" not in first:  # what follows says why
        return []
    least = min((_indent(line) for line in bullets), default=0)
    bullets = [line for line in bullets if _indent(line) <= least + 1]
    lessons = [bare for line in bullets or kept if (bare := bare_line(line))]
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


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _split_numbered(line: str) -> list[str]:
    """The items of "1. Say please. 2. Be brief."; or the line."""
    parts = re.split(r"\s+(?=\(?\d{1,2}[.)]\s)", line.strip())
    in_turn = all(re.match(rf"\(?{n}[.)]", part) for n, part in enumerate(parts, start=1))
    return parts if in_turn else [line]


def _has_bullet(line: str) -> bool:
    starts = line.lstrip(), line.lstrip(" \t*_>")  # "* Say please.", "**1.** Say please."
    return any(map(_BULLET.match, starts))


def _with_conditions(lines: Iterable[str]) -> Iterator[str]:
    """The lines; a condition ("When it is late:") stands before each bullet, or the line, below."""
    condition, level, mark = "", 0, ""
    for line in lines:
        bare, is_bullet = bare_line(line), _has_bullet(line)
        is_below = bool(condition and bare) and (not is_bullet or _indent(line) >= level)
        begin = f"{' ' * level}{'- ' if is_bullet else mark}{condition} "
        yield begin + bare if is_below else line
        if _CONDITION.match(bare) and _ends_open(bare):
            condition, level, mark = bare, _indent(line) + is_bullet, "- " * is_bullet
        elif bare and not (is_below and is_bullet):
            condition = ""


def _is_heading(line: str, below: str = "") -> bool:
    bare = bare_line(line)
    is_bold = re.fullmatch(r"\W{0,9}\d*\W{0,9}\*\*[^*]+\*\*\W{0,9}", line)
    is_item = _has_bullet(line) and _indent(below) <= _indent(line)
    return _ends_open(bare) or (is_bold is not None and not is_item and not _CLOSED.search(bare))


def _ends_open(bare: str) -> bool:
    return bare.endswith((":", "\uff1a"))


def bare_line(text: str) -> str:
    """The text of one lesson: without bullet, bold, quotes and white space; "" for "None"."""
    return without_marks(encodable(text))


def without_marks(text: str) -> str:
    """As `bare_line`, with the letters that are not seen, and the halves of characters."""
    text = " ".join(text.split())
    text = _BOLD.sub(r"\1", text)
    for _ in range(2):  # "- Lesson 1: ..."
        text = text[bullet.end() :] if (bullet := _BULLET.match(text)) else text
    text = without_notes(text)
    text = text.removesuffix(",").strip() if text.endswith(('",', "',")) else text.strip()
    if len(text) > 2 and text[0] + text[-1] in _QUOTES and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return "" if is_nothing(text) or not any(map(str.isalpha, text)) else text


def without_notes(text: str) -> str:
    """The text without its id, and what prompts (`texts`) say of sources, effect and trial."""
    text = _ID.sub("", text)
    return text[: note.start()].rstrip() if (note := _NOTE.search(text)) else text


def without_fences(text: str) -> str:
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


def _strings_in(content: Any) -> Iterator[str]:
    """The lessons in a value of JSON: texts, and of objects what holds the lesson."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        named = {str(name).strip().lower(): value for name, value in content.items()}
        field_names = (name for name in NAMES_OF_A_LESSON if name in named)
        lesson = named.get(next(field_names, ""))
        scope = named.get("predictor") or named.get("scope")
        if isinstance(lesson, str):
            is_scoped = isinstance(scope, str) and scope.casefold() not in _FOR_ALL
            if isinstance(condition := named.get("condition") or named.get("when"), str):
                lesson = f"{condition.rstrip(':')}: {lesson}"
            lesson = f"{f'[{scope}] ' if is_scoped else ''}{lesson}".splitlines()
        yield from _strings_in(list(named.values()) if lesson is None else lesson)
    elif isinstance(content, Iterable):
        for item in content:
            yield from _strings_in(item)
