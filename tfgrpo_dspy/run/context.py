"""What the parts of one run share: settings, ledger, records, event loop, report."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.experience.programs import copy_program, named_predictors
from tfgrpo_dspy.run.executors import RemoteRollouts, workers_of
from tfgrpo_dspy.run.loop import Loop
from tfgrpo_dspy.run.manifest import RunManifest
from tfgrpo_dspy.run.records import RunRecords
from tfgrpo_dspy.run.run_report import RunReport
from tfgrpo_dspy.settings import RunSettings


@dataclass(frozen=True)
class RunContext:
    """One run over a student (a copy of the user's) and a training set."""

    settings: RunSettings
    student: Any
    trainset: Sequence[Any]
    ledger: Ledger
    records: RunRecords
    manifest: RunManifest
    loop: Loop
    remote: RemoteRollouts | None
    report: RunReport

    @classmethod
    def of(cls, settings: RunSettings, student: Any, trainset: Sequence[Any]) -> "RunContext":
        """The context of a new run. Raises StoreError: `log_dir` cannot be used."""
        ledger = Ledger(settings.budget)
        records = RunRecords(settings, student)
        loop, remote = _loop_of(settings, ledger)
        return cls(
            settings=settings,
            student=copy_program(student),
            trainset=trainset,
            ledger=ledger,
            records=records,
            manifest=RunManifest(settings, records, ledger),
            loop=loop,
            remote=remote,
            report=RunReport(settings, ledger),
        )

    @cached_property
    def predictors(self) -> list[str]:
        """The names of the student's predictors."""
        return [name for name, _ in named_predictors(self.student)]

    def stop_for_missing_record(self, stage: str, where: str) -> NoReturn:
        """End an offline run that needs a record which is not there.

        Raises:
            RunStopped: a budget ended the recorded run, whose records end here.
            MissingRecordError: the recorded run was not ended by a budget.
        """
        ended = self.manifest.was_cut_short()
        if not ended:
            raise self.manifest.missing(stage, where)
        self.ledger.stop(ended)
        raise RunStopped(ended)


def _loop_of(settings: RunSettings, ledger: Ledger) -> tuple[Loop, RemoteRollouts | None]:
    """The loop with its threads (new ones, or those of the user's pool); the other processes."""
    executor, timeout_s = settings.execution.executor, settings.execution.rollout_timeout_s
    if executor is None:
        return Loop(ledger, settings.threads, timeout_s), None
    n_at_once = settings.num_threads or workers_of(executor) or settings.threads
    if isinstance(executor, ThreadPoolExecutor):
        return Loop(ledger, n_at_once, timeout_s, executor), None
    loop = Loop(ledger, settings.threads, timeout_s, n_remote=n_at_once)
    return loop, RemoteRollouts(loop, executor, n_at_once, timeout_s)
