"""All arguments of the optimizer, checked and frozen; those of one run, with what is derived.

One message names every fault, before the first LM call.
"""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from os import PathLike
from typing import Annotated, Any

import dspy

from tfgrpo_dspy.budget import Budget
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.experience.operations import Limits
from tfgrpo_dspy.gate.bayesian import BayesianGate
from tfgrpo_dspy.gate.protocol import Gate, NoGate
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.settings.arguments import (
    Execution,
    Reflection,
    of_type,
    one_of,
    positive,
    read_arguments,
    refuse,
    whole,
)

DEFAULT_THREADS = 8
AUTO = {"light": (5, 100), "medium": (12, 200), "heavy": (30, 400)}
"""Per training example so many LM calls for each LM call of a rollout; at least so many in all."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `TrainingFreeGRPO`, which documents them.

    A number that is None is derived from the budget and the data, when there is a student.

    Raises:
        SettingsError: names every argument that cannot be used.
    """

    metric: Callable[..., Any] | None
    _: KW_ONLY
    reflection_lm: Annotated[dspy.BaseLM | None, of_type(dspy.BaseLM, "a dspy.LM(...)")] = None
    objective: str | None = None
    auto: Annotated[str | None, one_of(*AUTO)] = None
    max_lm_calls: Annotated[int | None, whole(1)] = None
    max_metric_calls: Annotated[int | None, whole(1)] = None
    max_cost: Annotated[float | None, positive()] = None
    max_minutes: Annotated[float | None, positive()] = None
    group_size: Annotated[int | None, whole(2)] = None
    batch_size: Annotated[int | None, whole(1)] = None
    epochs: Annotated[int | None, whole(1)] = None
    temperature: Annotated[float | None, positive(2)] = None
    max_experiences: Annotated[int, whole(1)] = 30
    max_demos: Annotated[int | None, whole(0)] = None
    gate: Annotated[Gate | None, of_type(Gate, "a Gate, such as NoGate()")] = None
    reflection: Annotated[Reflection | None, of_type(Reflection, "Reflection(...)")] = None
    execution: Annotated[Execution | None, of_type(Execution, "Execution(...)")] = None
    log_dir: Annotated[str | PathLike[str] | None, of_type(str | PathLike, "a folder")] = None
    offline: bool = False
    version: Annotated[str | None, of_type(str, "a string")] = None
    num_threads: Annotated[int | None, whole(1)] = None
    seed: Annotated[int, whole()] = 0
    progress: bool = True

    def __post_init__(self) -> None:
        defaults = {
            "gate": NoGate if self.metric is None else BayesianGate,
            "reflection": Reflection,
            "execution": Execution,
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())
        refuse([*read_arguments(self), *self._faults()])

    def _faults(self) -> Iterator[str]:
        if self.offline and self.log_dir is None:
            yield "offline=True and log_dir=None: there is nothing to replay; pass a log_dir."
        if self.metric is not None:
            try:
                adapt_metric(self.metric)
            except SettingsError as error:
                yield str(error)
        elif getattr(self.gate, "measures", False):
            yield (
                f"gate={type(self.gate).__name__}() and metric=None: nothing scores the rollouts; "
                f"pass a metric, or leave the gate out."
            )

    @property
    def threads(self) -> int:
        """How many rollouts and reflections may run at once."""
        return self.num_threads or dspy.settings.num_threads or DEFAULT_THREADS

    @property
    def budget(self) -> Budget:
        """The limits of the run."""
        return Budget(self.max_lm_calls, self.max_metric_calls, self.max_cost, self.max_minutes)

    @property
    def measures(self) -> bool:
        """Whether student and result are compared on a validation set."""
        return self.metric is not None and self.arguments["gate"].measures

    @property
    def limits(self) -> Limits:
        """How many experiences the library may hold, and how many words each."""
        return Limits(self.max_experiences, self.arguments["max_experience_words"])

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name, those of `reflection` and `execution` too."""
        return vars(self.reflection) | vars(self.execution) | vars(self)

    def scalars(self) -> dict[str, Any]:
        """The arguments that are numbers, strings, flags or None."""
        kinds = bool | int | float | str | None
        return {k: v for k, v in self.arguments.items() if isinstance(v, kinds)}


@dataclass(frozen=True, slots=True)
class Data:
    """What a schedule is derived from, beside the arguments."""

    n_training: int
    n_validation: int = 0  # examples that are available for validation; 0: nothing is measured
    n_test: int = 0  # examples on which student and result are measured at the end
    has_labels: bool = False
    is_recorded: bool = False  # whether all training rollouts were made elsewhere
    calls_per_rollout: int = 1  # LM calls, as assumed


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The settings of one run, with everything derived.

    `reserve` rollouts are kept for measuring the student and choosing the result; they pay for
    `n_validation` validation examples. What training leaves of the budget measures more.
    """

    temperature: float
    gate: Gate
    reflection: Reflection
    execution: Execution
    group_size: int
    batch_size: int
    epochs: int
    max_staleness: int
    drafts: int
    reserve: int
    n_validation: int
    max_demos: int
    data: Data

    @property
    def schedule(self) -> dict[str, int]:
        """The derived figures by name."""
        names = ("group_size", "batch_size", "epochs", "max_staleness", "drafts", "reserve")
        return {name: getattr(self, name) for name in (*names, "n_validation", "max_demos")}

    @property
    def rollouts_of_update(self) -> int:
        """How many rollouts are run for one update."""
        return 0 if self.data.is_recorded else self.batch_size * self.group_size

    def result_scalars(self) -> dict[str, Any]:
        """The scalars that a result may depend on: those of the run store are left out."""
        return {k: v for k, v in self.scalars().items() if k not in ("log_dir", "offline")}
