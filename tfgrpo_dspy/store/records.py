"""Reads and writes records; turns every fault of disk and database into a clear error."""

import json
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import tenacity

from tfgrpo_dspy.errors import StoreError, described
from tfgrpo_dspy.redaction import cleaned

DATABASE = "tfgrpo_store.db"
FORMAT_VERSION = 3
BUSY_TIMEOUT_S = 60.0
"""How long a process waits for another one that writes to the same store."""

INTACT = (
    "What was recorded before is intact; when that is mended, the same compile goes on from there."
)
DAMAGED = "The database is damaged: restore its folder from a copy, or take another log_dir."

Record = dict[str, Any]


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Within it, a record that has not the form of its stage is damaged. Raises StoreError."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # a record that was changed may hold anything
        raise StoreError(f"The record {key!r} is damaged: {described(error)}.") from error


class Store:
    """The records in one folder; several processes may have it open at once.

    Keys are `stage:hash`. A record that was put is on disk when `put` returns, as far as a killed
    process goes (the power failing may cost the last ones).

    Args:
        folder: made where it does not exist.
        clean: what every text goes through before it is written, such as taking secrets out.
        is_read_only: nothing is written, so the folder may be one that cannot be written to.

    Raises:
        StoreError: the folder cannot be made, written or read, or is of another format. What is in
            it stays as it is.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        clean: Callable[[str], str] = str,
        is_read_only: bool = False,
    ) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._clean = clean
        self._lock = threading.RLock()
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
    def existing(cls, folder: str | PathLike[str]) -> "Store | None":
        """The store in a folder that has one, to read it; nothing is made where there is none."""
        path = Path(folder).expanduser().absolute()
        return cls(path, is_read_only=True) if (path / DATABASE).exists() else None

    def _connected(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / DATABASE
        connection = sqlite3.connect(
            file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        retrying = tenacity.Retrying(  # of several processes at once, SQLite lets one set the mode
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
        """A connection that creates and changes no file.

        A run that was killed may have left rows in the write-ahead log beside the database. Only
        then the database is opened with its locks, which need a folder that can be written to.
        """
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

    def _execute(self, doing: str, sql: str, *values: str) -> list[Any]:
        with self._lock, self._faults(doing):
            return self._connection.execute(sql, values).fetchall()

    def get(self, key: str) -> Record | None:
        """The record under that key, or None.

        Raises:
            StoreError: the record was changed by something else, or the disk fails.
        """
        rows = self._execute("read", "SELECT text FROM records WHERE key = ?", key)
        return _parsed(key, rows[0][0]) if rows else None

    def put(self, *records: tuple[str, Mapping[str, Any]]) -> list[Record | None]:
        """Write records, all or none; for each, the record that stood there already, or None."""
        with self.together():
            earlier = [self.get(key) for key, _ in records]
            for key, record in records:
                sql = "INSERT OR IGNORE INTO records VALUES (?, ?)"
                self._execute("write", sql, key, self._text(record))
        return earlier

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is put within it is on disk when it ends, in one transaction.

        An error that is raised within it does not undo what was put before.
        """
        with self._lock:
            is_outermost = not self._connection.in_transaction
            if is_outermost:
                self._execute("write", "BEGIN IMMEDIATE")
            try:
                yield
            finally:
                if is_outermost and self._connection.in_transaction:
                    self._commit()

    def _commit(self) -> None:
        try:
            self._execute("write", "COMMIT")
        except StoreError:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    def replace(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a record in place of the one that stands there: notes on runs, never results."""
        if not (self.folder / DATABASE).exists():
            raise StoreError(
                f"log_dir={str(self.folder)!r} was removed while the run went on: what it recorded "
                f"there is lost."
            )
        upsert = (
            "INSERT INTO records VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET text = excluded.text"
        )
        with self.together():
            self._execute("write", upsert, key, self._text(record))

    def _text(self, record: Mapping[str, Any]) -> str:
        return json.dumps(record if self._clean is str else cleaned(record, self._clean))

    def records(self, stage: str) -> Iterator[tuple[str, Record]]:
        """The keys and records of a stage, the oldest first."""
        sql = "SELECT key, text FROM records WHERE key GLOB ? ORDER BY rowid"
        for key, text in self._execute("read", sql, f"{stage}:*"):
            yield key, _parsed(key, text)

    def close(self) -> None:
        """Close the database; records stay."""
        with self._lock, self._faults("close"):
            self._connection.close()


def _parsed(key: str, text: str) -> Record:
    with reading(key):
        return dict(json.loads(text, parse_float=_finite, parse_constant=_finite).items())


def _finite(text: str) -> float:
    """A number of a record. Raises ValueError: it is one that no record holds."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {text}")
    return number
