"""Reads and writes records; turns every fault of disk and database into a clear error.

The database is diskcache's. It holds text only: no pickle is read or written, no file is named.
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_RAW

from tfgrpo_dspy.checked import text_of
from tfgrpo_dspy.errors import StoreError, described, sentence
from tfgrpo_dspy.redaction import cleaned

DATABASE = "tfgrpo_store.db"
FORMAT_VERSION = 5
BUSY_TIMEOUT_S = 60.0  # how long a process waits for another one that writes to the same store
SETTINGS = diskcache.DEFAULT_SETTINGS | {
    "eviction_policy": "none",  # either of these two alone keeps every record
    "cull_limit": 0,
    "sqlite_mmap_size": 0,  # a mapped file that something else cuts short ends the process
    "sqlite_user_version": FORMAT_VERSION,  # set before there is a table
}

INTACT = "What was recorded before is intact: mend that, and the same compile goes on from there."
TO_MEND = "restore its folder from a copy, or take another log_dir."
DAMAGED = f"The database is damaged: {TO_MEND}"

Record = dict[str, Any]


class TextDisk(diskcache.Disk):
    """Text keys and text values, in the row itself; every other form of a row is refused unread."""

    def store(self, value: str, *_: Any, **_more: Any) -> tuple[int, int, None, str]:
        """The text as it is, whatever its length."""
        return 0, MODE_RAW, None, value

    def get(self, key: Any, raw: Any) -> str:
        """The key of a row. Raises ValueError: it is no text."""
        return self.fetch(MODE_RAW if raw == 1 else None, None, key, False)

    def fetch(self, mode: Any, filename: Any, value: Any, _read: Any) -> str:
        """The text of a row. Raises ValueError: it is no text, or would be in a file."""
        if mode != MODE_RAW or filename is not None or not isinstance(value, str):
            raise ValueError(f"something else has changed it: a row of {mode=} holds no text")
        return value

    def remove(self, file_path: Any) -> None:
        """Raises ValueError: no row of ours names a file, so this one is not ours to remove."""
        raise ValueError(f"something else has changed it: a row names {str(file_path)!r}")


class TextCache(diskcache.Cache):
    """A cache of text over one connection for all threads."""

    statistics, eviction_policy = 0, "none"

    def __init__(self, connection: sqlite3.Connection, is_read_only: bool) -> None:
        self._connection = connection
        self._txn_id = None
        self._disk = TextDisk("")
        if not is_read_only:  # diskcache writes whenever it opens a database; "/" always exists
            super().__init__("/", BUSY_TIMEOUT_S, TextDisk, **SETTINGS)

    @property
    def _con(self) -> sqlite3.Connection:
        return self._connection


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Within it, a record that has not the form of its stage is damaged. Raises StoreError."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # a record that was changed may hold anything
        why = sentence(text_of(error) if isinstance(error, ValueError) else described(error))
        raise StoreError(f"The record {key!r} is damaged: {why} To go on, {TO_MEND}") from error


@contextmanager
def _faults(doing: str, folder: str | PathLike[str], *of_damage: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, diskcache.Timeout, *of_damage) as error:
        cause = error.__context__ if isinstance(error, diskcache.Timeout) else error
        is_damaged = type(error) is sqlite3.DatabaseError or "UTF-8" in str(error)
        raise StoreError(
            f"Cannot {doing} the run store log_dir={str(folder)!r}: "
            f"{described(cause or error)}. "
            f"{DAMAGED if is_damaged or isinstance(error, of_damage) else INTACT}"
        ) from error


def _located(folder: str | PathLike[str]) -> Path:
    """The folder from the root. Raises StoreError: there is no current folder, or no such home."""
    try:
        return Path(folder).expanduser().absolute()
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"log_dir={str(folder)!r} names no folder: {described(error)}. Pass a path from the "
            f"root."
        ) from error


class Store:
    """The records in one folder; several processes may have it open at once.

    Keys are `stage:hash`. What was put outlives the process, even if it is killed at once (a power
    failure may cost the last records). `clean` is what every text goes through before it is
    written. With `is_read_only` the folder may be one that cannot be written to. Raises StoreError:
    the folder cannot be made, written or read, or is of another format.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        clean: Callable[[str], str] = str,
        is_read_only: bool = False,
    ) -> None:
        self.folder = _located(folder)
        self._clean = clean
        self._lock = threading.Lock()
        with self._faults("open", TypeError, ValueError):
            self._connection = self._read_only() if is_read_only else self._connected()
            try:
                self._check_format(is_read_only)
                self._cache = TextCache(self._connection, is_read_only)
            except BaseException:
                self._connection.close()
                raise

    @classmethod
    def existing(cls, folder: str | PathLike[str], is_read_only: bool = True) -> "Store | None":
        """The store in a folder that has one; an empty file (a process was killed) is none."""
        path = _located(folder)
        with _faults("open", path):  # it may be in a folder that cannot be looked into
            is_there = (path / DATABASE).exists() and (path / DATABASE).stat().st_size > 0
        return cls(path, is_read_only=is_read_only) if is_there else None

    def _connected(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(
            self.folder / DATABASE, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )

    def _read_only(self) -> sqlite3.Connection:
        """A connection that changes no file, unless a killed run left rows in the log beside it."""
        file = self.folder / DATABASE
        log = file.with_name(f"{DATABASE}-wal")
        how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
        return sqlite3.connect(f"{file.as_uri()}?{how}", uri=True, check_same_thread=False)

    def _check_format(self, is_read_only: bool) -> None:
        # the tables first: another process may make the store now, and sets its version before
        ((n_tables,),) = self._connection.execute("SELECT count(*) FROM sqlite_master")
        ((version,),) = self._connection.execute("PRAGMA user_version")
        is_new = not (version or n_tables or is_read_only)
        if version != FORMAT_VERSION and not is_new:
            raise StoreError(
                f"log_dir={str(self.folder)!r} is a run store of format {version}; this version "
                f"of tfgrpo_dspy reads format {FORMAT_VERSION}: take another folder, or the "
                "version that wrote it."
            )

    def _faults(self, doing: str, *of_damage: type[Exception]) -> AbstractContextManager[None]:
        return _faults(doing, self.folder, *of_damage)

    def get(self, key: str) -> Record | None:
        """The record under that key, or None. Raises StoreError where it is damaged."""
        with reading(key), self._lock, self._faults("read"):
            text = self._cache.get(key)
            return None if text is None else dict(json.loads(text).items())

    def keys(self, beginning: str) -> list[str]:
        """The keys that begin so, in the order in which they were last written."""
        with self._lock, self._faults("read", ValueError):
            return [key for key in self._cache if key.startswith(beginning)]

    def put(self, key: str, record: Mapping[str, Any]) -> Record | None:
        """Write a record; gives the one that stood there already, and then stays."""
        text = self._text(record)
        with self._lock, self._faults("write", ValueError):
            is_new = self._cache.add(key, text)
        return None if is_new else self.get(key)

    def replace(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a record in place of the one that stands there: notes on runs, never results."""
        if not (self.folder / DATABASE).exists():
            raise StoreError(
                f"log_dir={str(self.folder)!r} was removed while the run went on: what it recorded "
                f"there is lost."
            )
        text = self._text(record)
        with self._lock, self._faults("write", ValueError), self._cache.transact():
            self._cache.delete(key)  # so that it comes last in the order of keys
            self._cache.set(key, text)

    def _text(self, record: Mapping[str, Any]) -> str:
        return json.dumps(record if self._clean is str else cleaned(record, self._clean))

    def close(self) -> None:
        """Close the database; records stay."""
        with self._lock, self._faults("close"):
            self._connection.close()
