"""Libraries as files: JSON and YAML keep everything; Markdown, SKILL.md and CSV are for people.

Markdown holds ids, texts, scopes and the next free id: a line `- **E2** (for "solve") text` for
each experience, with its further lines indented. SKILL.md, which coding agents read, has front
matter above the same list. People may leave out the ids, and write any heading. CSV has the columns
id, text and scope.
"""

import csv
import io
import json
import re
from pathlib import Path

import yaml

from tfgrpo_dspy import files
from tfgrpo_dspy.errors import LibraryFormatError, shown
from tfgrpo_dspy.experience import ALL, Experience, ExperienceLibrary, record_text

FORMATS = ("json", "yaml", "md", "skill", "csv")
ENDINGS = {f".{format}": format for format in ("json", "yaml", "md", "csv")} | {".txt": "md"}
COLUMNS = ("id", "text", "scope")
FRONT_MATTER = """\
---
name: learned-experiences
description: Advice learned from scored attempts. Read it before you do this task.
---

"""
_FRONT = re.compile(r"---\n.*?^---[ \t]*\n", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"#{1,6}(\s|$)|[-*_]{3,}\s*$")
_NEXT_ID = re.compile(r"\(next id: E([1-9][0-9]{0,17})\)\s*$")
_ID = r"(?:\*\*|\[)(E[0-9]{1,18})(?:\*\*|\*?\])(?:\s+|$)"
_SCOPE = r"\(for (\"(?:[^\"\\]|\\.)*\")\)(?:\s+|$)"
_ITEM = re.compile(rf"([-*+](?:\s+|$))?(?:{_ID})?(?:{_SCOPE})?(.*)", re.DOTALL)


def format_of(path: str | Path) -> str:
    """The format that the name of a file stands for. Raises LibraryFormatError: there is none."""
    name = Path(path).name
    if name != "SKILL.md" and Path(name).suffix.lower() not in ENDINGS:
        way = f"name the file SKILL.md, or {', '.join(ENDINGS)}"
        raise LibraryFormatError(f"{path}: no format has this ending; {way}.")
    return "skill" if name == "SKILL.md" else ENDINGS[Path(name).suffix.lower()]


def read_library(path: str | Path) -> ExperienceLibrary:
    """The library in a file of any format.

    Raises OSError, LibraryFormatError: it is not of the format of its name; names the line.
    """
    return parse(format=format_of(path), text=files.read_text(path), source=str(path))


def write_library(library: ExperienceLibrary, path: str | Path) -> None:
    """Write the library to a file, in the format of its name; an existing file is replaced.

    Raises OSError, LibraryFormatError: no format has this name.
    """
    files.write_text(path, render(library, format_of(path)))


def parse(text: str, format: str, source: str = "the text") -> ExperienceLibrary:
    """The library that a text of this format holds; `source` is its name in errors.

    Experiences without an id get the next free ones. Raises LibraryFormatError: something in the
    text was not understood; says what to write instead.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if _checked(format) == "json":
        return ExperienceLibrary.from_dict(files.json_value(text, source), source)
    try:
        if format == "yaml":
            return ExperienceLibrary.from_dict(yaml.safe_load(text), source)
        return _read_table(text) if format == "csv" else _read_list(text)
    except (ValueError, yaml.YAMLError) as error:
        raise LibraryFormatError(f"{source}: {error}") from error


def render(library: ExperienceLibrary, format: str) -> str:
    """The library as text of this format. Raises LibraryFormatError: there is no such format."""
    if _checked(format) == "json":
        return record_text(library.to_dict())
    if format == "yaml":
        return str(yaml.safe_dump(library.to_dict(), allow_unicode=True, sort_keys=False))
    if format == "csv":
        table = io.StringIO(newline="")
        rows = [(each.id, each.text, each.scope) for each in library]
        csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
        return table.getvalue()
    lines = ["# Experiences", ""]
    for each in library:
        has_scope = each.scope != ALL or re.match(_SCOPE, each.text)
        scope = f"(for {json.dumps(each.scope, ensure_ascii=False)}) " if has_scope else ""
        lines.append(f"- **{each.id}** {scope}" + re.sub(r"\n(?!\n)", "\n  ", each.text))
    if library.next_number > ExperienceLibrary(library).next_number:
        lines += ["", f"(next id: E{library.next_number})"]
    return FRONT_MATTER * (format == "skill") + "\n".join(lines) + "\n"


def _checked(format: str) -> str:
    if format not in FORMATS:
        raise LibraryFormatError(f"format={format!r}: the formats are {', '.join(FORMATS)}.")
    return format


def _read_list(text: str) -> ExperienceLibrary:
    front = _FRONT.match(text)
    skipped = front[0].count("\n") if front else 0
    items: list[tuple[int, str, str, list[str]]] = []  # line, id, scope, lines of the text
    next_number, is_item = 1, False
    for number, line in enumerate(text.split("\n")[skipped:], start=skipped + 1):
        if is_item and (line.startswith(("  ", "\t")) or not line.strip()):
            items[-1][3].append(line[1 if line.startswith("\t") else 2 :])
        elif match := _NEXT_ID.match(line):
            next_number, is_item = int(match[1]), False
        elif not line.strip() or _HEADING.match(line):
            is_item = False
        elif (match := _ITEM.match(line)) and (match[1] or match[2]):
            _, id_, scope, rest = match.groups(default="")
            items.append((number, id_, json.loads(scope) if scope else ALL, [rest]))
            is_item = True
        else:
            way = "write '- ' in front, or two spaces if it goes on with the item above"
            raise LibraryFormatError(f"line {number}: {shown(line)} is no item of a list: {way}.")
    return _numbered(
        [(n, id_, "\n".join(lines), scope) for n, id_, scope, lines in items], next_number
    )


def _read_table(text: str) -> ExperienceLibrary:
    rows = [row for row in csv.DictReader(io.StringIO(text, newline="")) if any(row.values())]
    if rows and "text" not in rows[0]:
        raise LibraryFormatError(f"the columns are {[*rows[0]]}; name them {', '.join(COLUMNS)}.")
    values = [[row.get(name) or "" for name in COLUMNS] for row in rows]
    return _numbered([(n, id_, of, scope or ALL) for n, (id_, of, scope) in enumerate(values, 2)])


def _numbered(items: list[tuple[int, str, str, str]], next_number: int = 1) -> ExperienceLibrary:
    """The library of lines, each with its number, id, text and scope; "": the next free id."""
    free = max([next_number, *(int(id_[1:]) + 1 for _, id_, _, _ in items if id_[1:].isdigit())])
    experiences = []
    for number, id_, text, scope in items:
        try:
            experiences.append(Experience(id_ or f"E{free}", text, scope))
        except ValueError as error:
            raise LibraryFormatError(f"line {number}: {error}") from error
        free += not id_
    return ExperienceLibrary(experiences, next_number=free)
