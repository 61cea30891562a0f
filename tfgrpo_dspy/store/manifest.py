"""What one run writes into its store, and how it goes on from what it wrote before.

The schedule of a recorded run stands, also where another would be derived.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from tfgrpo_dspy.budget.account import LIMITS as PAID
from tfgrpo_dspy.budget.account import Amount
from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.errors import MissingRecordError
from tfgrpo_dspy.experience.library import library_in
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.results.records import UpdateRecord
from tfgrpo_dspy.results.rows import ReflectionRow, RolloutRow
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store import notes
from tfgrpo_dspy.store.database import Record, Store
from tfgrpo_dspy.store.run_records import RunRecords

logger = logging.getLogger(__name__)


class RunManifest:
    """Reads and writes what is known of this run; nothing without a store."""

    def __init__(self, settings: RunSettings, records: RunRecords, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._records = records
        self._run, self._parts = "", dict[str, str]()
        self.asked: list[ReflectionRow] = []  # of the reflection LM, until its update is recorded
        self._is_finished = self._is_continued = False
        self._earlier: tuple[notes.RunEnd, ...] = ()
        self._n_updates = 0
        self._begun = datetime.now(UTC).isoformat(timespec="seconds")

    def begin(self, student: Any) -> None:
        """Note that the run has begun, or go on with what the same run has paid."""
        if self._records.store is None:
            return
        self._parts = self._records.keys.parts
        self._run = notes.key_of(self._parts)
        note = self._recorded()
        names = self._records.keys.identities.by_name
        if names and self._settings.version is None:
            (logger.info if note is None else logger.warning)(
                "known by name only, so that a change in them is not noticed (pass version=... "
                "when they change): %s",
                ", ".join(sorted(names)),
            )
        if note is None and (others := self._differences()):
            logger.warning(
                "log_dir=%r holds no run of this compile; from the nearest one it differs in %s",
                str(self._settings.log_dir),
                others,
            )
        self._write(notes.LATEST_RUN, {"run": self._run})
        if note is None:
            self.note(Additions(library_in(student)), "")
        else:
            self._go_on(note)

    def _go_on(self, recorded: notes.RunNote) -> None:
        limits, ledger = self._settings.learning_limits, self._ledger
        note = recorded.under(limits)
        is_other = bool(note.ended_because) and note.limits != limits
        is_paid_by_it = all(  # else it was paid for a larger budget, and is replayed as it fits
            paid <= (limits.get(name) or math.inf)
            for name, paid in zip(("max_lm_calls", "max_cost"), note.paid, strict=True)
        )
        self._is_continued, ledger.counts_unused = is_other, is_other and is_paid_by_it
        ledger.n_lost, ledger.lost = note.lost if is_paid_by_it or not is_other else (0, 0.0)
        ledger.set_aside = note.unused(limits) if is_other else note.set_aside or note.lost
        if self._settings.offline:
            return
        self._begun, self._earlier = note.begun, recorded.ends
        ledger.n_paid, ledger.paid = note.paid
        self._is_finished = bool(note.ended_because)
        has_budget = any(getattr(self._settings, name) is not None for name in PAID)
        self._records.losses_stand = self._is_finished and has_budget and not is_other

    def _differences(self) -> str:
        """The parts in which the nearest recorded run, of several the last, differs; "": no run."""
        assert self._records.store is not None  # noqa: S101 - whoever asks has looked
        recorded, _ = notes.notes_and_faults(self._records.store)
        of_run = self._parts
        differing = [
            [name for name in {**of_run, **note.parts} if of_run.get(name) != note.parts.get(name)]
            for note in reversed(recorded.values())
        ]
        nearest = min(filter(None, differing), key=len, default=[])
        derived = self._settings.derived
        return ", ".join(f"{name} (derived)" if name in derived else name for name in nearest)

    def _write(self, key: str, record: Record) -> None:
        if self._records.store is not None and not self._settings.offline:
            self._records.store.replace(key, record)

    def _write_note(self, note: notes.RunNote) -> None:
        self._write(self._run, notes.NOTES.dump_python(note, mode="json"))

    @property
    def _paid(self) -> notes.Spent:
        return self._ledger.n_paid, self._ledger.paid

    def note(self, best: Additions, ended_because: str, kept: Amount = notes.NOTHING) -> None:
        """Note how far the run has come; `kept` surely counts in a start with a larger budget."""
        if self._is_finished and not ended_because:
            return  # the recorded best is that of a race
        library, limits, ledger = best.library, self._settings.learning_limits, self._ledger
        note = notes.RunNote(
            begun=self._begun,
            ended_because=ended_because,
            library=library.holding(replace(each, evidence=()) for each in library),
            demos=best.demos,
            paid=self._paid,
            lost=ledger.lost_before,
            kept=(math.ceil(kept.n_lm_calls), kept.cost),
            parts=self._parts,
            schedule=self._settings.schedule,
            limits=limits,
            n_test=self._settings.data.n_test,
            set_aside=ledger.set_aside,
            cut_because=ledger.refused_because,
            n_updates=self._n_updates,
            earlier=tuple(end for end in self._earlier if end.limits != limits),
        )
        if ended_because:
            self._is_finished = self._is_continued = False  # as it was before
        self._write_note(note)

    @property
    def origin(self) -> dict[str, str]:
        """Which run in which folder this is; empty without a store."""
        if self._records.store is None:
            return {}
        folder = str(self._records.store.folder)
        return {"run": self._run.removeprefix(notes.RUN), "begun": self._begun, "log_dir": folder}

    def note_update(self, update: UpdateRecord, rollouts: Sequence[RolloutRow]) -> None:
        """Record a decided update, and what was made and asked for it, for reports."""
        self._n_updates += 1
        self._write(f"{notes.DECIDED}{self._run}:{update.update}", asdict(update))
        self._note_rows(str(update.update), rollouts)

    def note_results(self, results: RunResults, rollouts: Sequence[RolloutRow]) -> None:
        """Record what the run reports, and the rollouts of the choice, unless it is finished."""
        if self._is_finished:
            return
        note = self._recorded()
        if note is not None and note.ended_because:
            self._write_note(replace(note, cut_because=self._ledger.refused_because))
        self._write(f"{notes.RESULTS}{self._run}", replace(results, updates=()).to_dict())
        self._note_rows("end", rollouts)

    def _note_rows(self, place: str, rollouts: Sequence[RolloutRow]) -> None:
        if self._records.store is None:
            return
        asked = [row for row in self.asked if place in ("end", str(row.update))]
        self.asked = [row for row in self.asked if row not in asked]
        rows = {"rollouts": list(map(asdict, rollouts)), "reflections": list(map(asdict, asked))}
        self._write(f"{notes.ROWS}{self._run}:{place}", rows)

    def close(self) -> None:
        """Note what was paid, and what of it was lost."""
        note = self._recorded()
        if note is None:
            return
        n_lost, lost = self._ledger.lost_now
        n_paid, paid = self._ledger.n_paid - note.paid[0], self._ledger.paid - note.paid[1]
        if self._is_continued:

            def going_on(end: Any) -> Any:
                """All that was paid now is repeated, but for what came to nothing."""
                n_kept, kept = end.kept[0] + n_paid - n_lost, end.kept[1] + paid - lost
                return replace(end, kept=(max(0, n_kept), max(0.0, kept)))

            note = replace(going_on(note), earlier=tuple(map(going_on, note.earlier)))
        else:
            n_before, before = self._ledger.lost_before
            set_aside = note.set_aside if note.ended_because else None
            note = replace(note, lost=(n_before + n_lost, before + lost), set_aside=set_aside)
        self._write_note(replace(note, paid=self._paid))

    def _recorded(self) -> notes.RunNote | None:
        store = self._records.store
        return None if store is None else notes.note_of(store, self._run)

    def was_cut_short(self) -> str:
        """What stopped this run before its end when it was recorded; "" if nothing did."""
        note = self._recorded()
        note = note and note.under(self._settings.learning_limits)
        if note is None or note.limits != self._settings.learning_limits:
            return ""
        if note.cut_because is None:
            return note.ended_because if note.ended_because.startswith("max_") else ""
        return note.cut_because if note.ended_because else ""

    def missing(self, name: str) -> MissingRecordError:
        """The error that says, offline, which record is not there, and what may be the reason."""
        note = self._recorded()
        note = note and note.under(self._settings.learning_limits)
        if note is None:
            others = self._differences()
            reason = "this run was not recorded there"
            reason += f"; from the nearest one that was, it differs in: {others}" if others else ""
        elif not note.ended_because:
            reason = "the recorded run was not finished"
        else:
            reason = f"the recorded run did not come so far ({note.ended_because})"
        return MissingRecordError(
            f"offline=True, and log_dir={str(self._settings.log_dir)!r} has no record of the "
            f"{name}: {reason}. Run the same compile with offline=False first."
        )


def continued(
    records: RunRecords,
    settings: RunSettings,
    student: Any,
    sets: Mapping[str, Sequence[Any]],
    recorded: Any,
) -> RunSettings:
    """The settings, with the schedule of a recorded run if this one goes on with it.

    So it does if that run is the same but for what is derived, and had no larger limits. A finished
    run whose limits are the same plans nothing else: what a test set takes comes on top.
    """
    if records.store is None:
        return settings
    parts = records.keys.parts_of_run(settings, student, sets, recorded)
    note = _note_of_same(records.store, settings, parts)
    if note is None:
        return settings
    schedule, names = note.schedule, settings.derived - {"epochs"}
    is_as_far = note.limits == settings.learning_limits and schedule["epochs"] == settings.epochs
    if note.ended_because and is_as_far:
        names |= {"reserve", "n_validation"}
        n_more, data = settings.data.n_test - note.n_test, settings.data
        if data.is_test_on_top and settings.max_lm_calls:
            n_calls = settings.max_lm_calls - 2 * n_more * data.calls_per_rollout
            settings = replace(settings, max_lm_calls=n_calls)
        settings = replace(settings, data=replace(data, n_test=note.n_test))
    if changed := [name for name in sorted(names) if getattr(settings, name) != schedule[name]]:
        logger.info("this run goes on with a recorded one, by its %s", ", ".join(changed))
    figures: dict[str, Any] = {name: schedule[name] for name in names}
    settings = replace(settings, **figures)
    records.keys.parts_of_run(settings, student, sets, recorded)
    return settings


def _note_of_same(
    store: Store, settings: RunSettings, parts: Mapping[str, str]
) -> notes.RunNote | None:
    """The note of the run that is gone on with; of several, one that had the same limits before
    any other, and the exact same, or the last, before those."""
    recorded, _ = notes.notes_and_faults(store)  # whoever reads a run with a damaged note says so
    limits = settings.learning_limits
    same = recorded.pop(notes.key_of(parts), None)
    read = [each.under(limits) for each in (same, *reversed(recorded.values())) if each]
    for note in sorted(read, key=lambda note: note.limits != limits):
        is_same = _fixed(note.parts, settings) == _fixed(parts, settings)
        is_whole = note.schedule.keys() == settings.schedule.keys()  # nobody has changed the note
        if is_same and is_whole and _reach(note.limits, limits):
            return note
    return None


def _fixed(parts: Mapping[str, str], settings: RunSettings) -> dict[str, str]:
    """The parts that do not follow from budget and data."""
    return {name: part for name, part in parts.items() if name not in settings.derived}


def _reach(before: Mapping[str, float | None], now: Mapping[str, float | None]) -> bool:
    """Whether no limit is lower than it was; None: there is none."""
    limits = ((before.get(name), now[name]) for name in now)
    return all((math.inf if b is None else b) >= (a or math.inf) for a, b in limits)
