"""All arguments of the optimizer, checked and frozen: `Settings`, `Reflection`, `Execution`.

One message names every fault, before the first LM call. `checks` looks at student, data and LMs,
`schedule` and `plan` derive from them what a run does.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import KW_ONLY, field
from numbers import Real
from os import PathLike
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar

import dspy
import pydantic

from tfgrpo_dspy.budget import Budget
from tfgrpo_dspy.errors import SELF, SettingsError, checked, such_that
from tfgrpo_dspy.events import Approve, Listener
from tfgrpo_dspy.experience import Limits
from tfgrpo_dspy.gate.bayesian import BayesianGate
from tfgrpo_dspy.gate.protocol import Gate, NoGate
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.reflection import modules
from tfgrpo_dspy.reflection.lessons import LESSONS_PER_EXAMPLE
from tfgrpo_dspy.strategies.auto import Auto
from tfgrpo_dspy.strategies.base import METHODS, NOT_ASYNC, Strategy, overrides
from tfgrpo_dspy.user_code import is_coroutine_function

DEFAULT_THREADS = 8
AUTO = {"light": (5, 100), "medium": (12, 200), "heavy": (30, 400)}
"""By level: LM calls for each training example and LM call of a rollout, and the least in all."""
NOT_WHICH = {
    "approve", "auto", "epochs", "executor", "log_dir", "max_cost", "max_errors", "max_lm_calls",
    "max_metric_calls", "max_minutes", "num_threads", "offline", "on_event", "prices", "progress",
    "rollout_timeout_s", "target_score", "reserve", "n_validation", "data", "derived", "trackers",
    "reflection", "execution",
}  # fmt: skip
"""The arguments that say how far, how fast or where a run goes, and not which run it is; the fields
of the last two count themselves."""
P = ParamSpec("P")
S = TypeVar("S")


def _number(value: Any) -> Any:
    """A number of any kind, such as `np.int64(3)`, as one of Python's."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"it should be a number, and is a {type(value).__name__}")
    return value if isinstance(value, int) else float(value)


def _lm(value: Any) -> Any:
    """What may be an LM; a name, a class or settings of one are not."""
    if isinstance(value, str | type | Mapping):
        named = repr(value) if isinstance(value, str) else "..."
        raise ValueError(f"it should be an LM: dspy.LM({named})")
    return value


def _checked_metric(metric: Any) -> Any:
    if metric is not None:
        adapt_metric(metric)
    return metric


def _checked_gate(gate: Gate | None, others: pydantic.ValidationInfo) -> Gate | None:
    if getattr(gate, "measures", False) and others.data.get("metric", gate) is None:
        fault = f"with metric=None nothing scores the rollouts for {type(gate).__name__}"
        raise ValueError(f"{fault}; pass a metric, or leave the gate out")
    return gate


def _checked_strategies(strategies: Sequence[Strategy] | str) -> tuple[Strategy, ...]:
    if isinstance(strategies, str):
        return (Auto(),)
    for one in strategies:
        if type(one) is not Strategy and not any(overrides(one, name) for name in METHODS):
            raise ValueError(f"{one!r} overrides none of {', '.join(METHODS)}")
        if names := [name for name in METHODS if is_coroutine_function(getattr(one, name))]:
            raise ValueError(f"{type(one).__name__}.{names[0]} should not be async")
    names = [type(one).__name__ for one in strategies if overrides(one, "credit")]
    if len(names) > 1:
        raise ValueError(f"pass one of {', '.join(names)}: each values the steps of a group")
    return tuple(strategies)


def _checked_offline(offline: bool, others: pydantic.ValidationInfo) -> bool:
    if offline and (log_dir := others.data.get("log_dir", "")) is None:
        raise ValueError(f"{log_dir=} holds nothing to replay; pass that of a recorded run")
    return offline


Whole = Annotated[int, pydantic.BeforeValidator(_number)]
Least0 = Annotated[Whole, pydantic.Field(ge=0)]
Least1 = Annotated[Whole, pydantic.Field(ge=1)]
Least2 = Annotated[Whole, pydantic.Field(ge=2)]
Threads = Annotated[Least1, pydantic.Field(le=10_000)]
Finite = Annotated[float, pydantic.BeforeValidator(_number), pydantic.Field(allow_inf_nan=False)]
Dollars = Annotated[Finite, pydantic.Field(ge=0)]
Positive = Annotated[Finite, pydantic.Field(gt=0)]
Folder = Annotated[
    str | PathLike[str],
    pydantic.SkipValidation,
    such_that(lambda path: isinstance(path, str | PathLike) and str(path), "give a folder"),
]


