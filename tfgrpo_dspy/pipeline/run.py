"""What the parts of one run share: settings, account, records, schedule, report."""

from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.pipeline.archive import Archive
from tfgrpo_dspy.pipeline.notes import Notes
from tfgrpo_dspy.pipeline.recorder import Recorder
from tfgrpo_dspy.pipeline.schedule import Schedule
from tfgrpo_dspy.settings import Settings


@dataclass(frozen=True, slots=True)
class Run:
    """One run over a student (its own copy)."""

    settings: Settings
    student: Any
    ledger: Ledger
    archive: Archive
    notes: Notes
    schedule: Schedule
    recorder: Recorder

    def bake(self, library: ExperienceLibrary) -> Any:
        """The student with this library, in a copy."""
        return library.bake(self.student)

    def check_offline(self, stage: str, where: str) -> None:
        """What is not recorded would be computed now; offline that is an error.

        A run that a budget ended has no more records than it made: its replay ends there too.

        Raises:
            MissingRecordError: offline.
            RunStopped: offline, and the recorded run was ended by a budget.
        """
        if not self.settings.offline:
            return
        if ended := self.notes.was_cut_short():
            self.ledger.stop(ended)
            self.ledger.check()
        raise self.notes.missing(stage, where)
