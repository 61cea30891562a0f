"""The runs that a run store holds, finished or not, as the results that they report."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from pydantic import TypeAdapter

from tfgrpo_dspy.errors import StoreError
from tfgrpo_dspy.experience.programs import check_program, introduced
from tfgrpo_dspy.identity import Identities, digest
from tfgrpo_dspy.results import NOT_FINISHED, RunResults
from tfgrpo_dspy.results.records import UpdateRecord
from tfgrpo_dspy.results.rows import ReflectionRow, RolloutRow
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.store.database import Store, reading
from tfgrpo_dspy.store.keys import program_digest
from tfgrpo_dspy.store.notes import DECIDED, RESULTS, ROWS, RUN, RunNote, notes_and_faults

logger = logging.getLogger(__name__)

UPDATES = TypeAdapter(UpdateRecord)
_ROWS: dict[str, TypeAdapter[Any]] = {
    "rollouts": TypeAdapter(list[RolloutRow]), "reflections": TypeAdapter(list[ReflectionRow])
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run in a run store: its id, when it was begun (UTC), and what it reports.

    A run that was not finished has no scores of student and result.
    """

    id: str
    begun: str
    is_finished: bool
    results: RunResults


def saved_runs(log_dir: str | PathLike[str]) -> list[SavedRun]:
    """The runs in the run store of this folder; the one that was begun last stands last.

    A run of which a record is damaged is left out, which the log says. Raises StoreError: the store
    cannot be read, the folder has none, or no run in it can be read.
    """
    runs, faults = runs_and_faults(log_dir)
    if faults and not runs:
        raise faults[0]
    for fault in faults:
        logger.warning("a run in log_dir=%r is left out: %s", str(log_dir), fault)
    return runs


def runs_and_faults(log_dir: str | PathLike[str]) -> tuple[list[SavedRun], list[StoreError]]:
    """As `saved_runs`, and why others cannot be read. Raises StoreError: of the store itself."""
    runs: list[SavedRun] = []
    with _store_in(log_dir) as store:
        notes, faults = notes_and_faults(store)
        for key, note in notes.items():
            try:
                runs.append(_saved(store, key, note))
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
    with _store_in(log_dir) as store:
        key, note, student = _last_run_of(store, student, str(log_dir))
        results = _saved(store, key, note).results
    try:
        program = Additions(note.library, note.demos).bake(student)
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"what is recorded in log_dir={str(log_dir)!r} is not of this program ({error}); "
            f"pass the student that was compiled."
        ) from error
    program.detailed_results = results
    return program


def _last_run_of(store: Store, student: Any, log_dir: str) -> tuple[str, RunNote, Any]:
    """Its key, its note, and the student as it ran. Raises StoreError: none that can be read."""
    with_injection = introduced(student)  # as `paper(metric, injection=True)` runs it
    wanted = {digest(program_digest(ran, Identities())): ran for ran in (with_injection, student)}
    notes, faults = notes_and_faults(store)
    for key, note in reversed(notes.items()):
        ran = wanted.get(note.parts.get("program", ""))
        if ran is not None:
            return key, note, ran
    if faults:
        raise faults[0]
    if not notes:
        raise StoreError(f"log_dir={log_dir!r} holds no run yet.")
    raise StoreError(
        f"log_dir={log_dir!r} holds no run of this program, of {len(notes)} in all; pass the "
        f"student that was compiled, with its code as it was then. `tfgrpo runs {log_dir}` lists "
        f"them all."
    )


def saved_rows(run: SavedRun, name: str) -> list[Any]:
    """The "rollouts" or the "reflections" of a run, in their order. Raises StoreError."""
    beginning = f"{ROWS}{RUN}{run.id}:"
    with _store_in(run.results.origin["log_dir"]) as store:
        places = [key.removeprefix(beginning) for key in store.keys(beginning)]
        rows: list[Any] = []
        n_updates = len(run.results.updates)
        places = [place for place in places if not place.isdecimal() or int(place) < n_updates]
        for place in sorted(places, key=lambda place: (not place.isdecimal(), len(place), place)):
            with reading(f"{beginning}{place}"):
                record = store.get(f"{beginning}{place}") or {}
                rows += _ROWS[name].validate_python(record[name])
    return rows


@contextlib.contextmanager
def _store_in(log_dir: str | PathLike[str]) -> Iterator[Store]:
    store = Store.existing(log_dir)
    if store is None:
        raise StoreError(f"log_dir={str(log_dir)!r} is no run store; pass the one of a compile.")
    try:
        yield store
    finally:
        store.close()


def _saved(store: Store, key: str, note: RunNote) -> SavedRun:
    with reading(key):
        numbers = sorted(int(each.rpartition(":")[2]) for each in store.keys(f"{DECIDED}{key}:"))
        if note.ended_because:  # under a larger budget there may have been more
            numbers = numbers[: note.n_updates]
        records = (store.get(f"{DECIDED}{key}:{number}") for number in numbers)
        updates = tuple(map(UPDATES.validate_python, records))
        values = store.get(f"{RESULTS}{key}")
        results = RunResults.from_dict(values) if values else _unfinished(note)
    origin = {"run": key.removeprefix(RUN), "begun": note.begun, "log_dir": str(store.folder)}
    results = replace(results, updates=updates, origin=origin)
    return SavedRun(origin["run"], note.begun, bool(note.ended_because and values), results)


def _unfinished(note: RunNote) -> RunResults:
    """The results of a run that was not finished, by its latest note."""
    n_calls, cost = note.paid
    return RunResults(
        student=None,
        best=None,
        updates=(),
        usage={"rollout": Usage(n_lm_calls=n_calls, cost_usd=cost)},
        failures={},
        ended_because=NOT_FINISHED,
        nothing_learned="",
        wall_time_s=0.0,
        library=note.library.to_dict(),
    )
