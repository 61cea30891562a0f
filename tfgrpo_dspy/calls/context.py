"""What the parts of one run share: settings, ledger, records, event loop, report."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NoReturn

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.calls.error_limit import ErrorLimit
from tfgrpo_dspy.calls.reserve import Reserve
from tfgrpo_dspy.errors import RunStopped, described
from tfgrpo_dspy.experience.programs import copy_program, named_predictors
from tfgrpo_dspy.listeners.report import RunReport
from tfgrpo_dspy.reflection.guard import Task, task_text
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.notes import RunManifest
from tfgrpo_dspy.store.records import RunRecords
from tfgrpo_dspy.tasks.executors import RemoteRollouts, workers_of
from tfgrpo_dspy.tasks.loop import Loop


class RunContext:
    """One run over a student (a copy of the user's) and a training set; `records` are its own.

    Raises StoreError.
    """

    def __init__(
        self,
        settings: RunSettings,
        student: Any,
        trainset: Sequence[Any],
        records: RunRecords | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.settings = settings
        self.student = copy_program(student)
        self.trainset = trainset
        self.ledger = ledger or Ledger(settings.budget)
        self.reserve = Reserve(settings, self.ledger)
        self.records = records or RunRecords(settings, student, trainset)
        self.manifest = RunManifest(settings, self.records, self.ledger)
        self.loop, self.remote = _loop_of(settings, self.ledger)
        self.ledger.clean = self.records.redacted
        self.report = RunReport(settings, self.ledger, self.records.redacted)
        self.errors = ErrorLimit(self.ledger, settings.execution.max_errors)
        self.ended_because = "all epochs are done"  # unless something ends the run before
        self.loop.on_wait = self.report.progress.tick

    @cached_property
    def predictors(self) -> list[str]:
        """The names of the student's predictors."""
        return [name for name, _ in named_predictors(self.student)]

    @cached_property
    def task(self) -> Task:
        """The program and the training data, in which guards look for what is the user's own."""
        text = task_text(self.student, self.settings.objective or "")
        examples = self.trainset
        return Task(
            text, lambda: [(as_fields(e.inputs()), as_fields(e.labels())) for e in examples]
        )

    def refuses(self, text: str, reason: str) -> bool:
        """Whether advice that a guard has a reason against is refused, by `Reflection(guard=)`."""
        guard = self.settings.reflection.guard
        refuses = guard == "refuse"
        if callable(guard):
            try:
                refuses = bool(guard(text, reason))
            except BaseException as error:  # noqa: BLE001 - whatever the user's function raises
                self.report.count_failure("guard", f"guard raised {described(error)}")
                refuses = True
        if not refuses and guard != "off":
            self.report.count_failure("advice let in", f"{text} ({reason})")
        return refuses

    def fail(self, why: str) -> NoReturn:
        """End the run, which cannot work. Raises RunStopped."""
        self.ledger.stop(why, is_failure=True)
        raise RunStopped(self.ledger.stopped_because)

    def stop_for_missing_record(self, name: str) -> NoReturn:
        """End an offline run for want of a record. Raises RunStopped or MissingRecordError."""
        if ended := self.manifest.was_cut_short():
            self.ledger.end(ended)
        raise self.manifest.missing(name)


def _loop_of(settings: RunSettings, ledger: Ledger) -> tuple[Loop, RemoteRollouts | None]:
    """The loop with its threads (new ones, or those of the user's pool); the other processes."""
    executor, timeout_s = settings.execution.executor, settings.execution.rollout_timeout_s
    if executor is None:
        return Loop(ledger, settings.threads, timeout_s), None
    n_at_once = settings.num_threads or workers_of(executor) or settings.threads
    if isinstance(executor, ThreadPoolExecutor):
        return Loop(ledger, n_at_once, timeout_s, executor), None
    loop = Loop(ledger, settings.threads, timeout_s, n_remote=n_at_once)
    return loop, RemoteRollouts(ledger, executor, n_at_once)
