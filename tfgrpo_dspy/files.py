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
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        beside.write_text(text, "utf-8", "backslashreplace", newline="")
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    except OSError as error:  # names the other file
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def json_value(text: str, source: str) -> Any:
    """The value of a JSON text. Raises LibraryFormatError: it is none, or more than one."""
    first, *others = json_values(text or "?", source)
    if others:
        raise LibraryFormatError(f"{source} is not JSON: there is more than one value.")
    return first


def json_values(text: str, source: str) -> Iterator[Any]:
    """The values of a JSON text, such as those of JSON lines. Raises LibraryFormatError."""
    decoder, place = json.JSONDecoder(), 0
    try:
        while (begun := re.compile(r"[^ \t\r\n]").search(text, place)) is not None:
            value, place = decoder.raw_decode(text, begun.start())
            yield value
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {sentence(error.msg)}"
        raise LibraryFormatError(f"{source} is not JSON: {where}") from error
    except (RecursionError, ValueError) as error:  # such as a number of 10,000 digits
        raise LibraryFormatError(f"{source} cannot be read: {sentence(error)}") from error
