"""Settings, student and training set of one run, as its parts take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.settings.schedule import RunSettings


@dataclass(frozen=True, eq=False)
class RunInputs:
    """The settings of a run, its student (a copy of the user's), and its training set.

    It trains on the examples at the positions `training`.
    """

    settings: RunSettings
    student: Any
    trainset: Sequence[Any]
    training: tuple[int, ...]

    @cached_property
    def predictors(self) -> list[str]:
        """The names of the student's predictors."""
        return [name for name, _ in named_predictors(self.student)]
