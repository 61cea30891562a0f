"""Checks of arguments; `Reflection` and `Execution`, which group arguments that few users need."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from numbers import Real
from typing import Any, Concatenate, ParamSpec, TypeVar

import dspy

from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.reflection.modules import (
    DraftLessons,
    ExtractAdvantage,
    SummarizeTrajectory,
    UpdateLibrary,
)

Arguments = ParamSpec("Arguments")
SettingsT = TypeVar("SettingsT")
Check = tuple[str, Callable[[Any], Any]]
"""What to pass, in words, and a function that gives the value to use; None: it cannot be used."""


def whole(at_least: float = -math.inf) -> Check:
    """A whole number, which may be `np.int64(3)` or `1e3`."""

    def read(value: Any) -> int | None:
        is_whole = _is_number(value) and float(value).is_integer() and value >= at_least
        return int(value) if is_whole else None

    bound = f" of at least {at_least}" if math.isfinite(at_least) else ""
    return f"a whole number{bound}", read


def positive(at_most: float = math.inf) -> Check:
    """A finite number above 0, which may be `np.float32(0.7)`."""

    def read(value: Any) -> float | None:
        is_right = _is_number(value) and 0 < value <= at_most and math.isfinite(value)
        return (value if isinstance(value, int) else float(value)) if is_right else None

    bound = f" and at most {at_most}" if math.isfinite(at_most) else ""
    return f"a number above 0{bound}, or None", read


def of_type(kind: Any, hint: str) -> Check:
    """An object of this type."""
    return hint, lambda value: value if isinstance(value, kind) else None


def one_of(names: Iterable[str]) -> Check:
    """One of these names."""
    known = list(names)
    return f"one of {', '.join(map(repr, known))}, or None", lambda v: v if v in known else None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def read_arguments(settings: Any, checks: Mapping[str, Check]) -> Iterator[str]:
    """Replace each argument by what its check reads; a sentence for each that cannot be used.

    Args:
        settings: a frozen dataclass. None may be passed where it is the default.
        checks: by the name of the argument.
    """
    for name, (hint, read) in checks.items():
        value = getattr(settings, name)
        if value is None and getattr(type(settings), name) is None:
            continue
        if isinstance(value, type):
            yield f"{name}={value.__name__} is a class: pass {value.__name__}()."
        elif (usable := read(value)) is None:
            yield f"{name}={value!r}: pass {hint}."
        else:
            object.__setattr__(settings, name, usable)


def refuse(faults: list[str]) -> None:
    """Raise a SettingsError that names all the faults, if there are any."""
    if faults:
        raise SettingsError(" ".join(faults))


def taking(
    settings_class: Callable[Arguments, SettingsT],
) -> Callable[[Callable[[Any, SettingsT], None]], Callable[Concatenate[Any, Arguments], None]]:
    """Make `__init__(self, settings)` take the arguments of `settings_class`.

    Editors, type checkers and `inspect.signature` see these arguments with types and defaults.
    """

    def decorate(
        init: Callable[[Any, SettingsT], None],
    ) -> Callable[Concatenate[Any, Arguments], None]:
        def constructor(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            init(self, settings_class(*args, **kwargs))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [own, *inspect.signature(settings_class).parameters.values()]
        vars(constructor)["__signature__"] = inspect.Signature(parameters)
        return constructor

    return decorate


MODULES: dict[str, type[dspy.Module]] = {
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

    # `PaperReflection` makes these two arguments.
    summarize_always = False
    failure_analysis = True

    def __post_init__(self) -> None:
        checks = {"max_experience_words": whole(1), "drafts": whole(0)}
        for name, default in MODULES.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())
            checks[name] = of_type(
                dspy.Module, f"a dspy.Module with the fields of {default.__name__}"
            )
        refuse([*read_arguments(self, checks)])

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
        paper: dict[str, Any] = {"drafts": 0, "summarize_always": True, "failure_analysis": False}
        given = vars(reflection or Reflection())
        return cls(**paper | {name: value for name, value in given.items() if value is not None})


_EXECUTION_CHECKS = {
    "executor": of_type(
        Executor,
        "a concurrent.futures.Executor, such as ProcessPoolExecutor(8), or Client.get_executor() "
        "of dask.distributed",
    ),
    "max_staleness": whole(0),
    "rollout_timeout_s": positive(),
    "max_errors": whole(0),
    "prices": of_type(Mapping, "a mapping from a model to its two prices"),
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
        faults = [*read_arguments(self, _EXECUTION_CHECKS)]
        for model, pair in self.prices.items() if isinstance(self.prices, Mapping) else ():
            if not _is_pair_of_prices(pair):
                faults.append(
                    f"prices[{model!r}]={pair!r}: pass US dollars for a million prompt tokens and "
                    f"for a million completion tokens, such as (0.15, 0.60)."
                )
        refuse(faults)


def _is_pair_of_prices(given: Any) -> bool:
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    return is_pair and all(isinstance(p, int | float) and 0 <= p < math.inf for p in given)
