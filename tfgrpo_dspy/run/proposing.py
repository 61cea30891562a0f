"""Lessons become operations on the library, if a guard has nothing against their texts."""

import itertools
from collections.abc import Iterable, Sequence

from tfgrpo_dspy.calls.reflections import ReflectionClient, Waited
from tfgrpo_dspy.errors import described
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Operation, Refusal
from tfgrpo_dspy.listeners.run_report import RunReport
from tfgrpo_dspy.reflection import texts
from tfgrpo_dspy.reflection.guard import Guard, Task, task_text
from tfgrpo_dspy.reflection.lessons import Lesson, admitted, known_lessons, operations_in, settled
from tfgrpo_dspy.run.updates import Batch, Extracted
from tfgrpo_dspy.sampling.fields import Example
from tfgrpo_dspy.settings.schedule import RunInputs

EXAMPLES_SHOWN, EXAMPLE_TOKENS = 6, 200  # of labelled examples in the prompt for operations


class Guards:
    """Makes the guards of a run, by `Reflection(guard=)`."""

    def __init__(self, inputs: RunInputs, report: RunReport) -> None:
        self._guard, self._report = inputs.settings.reflection.guard, report
        self._examples = inputs.examples
        text = task_text(inputs.student, inputs.settings.objective or "")
        self._task = Task(text, lambda: ((each.inputs, each.labels) for each in inputs.examples))

    def against(self, examples: Iterable[Example]) -> Guard:
        """The guard against copies of these examples."""
        return Guard(((e.inputs, e.labels) for e in examples), self._task, self._refuses)

    def of_update(
        self, batch: Batch, extracted: Extracted, added: Sequence[Operation] = ()
    ) -> Guard:
        """The guard against copies of all that the reflection LM was shown for an update."""
        based = (*extracted.lessons, *added)
        sources = {evidence.example for each in based for evidence in each.evidence}
        if batch.is_draft or any(getattr(each, "text", "") and not each.evidence for each in added):
            sources.update(range(len(self._examples)))  # it may copy any
        return self.against([self._examples[i] for i in sorted(sources.union(batch.examples))])

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


def propose(
    inputs: RunInputs,
    client: ReflectionClient,
    batch: Batch,
    library: ExperienceLibrary,
    lessons: Sequence[Lesson],
    dropped: Sequence[Lesson],
    added: Sequence[Operation],
    guard: Guard,
) -> tuple[list[Operation], list[Refusal]]:
    """The operations that the lessons call for, and the refused ones: malformed, copies.

    A lesson that the library has already, in nearly the same words, is a KEEP with its evidence.
    UpdateLibrary is asked about the others, and told what was tried and dropped; where they are too
    many for one prompt, it is asked several times. `added` are operations of strategies.
    """
    keeps, new = known_lessons(lessons, library)
    shown = {"experiences": texts.library_text(library), "dropped": texts.dropped_text(dropped)}

    def begin(part: Sequence[Lesson]) -> Waited:
        asked = {
            **shown,
            "examples": _labelled(inputs, batch, part),
            "lessons": texts.lessons_text(part),
        }
        return client.begin("update", batch, batch.update, lambda _: asked)

    def operations_of(part: Sequence[Lesson], wait: Waited) -> list[Operation | Refusal]:
        answer = wait(lambda: len(part) == 1)
        if answer.is_too_long and len(part) > 1:
            middle = len(part) // 2
            halves = [(half, begin(half)) for half in (part[:middle], part[middle:])]
            return [*itertools.chain(*itertools.starmap(operations_of, halves))]
        return operations_in(answer.output, part, library, inputs.predictors, guard)

    max_tokens = getattr(inputs.settings.reflection.update, "shown_tokens", 4_000)
    begun = [(part, begin(part)) for part in texts.packed_lessons(new, max_tokens)]
    every = [*keeps, *itertools.chain(*itertools.starmap(operations_of, begun))]
    every += [admitted(operation, inputs.predictors, guard) for operation in added]
    operations = [each for each in every if not isinstance(each, Refusal)]
    return settled(operations, dropped), [x for x in every if isinstance(x, Refusal)]


def _labelled(inputs: RunInputs, batch: Batch, lessons: Sequence[Lesson]) -> str:
    """Examples with labels: those that the lessons come from; of drafts, some of the training."""
    sources = (evidence.example for lesson in lessons for evidence in lesson.evidence)
    places = dict.fromkeys(inputs.training if batch.is_draft else sources)
    settings = inputs.settings
    is_shown = settings.metric is not None and settings.reflection.use_labels
    labelled = [inputs.examples[k] for k in places if is_shown and inputs.examples[k].labels]
    shown = (f"{each.text}\nLabels:\n{each.labels_text}" for each in labelled[:EXAMPLES_SHOWN])
    return texts.by_example([texts.clip(text, EXAMPLE_TOKENS) for text in shown]) or "(none)"
