"""Reads and writes records; turns every fault of disk and database into a clear error."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import tenacity

from tfgrpo_dspy.errors import StoreError, described, sentence
from tfgrpo_dspy.redaction import cleaned

DATABASE = "tfgrpo_store.db"
FORMAT_VERSION = 4
BUSY_TIMEOUT_S = 60.0  # how long a process waits for another one that writes to the same store
REMOVAL_TIMEOUT_S = 1.0  # how long a removal waits for other processes to close the store

INTACT = "What was recorded before is intact: mend that, and the same compile goes on from there."
DAMAGED = "The database is damaged: restore its folder from a copy, or take another log_dir."

Record = dict[str, Any]


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Within it, a record that has not the form of its stage is damaged. Raises StoreError."""
    try:
        yield
    except Exception as error:  # a record that was changed may hold anything
        raise StoreError(f"The record {key!r} is damaged: {sentence(described(error))}") from error


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
        self.folder = Path(folder).expanduser().absolute()
        self._clean = clean
        self._lock = threading.Lock()
        with self._faults("open"):
            self._connection = self._read_only() if is_read_only else self._connected()
            ((version,),) = self._connection.execute("PRAGMA user_version")
        if version != FORMAT_VERSION:
            self.close()
            raise StoreError(
                f"log_dir={str(self.folder)!r} is a run store of format {version}; this version "
                f"of tfgrpo_dspy reads format {FORMAT_VERSION}: update it, or take another folder."
            )

    @classmethod
    def existing(cls, folder: str | PathLike[str], is_read_only: bool = True) -> "Store | None":
        """The store in a folder that has one; nothing is made where there is none."""
        path = Path(folder).expanduser().absolute()
        return cls(path, is_read_only=is_read_only) if (path / DATABASE).exists() else None

    def _connected(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / DATABASE
        connection = sqlite3.connect(
            file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        retrying = tenacity.Retrying(  # of several processes at once only one can set the mode
            retry=tenacity.retry_if_exception_message(match="database is locked"),
            stop=tenacity.stop_after_delay(BUSY_TIMEOUT_S),
            wait=tenacity.wait_random(0.0, 0.02),
            reraise=True,
        )
        retrying(connection.execute, "PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        ((n_tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
        if not n_tables:
            connection.executescript(
                "BEGIN IMMEDIATE;"
                "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, text TEXT NOT NULL);"
                f"PRAGMA user_version = {FORMAT_VERSION};"
                "COMMIT"
            )
        return connection

    def _read_only(self) -> sqlite3.Connection:
        """A connection that changes no file, unless a killed run left rows in the log beside it."""
        file = self.folder / DATABASE
        log = file.with_name(f"{DATABASE}-wal")
        how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
        return sqlite3.connect(f"{file.as_uri()}?{how}", uri=True, check_same_thread=False)

    @contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            is_damaged = type(error) is sqlite3.DatabaseError or "UTF-8" in str(error)
            raise StoreError(
                f"Cannot {doing} the run store log_dir={str(self.folder)!r}: {described(error)}. "
                f"{DAMAGED if is_damaged else INTACT}"
            ) from error

    def _execute(self, doing: str, sql: str, *values: str) -> sqlite3.Cursor:
        with self._lock, self._faults(doing):
            return self._connection.execute(sql, values)

    def get(self, key: str) -> Record | None:
        """The record under that key, or None. Raises StoreError where it is damaged."""
        with self._lock, self._faults("read"):
            sql = "SELECT text FROM records WHERE key = ?"
            row = self._connection.execute(sql, (key,)).fetchone()
        if row is None:
            return None
        with reading(key):
            return dict(json.loads(row[0]).items())

    def keys(self, beginning: str) -> list[str]:
        """The keys that begin so, in the order in which they were first written."""
        with self._lock, self._faults("read"):
            sql = "SELECT key FROM records WHERE substr(key, 1, ?) = ? ORDER BY rowid"
            rows = self._connection.execute(sql, (len(beginning), beginning)).fetchall()
        return [key for (key,) in rows]

    def put(self, key: str, record: Mapping[str, Any]) -> Record | None:
        """Write a record; gives the one that stood there already, and then stays."""
        sql = "INSERT OR IGNORE INTO records VALUES (?, ?)"
        n_written = self._execute("write", sql, key, self._text(record)).rowcount
        return None if n_written else self.get(key)

    def replace(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a record in place of the one that stands there: notes on runs, never results."""
        if not (self.folder / DATABASE).exists():
            raise StoreError(
                f"log_dir={str(self.folder)!r} was removed while the run went on: what it recorded "
                f"there is lost."
            )
        self._execute("write", "REPLACE INTO records VALUES (?, ?)", key, self._text(record))

    def remove(self, keys: Iterable[str]) -> int:
        """Remove these records and give their room back; by how many bytes the database shrank.

        Raises StoreError: another process, such as a compile, has the store open.
        """
        file, run = self.folder / DATABASE, self._connection.execute
        with self._lock, self._faults("clean"):
            run(f"PRAGMA busy_timeout = {REMOVAL_TIMEOUT_S * 1000:.0f}")
            try:
                run("PRAGMA journal_mode = DELETE")  # fails if anybody else has the database open
                run("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                raise StoreError(
                    f"log_dir={str(self.folder)!r} is in use by another process ({error}): try "
                    f"again when its compile has ended. Nothing was removed."
                ) from error
            n_bytes = file.stat().st_size
            sql = "DELETE FROM records WHERE key = ?"
            self._connection.executemany(sql, [(key,) for key in keys])
            run("COMMIT")
            run("VACUUM")
            return n_bytes - file.stat().st_size

    def _text(self, record: Mapping[str, Any]) -> str:
        return json.dumps(record if self._clean is str else cleaned(record, self._clean))

    def close(self) -> None:
        """Close the database; records stay."""
        with self._lock, self._faults("close"):
            self._connection.close()
