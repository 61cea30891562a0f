"""Which guard the advice of a run has to pass, and what becomes of what it has a reason against."""

from collections.abc import Iterable, Sequence
from typing import Any

from tfgrpo_dspy.calls.run_inputs import RunInputs
from tfgrpo_dspy.errors import described
from tfgrpo_dspy.experience.values import Operation
from tfgrpo_dspy.listeners.run_report import RunReport
from tfgrpo_dspy.reflection.guard import Guard, Task, task_text
from tfgrpo_dspy.run.updates import Batch, Extracted


class Guards:
    """Makes the guards of a run, by `Reflection(guard=)`."""

    def __init__(self, inputs: RunInputs, report: RunReport) -> None:
        self._guard, self._report = inputs.settings.reflection.guard, report
        self._trainset, self._fields_of = inputs.trainset, inputs.fields_of
        text = task_text(inputs.student, inputs.settings.objective or "")
        self._task = Task(text, lambda: map(inputs.fields_of, inputs.trainset))

    def against(self, examples: Iterable[Any]) -> Guard:
        """The guard against copies of these examples, and against attacks."""
        return Guard(map(self._fields_of, examples), self._task, self._refuses)

    def of_update(
        self, batch: Batch, extracted: Extracted, added: Sequence[Operation] = ()
    ) -> Guard:
        """The guard against copies of all that the reflection LM was shown for an update."""
        based = (*extracted.lessons, *added)
        sources = {evidence.example for each in based for evidence in each.evidence}
        if batch.is_draft or any(getattr(each, "text", "") and not each.evidence for each in added):
            sources.update(range(len(self._trainset)))  # it may copy any
        return self.against([self._trainset[i] for i in sorted(sources.union(batch.examples))])

    def _refuses(self, text: str, reason: str) -> bool:
        """Whether advice that a guard has a reason against is refused."""
        refuses = self._guard == "refuse"
        if callable(self._guard):
            try:
                refuses = bool(self._guard(text, reason))
            except BaseException as error:  # noqa: BLE001 - whatever the user's function raises
                self._report.count_failure("guard", f"guard raised {described(error)}")
                refuses = True
        if not refuses and self._guard != "off":
            self._report.count_failure("advice let in", f"{text} ({reason})")
        return refuses
