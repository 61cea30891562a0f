"""All arguments of the optimizer, checked and frozen: `Settings`, `Reflection`, `Execution`.

One message names every fault, before the first LM call.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import KW_ONLY, Field, dataclass, field, fields
from numbers import Real
from os import PathLike
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import dspy

from tfgrpo_dspy.budget.ledger import Budget
from tfgrpo_dspy.budget.left_out import OWN
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.events import Approve, Listener
from tfgrpo_dspy.experience.values import Limits
from tfgrpo_dspy.gate.bayesian import BayesianGate
from tfgrpo_dspy.gate.protocol import Gate, NoGate
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.reflection.modules import (
    DraftLessons,
    ExtractAdvantage,
    SummarizeTrajectory,
    UpdateLibrary,
)
from tfgrpo_dspy.strategies.base import METHODS, Strategy, overrides

DEFAULT_THREADS = 8
AUTO = {"light": (5, 100), "medium": (12, 200), "heavy": (30, 400)}
"""Per training example so many LM calls for each LM call of a rollout; at least so many in all."""
OTHERS = {
    "bsize": "batch_size=",
    "candidate_selection_strategy": "gate=, or nothing: the race chooses among several candidates",
    "init_temperature": "temperature=",
    "max_bootstrapped_demos": "max_demos=",
    "max_full_evals": "max_lm_calls= or max_metric_calls=",
    "max_labeled_demos": "max_demos=",
    "max_steps": "epochs=",
    "num_candidates": "group_size=",
    "num_trials": "max_lm_calls= or auto=",
    "prompt_model": "reflection_lm=",
    "reflection_minibatch_size": "batch_size=",
    "task_model": "nothing: the program keeps its LMs; set them by program.set_lm(...)",
    "track_stats": "nothing: the result always has detailed_results",
    "use_mlflow": "nothing: a run within an MLflow run is tracked; see docs/dspy.md",
    "use_wandb": "on_event=, a function that logs each event",
    "verbose": "progress=",
}
"""Arguments of GEPA, MIPROv2 and SIMBA, and what to pass here in their place."""
NOT_WHICH = "says how far, how fast or where a run goes, and not which run it is"
"""Marks, in the type of their fields, the arguments on which the identity of a run does not depend.
All others are part of it."""
P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


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
        prices = [price for prompt, completion in value.values() for price in (prompt, completion)]
        is_right = all(_is_number(price) and 0 <= price < math.inf for price in prices)
    except (AttributeError, TypeError, ValueError):
        return None
    return value if is_right else None


def _strategies(value: Any) -> Any:
    is_right = isinstance(value, Sequence) and all(map(_is_strategy, value))
    return tuple(value) if is_right else None


def _is_strategy(value: object) -> bool:
    decides = any(overrides(value, name) for name in METHODS)
    return isinstance(value, Strategy) and (type(value) is Strategy or decides)


FLAG = of_type(bool, "True or False")
TEMPERATURES = Check(
    f'a number above 0 and at most 2, "{OWN}" (that of each LM and predictor), or None',
    lambda value: OWN if value == OWN else positive(2).read(value),
)
MAX_BITS = 1000  # of whole numbers: a larger one could not be made a float
STRATEGIES = Check(
    "a sequence of instances of Strategy, such as (LearningFrontier(),), each of which overrides "
    f"one of {', '.join(METHODS)}",
    _strategies,
)
PRICES = Check("dollars for a million prompt and completion tokens, {'model': (0.1, 0.4)}", _prices)


def _is_number(value: object) -> bool:
    is_huge = isinstance(value, int) and value.bit_length() > MAX_BITS
    return isinstance(value, Real) and not isinstance(value, bool) and not is_huge


def _metadata(argument: Field[Any]) -> tuple[Any, ...]:
    return getattr(argument.type, "__metadata__", ())


def read_arguments(settings: Any) -> Iterator[str]:
    """Replace each argument by what its check reads; a sentence for each that cannot be used.

    A check stands in the type of its field. None may be passed where it is the default.
    """
    for argument in fields(settings):
        name, value = argument.name, getattr(settings, argument.name)
        for check in _metadata(argument):
            if check is NOT_WHICH or (value is None and argument.default is None):
                continue
            if (usable := check.read(value)) is None:
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

    signature = inspect.signature(settings_class)

    def decorate(init: Callable[[Any, S], None]) -> Callable[Concatenate[Any, P], None]:
        def constructor(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
            name = type(self).__name__
            for unknown in kwargs.keys() - signature.parameters.keys():
                raise TypeError(f"{name} has no argument {unknown!r}{_instead_of(unknown)}.")
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(
                    f"{name}: {error}; pass, for example, {name}(metric, max_lm_calls=300)."
                ) from None
            init(self, settings_class(*args, **kwargs))

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [own, *signature.parameters.values()]
        vars(constructor)["__signature__"] = inspect.Signature(parameters)
        return constructor

    return decorate


def _instead_of(name: str) -> str:
    """What to pass instead of an argument that the optimizer does not have; "" if unknown."""
    kinds = (kind for kind in (Reflection, Execution) if name in kind.__annotations__)
    if kind := next((kind.__name__ for kind in kinds), ""):
        return f"; pass {kind.lower()}={kind}({name}=...)"
    return f"; pass {OTHERS[name]}" if name in OTHERS else ""


def plainly_typed(settings_class: type[T]) -> type[T]:
    """Remove the checks from the types that `help` and editors show; the fields keep them."""
    for annotations in (settings_class.__annotations__, settings_class.__init__.__annotations__):
        for name, kind in annotations.items():
            if hasattr(kind, "__metadata__"):  # it is Annotated
                annotations[name] = kind.__origin__
    return settings_class


GUARD = Check(
    "'refuse', 'warn', 'off', or a function of a text and the reason against it",
    lambda value: value if callable(value) or value in ("refuse", "warn", "off") else None,
)
ReflectionModule = Annotated[Any, of_type(dspy.Module, "a dspy.Module with the same fields")]


@plainly_typed
@dataclass(frozen=True, kw_only=True)
class Reflection:
    """How the reflection LM is called.

    Args:
        extract: draws lessons from groups; default: `ExtractAdvantage()`. This module and the
            next three can be replaced by any `dspy.Module` with the same fields.
        update: turns lessons into operations on the library; default: `UpdateLibrary()`.
        summarize: shortens trajectories that are too long; default: `SummarizeTrajectory()`.
        draft: draws lessons from labelled examples alone; default: `DraftLessons()`.
        use_labels: False hides `example.labels()` from the reflection LM; scores are still used.
        max_experience_words: how many words one experience may have.
        drafts: how many calls of `draft`, each with ten training examples, are made beside the
            first batch; the lessons that several of them give (or all, if none is repeated) are
            the first update. Default: derived; 0: none.
        groups_per_call: how many groups one call of `extract` is shown. Default: derived.
        show_images: whether the reflection LM is shown the images of the examples; otherwise it is
            told that there is an image. Default: if DSPy knows that the LM takes images.
        guard: what becomes of advice that seems to copy an example, or to be an attack: "refuse",
            "warn" (it is taken, and logged), "off", or a function of the text and the reason that
            says whether to refuse it. The gate judges what is taken like all other advice.

    Raises:
        SettingsError: names every field that cannot be used.
    """

    extract: ReflectionModule = field(default_factory=ExtractAdvantage)
    update: ReflectionModule = field(default_factory=UpdateLibrary)
    summarize: ReflectionModule = field(default_factory=SummarizeTrajectory)
    draft: ReflectionModule = field(default_factory=DraftLessons)
    use_labels: Annotated[bool, FLAG] = True
    max_experience_words: Annotated[int, whole(1)] = 40
    drafts: Annotated[int | None, whole(0)] = None
    groups_per_call: Annotated[int | None, whole(1)] = None
    show_images: Annotated[bool | None, FLAG] = None
    guard: Annotated[str | Callable[[str, str], bool], GUARD] = "refuse"

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
    groups_per_call: int | None = 1
    summarize_always: bool = True  # every trajectory, not only those that are too long
    failure_analysis: bool = False  # lessons also from groups that fail and have no contrast


@plainly_typed
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
            that do not parse are not counted. Default: 20, or half of those done if that is more.
        prices: US dollars for a million prompt tokens and a million completion tokens, by model,
            such as `{"openai/my-model": (0.15, 0.60)}`; default: DSPy's price list.

    Raises:
        SettingsError: names every field that cannot be used.
    """

    executor: Annotated[
        Executor | None, of_type(Executor, "a concurrent.futures.Executor"), NOT_WHICH
    ] = None
    max_staleness: Annotated[int | None, whole(0)] = None
    rollout_timeout_s: Annotated[float | None, positive(), NOT_WHICH] = None
    max_errors: Annotated[int | None, whole(0), NOT_WHICH] = None
    prices: Annotated[Mapping[str, tuple[float, float]] | None, PRICES, NOT_WHICH] = None

    def __post_init__(self) -> None:
        refuse(read_arguments(self))


