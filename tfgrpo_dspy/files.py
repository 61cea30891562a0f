"""Files of the user's: read in every encoding of Unicode, and replaced whole or not at all."""

import json
import os
import secrets
import shutil
from pathlib import Path

from tfgrpo_dspy.errors import LibraryFormatError


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file; as `decoded`. Raises LibraryFormatError, OSError."""
    return decoded(Path(path).read_bytes(), str(path))


def decoded(data: bytes, name: str) -> str:
    """The text that the file `name` holds in UTF-8, UTF-16 or UTF-32, with or without a mark."""
    try:
        return data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise LibraryFormatError(f"{name}: {error}; save the file as UTF-8.") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Put this text in place of the file, in UTF-8; as `write_bytes`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Put these bytes in place of the file; links stay, and its mode. Raises OSError."""
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
