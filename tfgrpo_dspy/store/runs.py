"""The runs that a run store holds, finished or not, as the results that they report."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from typing import Any

from pydantic import TypeAdapter

from tfgrpo_dspy.errors import StoreError
from tfgrpo_dspy.experience.programs import check_program, introduced
from tfgrpo_dspy.identity import Identities, digest
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.results.records import UpdateRecord
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.store.database import Record, Store, reading
from tfgrpo_dspy.store.journal import END, RUN, UPDATE, RunEntry, entries_and_faults, program_digest

logger = logging.getLogger(__name__)

UPDATES = TypeAdapter(UpdateRecord)
_ROWS = TypeAdapter(list[dict[str, Any]])


def saved_runs(log_dir: str | PathLike[str]) -> list[RunResults]:
    """The runs in the run store of this folder; the one that was begun last stands last.

    Their `origin` says which they are. One that was not finished has no scores of student and
    result. One of which a record is damaged is left out, which the log says. Raises StoreError: the
    store cannot be read, the folder has none, or no run in it can be read.
    """
    runs, faults = runs_and_faults(log_dir)
    if faults and not runs:
        raise faults[0]
    for fault in faults:
        logger.warning("a run in log_dir=%r is left out: %s", str(log_dir), fault)
    return runs


def runs_and_faults(log_dir: str | PathLike[str]) -> tuple[list[RunResults], list[StoreError]]:
    """As `saved_runs`, and why others cannot be read. Raises StoreError: of the store itself."""
    runs: list[RunResults] = []
    with _store_in(log_dir) as store:
        entries, faults = entries_and_faults(store)
        for entry in entries:
            try:
                runs.append(_saved(store, entry))
            except StoreError as error:  # the others can be shown
                faults.append(error)
    return runs, faults


def best_so_far(log_dir: str | PathLike[str], student: Any) -> Any:
    """The best program of the last run of this student in this store, finished or not.

    It has `detailed_results`, like the result of a compile.

    Args:
        log_dir: the folder of the run store.
        student: the program that was compiled; a store holds text, no code.

    Raises:
        StoreError: the store cannot be read, or holds no run of this program.
        LibraryError: the student is no program.
    """
    check_program(student)
    folder, with_injection = str(log_dir), introduced(student)  # as `paper(injection=True)` runs it
    wanted = {digest(program_digest(ran, Identities())): ran for ran in (with_injection, student)}
    with _store_in(log_dir) as store:
        entries, faults = entries_and_faults(store)
        entry = next(
            (each for each in reversed(entries) if each.parts.get("program") in wanted), None
        )
        if entry is None and faults:
            raise faults[0]
        if entry is None:
            raise StoreError(
                f"log_dir={folder!r} holds no run of this program, of {len(entries)} in all; pass "
                f"the student that was compiled, with its code as it was then. `tfgrpo runs "
                f"{folder}` lists them all."
            )
        results = _saved(store, entry)
    try:
        additions = Additions(results.experiences, entry.demos)
        program = additions.bake(wanted[entry.parts["program"]])
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"what is recorded in log_dir={folder!r} is not of this program ({error}); pass the "
            f"student that was compiled."
        ) from error
    program.detailed_results = results
    return program


def saved_rows(run: RunResults, name: str) -> list[Any]:
    """The "rollouts" or the "reflections" of a run, in their order. Raises StoreError."""
    with _store_in(run.origin["log_dir"]) as store:
        return [row for _, record in _updates(store, run.origin["run"])
                for row in _ROWS.validate_python(record[name])]  # fmt: skip


def _updates(store: Store, run: str) -> Iterator[tuple[str, Record]]:
    """The records of a run's updates, in their order, and that of its end, by their places."""
    beginning = f"{UPDATE}{RUN}{run}:"
    places = [key.removeprefix(beginning) for key in store.keys(beginning)]
    for place in sorted(places, key=lambda place: (place == END, len(place), place)):
        with reading(f"{beginning}{place}"):
            yield place, store.get(f"{beginning}{place}") or {}


@contextlib.contextmanager
def _store_in(log_dir: str | PathLike[str]) -> Iterator[Store]:
    store = Store.existing(log_dir)
    if store is None:
        raise StoreError(f"log_dir={str(log_dir)!r} is no run store; pass the one of a compile.")
    try:
        yield store
    finally:
        store.close()


def _saved(store: Store, entry: RunEntry) -> RunResults:
    run = entry.key.removeprefix(RUN)
    records = [record for place, record in _updates(store, run) if place != END]
    with reading(entry.key):
        updates = tuple(UPDATES.validate_python(record["update"]) for record in records)
    origin = {"run": run, "begun": entry.begun, "log_dir": str(store.folder)}
    return replace(entry.results, updates=updates, origin=origin)
