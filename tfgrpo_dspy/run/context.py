"""What the parts of one run share: settings, account, records, loop, report."""

from dataclasses import dataclass
from typing import Any, NoReturn

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.run.executors import RemoteRollouts
from tfgrpo_dspy.run.loop import Loop
from tfgrpo_dspy.run.manifest import RunManifest
from tfgrpo_dspy.run.records import RunRecords
from tfgrpo_dspy.run.run_report import RunReport
from tfgrpo_dspy.settings import RunSettings


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run over a student (its own copy)."""

    settings: RunSettings
    student: Any
    ledger: Ledger
    archive: RunRecords
    notes: RunManifest
    loop: Loop
    remote: RemoteRollouts | None
    recorder: RunReport

    def bake(self, library: ExperienceLibrary) -> Any:
        """The student with this library, in a copy."""
        return library.bake(self.student)

    def lacking(self, stage: str, where: str) -> NoReturn:
        """Offline, a record is missing.

        Raises:
            RunStopped: a budget ended the recorded run, whose records end here.
            MissingRecordError: the recorded run was not ended by a budget.
        """
        ended = self.notes.was_cut_short()
        if not ended:
            raise self.notes.missing(stage, where)
        self.ledger.stop(ended)
        raise RunStopped(ended)
