"""All arguments of the optimizer, checked and frozen; the checks on student and data; the plan.

One message names every fault, before the first LM call. Nothing here runs a program or calls an LM.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from os import PathLike
from typing import Any

import dspy

from tfgrpo_dspy.budget import Budget
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.experience.operations import Limits
from tfgrpo_dspy.gate import BayesianGate, Gate, NoGate
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.settings.arguments import number_faults, refuse, type_faults
from tfgrpo_dspy.settings.groups import Execution, PaperReflection, Reflection
from tfgrpo_dspy.settings.schedule import Schedule, ScheduleInputs

__all__ = [
    "AUTO",
    "DEFAULT_TEMPERATURE",
    "WHOLE_TRAINSET",
    "Execution",
    "PaperReflection",
    "Reflection",
    "RunSettings",
    "Settings",
]

DEFAULT_TEMPERATURE = 0.7
DEFAULT_THREADS = 8
WHOLE_TRAINSET = 2**31
"""A batch size that no training set reaches: one batch an epoch."""
AUTO = {"light": (5, 100), "medium": (12, 200), "heavy": (30, 400)}
"""Per training example so many LM calls for each LM call of a rollout; at least so many in all."""
_MIN_WHOLE = {
    "group_size": 2,
    "max_lm_calls": 1,
    "max_metric_calls": 1,
    "batch_size": 1,
    "epochs": 1,
    "max_experiences": 1,
    "max_demos": 0,
    "num_threads": 1,
    "seed": -math.inf,
}
"""The arguments that are whole numbers, and the smallest value of each."""
_MAX_POSITIVE = {"max_cost": math.inf, "max_minutes": math.inf, "temperature": 2.0}
"""The arguments that are numbers above 0, and the largest value of each."""
_KINDS = {
    "reflection_lm": (dspy.BaseLM, "a dspy.LM('provider/model')"),
    "gate": (Gate, "a Gate, such as BayesianGate() or NoGate()"),
    "reflection": (Reflection, "Reflection(...)"),
    "execution": (Execution, "Execution(...)"),
    "log_dir": (str | PathLike, "the path of a folder"),
    "version": (str, "a string"),
}


@dataclass(frozen=True)
class Settings:
    """The arguments of `TrainingFreeGRPO`, which documents them.

    A number that is None is derived from the budget and the data, when there is a student.

    Raises:
        SettingsError: names every argument that cannot be used.
    """

    metric: Callable[..., Any] | None
    _: KW_ONLY
    reflection_lm: dspy.BaseLM | None = None
    objective: str | None = None
    auto: str | None = None
    max_lm_calls: int | None = None
    max_metric_calls: int | None = None
    max_cost: float | None = None
    max_minutes: float | None = None
    group_size: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    temperature: float | None = None
    max_experiences: int = 30
    max_demos: int | None = None
    gate: Gate | None = None
    reflection: Reflection | None = None
    execution: Execution | None = None
    log_dir: str | PathLike[str] | None = None
    offline: bool = False
    version: str | None = None
    num_threads: int | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        defaults: dict[str, Callable[[], Any]] = {
            "gate": NoGate if self.metric is None else BayesianGate,
            "reflection": Reflection,
            "execution": Execution,
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())
        refuse(
            [
                *number_faults(self, _MIN_WHOLE, _MAX_POSITIVE),
                *type_faults(self, _KINDS),
                *self._faults(),
                *self._gate_faults(),
            ]
        )

    def _faults(self) -> Iterator[str]:
        if self.auto not in (None, *AUTO):
            yield f"auto={self.auto!r}: pass one of {', '.join(map(repr, AUTO))}, or None."
        if self.offline and self.log_dir is None:
            yield "offline=True and log_dir=None: there is nothing to replay; pass a log_dir."
        if self.log_dir == "":
            yield "log_dir='': pass the path of a folder, or None."
        if self.metric is not None:
            try:
                adapt_metric(self.metric)
            except SettingsError as error:
                yield str(error)

    def _gate_faults(self) -> Iterator[str]:
        if isinstance(self.gate, Gate) and self.gate.measures and self.metric is None:
            yield (
                f"gate={type(self.gate).__name__}() and metric=None: nothing scores the rollouts; "
                f"pass a metric, or leave the gate out."
            )
        if isinstance(self.max_demos, int) and self.max_demos > 0 and not self.measures:
            yield (
                f"max_demos={self.max_demos}: nothing measures whether demos help; pass a metric, "
                f"a gate that is not NoGate, and to learn() a valset; or max_demos=0."
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
        return self.metric is not None and isinstance(self.gate, Gate) and self.gate.measures

    @property
    def limits(self) -> Limits:
        """How many experiences the library may hold, and how many words each."""
        words = (self.reflection or Reflection()).max_experience_words
        return Limits(self.max_experiences, words)

    def scalars(self) -> dict[str, Any]:
        """The numbers, strings and flags by name, those of `reflection` and `execution` too."""
        values = vars(self.reflection) | vars(self.execution) | vars(self)
        return {
            name: value
            for name, value in values.items()
            if value is None or isinstance(value, bool | int | float | str)
        }


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The settings of one run, with all derived values filled in; `prepare` makes them."""

    group_size: int
    batch_size: int
    epochs: int
    temperature: float
    max_demos: int
    gate: Gate
    reflection: Reflection
    execution: Execution
    schedule: Schedule

    @classmethod
    def of(cls, settings: Settings, inputs: ScheduleInputs) -> "RunSettings":
        """These settings, with the schedule derived from these inputs.

        Raises:
            SettingsError: the budget is too small to learn anything.
        """
        given = dict(vars(settings))
        reflection, execution = given["reflection"], given["execution"]
        names = ("group_size", "batch_size", "epochs", "max_demos")
        schedule = Schedule.derive(
            inputs,
            **{name: given[name] for name in names},
            max_staleness=execution.max_staleness,
            drafts=reflection.drafts,
        )
        given |= {name: getattr(schedule, name) for name in names}
        given["temperature"] = settings.temperature or DEFAULT_TEMPERATURE
        given["execution"] = replace(execution, max_staleness=schedule.max_staleness)
        given["reflection"] = replace(reflection, drafts=schedule.drafts)
        return cls(**given, schedule=schedule)

    def result_scalars(self) -> dict[str, Any]:
        """The scalars that a result may depend on: those of the run store are left out."""
        return {k: v for k, v in self.scalars().items() if k not in ("log_dir", "offline")}
