"""Settings, student and examples of one run, as its parts take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.reflection.lessons import listed_labels
from tfgrpo_dspy.sampling.fields import Example
from tfgrpo_dspy.settings.schedule import RunSettings


@dataclass(frozen=True, eq=False)
class RunInputs:
    """The settings of a run, its student (in the run a copy of the user's), and its examples."""

    settings: RunSettings
    student: Any
    examples: Sequence[Example]  # the training set
    training: tuple[int, ...]  # the positions of those that it trains on
    valset: Sequence[Example] = ()
    testset: Sequence[Example] = ()

    @cached_property
    def trainset(self) -> list[Any]:
        """The user's own examples, which strategies are given."""
        return [example.raw for example in self.examples]

    @cached_property
    def predictors(self) -> list[str]:
        """The names of the student's predictors."""
        return [name for name, _ in named_predictors(self.student)]

    @cached_property
    def labels(self) -> frozenset[tuple[str, ...]]:
        """The words of the labels of the training set that are looked for in lessons."""
        return listed_labels(label for each in self.examples for label in each.labels.values())
