r"""Markdown and plain lists: an item for each line, with its further lines indented.

Markdown is written as `- **E2** (for "solve") text`, a plain list as `text`. Read are also the
bullets `-`, `*`, `+`, `1.`, the ids `[E2]`, `[E2*]`, `[G1].` and `E2:`, headings and empty lines
(which are skipped). A text that looks like any of these is written with a backslash in front.
"""

import json
import re

from tfgrpo_dspy.checked import shown
from tfgrpo_dspy.errors import LibraryFormatError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import ALL
from tfgrpo_dspy.interchange.items import Item, library_of

TITLE = "# Experiences"
_BULLET = r"(?:[-*+\u2022]|[0-9]{1,9}[.)])(?:\s+|$)"
_ID = r"(?:\*\*[EG][0-9]+\*\*|\[[EG][0-9]+\*?\]|E[0-9]+(?=:))[.:]?(?:\s+|$)"
_SCOPE = r"\(for (\"(?:[^\"\\]|\\.)*\")\)(?:\s+|$)"
_HEADING = r"#{1,6}(?:\s|$)|[-*_]{3,}\s*$"
_NEXT = r"\(next id: E([1-9][0-9]{0,17})\)\s*$"
_LINE = re.compile(rf"({_BULLET})?({_ID})?(?:{_SCOPE})?(.*)", re.DOTALL)
_SPECIAL = rf"(?:{_BULLET}|{_ID}|{_SCOPE}|{_HEADING}|{_NEXT}|\ufeff)"
_TO_ESCAPE = re.compile(rf"\\*{_SPECIAL}")
_ESCAPED = re.compile(rf"\\+{_SPECIAL}")


def read_list(text: str, bullets_needed: bool) -> ExperienceLibrary:
    """The library of a list; with `bullets_needed`, each item must have a bullet or an id.

    Raises:
        LibraryFormatError: a line is neither an item nor part of one; says which, what to write.
    """
    if text.endswith("\r\n") or not text.endswith("\n"):  # else a \r is part of an item's text
        text = text.replace("\r\n", "\n")
    items: list[tuple[str, str, str, list[str]]] = []  # where, id, scope, lines of the text
    next_number, width = 1, 0  # width: how far the further lines of the last item are indented
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"line {number}"
        if width and (line.startswith(("  ", "\t")) or not line.strip()):
            items[-1][3].append(re.sub(rf"^(?:\t| {{1,{width}}})", "", line))
        elif match := re.match(_NEXT, line):
            next_number, width = int(match[1]), 0
        elif line.strip() and not re.match(_HEADING, line):
            bullet, id_, scope, rest = _read_item(where, line, bullets_needed)
            items.append((where, id_, scope, [rest]))
            width = max(len(bullet), 2)
        else:
            width = 0
    read = [Item(where, id_, "\n".join(lines), scope) for where, id_, scope, lines in items]
    return library_of(read, next_number)


def first_heading(text: str) -> str:
    """The first heading or rule that `markdown` would not write, with its line; "" for none."""
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
    others = (
        f"line {n}: {shown(each)}"
        for n, each in lines
        if re.match(_HEADING, each) and each != TITLE
    )
    return next(others, "")


def _read_item(where: str, line: str, bullet_needed: bool) -> tuple[str, str, str, str]:
    """The bullet, the id, the scope and the text of an item's first line."""
    match = _LINE.match(line.removeprefix(" "))
    bullet, id_, scope, rest = match.groups(default="") if match else ("", "", "", line)
    if rest[:1].isspace():
        raise LibraryFormatError(
            f"{where}: {shown(line)} is indented, but there is no item above: remove the spaces."
        )
    if bullet_needed and not (bullet or id_):
        raise LibraryFormatError(
            f"{where}: {shown(line)} is no item of a list: write '- ' in front, or two spaces "
            f"if it goes on with the item above."
        )
    rest = rest[1:] if _ESCAPED.match(rest) else rest
    return bullet, id_.strip().strip("*[]:."), json.loads(scope) if scope else ALL, rest


def markdown(library: ExperienceLibrary) -> str:
    """The library as a Markdown list with ids and scopes, and the next id if it is not obvious."""
    lines = [TITLE, ""]
    for each in library:
        scope = "" if each.scope == ALL else f"(for {json.dumps(each.scope, ensure_ascii=False)}) "
        lines.append(f"- **{each.id}** {scope}{_item_text(each.text)}")
    if library.next_number > ExperienceLibrary(library).next_number:
        lines += ["", f"(next id: E{library.next_number})"]
    return "\n".join(lines) + "\n"


def plain_list(library: ExperienceLibrary) -> str:
    """The texts alone; the further lines of each are indented."""
    return "".join(_item_text(each.text) + "\n" for each in library)


def _item_text(text: str) -> str:
    is_special = _TO_ESCAPE.match(text.partition("\n")[0])
    return re.sub(r"\n(?!\n)", "\n  ", "\\" + text if is_special else text)
