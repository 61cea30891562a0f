"""What the parts of one run share: settings, account, records, schedule, report."""

from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.pipeline.archive import Archive
from tfgrpo_dspy.pipeline.notes import Notes
from tfgrpo_dspy.pipeline.recorder import Recorder
from tfgrpo_dspy.pipeline.schedule import Handle, Schedule
from tfgrpo_dspy.settings import RunSettings


@dataclass(frozen=True, slots=True)
class Run:
    """One run over a student (its own copy)."""

    settings: RunSettings
    student: Any
    ledger: Ledger
    archive: Archive
    notes: Notes
    schedule: Schedule
    recorder: Recorder

    def bake(self, library: ExperienceLibrary) -> Any:
        """The student with this library, in a copy."""
        return library.bake(self.student)

    def lacking(self, stage: str, where: str) -> list[Handle[None]]:
        """What stands, offline, for what is not recorded: an error.

        A run that a budget ended has no more records than it made: its replay ends where all that
        is recorded is used up, so what is lacking is waited for in vain.

        Raises:
            MissingRecordError: the recorded run was not ended by a budget.
        """
        ended = self.notes.was_cut_short()
        if not ended:
            raise self.notes.missing(stage, where)
        return [self.schedule.never(ended)]
