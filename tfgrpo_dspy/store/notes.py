"""The notes of the runs in a store, one or all: how far it came, what it paid, its settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from tfgrpo_dspy.budget.account import Amount
from tfgrpo_dspy.errors import StoreError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.identity import digest
from tfgrpo_dspy.sampling.demos import Demo
from tfgrpo_dspy.store.database import Store, reading

LATEST_RUN = "latest:run"
RUN, DECIDED, RESULTS, ROWS = "run:", "decided:", "results:", "rows:"  # how keys begin
NOTHING = Amount()

Count = Annotated[int, Field(ge=0, lt=2**53)]
Spent = tuple[Count, Annotated[float, Field(ge=0, lt=1e15)]]  # LM calls and dollars
Library = Annotated[
    ExperienceLibrary,
    PlainValidator(ExperienceLibrary.from_dict),
    PlainSerializer(ExperienceLibrary.to_dict),
]


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ended, or stands, under these limits; a start with the same ones repeats it."""

    ended_because: str  # "": it is not finished
    lost: Spent  # what of that paid came to nothing
    kept: Spent  # what of it surely counts in a later start with a larger budget
    schedule: dict[str, Count]
    limits: dict[str, float | None]
    n_test: Count
    set_aside: Spent | None = None  # by its plans, for what is lost; None: as much
    cut_because: str | None = None  # what refused or stopped something; None: an old note


@dataclass(frozen=True, kw_only=True)
class RunNote(RunEnd):
    """The only form in which the note of a run is written and read."""

    begun: str
    library: Library  # the best so far, as `demos`; no evidence, which grows
    demos: tuple[Demo, ...]
    paid: Spent  # by all starts
    parts: dict[str, str]
    n_updates: Count | None = None  # of a finished run
    earlier: tuple[RunEnd, ...] = ()  # how the run ended under other limits before

    @property
    def ends(self) -> tuple[RunEnd, ...]:
        """How the run has ended, each time under other limits; the latest comes first."""
        latest = RunEnd(**{each.name: getattr(self, each.name) for each in fields(RunEnd)})
        return (latest, *self.earlier) if self.ended_because else ()

    def under(self, limits: Mapping[str, float | None]) -> "RunNote":
        """The note as a start under these limits reads it: theirs, or what repeats most calls."""
        ends = sorted(self.ends, key=lambda end: (end.limits != limits, -end.kept[0]))
        return replace(self, **vars(ends[0])) if ends else self

    def unused(self, limits: Mapping[str, float | None]) -> Spent:
        """Of what was paid, what a start under these other limits may not use again.

        Only what they have more than those before is set aside: as far as these came, all that was
        paid is replayed, and the ledger refuses what is not there.
        """
        rows = zip(("max_lm_calls", "max_cost"), self.paid, self.kept, strict=True)
        n_calls, cost = (
            max(0.0, min(paid - kept, _more(limits.get(name), self.limits.get(name))))
            for name, paid, kept in rows
        )
        return math.ceil(n_calls), cost


def _more(now: float | None, before: float | None) -> float:
    """How much larger a limit is than before; None: there is none."""
    return math.inf if now is None else now - (math.inf if before is None else before)


NOTES = TypeAdapter(RunNote)


def key_of(parts: Mapping[str, str]) -> str:
    """The key of the note of the run with these parts."""
    return f"{RUN}{digest(parts)}"


def note_of(store: Store, key: str) -> RunNote | None:
    """The note under this key, if there is one. Raises StoreError: it is damaged."""
    record = store.get(key)
    with reading(key):
        return None if record is None else NOTES.validate_python(record)


def run_keys(store: Store) -> list[str]:
    """The keys of all notes, in the order of writing; that of the run begun last comes last."""
    latest = (store.get(LATEST_RUN) or {}).get("run")
    return sorted(store.keys(RUN), key=lambda key: key == latest)


def notes_and_faults(store: Store) -> tuple[dict[str, RunNote], list[StoreError]]:
    """Notes by key, in the order of `run_keys`, and why others are not read. Raises StoreError."""
    notes, faults = dict[str, RunNote](), list[StoreError]()
    try:
        keys = run_keys(store)
    except StoreError as error:
        keys, faults = store.keys(RUN), [error]
    for key in keys:
        try:
            if note := note_of(store, key):
                notes[key] = note
        except StoreError as error:  # the others can be read
            faults.append(error)
    return notes, faults
