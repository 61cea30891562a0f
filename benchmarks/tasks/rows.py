"""Reads the files of `--data`: one JSON object a line, checked for the fields that a task needs."""

import json
from pathlib import Path

Row = dict[str, str]


def read(data: Path | None, file_name: str, fields: tuple[str, ...], task: str) -> list[Row]:
    """The rows of that file.

    Raises:
        ValueError: no folder was given, or a line is not a JSON object with these fields.
        FileNotFoundError: the folder has no such file.
    """
    wanted = f"one JSON object a line with {' and '.join(map(repr, fields))}"
    if data is None:
        raise ValueError(
            f"task {task!r} reads its examples from a folder, and none was given: pass --data DIR "
            f"with the file {file_name} in it, {wanted}."
        )
    path = data / file_name
    if not path.is_file():
        raise FileNotFoundError(f"task {task!r} needs {path}: {wanted}. There is no such file.")
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        rows.append(_row(line, fields, f"{path}, line {number}: {line[:80]!r} is not {wanted}"))
    return rows


def _row(line: str, fields: tuple[str, ...], complaint: str) -> Row:
    try:
        row = json.loads(line)
        return {field: str(row[field]) for field in fields}
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(complaint) from error
