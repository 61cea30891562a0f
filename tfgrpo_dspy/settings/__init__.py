"""All arguments of the optimizer, checked and frozen; the checks on student and data; the plan.

Every fault is collected, so that one message names them all, before the first LM call. Nothing
here runs a program or asks an LM.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, cast

import dspy

from tfgrpo_dspy.budget import Budget
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.experience import Limits
from tfgrpo_dspy.gate import (
    AutoGate,
    FactorialGate,
    Gate,
    NoGate,
    PairedGate,
    ProbeThenTrial,
    TrialInUse,
    TrialThenConfirm,
)
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.reflection import (
    DraftLessons,
    ExtractAdvantage,
    SummarizeTrajectory,
    UpdateLibrary,
)

DEFAULT_TEMPERATURE = 0.7
DEFAULT_STALENESS = 1
DEFAULT_THREADS = 8
LEAST_VALIDATION = 10
"""Validation examples that are used however small the budget is."""
WHOLE_TRAINSET = 2**31
"""A batch size that no training set reaches: one batch an epoch."""
NEEDED = (
    "drafts",
    "max_demos",
    "max_staleness",
    "epochs",
    "max_experiences",
    "max_experience_words",
)
OWN_GATES = (AutoGate, FactorialGate, PairedGate, ProbeThenTrial, TrialInUse, TrialThenConfirm)
MODULES = ("draft_lessons", "summarize_trajectory", "extract_advantage", "update_library")
"""The settings that are reflection modules."""
PRESETS = ("light", "medium", "heavy")


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of `TrainingFreeGRPO`, which documents them.

    Raises:
        SettingsError: names every argument that cannot be used.
    """

    metric: Callable[..., Any] | None
    reflection_lm: Any = None
    objective: str | None = None
    group_size: int = 5
    epochs: int = 3
    temperature: float | None = DEFAULT_TEMPERATURE
    batch_size: int | None = None
    max_experiences: int = 30
    max_experience_words: int = 40
    min_contrast: float = 1e-9
    use_labels: bool = True
    drafts: int = 0
    max_demos: int = 0
    gate: Gate | None = None
    draft_lessons: Any = None
    summarize_trajectory: Any = None
    extract_advantage: Any = None
    update_library: Any = None
    summarize_always: bool = False
    failure_analysis: bool = True
    update_per_group: bool = False
    num_threads: int | None = None
    executor: Executor | None = None
    max_staleness: int = DEFAULT_STALENESS
    rollout_timeout_s: float | None = None
    quorum: float | None = None
    hedge: bool = False
    failure_score: float = 0.0
    max_errors: int | None = None
    auto: str | None = None
    max_metric_calls: int | None = None
    max_lm_calls: int | None = None
    max_cost: float | None = None
    max_minutes: float | None = None
    prices: Mapping[str, tuple[float, float]] | None = None
    log_dir: str | PathLike[str] | None = None
    offline: bool = False
    version: str | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        defaults: dict[str, Callable[[], Any]] = {
            "gate": NoGate if self.metric is None else AutoGate,
            "draft_lessons": DraftLessons,
            "summarize_trajectory": SummarizeTrajectory,
            "extract_advantage": ExtractAdvantage,
            "update_library": UpdateLibrary,
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())
        faults = [
            *self._number_faults(),
            *self._store_faults(),
            *self._object_faults(),
            *self._demo_faults(),
            *self._executor_faults(),
        ]
        if faults:
            raise SettingsError(" ".join(faults))

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of all arguments."""
        return frozenset(f.name for f in fields(cls))

    def _number_faults(self) -> Iterator[str]:
        least = {
            "drafts": 0,
            "max_demos": 0,
            "epochs": 1,
            "max_experiences": 1,
            "max_experience_words": 1,
            "batch_size": 1,
            "num_threads": 1,
            "max_errors": 0,
            "max_staleness": 0,
            "max_metric_calls": 1,
            "max_lm_calls": 1,
        }
        if not _is_int(self.group_size) or self.group_size < 2:
            yield (
                f"group_size={self.group_size!r}: a group needs at least 2 rollouts to compare; "
                f"pass group_size=5 (the paper's value)."
            )
        for name, minimum in least.items():
            value = getattr(self, name)
            optional = name not in NEEDED and value is None
            if not optional and (not _is_int(value) or value < minimum):
                yield f"{name}={value!r}: pass a whole number of at least {minimum}."
        yield from self._other_number_faults()

    def _other_number_faults(self) -> Iterator[str]:
        if not _is_int(self.seed):
            yield f"seed={self.seed!r}: pass a whole number."
        if not _is_finite(self.failure_score):
            yield f"failure_score={self.failure_score!r}: pass a finite number."
        if not _is_finite(self.min_contrast) or self.min_contrast < 0:
            yield f"min_contrast={self.min_contrast!r}: pass a finite number of at least 0."
        for name in ("max_cost", "max_minutes", "rollout_timeout_s"):
            value = getattr(self, name)
            is_bad = not _is_finite(value) or isinstance(value, bool)
            if value is not None and (is_bad or value <= 0):
                yield f"{name}={value!r}: pass a number above 0, or None."
        quorum = self.quorum
        if quorum is not None and not _is_share(quorum):
            yield f"quorum={self.quorum!r}: pass a share of a group, above 0 up to 1, or None."
        yield from self._temperature_faults()

    def _temperature_faults(self) -> Iterator[str]:
        if self.temperature is None:
            return
        if not isinstance(self.temperature, int | float) or not 0 <= self.temperature <= 2:
            yield f"temperature={self.temperature!r}: pass a number above 0 and at most 2, or None."
        elif self.temperature == 0:
            yield (
                f"temperature={self.temperature!r}: all {self.group_size} rollouts of a group "
                f"would be the same answer; pass temperature={DEFAULT_TEMPERATURE}."
            )

    def _store_faults(self) -> Iterator[str]:
        if self.auto not in (None, *PRESETS):
            yield f"auto={self.auto!r}: pass one of {', '.join(map(repr, PRESETS))}, or None."
        if self.offline and self.log_dir is None:
            yield "offline=True and log_dir=None: there is nothing to replay; pass a log_dir."
        if self.log_dir is not None and not isinstance(self.log_dir, str | PathLike):
            yield f"log_dir={self.log_dir!r}: pass the path of a folder."
        if self.version is not None and not isinstance(self.version, str):
            yield f"version={self.version!r}: pass a string."
        prices = {} if self.prices is None else self.prices
        if not isinstance(prices, Mapping):
            yield f"prices={prices!r}: pass a mapping from a model to its two prices."
            return
        for model, pair in prices.items():
            if not _is_pair_of_prices(pair):
                yield (
                    f"prices[{model!r}]={pair!r}: pass US dollars for a million prompt tokens and "
                    f"for a million completion tokens, such as (0.15, 0.60)."
                )

    def _object_faults(self) -> Iterator[str]:
        if self.metric is not None:
            try:
                adapt_metric(self.metric)
            except SettingsError as error:
                yield str(error)
        if self.reflection_lm is not None and not isinstance(self.reflection_lm, dspy.BaseLM):
            yield f"reflection_lm={self.reflection_lm!r}: pass a dspy.LM('provider/model')."
        if not callable(getattr(self.gate, "next", None)):
            yield f"gate={self.gate!r} has no method next(evidence); pass AutoGate() or NoGate()."
        if isinstance(self.gate, OWN_GATES) and self.gate_metric is None:
            name = type(self.gate).__name__
            yield (
                f"gate={name}() and metric=None: nothing scores the trials; pass a metric, "
                f"PairedGate(metric=...), or leave the gate out."
            )
        for name in MODULES:
            if not isinstance(getattr(self, name), dspy.Module):
                yield f"{name}={getattr(self, name)!r}: pass a dspy.Module."

    def _demo_faults(self) -> Iterator[str]:
        if _is_int(self.max_demos) and self.max_demos > 0 and not self.measures:
            yield (
                f"max_demos={self.max_demos}: nothing measures whether demos help; pass a metric, "
                f"a gate that is not NoGate, and to learn() a valset; or max_demos=0."
            )

    def _executor_faults(self) -> Iterator[str]:
        if self.executor is not None and not isinstance(self.executor, Executor):
            yield (
                f"executor={self.executor!r}: pass a concurrent.futures.Executor, such as "
                f"ProcessPoolExecutor(8), or Client.get_executor() of dask.distributed."
            )

    @property
    def reflection_modules(self) -> list[Any]:
        """What the reflection LM is asked by."""
        return [getattr(self, name) for name in MODULES]

    @property
    def threads(self) -> int:
        """How many tasks may be under way at once."""
        return self.num_threads or dspy.settings.num_threads or DEFAULT_THREADS

    @property
    def limits(self) -> Limits:
        """What the library may hold at every moment."""
        return Limits(self.max_experiences, self.max_experience_words)

    @property
    def budget(self) -> Budget:
        """What the run may spend."""
        return Budget(self.max_lm_calls, self.max_metric_calls, self.max_cost, self.max_minutes)

    @property
    def gate_metric(self) -> Callable[..., Any] | None:
        """What scores the trials: the gate's own metric, or the optimizer's."""
        return getattr(self.gate, "metric", None) or self.metric

    @property
    def measures(self) -> bool:
        """Whether libraries are measured on a validation set."""
        return not isinstance(self.gate, NoGate) and self.gate_metric is not None

    def batch_size_for(self, n_examples: int) -> int:
        """The batch size: as given, or a fifth of the training set, at least 5, at most 20."""
        return self.batch_size or min(20, max(5, math.ceil(n_examples / 5)))

    def of_result(self) -> dict[str, Any]:
        """The scalars that a result may depend on: not where, or from what, a run was made."""
        return {k: v for k, v in self.scalars().items() if k not in ("log_dir", "offline")}

    def scalars(self) -> dict[str, Any]:
        """The settings that are numbers, strings or flags, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: value
            for name, value in values.items()
            if value is None or isinstance(value, bool | int | float | str)
        }


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair_of_prices(given: object) -> bool:
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    return is_pair and all(_is_finite(price) and price >= 0 for price in cast(Any, given))


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
