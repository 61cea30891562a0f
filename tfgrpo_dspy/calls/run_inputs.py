"""Settings, student and training set of one run, as its parts take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.reflection.lessons import listed_labels
from tfgrpo_dspy.sampling.fields import as_fields, has_none
from tfgrpo_dspy.sampling.labels import labels_of
from tfgrpo_dspy.settings.schedule import RunSettings


@dataclass(frozen=True, eq=False)
class RunInputs:
    """The settings of a run, its student (a copy of the user's), and its training set."""

    settings: RunSettings
    student: Any
    trainset: Sequence[Any]
    training: tuple[int, ...]  # the positions of the examples that it trains on

    @cached_property
    def predictors(self) -> list[str]:
        """The names of the student's predictors."""
        return [name for name, _ in named_predictors(self.student)]

    @cached_property
    def labels(self) -> frozenset[tuple[str, ...]]:
        """The words of the labels of the training set that are looked for in lessons."""
        every = (labels_of(example, self._nullable) for example in self.trainset)
        return listed_labels(label for labels in every for label in labels.values())

    def fields_of(self, example: Any) -> tuple[dict[str, str], dict[str, str]]:
        """Inputs of an example, and the labels that it has, as texts by name."""
        return as_fields(example.inputs()), labels_of(example, self._nullable)

    @cached_property
    def _nullable(self) -> frozenset[str]:
        """The output fields of the student's predictors whose type has None."""
        return frozenset(
            name
            for _, predictor in named_predictors(self.student)
            for name, field in predictor.signature.output_fields.items()
            if has_none(field.annotation)
        )
