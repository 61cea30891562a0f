"""Checks of arguments; `Reflection` and `Execution`, which group arguments that few users need."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import dspy

from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.reflection.modules import (
    DraftLessons,
    ExtractAdvantage,
    SummarizeTrajectory,
    UpdateLibrary,
)

P = ParamSpec("P")
S = TypeVar("S")


@dataclass(frozen=True)
class Check:
    """What to pass, in words; `read` gives the value to use, None for one that cannot be used."""

    hint: str
    read: Callable[[Any], Any] = field(repr=False)


def whole(at_least: float = -math.inf) -> Check:
    """A whole number, which may be `np.int64(3)` or `1e3`."""

    def read(value: Any) -> int | None:
        is_whole = _is_number(value) and float(value).is_integer() and value >= at_least
        return int(value) if is_whole else None

    bound = f" of at least {at_least}" if math.isfinite(at_least) else ""
    return Check(f"a whole number{bound}", read)


def positive(at_most: float = math.inf) -> Check:
    """A finite number above 0, which may be `np.float32(0.7)`."""

    def read(value: Any) -> float | None:
        is_right = _is_number(value) and 0 < value <= at_most and math.isfinite(value)
        return (value if isinstance(value, int) else float(value)) if is_right else None

    bound = f" and at most {at_most}" if math.isfinite(at_most) else ""
    return Check(f"a number above 0{bound}, or None", read)


def of_type(kind: Any, hint: str) -> Check:
    """An object of this type; an empty string is none."""
    return Check(hint, lambda value: value if isinstance(value, kind) and value != "" else None)


def one_of(*names: str) -> Check:
    """One of these names."""
    hint = f"one of {', '.join(map(repr, names))}, or None"
    return Check(hint, lambda value: value if value in names else None)


def _prices(value: Any) -> Any:
    try:
        is_right = all(min(prompt, completion) >= 0 for prompt, completion in value.values())
    except (AttributeError, TypeError, ValueError):
        return None
    return value if is_right else None


PRICES = Check("dollars for a million prompt and completion tokens, {'model': (0.1, 0.4)}", _prices)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def read_arguments(settings: Any) -> Iterator[str]:
    """Replace each argument by what its check reads; a sentence for each that cannot be used.

    A check stands in the type of its field. None may be passed where it is the default.
    """
    for argument in fields(settings):
        name, value = argument.name, getattr(settings, argument.name)
        for check in getattr(argument.type, "__metadata__", ()):
            if value is None and argument.default is None:
                continue
            if isinstance(value, type):
                yield f"{name}={value.__name__} is a class: pass {value.__name__}()."
            elif (usable := check.read(value)) is None:
                yield f"{name}={value!r}: pass {check.hint}."
            else:
                object.__setattr__(settings, name, usable)


def refuse(faults: Iterable[str]) -> None:
    """Raise a SettingsError that names all the faults, if there are any."""
    if message := " ".join(faults):
        raise SettingsError(message)


def taking(
    settings_class: Callable[P, S],
) -> Callable[[Callable[[Any, S], None]], Callable[Concatenate[Any, P], None]]:
    """Make `__init__(self, settings)` take the arguments of `settings_class`.

    Editors, type checkers and `inspect.signature` see these arguments with types and defaults.
    """

    def decorate(init: Callable[[Any, S], None]) -> Callable[Concatenate[Any, P], None]:
        def constructor(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
            init(self, settings_class(*args, **kwargs))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [own, *inspect.signature(settings_class).parameters.values()]
        vars(constructor)["__signature__"] = inspect.Signature(parameters)
        return constructor

    return decorate


ReflectionModule = Annotated[Any, of_type(dspy.Module, "a dspy.Module with the same fields")]


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

    extract: ReflectionModule = field(default_factory=ExtractAdvantage)
    update: ReflectionModule = field(default_factory=UpdateLibrary)
    summarize: ReflectionModule = field(default_factory=SummarizeTrajectory)
    draft: ReflectionModule = field(default_factory=DraftLessons)
    use_labels: bool = True
    max_experience_words: Annotated[int, whole(1)] = 40
    drafts: Annotated[int | None, whole(0)] = None

    # `PaperReflection` makes these two arguments.
    summarize_always = False
    failure_analysis = True

    def __post_init__(self) -> None:
        refuse(read_arguments(self))

    @property
    def modules(self) -> list[Any]:
        """The four modules that call the reflection LM."""
        return [self.extract, self.update, self.summarize, self.draft]


@dataclass(frozen=True, kw_only=True)
class PaperReflection(Reflection):
    """The reflection of the paper, and of ablations. Not public."""

    drafts: int | None = 0
    summarize_always: bool = True  # every trajectory, not only those that are too long
    failure_analysis: bool = False  # lessons also from groups that fail and have no contrast


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

    executor: Annotated[Executor | None, of_type(Executor, "a concurrent.futures.Executor")] = None
    max_staleness: Annotated[int | None, whole(0)] = None
    rollout_timeout_s: Annotated[float | None, positive()] = None
    max_errors: Annotated[int | None, whole(0)] = None
    prices: Annotated[Mapping[str, tuple[float, float]] | None, PRICES] = None

    def __post_init__(self) -> None:
        refuse(read_arguments(self))
