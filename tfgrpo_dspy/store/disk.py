"""How values lie in the database: text in the row itself, and nothing else, written or read.

diskcache keeps what is not text as pickles and what is long in files beside the database, and
believes the row when it reads. A row that somebody changed could so run code, read any file, or
remove it. Here every such row is an error.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diskcache

from tfgrpo_dspy.errors import StoreError

NO_FILES = 2**62
"""What is longer than this lies in a file of its own: nothing."""


class TextDisk(diskcache.Disk):
    """Text keys, text values, no files, no pickles.

    What the settings of the database say of it is not looked at.
    """

    def __init__(self, directory: str, **_: Any) -> None:
        super().__init__(directory, min_file_size=NO_FILES)

    def put(self, key: Any) -> tuple[str, bool]:
        """The key as it is."""
        if not isinstance(key, str):
            raise StoreError(f"key={key!r}: keys of the run store are text.")
        return key, True

    def get(self, key: Any, raw: Any) -> str:
        """The key of a row. Raises StoreError: it is not text."""
        if not isinstance(key, str) or raw != 1:
            raise StoreError(_tampered("a key that is not text"))
        return key

    def store(self, value: Any, read: Any, key: Any = diskcache.UNKNOWN) -> Any:
        """The fields of a row for this text."""
        if not isinstance(value, str) or read:
            raise StoreError(f"{key}: values of the run store are text.")
        return super().store(value, False, key=key)

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> str:
        """The text of a row. Raises StoreError: the row holds or names anything else."""
        if mode != diskcache.core.MODE_RAW or filename is not None or read:
            raise StoreError(_tampered("a value that is not text in its row"))
        if not isinstance(value, str):
            raise StoreError(_tampered(f"a value of type {type(value).__name__}"))
        return value

    def remove(self, file_path: Any) -> None:
        """There are no files; a row that names one was changed by somebody."""
        raise StoreError(_tampered(f"the file name {file_path!r}"))


class TextCache(diskcache.Cache):
    """A cache that takes its settings from here only.

    diskcache lets those in the database set any attribute of the cache and its disk (where it
    lies, what becomes a file), and run any PRAGMA.
    """

    def reset(self, key: str, value: Any = diskcache.core.ENOVAL, update: bool = True) -> Any:
        """Set a setting to its value here; what is none of them is passed over."""
        if value is diskcache.core.ENOVAL:  # a count that the database keeps
            return super().reset(key)
        return super().reset(key, SETTINGS[key], update) if key in SETTINGS else None


class ReadOnlyCache:
    """The rows of a database that is only read: no file is created or changed.

    A run that was killed may have left rows beside the database, in its write-ahead log. Only where
    there is such a log the database is opened with its locks, which need a folder to write to.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / diskcache.core.DBNAME
        self._disk = TextDisk(str(folder))
        self._connection: sqlite3.Connection | None = None

    def _rows(self, query: str, *values: str) -> list[Any]:
        if self._connection is None:
            log = self._file.with_name(f"{self._file.name}-wal")
            how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
            address = f"{self._file.as_uri()}?{how}"
            self._connection = sqlite3.connect(address, uri=True, check_same_thread=False)
        return self._connection.execute(query, values).fetchall()

    def get(self, key: str) -> str | None:
        """The text under a key, or None."""
        rows = self._rows("SELECT mode, filename, value FROM Cache WHERE key = ? AND raw = 1", key)
        if not rows:
            return None
        ((mode, filename, value),) = rows
        return self._disk.fetch(mode, filename, value, False)

    def __iter__(self) -> Iterator[str]:
        rows = self._rows("SELECT key, raw FROM Cache ORDER BY rowid")
        return (self._disk.get(key, raw) for key, raw in rows)

    def close(self) -> None:
        """Close the database; it is opened again when it is read."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


SETTINGS = {
    **diskcache.DEFAULT_SETTINGS,
    "eviction_policy": "none",
    "cull_limit": 0,
    "size_limit": 2**62,
    "statistics": 0,
    "tag_index": 0,
    "disk_min_file_size": NO_FILES,
}


def _tampered(found: str) -> str:
    return (
        f"The run store holds {found}, which this package never writes: something else has "
        f"changed it. Nothing of it was read or run; take another log_dir."
    )
