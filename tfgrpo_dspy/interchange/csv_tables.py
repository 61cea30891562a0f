"""CSV: a row for each experience, under a header that names the columns.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula; such a text is written
with `'` in front, which reading takes away.
"""

import csv
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from typing import Any

from tfgrpo_dspy.checked import shown
from tfgrpo_dspy.errors import LibraryFormatError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import ALL, Effect
from tfgrpo_dspy.interchange.items import Item, library_of

_COLUMNS = ["id", "text", "scope"]
_EFFECT = ["effect", "standard_error", "n_rollouts"]
_WIDEST = "widest"  # the largest effect that is possible; "": not known
_FORMULA = re.compile(r"'*[=+\-@]")
_UNSURE = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def table(library: ExperienceLibrary, delimiter: str = ",") -> str:
    """The library as CSV; with the columns of effects if at least one is known."""
    effects = [each.effect for each in library if each.effect]
    has_widest = any(effect.widest is not None for effect in effects)
    columns = _COLUMNS + _EFFECT * bool(effects) + [_WIDEST] * has_widest
    rows = []
    for each in library:
        values = (each.id, each.text, each.scope, *(astuple(each.effect) if each.effect else ()))
        rows.append(dict(itertools.zip_longest(columns, values[: len(columns)])))
    return csv_text(rows, columns, delimiter)


def csv_text(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), delimiter: str = ","
) -> str:
    """The rows as CSV, under a header; None is an empty cell. `columns`: those of no rows."""
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(columns or (rows[0] if rows else ()))
    for row in rows:
        writer.writerow([_cell(value) for value in row.values()])
    return written.getvalue()


def table_like(library: ExperienceLibrary, text: str) -> str:
    """The library as CSV with the delimiter of this text, and with its `sep=` line, if any."""
    hint, delimiter, _ = _form_of(text)
    return hint + table(library, delimiter)


def cells_of(text: str) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """The columns of a table, and of each row that is not empty its place and its cells.

    Cells are separated by what separates them in the header: a comma, a semicolon or a tab. Raises
    LibraryFormatError: a column occurs twice, a row has too many cells, a quote is not closed.
    """
    hint, delimiter, rest = _form_of(text)
    rows = _rows(rest, delimiter, 1 + bool(hint))
    where, names = next(rows, ("", []))
    columns = [name.strip() for name in names]
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise LibraryFormatError(f"{where}: the column {shown(twice[0])} occurs twice; keep one.")

    def checked() -> Iterator[tuple[str, list[str]]]:
        for where, row in rows:
            if len(row) > len(columns):
                raise LibraryFormatError(
                    f"{where}: {len(row)} cells under {len(columns)} columns: put a text that "
                    f'holds {shown(delimiter)} in double quotes (and write " as "").'
                )
            if any(map(str.strip, row)):
                yield where, row

    return columns, checked()


def _rows(text: str, delimiter: str, first: int) -> Iterator[tuple[str, list[str]]]:
    """The line in which each row ends, where `first` is the number of the first, and its cells."""
    file = io.StringIO(text, newline="")
    reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            yield f"line {reader.line_num + first - 1}", row
    except csv.Error as error:
        raise LibraryFormatError(
            f"line {reader.line_num + first - 1}: {error}: close each double quote (one in a text "
            f"is written twice); a cell has at most {csv.field_size_limit():,} characters."
        ) from error


def _form_of(text: str) -> tuple[str, str, str]:
    """Excel's line `sep=;` ("" if there is none), what separates cells, and the table itself."""
    first, end, rest = text.partition("\n")
    if match := re.fullmatch(r"sep=(.)\r?", first):
        return first + end, match[1], rest
    return "", max(",;\t", key=first.count), text


def read_table(text: str) -> ExperienceLibrary:
    """The library of a table with the column `text`; the columns `id`, `scope`, ... may be absent.

    Raises:
        LibraryFormatError: a column is unknown, a row has too many cells, an effect is no number.
    """
    columns, rows = cells_of(text)
    columns, names = [name.lower() for name in columns], [*_COLUMNS, *_EFFECT, _WIDEST]
    if "text" not in columns or len(set(columns)) < len(columns) or not {*columns} <= {*names}:
        raise LibraryFormatError(
            f"line 1: the columns {shown(columns)}: write a header with 'text', and of "
            f"{', '.join(names)} those that you need."
        )
    items = []
    for where, row in rows:
        cells = dict(zip(columns, row, strict=False))
        scope = _text_of(cells.get("scope", "")) or ALL
        text_, id_ = _text_of(cells.get("text", "")), cells.get("id", "").strip()
        effect = _effect(where, [cells.get(name, "").strip() for name in (*_EFFECT, _WIDEST)])
        items.append(Item(where, id_, text_, scope, effect))
    return library_of(items)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _text_of(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def with_point(cell: str, where: str) -> str:
    """The number in a cell with a decimal point, where some spreadsheets have a comma.

    Raises LibraryFormatError: 1,000, say, may be one or a thousand.
    """
    if _UNSURE.fullmatch(cell.strip()):
        raise LibraryFormatError(
            f"{where}: the comma of {cell!r} may stand for a decimal point, or group thousands: "
            f"write the number with a point, or without the comma."
        )
    return cell.replace(",", ".")


def _effect(where: str, cells: list[str]) -> Effect | None:
    """The effect in these four cells, of which the last may be empty; None if all are."""
    if not any(cells):
        return None
    named = zip((*_EFFECT[:2], _WIDEST), (*cells[:2], cells[3] or "0"), strict=True)
    decimals = [with_point(cell, f"{where}: {name}") for name, cell in named]
    with suppress(ValueError):
        numbers = [*map(float, decimals)]
        if all(map(math.isfinite, numbers)):
            estimate, error, widest = numbers
            return Effect(estimate, error, int(cells[2]), widest if cells[3] else None)
    raise LibraryFormatError(
        f"{where}: {', '.join(_EFFECT)} are {shown(cells)}: write two numbers and a whole number, "
        f"such as 0.1, 0.05 and 20, or leave all three empty."
    )
