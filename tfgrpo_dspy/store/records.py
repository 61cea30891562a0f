"""Reads and writes records; turns every fault of disk and database into a clear error."""

import json
import math
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import diskcache

from tfgrpo_dspy.errors import StoreError, described
from tfgrpo_dspy.redaction import cleaned
from tfgrpo_dspy.store.disk import SETTINGS, ReadOnlyCache, TextCache, TextDisk

FORMAT_FILE = "tfgrpo_store.json"
FORMAT_VERSION = 1
BUSY_TIMEOUT_S = 60.0

INTACT = (
    "What was recorded before is intact; when that is mended, the same compile goes on from there."
)
DAMAGED = "The database is damaged: restore its folder from a copy, or take another log_dir."
FROM_OUTSIDE = (sqlite3.Error, OSError)
"""Faults of disk and locks; all others, and sqlite3's DatabaseError itself, are of what is read."""

Record = dict[str, Any]


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Within it, a record that has not the form of its stage is damaged. Raises StoreError."""
    try:
        yield
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
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
        StoreError: the folder cannot be made, written or read, belongs to something else, or is
            of a newer format. What is in it stays as it is.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        clean: Callable[[str], str] = str,
        is_read_only: bool = False,
    ) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._clean = clean
        with self._faults("open"):
            self._check_format()
            self._cache: Any = (
                ReadOnlyCache(self.folder)
                if is_read_only
                else TextCache(str(self.folder), timeout=BUSY_TIMEOUT_S, disk=TextDisk, **SETTINGS)
            )

    @classmethod
    def existing(cls, folder: str | PathLike[str]) -> "Store | None":
        """The store in a folder that has one, to read it; nothing is made where there is none."""
        path = Path(folder).expanduser().absolute()
        return cls(path, is_read_only=True) if (path / FORMAT_FILE).exists() else None

    def _check_format(self) -> None:
        file = self.folder / FORMAT_FILE
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / diskcache.core.DBNAME).exists() and not file.exists():
                raise StoreError(
                    f"log_dir={str(self.folder)!r} holds a database that is no run store; take "
                    f"another folder."
                )
            whole = file.with_name(f".{FORMAT_FILE}.{uuid.uuid4().hex}")
            whole.write_text(json.dumps({"version": FORMAT_VERSION}), encoding="utf-8")
            whole.replace(file)  # as a whole: other processes may read it at this moment
        try:
            version = json.loads(file.read_text(encoding="utf-8"))["version"]
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{file} is damaged: {error!r}; take another log_dir.") from error
        if version != FORMAT_VERSION:
            raise StoreError(
                f"log_dir={str(self.folder)!r} is a run store of format {version!r}; this version "
                f"of tfgrpo_dspy reads format {FORMAT_VERSION}: update it, or take another folder."
            )

    @contextmanager
    def _faults(self, doing: str) -> Iterator[None]:
        try:
            yield
        except diskcache.Timeout as error:
            raise StoreError(
                f"Cannot {doing} the run store log_dir={str(self.folder)!r}: it is locked by "
                f"another process, or may not be written to. {INTACT}"
            ) from error
        except (sqlite3.Error, OSError, TypeError, KeyError, ValueError) as error:
            is_damaged = (
                type(error) is sqlite3.DatabaseError
                or not isinstance(error, FROM_OUTSIDE)
                or "UTF-8" in str(error)
            )
            raise StoreError(
                f"Cannot {doing} the run store log_dir={str(self.folder)!r}: {described(error)}. "
                f"{DAMAGED if is_damaged else INTACT}"
            ) from error

    def get(self, key: str) -> Record | None:
        """The record under that key, or None.

        Raises:
            StoreError: the record was changed by something else, or the disk fails.
        """
        with self._faults("read"):
            text = self._cache.get(key)
        return None if text is None else self._parsed(key, text)

    def _parsed(self, key: str, text: str) -> Record:
        try:
            record = json.loads(text, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"The record {key!r} is damaged: {error}.") from error
        if not isinstance(record, dict):
            raise StoreError(f"The record {key!r} is damaged: it is no object.")
        return record

    def put(self, *records: tuple[str, Mapping[str, Any]]) -> list[Record | None]:
        """Write records, all or none; for each, the record that stood there already, or None."""
        texts = [(key, self._text(record)) for key, record in records]
        with self._faults("write"), self._cache.transact():
            added = [self._cache.add(key, text) for key, text in texts]
        return [
            None if is_new else self.get(key) for (key, _), is_new in zip(texts, added, strict=True)
        ]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is put within it is on disk when it ends, in one transaction.

        An error that is raised within it does not undo what was put before.
        """
        raised = None
        with self._faults("write"), self._cache.transact():
            try:
                yield
            except BaseException as error:  # noqa: BLE001 - raised again, behind the transaction
                raised = error
        if raised is not None:
            raise raised

    def replace(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a record in place of the one that stands there: notes on runs, never results."""
        text = self._text(record)
        if not (self.folder / FORMAT_FILE).exists():
            raise StoreError(
                f"log_dir={str(self.folder)!r} was removed while the run went on: what it recorded "
                f"there is lost."
            )
        with self._faults("write"), self._cache.transact():
            self._cache.set(key, text)

    def _text(self, record: Mapping[str, Any]) -> str:
        return json.dumps(record if self._clean is str else cleaned(record, self._clean))

    def keys(self, stage: str) -> list[str]:
        """The keys of all records of a stage, the oldest first."""
        with self._faults("read"):
            return [key for key in self._cache if key.startswith(f"{stage}:")]

    def records(self, keys: Sequence[str]) -> Iterator[tuple[str, Record]]:
        """The records under these keys, one at a time; absent ones are left out."""
        for key in keys:
            record = self.get(key)
            if record is not None:
                yield key, record

    def close(self) -> None:
        """Close the database; records stay."""
        with self._faults("close"):
            self._cache.close()


def _finite(text: str) -> float:
    """A number of a record. Raises ValueError: it is one that no record holds."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {text}")
    return number
