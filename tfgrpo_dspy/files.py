"""Files of the user's: read in every encoding of Unicode, and replaced whole or not at all."""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfgrpo_dspy.errors import LibraryFormatError, sentence


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32. Raises LibraryFormatError, OSError."""
    data = Path(path).read_bytes()
    try:
        return data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise LibraryFormatError(f"{path}: {error}; save the file as UTF-8.") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Put this text in place of the file, in UTF-8; links stay, and its mode. Raises OSError."""
    data = text.encode("utf-8", "backslashreplace")
    if Path(path).exists() and not Path(path).is_file():  # such as /dev/stdout
        Path(path).write_bytes(data)
        return
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        beside.write_bytes(data)
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    except OSError as error:  # names the other file
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def json_value(text: str, source: str) -> Any:
    """The value of a JSON text. Raises LibraryFormatError: it is none, or more than one."""
    values = [*json_values(text or "?", source)]
    if len(values) > 1:
        raise LibraryFormatError(f"{source} is not JSON: there is more than one value.")
    return values[0]


def json_values(text: str, source: str) -> Iterator[Any]:
    """The values of a JSON text, such as those of JSON lines. Raises LibraryFormatError."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
    place = 0
    try:
        while (begun := re.compile(r"[^ \t\r\n]").search(text, place)) is not None:
            value, place = decoder.raw_decode(text, begun.start())
            yield value
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        fault = f"{source} is not JSON: {where}: {sentence(error.msg)}"
        raise LibraryFormatError(fault) from error
    except RecursionError as error:
        raise LibraryFormatError(f"{source} cannot be read: it is nested too deeply.") from error
    except ValueError as error:
        raise LibraryFormatError(f"{source} cannot be read: {sentence(error)}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields. Raises ValueError: a name occurs twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r:.80} occurs twice in one object")
    return fields