@plainly_typed
@dataclass(frozen=True)
class Settings:
    """The arguments of `TrainingFreeGRPO`, which documents them. None: derived, or the default."""

    metric: Callable[..., Any] | None
    _: KW_ONLY
    reflection_lm: Annotated[dspy.BaseLM | None, of_type(dspy.BaseLM, "a dspy.LM(...)")] = None
    objective: str | None = None
    auto: Annotated[str | None, one_of(*AUTO), NOT_WHICH] = None
    max_lm_calls: Annotated[int | None, whole(1), NOT_WHICH] = None
    max_metric_calls: Annotated[int | None, whole(1), NOT_WHICH] = None
    max_cost: Annotated[float | None, positive(), NOT_WHICH] = None
    max_minutes: Annotated[float | None, positive(), NOT_WHICH] = None
    group_size: Annotated[int | None, whole(2)] = None
    batch_size: Annotated[int | None, whole(1)] = None
    epochs: Annotated[int | None, whole(1), NOT_WHICH] = None
    temperature: Annotated[float | str | None, TEMPERATURES] = None
    max_experiences: Annotated[int, whole(1)] = 30
    max_demos: Annotated[int | None, whole(0)] = None
    gate: Annotated[Gate | None, of_type(Gate, "a Gate, such as NoGate()")] = None
    strategies: Annotated[Sequence[Strategy], STRATEGIES] = ()
    reflection: Annotated[Reflection | None, of_type(Reflection, "Reflection(...)")] = None
    execution: Annotated[Execution | None, of_type(Execution, "Execution(...)")] = None
    on_event: Annotated[Listener | None, of_type(Callable, "a function of an event"), NOT_WHICH] = (
        None
    )
    approve: Annotated[Approve | None, of_type(Callable, "a function of a Proposal"), NOT_WHICH] = (
        None
    )
    log_dir: Annotated[
        str | PathLike[str] | None, of_type(str | PathLike, "a folder"), NOT_WHICH
    ] = None
    offline: Annotated[bool, FLAG, NOT_WHICH] = False
    version: Annotated[str | None, of_type(str, "a string")] = None
    num_threads: Annotated[int | None, whole(1), NOT_WHICH] = None
    seed: Annotated[int, whole()] = 0
    progress: Annotated[bool, FLAG, NOT_WHICH] = True

    def __post_init__(self) -> None:
        gate = NoGate if self.metric is None else BayesianGate
        defaults = {"gate": gate, "reflection": Reflection, "execution": Execution}
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
        strategies: Any = self.strategies if isinstance(self.strategies, tuple) else ()
        names = [type(each).__name__ for each in strategies if overrides(each, "credit")]
        if len(names) > 1:
            yield f"strategies: {' and '.join(names)} each value the steps of a group; pass one."

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

    @property
    def identifying(self) -> dict[str, Any]:
        """The arguments that say which run it is, by name: all but those marked `NOT_WHICH`."""
        marked = {"reflection", "execution"}  # whose own fields count
        for own in (Settings, self, Reflection, Execution):
            marked |= {f.name for f in fields(own) if NOT_WHICH in _metadata(f)}
        return {name: value for name, value in self.arguments.items() if name not in marked}

    def scalars(self) -> dict[str, Any]:
        """The arguments that are numbers, strings, flags or None."""
        kinds = bool | int | float | str | None
        return {k: v for k, v in self.arguments.items() if isinstance(v, kinds)}
