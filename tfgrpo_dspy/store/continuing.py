"""How a recorded run is gone on with: its schedule stands, also where another would be derived."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.database import Store
from tfgrpo_dspy.store.notes import RunNote, key_of, notes_and_faults
from tfgrpo_dspy.store.run_records import RunRecords

logger = logging.getLogger(__name__)


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


def _note_of_same(store: Store, settings: RunSettings, parts: Mapping[str, str]) -> RunNote | None:
    """The note of the run that is gone on with; of several, that of the exact same, one that
    had the same limits, or the last."""
    notes, _ = notes_and_faults(store)  # whoever reads a run with a damaged note says so
    limits = settings.learning_limits
    same = notes.pop(key_of(parts), None)
    others = [note.under(limits) for note in reversed(notes.values())]
    others.sort(key=lambda note: note.limits != limits)
    for note in filter(None, (same and same.under(limits), *others)):
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
