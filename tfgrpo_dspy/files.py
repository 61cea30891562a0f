"""Files of the user's: read in every encoding of Unicode, and replaced whole or not at all."""

import json
import os
import secrets
import shutil
from pathlib import Path

from tfgrpo_dspy.errors import LibraryFormatError


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
