"""The run store: JSON texts under keys, in a SQLite database that outlives any crash.

Every fault of disk and database becomes a clear error. It holds text only: nothing is unpickled.
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from tfgrpo_dspy.errors import StoreError, described, sentence, text_of
from tfgrpo_dspy.text import cleaned

DATABASE, FORMAT = "tfgrpo_store.db", 7
BUSY_S = 60.0  # how long a process waits for another one that writes to the same store
MAKING = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = {FORMAT};
COMMIT;
"""
ENTRY = "INTO entries VALUES (?, ?)"
INTACT = "Nothing is lost. Fix this and run the same compile again."
TO_MEND = "restore its folder from a copy, or take another log_dir."

Record = dict[str, Any]


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
def _faults(doing: str, folder: str | PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, RuntimeError) as error:
        if isinstance(error, StoreError):
            raise
        is_damaged = type(error) is sqlite3.DatabaseError or "UTF-8" in str(error)
        raise StoreError(
            f"Cannot {doing} the run store log_dir={str(folder)!r}: {described(error)}. "
            f"{f'The database is damaged: {TO_MEND}' if is_damaged else INTACT}"
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
        with _faults("open", folder):
            self.folder = Path(folder).expanduser().absolute()
            self._clean, self._lock = clean, threading.Lock()
            file, how = self.folder / DATABASE, "mode=rwc"
            if is_read_only:  # no file is changed, unless a killed run left rows in the log
                log = file.with_name(f"{DATABASE}-wal")
                how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
            connection = self._connection = sqlite3.connect(
                f"{file.as_uri()}?{how}",
                BUSY_S,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
            try:
                # the tables first: another process may make them now, together with the version
                ((n_tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
                ((version,),) = connection.execute("PRAGMA user_version")
                is_new = not (version or n_tables or is_read_only)
                if version != FORMAT and not is_new:
                    raise StoreError(
                        f"log_dir={str(self.folder)!r} is a run store of format {version}; this "
                        f"version of tfgrpo_dspy reads format {FORMAT}: take another folder, or "
                        "the version that wrote it."
                    )
                if not is_read_only:
                    connection.execute("PRAGMA journal_mode = WAL").fetchall()
                    connection.execute("PRAGMA synchronous = NORMAL")
                if is_new:
                    connection.executescript(MAKING)
            except BaseException:
                connection.close()
                raise

    @classmethod
    def existing(cls, folder: str | PathLike[str]) -> "Store | None":
        """The store in a folder that has one, to read; one that is empty is none."""
        with _faults("open", folder):  # it may be in a folder that cannot be looked into
            file = Path(folder).expanduser().absolute() / DATABASE
            is_there = file.exists() and file.stat().st_size > 0
        return cls(folder, is_read_only=True) if is_there else None

    def _run(self, doing: str, statement: str, *values: Any) -> tuple[list[Any], int]:
        """The rows of a statement, and how many it has changed."""
        with self._lock, _faults(doing, self.folder):
            cursor = self._connection.execute(statement, values)
            return cursor.fetchall(), cursor.rowcount

    def get(self, key: str) -> Record | None:
        """The record under that key, or None. Raises StoreError where it is damaged."""
        rows, _ = self._run("read", "SELECT value FROM entries WHERE key = ?", key)
        with reading(key):
            return dict(json.loads(rows[0][0]).items()) if rows else None

    def keys(self, beginning: str) -> list[str]:
        """The keys that begin so, in the order in which they were last written."""
        query = "SELECT key FROM entries WHERE substr(key, 1, ?) = ? ORDER BY rowid"
        rows, _ = self._run("read", query, len(beginning), beginning)
        return [key for (key,) in rows]

    def put(self, key: str, record: Mapping[str, Any]) -> Record | None:
        """Write a record; gives the one that stood there already, and then stays."""
        _, n_new = self._run("write", f"INSERT OR IGNORE {ENTRY}", key, self._text(record))
        return None if n_new else self.get(key)

    def replace(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a record, as the last, in place of the one that stands there."""
        self._run("write", f"INSERT OR REPLACE {ENTRY}", key, self._text(record))

    def _text(self, record: Mapping[str, Any]) -> str:
        return json.dumps(record if self._clean is str else cleaned(record, self._clean))

    def close(self) -> None:
        """Close the database; records stay."""
        with self._lock, _faults("close", self.folder):
            self._connection.close()
