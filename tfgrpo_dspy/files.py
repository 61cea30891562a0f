"""The files that a user owns: read as other tools write them, and replaced whole or not at all.

A file is written beside itself, read back, and put in its place, so a full disk or a kill leaves
the old one. It is not replaced where it has changed since this process read it.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from tfgrpo_dspy.errors import LibraryFormatError, UnsavedError, described, sentence

WINDOWS = "cp1252"  # in which Excel saves CSV, unless it is told to take UTF-8
_digests: dict[Path, bytes] = {}  # by path, also that behind links: of what this process has read


def read_text(path: str | os.PathLike[str], is_table: bool = False) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    `is_table`: it may also be in the Windows encoding in which Excel saves CSV. Raises
    LibraryFormatError (it is in another encoding), OSError.
    """
    return decoded(read_bytes(path), str(path), is_table)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """What the file holds now; `write_text` refuses to replace anything else."""
    data = Path(path).read_bytes()
    _digests.update(dict.fromkeys(_names(path), _digest(data)))
    return data


def decoded(data: bytes, name: str, is_table: bool = False) -> str:
    """The text that these bytes of the file `name` hold; as `read_text`."""
    try:
        return data.decode(encoding_of(data, is_table)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise LibraryFormatError(f"{name}: {error}; save the file as UTF-8.") from error


def encoding_of(data: bytes, is_table: bool = False) -> str:
    """The encoding in which these bytes are read, by their byte order mark or their first ones."""
    encoding = json.detect_encoding(data)
    if is_table and encoding == "utf-8":
        try:
            data.decode()
        except UnicodeDecodeError:
            return WINDOWS
    return encoding


def write_text(path: str | os.PathLike[str], text: str, like: bytes = b"") -> None:
    """Put this text in place of the file; a link stays, as do mode and owner of what it names.

    `like`: the file as it was, in whose encoding the text is written, and with whose line ends; a
    table in Windows' own encoding becomes UTF-8 with a byte order mark, which Excel reads too.

    Raises:
        UnsavedError: the file cannot be replaced, or has changed since it was read. It is as it
            was, and the error says where the text is kept.
        FileNotFoundError: there is no such folder.
    """
    encoding = encoding_of(like, is_table=True)
    if "\r\n" in like.decode(encoding, "replace") and "\r\n" not in text:
        text = text.replace("\n", "\r\n")
    data = text.encode("utf-8-sig" if encoding == WINDOWS else encoding, "backslashreplace")
    write_bytes(path, data, text)


def write_bytes(path: str | os.PathLike[str], data: bytes, text: str = "") -> None:
    """Put these bytes in the file, as `write_text` does; `text` is for the UnsavedError."""
    place = Path(path)
    if place.exists() and not (place.is_file() or place.is_dir()):  # a device, a pipe
        place.write_bytes(data)
        return
    try:
        _replace(path, data)
    except FileNotFoundError as error:  # of the folder: nobody's text was read from there
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except OSError as error:
        kept = _kept_elsewhere(path, data)
        where = f"What was to be written is in {kept}." if kept else "The text is kept nowhere."
        reason = error.strerror or described(error)
        message = f"{path} is not written, and stays as it was: {sentence(reason)} {where}"
        raise UnsavedError(message, "" if kept else text) from error


def _replace(path: str | os.PathLike[str], data: bytes) -> None:
    target = _target(path)
    before = target.read_bytes() if target.exists() else None
    digests = {_digests[name] for name in _names(path) if name in _digests}
    if digests - {_digest(before or b"")}:
        raise OSError(errno.ESTALE, "it was changed since it was read; read it again, and merge")
    if before is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    beside = _name_beside(target, "tmp")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if beside.read_bytes() != data:
            raise OSError(errno.EIO, "what was written reads back otherwise")
        if before is not None:
            _take_over_mode(target, beside)
            if target.read_bytes() != before:
                raise OSError(errno.ESTALE, "somebody else has just saved it; read it again")
        beside.replace(target)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    if digests:
        _digests.update(dict.fromkeys(_names(path), _digest(data)))
    with suppress(OSError):  # not every system lets a folder be synchronized
        _synchronize(target.parent)


def _target(path: str | os.PathLike[str]) -> Path:
    """The file behind links; raises OSError where these name each other."""
    target = _names(path)[1]
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def _take_over_mode(old: Path, new: Path) -> None:
    status = old.stat()
    with suppress(OSError, AttributeError):  # only root may give a file away; Windows has no owner
        os.chown(new, status.st_uid, status.st_gid)
    shutil.copymode(old, new)


def _synchronize(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kept_elsewhere(path: str | os.PathLike[str], data: bytes) -> str:
    """Where the data is kept that could not be put in place of the file; "" if nowhere."""
    for folder in (_names(path)[1].parent, Path(tempfile.gettempdir())):
        kept = _name_beside(folder / Path(path).name, "unsaved")
        with suppress(OSError):
            try:
                kept.touch(0o600, exist_ok=False)
                kept.write_bytes(data)
            except OSError:
                kept.unlink()
                raise
            return str(kept)
    return ""


def _name_beside(target: Path, ending: str) -> Path:
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.{ending}")


def _names(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    return Path(path).absolute(), Path(os.path.realpath(path))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