@checked(SettingsError)
class Reflection:
    """Options of the calls of the reflection LM.

    Args:
        extract: draws lessons from groups; default: `ExtractAdvantage()`. This module and the
            next four can be replaced by any `dspy.Module` with the same fields.
        update: turns lessons into operations on the library; default: `UpdateLibrary()`.
        summarize: shortens trajectories that are too long; default: `SummarizeTrajectory()`.
        draft: draws lessons from labelled examples alone; default: `DraftLessons()`.
        brief: writes the instructions of a predictor anew, from labelled examples or attempts;
            default: `WriteBrief()`; None or False: no such text is tried.
        use_labels: False hides `example.labels()` from the reflection LM; scores are still used.
        max_experience_words: how many words one experience may have: a table needs many.
        drafts: how many calls of `draft`, each with ten labelled examples, are made beside the
            first batch (before one of more than eight examples); the lessons that several of them
            give (or all, if none is repeated) are the first update. Default: derived; 0: none.
        groups_per_call: how many groups one call of `extract` is shown. Default: derived.
        show_images: whether the reflection LM is shown the images of the examples; otherwise it is
            told that there is an image. Default: if DSPy knows that the LM takes images.
        guard: what becomes of advice that copies an example: "refuse", "warn" (it is taken, and
            counted), "off", or a function of the text and the reason that says whether to refuse
            it. The gate judges what is taken like all other advice.

    Raises:
        SettingsError: names every field that cannot be used.
    """

    _: KW_ONLY
    extract: dspy.Module = field(default_factory=modules.ExtractAdvantage)
    update: dspy.Module = field(default_factory=modules.UpdateLibrary)
    summarize: dspy.Module = field(default_factory=modules.SummarizeTrajectory)
    draft: dspy.Module = field(default_factory=modules.DraftLessons)
    brief: Annotated[
        dspy.Module | pydantic.StrictBool | None,
        pydantic.AfterValidator(
            lambda brief: modules.WriteBrief() if brief is True else brief or None
        ),
    ] = field(default_factory=modules.WriteBrief)
    use_labels: pydantic.StrictBool = True
    max_experience_words: Least1 = 80
    drafts: Least0 | None = None
    groups_per_call: Least1 | None = None
    show_images: pydantic.StrictBool | None = None
    guard: Annotated[Literal["refuse", "warn", "off"] | Callable[[str, str], bool], NOT_ASYNC] = (
        "refuse"
    )

    # `PaperReflection` makes these three arguments.
    summarize_always = False
    failure_analysis = True
    lessons_per_group = LESSONS_PER_EXAMPLE

    @property
    def modules(self) -> list[Any]:
        """The modules that call the reflection LM."""
        usual = [self.extract, self.update, self.summarize, self.draft]
        return [*usual, self.brief] if self.brief is not None else usual


def _one_lesson() -> modules.ExtractAdvantage:
    """Asks for one lesson of each group, as the paper does."""
    module = modules.ExtractAdvantage()
    signature, asked = module.ask.signature, "lessons for each example, the most useful first."
    instructions = signature.instructions.replace(
        f"one to three {asked}", "one lesson for each example, the most useful one."
    )
    module.ask.signature = signature.with_instructions(instructions)
    return module


@checked(SettingsError)
class PaperReflection(Reflection):
    """The reflection of the paper, and of ablations. Not public."""

    _: KW_ONLY
    extract: dspy.Module = field(default_factory=_one_lesson)
    max_experience_words: Least1 = 32
    lessons_per_group: Least1 = 1
    drafts: Least0 | None = 0
    groups_per_call: Least1 | None = 1
    summarize_always: bool = True  # every trajectory, not only those that are too long
    failure_analysis: bool = False  # lessons also from groups that fail and have no contrast
    brief: dspy.Module | None = None
    injection: bool = False  # the paper's own sentence stands before the experiences


@checked(SettingsError)
class Execution:
    """Options of running rollouts.

    Args:
        executor: runs the rollouts: any `concurrent.futures.Executor`, such as a
            `ProcessPoolExecutor` or dask's `Client.get_executor()`; default: threads. Program,
            metric, LMs (with their keys) and the settings of `dspy.context` are sent to its workers
            by cloudpickle, and are never written to a disk.
        max_staleness: by how many updates the library of a batch's rollouts may be out of date.
            With 1, rollouts run while the update before them is still being made; with 0 they
            wait for it, as in the paper. Default: derived.
        rollout_timeout_s: seconds that a rollout or a reflection may take; if it takes longer it
            has failed, and is not repeated in this start of the run.
        max_errors: how many rollouts and reflections may fail before the run is ended; answers
            that do not parse are not counted. Default: 20, or half of those done if that is more.
        target_score: no more is learned once the last ten groups have this mean score.
        prices: US dollars for a million prompt tokens and a million completion tokens, by model,
            such as `{"openai/my-model": (0.15, 0.60)}`; default: DSPy's price list.

    Raises:
        SettingsError: names every field that cannot be used.
    """

    _: KW_ONLY
    executor: Executor | None = None
    max_staleness: Least0 | None = None
    rollout_timeout_s: Positive | None = None
    max_errors: Least0 | None = None
    target_score: Finite | None = None
    prices: Mapping[str, tuple[Dollars, Dollars]] | None = None


