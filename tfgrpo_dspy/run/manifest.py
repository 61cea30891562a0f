"""The note of a run in its store: how far it came, what it has paid, by which settings."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from tfgrpo_dspy.budget.account import LIMITS as PAID
from tfgrpo_dspy.budget.account import Amount
from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.errors import MissingRecordError, StoreError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.results.records import UpdateRecord
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.run.records import RunRecords
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.database import Record, Store, reading
from tfgrpo_dspy.store.identity import digest

logger = logging.getLogger(__name__)

LATEST_RUN = "latest:run"
RUN, DECIDED, RESULTS = "run:", "decided:", "results:"  # how keys begin
NOTHING = Amount()


def notes_of(store: Store) -> Iterator[tuple[str, Record]]:
    """Keys and notes of the runs in the store; first the one that was begun last.

    Raises StoreError: the next note is damaged.
    """
    latest = (store.get(LATEST_RUN) or {}).get("run")
    for key in sorted(reversed(store.keys(RUN)), key=lambda key: key != latest):
        yield key, store.get(key) or {}


Count = Annotated[int, Field(ge=0, lt=2**53)]
Spent = tuple[Count, Annotated[float, Field(ge=0, lt=1e15)]]  # LM calls and dollars


@dataclass(frozen=True)
class RunNote:
    """What a later start reads of the note of a run; older notes hold less."""

    begun: str
    ended_because: str
    paid: Spent
    lost: Spent
    unused: Spent | None = None
    parts: dict[str, str] = field(default_factory=dict)
    schedule: dict[str, Count] = field(default_factory=dict)
    limits: dict[str, float | None] = field(default_factory=dict)
    n_test: Count = 0


NOTES = TypeAdapter(RunNote)


def note_of(key: str, record: Record) -> RunNote:
    """The note in this record. Raises StoreError: it is damaged."""
    with reading(key):
        return NOTES.validate_python(record)


def key_of(parts: Mapping[str, str]) -> str:
    """The key of the note of the run with these parts."""
    return f"{RUN}{digest(parts)}"


class RunManifest:
    """Reads and writes what is known of this run; nothing without a store."""

    def __init__(self, settings: RunSettings, records: RunRecords, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._records = records
        self._run, self._parts = "", dict[str, str]()
        self._is_finished = self._is_continued = False
        self._begun = datetime.now(UTC).isoformat(timespec="seconds")

    def begin(self, student: Any) -> None:
        """Note that the run has begun, or go on with what the same run has paid."""
        if self._records.store is None:
            return
        self._parts = self._records.parts
        self._run = key_of(self._parts)
        names = self._records.unseen.names
        if names and self._settings.version is None:
            logger.info(
                "known by name only, so that a change in them is not noticed (pass version=... "
                "when they change): %s",
                ", ".join(sorted(names)),
            )
        record = self._records.store.get(self._run)
        if record is None and (others := self._differences()):
            logger.warning(
                "log_dir=%r holds no run of this compile; from the nearest one it differs in %s",
                str(self._settings.log_dir),
                others,
            )
        self._write(LATEST_RUN, {"run": self._run})
        if record is None:
            self.note(Additions(ExperienceLibrary.from_program(student)), "")
        else:
            self._go_on(note_of(self._run, record))

    def _go_on(self, note: RunNote) -> None:
        is_longer = bool(note.ended_because) and note.limits != self._settings.learning_limits
        self._is_continued = bool(is_longer and note.unused)
        self._ledger.n_lost, self._ledger.lost = (is_longer and note.unused) or note.lost
        if self._settings.offline:
            return
        self._begun = note.begun
        self._ledger.n_paid, self._ledger.paid = note.paid
        self._is_finished = bool(note.ended_because)
        has_budget = any(getattr(self._settings, name) is not None for name in PAID)
        self._records.losses_stand = self._is_finished and has_budget and not is_longer

    def _differences(self) -> str:
        """The names of the parts in which the nearest recorded run is another; "": none is there.

        Of runs that are as near, the one that was begun last counts.
        """
        assert self._records.store is not None  # noqa: S101 - whoever asks has looked
        differing: list[list[str]] = []
        with suppress(StoreError):  # of a damaged note; whoever reads that run says so
            for _, note in notes_of(self._records.store):
                parts = note.get("parts") or {}
                names = {**self._parts, **parts} if parts else {}
                differing.append([n for n in names if self._parts.get(n) != parts.get(n)])
        nearest = sorted((names for names in differing if names), key=len)
        return ", ".join(nearest[0] if nearest else ())

    def _write(self, key: str, record: Record) -> None:
        if self._records.store is not None and not self._settings.offline:
            self._records.store.replace(key, record)

    def note(self, best: Additions, ended_because: str, kept: Amount = NOTHING) -> None:
        """Note how far the run has come: what is best so far, and why it ended (if it did).

        `kept` is what surely counts in a later start with a larger budget.
        """
        if self._is_finished and not ended_because:
            return  # the recorded best is that of a race
        library = best.library
        bare = library.holding(replace(each, evidence=()) for each in library)  # evidence grows
        record = {
            "library": bare.to_dict(),
            "demos": [asdict(demo) for demo in best.demos],
            "paid": [self._ledger.n_paid, self._ledger.paid],
            "lost": [self._ledger.n_lost, self._ledger.lost],
            "kept": [kept.n_lm_calls, kept.cost],
            "unused": self._unused([kept.n_lm_calls, kept.cost]),
            "ended_because": ended_because,
            "begun": self._begun,
            "parts": self._parts,
            "schedule": self._settings.schedule,
            "limits": self._settings.learning_limits,
            "n_test": self._settings.data.n_test,
        }
        self._is_continued &= not ended_because
        self._write(self._run, record)

    def _unused(self, kept: Sequence[float]) -> list[float]:
        return [int(max(0, self._ledger.n_paid - kept[0])), max(0.0, self._ledger.paid - kept[1])]

    def note_update(self, update: UpdateRecord) -> None:
        """Record a decided update, for reports."""
        self._write(f"{DECIDED}{self._run}:{update.update}", asdict(update))

    def note_results(self, results: RunResults) -> None:
        """Record what the run reports, but for its updates."""
        self._write(f"{RESULTS}{self._run}", replace(results, updates=()).to_dict())

    def close(self, unfinished: Usage) -> None:
        """Note what was paid and, unless the run is finished, what of it was lost."""
        record = self._recorded()
        if record is not None:
            changes = {"paid": [self._ledger.n_paid, self._ledger.paid]}
            if self._is_continued or not record.get("ended_because"):
                name = "unused" if self._is_continued else "lost"
                changes[name] = [unfinished.n_lm_calls, unfinished.cost_usd]
            elif "kept" in record:
                changes["unused"] = self._unused(record["kept"])
            self._write(self._run, {**record, **changes})

    def _recorded(self) -> Record | None:
        return None if self._records.store is None else self._records.store.get(self._run)

    def was_cut_short(self) -> str:
        """The budget that ended this run when it was recorded; "" if none did."""
        record = self._recorded()
        with reading(self._run):
            ended = str(record["ended_because"]) if record else ""
        return ended if ended.startswith("max_") else ""

    def missing(self, stage: str, where: str) -> MissingRecordError:
        """The error that says, offline, which record is not there, and what may be the reason."""
        record = self._recorded()
        if record is None:
            others = self._differences()
            reason = "this run was not recorded there"
            reason += f"; from the nearest one that was, it differs in: {others}" if others else ""
        elif not record["ended_because"]:
            reason = "the recorded run was not finished"
        else:
            reason = f"the recorded run did not come so far ({record['ended_because']})"
        return MissingRecordError(
            f"offline=True, and log_dir={str(self._settings.log_dir)!r} has no record of the "
            f"{stage} of {where}: {reason}. Run the same compile with offline=False first."
        )
