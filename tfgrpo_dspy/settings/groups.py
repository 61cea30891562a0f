"""`Reflection` and `Execution`: arguments that few users need, each group one argument."""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from typing import Any, cast

import dspy

from tfgrpo_dspy.reflection.modules import (
    DraftLessons,
    ExtractAdvantage,
    SummarizeTrajectory,
    UpdateLibrary,
)
from tfgrpo_dspy.settings.arguments import is_finite, number_faults, refuse, type_faults

MODULES: dict[str, Callable[[], Any]] = {
    "extract": ExtractAdvantage,
    "update": UpdateLibrary,
    "summarize": SummarizeTrajectory,
    "draft": DraftLessons,
}
"""The fields of `Reflection` that are modules, and the default of each."""


@dataclass(frozen=True, kw_only=True)
class Reflection:
    """How the reflection LM is called.

    Args:
        extract: draws lessons from a group; default: `ExtractAdvantage()`. This module and the
            next three can be replaced by any `dspy.Module` with the same fields.
        update: turns lessons into operations on the library; default: `UpdateLibrary()`.
        summarize: shortens trajectories that are too long; default: `SummarizeTrajectory()`.
        draft: draws lessons from labelled examples alone; default: `DraftLessons()`.
        use_labels: False hides `example.labels()` from the reflection LM; scores are still used.
        max_experience_words: how many words one experience may have.
        drafts: how many calls of `draft`, each with ten training examples, are made before the
            first rollout; lessons that most of them give are the first update. Default: derived;
            0: none.

    Raises:
        SettingsError: names every field that cannot be used.
    """

    extract: Any = None
    update: Any = None
    summarize: Any = None
    draft: Any = None
    use_labels: bool = True
    max_experience_words: int = 40
    drafts: int | None = None

    # Different in the paper and in ablations: `PaperReflection` makes these arguments.
    summarize_always = False
    failure_analysis = True

    def __post_init__(self) -> None:
        for name, default in MODULES.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())
        smallest = {"max_experience_words": 1, "drafts": 0}
        kinds = {
            name: (dspy.Module, f"a dspy.Module with the fields of {cast(Any, kind).__name__}")
            for name, kind in MODULES.items()
        }
        refuse([*number_faults(self, smallest, {}), *type_faults(self, kinds)])

    @property
    def modules(self) -> list[Any]:
        """The four modules that call the reflection LM."""
        return [getattr(self, name) for name in MODULES]


@dataclass(frozen=True, kw_only=True)
class PaperReflection(Reflection):
    """The reflection of the paper, and of ablations. Not public.

    Args:
        summarize_always: summarise every trajectory, not only those that are too long.
        failure_analysis: draw lessons also from groups that fail and have no contrast.
    """

    summarize_always: bool = False
    failure_analysis: bool = True

    @classmethod
    def of(cls, reflection: Reflection | None) -> "PaperReflection":
        """The paper's reflection, with the fields that are set in `reflection`."""
        if isinstance(reflection, cls):
            return reflection
        values: dict[str, Any] = {"drafts": 0}
        for field in fields(reflection or cls()):
            value = getattr(reflection, field.name, None)
            values |= {} if value is None else {field.name: value}
        return cls(**values, summarize_always=True, failure_analysis=False)


_EXECUTION_KINDS = {
    "executor": (
        Executor,
        "a concurrent.futures.Executor, such as ProcessPoolExecutor(8), or Client.get_executor() "
        "of dask.distributed",
    ),
    "prices": (Mapping, "a mapping from a model to its two prices"),
}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how rollouts are run.

    Args:
        executor: runs the rollouts: any `concurrent.futures.Executor`, such as a
            `ProcessPoolExecutor` or dask's `Client.get_executor()`; default: threads. Program,
            metric, LMs (with their keys) and the settings of `dspy.context` are sent to its workers
            by cloudpickle, and are never written to a disk.
        max_staleness: by how many updates the library of a batch's rollouts may be out of date.
            With 1, rollouts run while the update before them is still being made; with 0 they
            wait for it, as in the paper. Default: derived.
        rollout_timeout_s: seconds that a rollout or a reflection may take; if it takes longer it
            has failed, and is not repeated.
        max_errors: how many rollouts and reflections may fail before the run is ended; answers
            that do not parse are not counted. Default: half of them, and in any case 20.
        prices: US dollars for a million prompt tokens and a million completion tokens, by model,
            such as `{"openai/my-model": (0.15, 0.60)}`; default: DSPy's price list.

    Raises:
        SettingsError: names every field that cannot be used.
    """

    executor: Executor | None = None
    max_staleness: int | None = None
    rollout_timeout_s: float | None = None
    max_errors: int | None = None
    prices: Mapping[str, tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        smallest = {"max_staleness": 0, "max_errors": 0}
        refuse([*number_faults(self, smallest, {"rollout_timeout_s": math.inf}), *self._faults()])

    def _faults(self) -> Iterator[str]:
        yield from type_faults(self, _EXECUTION_KINDS)
        prices = self.prices if isinstance(self.prices, Mapping) else {}
        for model, pair in prices.items():
            if not _is_pair_of_prices(pair):
                yield (
                    f"prices[{model!r}]={pair!r}: pass US dollars for a million prompt tokens and "
                    f"for a million completion tokens, such as (0.15, 0.60)."
                )


def _is_pair_of_prices(given: object) -> bool:
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    return is_pair and all(is_finite(price) and price >= 0 for price in cast(Any, given))