@checked(SettingsError)
class Settings:
    """The arguments of `TrainingFreeGRPO`, which documents them. None: derived, or the default."""

    metric: Annotated[Callable[..., Any] | None, pydantic.BeforeValidator(_checked_metric)]
    _: KW_ONLY
    reflection_lm: Annotated[dspy.BaseLM | None, pydantic.BeforeValidator(_lm)] = None
    objective: str | None = None
    auto: Literal["light", "medium", "heavy"] | None = None
    max_lm_calls: Least1 | None = None
    max_metric_calls: Least1 | None = None
    max_cost: Positive | None = None
    max_minutes: Positive | None = None
    group_size: Least2 | None = None
    batch_size: Least1 | None = None
    epochs: Least1 | None = None
    temperature: Literal["own"] | Annotated[Positive, pydantic.Field(le=2)] | None = None
    max_experiences: Least1 = 30
    max_demos: Least0 | None = None
    gate: Annotated[Gate | None, pydantic.AfterValidator(_checked_gate)] = None
    strategies: Annotated[
        Literal["auto"] | Sequence[Strategy], pydantic.AfterValidator(_checked_strategies)
    ] = ()
    reflection: pydantic.InstanceOf[Reflection] | None = None
    execution: pydantic.InstanceOf[Execution] | None = None
    on_event: Annotated[Listener | None, NOT_ASYNC] = None
    approve: Approve | None = None
    log_dir: Folder | None = None
    offline: Annotated[pydantic.StrictBool, pydantic.AfterValidator(_checked_offline)] = False
    version: Annotated[str, pydantic.Field(min_length=1)] | None = None
    num_threads: Threads | None = None
    seed: Whole = 0
    progress: pydantic.StrictBool = True

    def __post_init__(self) -> None:
        gate = NoGate if self.metric is None else BayesianGate
        defaults = {"gate": gate, "reflection": Reflection, "execution": Execution}
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())

    @property
    def threads(self) -> int:
        """The number of rollouts and reflections that may run at once."""
        return self.num_threads or dspy.settings.num_threads or DEFAULT_THREADS

    @property
    def budget(self) -> Budget:
        """The limits of the run."""
        return Budget(self.max_lm_calls, self.max_metric_calls, self.max_cost, self.max_minutes)

    @property
    def measures(self) -> bool:
        """True if student and result are compared on a validation set."""
        return self.metric is not None and self.arguments["gate"].measures

    @property
    def limits(self) -> Limits:
        """The most experiences that the library may hold, and the most words of each."""
        return Limits(self.max_experiences, self.arguments["max_experience_words"])

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name, those of `reflection` and `execution` too."""
        return vars(self.reflection) | vars(self.execution) | vars(self)

    @property
    def identifying(self) -> dict[str, Any]:
        """The arguments that say which run it is, by name: all but `NOT_WHICH`."""
        return {name: value for name, value in self.arguments.items() if name not in NOT_WHICH}

    def scalars(self) -> dict[str, Any]:
        """The arguments that are numbers, strings, flags or None."""
        kinds = bool | int | float | str | None
        return {k: v for k, v in self.arguments.items() if isinstance(v, kinds)}


def taking(
    settings_class: Callable[P, S],
) -> Callable[[Callable[[Any, S], None]], Callable[Concatenate[Any, P], None]]:
    """Make `__init__(self, settings)` take the arguments of this class, with their signature."""
    signature = inspect.signature(settings_class)

    def decorate(init: Callable[[Any, S], None]) -> Callable[Concatenate[Any, P], None]:
        @functools.wraps(init)
        def constructor(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
            name = type(self).__name__
            for unknown in [each for each in kwargs if each not in signature.parameters]:
                instead = _instead_of(unknown, [*signature.parameters])
                raise TypeError(f"{name} has no argument {unknown!r}; {instead}.")
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                example = f"pass, for example, {name}(metric, max_lm_calls=300)."
                raise TypeError(f"{name}: {error}; {example}") from None
            init(self, settings_class(*args, **kwargs))

        parameters = [SELF, *signature.parameters.values()]
        vars(constructor)["__signature__"] = signature.replace(parameters=parameters)
        return constructor

    return decorate


def _instead_of(name: str, names: list[str]) -> str:
    """Advice for an argument that the optimizer, which has `names`, does not have."""
    for kind in (Reflection, Execution):
        if name in kind.__annotations__:
            return f"pass {kind.__name__.lower()}={kind.__name__}({name}=...)"
    nearest = difflib.get_close_matches(name, names, 1)
    return f"the nearest one is {nearest[0]}=" if nearest else "docs/settings.md lists all"
