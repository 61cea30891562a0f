"""All arguments of the optimizer, checked and frozen; the schedule that a run derives from them.

One message names every fault, before the first LM call. `preparation` looks at student, data and
LMs, and plans what a run is likely to take.
"""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import cached_property
from numbers import Real
from os import PathLike
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar

import dspy
import pydantic

from tfgrpo_dspy.budget import Budget
from tfgrpo_dspy.errors import SELF, SettingsError, checked, such_that
from tfgrpo_dspy.events import Approve, Listener
from tfgrpo_dspy.experience import Limits
from tfgrpo_dspy.gate.bayesian import BayesianGate, Gate, NoGate
from tfgrpo_dspy.reflection import modules
from tfgrpo_dspy.reflection.lessons import LESSONS_PER_EXAMPLE
from tfgrpo_dspy.rollout import adapt_metric
from tfgrpo_dspy.sampling.examples import Example
from tfgrpo_dspy.strategies.attempts import Auto
from tfgrpo_dspy.strategies.base import METHODS, NOT_ASYNC, Strategy, overrides
from tfgrpo_dspy.user_code import is_coroutine_function, named_predictors

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
    if value is not None and not isinstance(value, dspy.BaseLM):
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
    signature, usual = module.ask.signature, "lessons, one to three for each example, the most"
    asked = "one lesson for each example, the most"
    instructions = signature.instructions.replace(f"{usual} useful first", f"{asked} useful one")
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


USUAL_THREADS, FEWEST_IN_BATCH = 8, 5
CALLS_PER_GROUP = 4
GROUPS_PER_CALL, MOST_GROUPS_PER_CALL = 2, 4  # the second where dollars are limited
EXAMPLES_OF_DRAFT, EXAMPLES_OF_BRIEF = 10, 30
UPDATES_KEPT = 3
"""Drafts take the dollars that so many updates and the final choice leave, as estimated; one is
made anyway. So is one brief, and another one for each four drafts that are paid for."""
MIN_PROGRAMS_MEASURED = 2  # with the reserve: at least student and best library
CALLS_FOR_AN_ANSWER = 2  # at most: DSPy asks again, in JSON, for an answer that does not parse
MOST_SHARE = 1 / 2
"""Of a limit that pays for fewer rollouts than was assumed, and of the time, the reserve is at most
this share."""
MIN_GROUP_SIZE, MIN_BATCH_SIZE, MIN_VALIDATION = 2, 2, 2  # a small budget reduces them to these

DERIVED = ("group_size", "batch_size", "epochs", "max_staleness", "drafts", "groups_per_call",
           "max_demos")  # fmt: skip
"""The settings that are derived where they are not given."""


@dataclass(frozen=True, slots=True)
class RunData:
    """Figures from which a schedule is derived, beside the arguments."""

    n_training: int
    n_validation: int = 0  # examples that are available for validation; 0: nothing is measured
    n_test: int = 0  # examples on which student and result are measured at the end
    is_test_on_top: bool = False  # whether the budget, by `auto`, was made larger for these
    n_labelled: int = 0  # training examples that have labels
    is_recorded: bool = False  # whether all training rollouts were made elsewhere
    n_metric_calls: int = 1  # for each training rollout; more if the metric is asked of predictors
    calls_per_rollout: int = 1  # this and what follows: as assumed, see `plan.assumed`
    tokens_of_example: int = 0  # inputs and labels
    tokens_of_attempt: int = 0  # that prompts for lessons show of a rollout
    dollars_per_rollout: float = math.nan
    dollars_per_draft: float = math.nan
    most_calls_per_rollout: int = 1  # of a program whose agents take all of their turns
    unpriced: tuple[str, ...] = ()  # what is missing to know the dollars, in words
    dollars_of_dearest_call: float = 0.0  # of the program, if its answer is as long as it may get

    @property
    def n_of_test_set(self) -> int:
        """The most rollouts of the test set: those of the student and of the result."""
        return 2 * self.n_test

    @property
    def smallest_end(self) -> int:
        """The number of rollouts of the smallest end of a run, which may be more than its share."""
        return MIN_PROGRAMS_MEASURED * min(10, self.n_validation)


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The settings of one run, with everything derived."""

    temperature: Literal["own"] | float
    strategies: Sequence[Strategy]
    gate: Gate
    reflection: Reflection
    execution: Execution
    group_size: int
    batch_size: int
    epochs: int
    max_staleness: int
    drafts: int
    groups_per_call: int
    reserve: int  # rollouts for measuring student and candidates
    n_validation: int  # examples that these pay for; what is left, for more
    max_demos: int
    data: RunData
    derived: frozenset[str] = frozenset()  # those of `DERIVED` not set
    trackers: Sequence[Listener] = ()  # told of the run beside `on_event`

    @property
    def schedule(self) -> dict[str, int]:
        """The derived figures by name."""
        return {name: getattr(self, name) for name in (*DERIVED, "reserve", "n_validation")}

    @property
    def shows_labels(self) -> bool:
        """True if the reflection LM may be shown labels."""
        return self.reflection.use_labels and self.metric is not None

    @property
    def most_on_trial(self) -> int:
        """The number of experiences on trial from which on no more lessons are drawn.

        More could not be tested; a large budget tests one for each 50 rollouts that it pays for.
        """
        n_paid = _calls(self, self.data) / self.data.calls_per_rollout
        n_rollouts = min(self.epochs * self.data.n_training * self.group_size, n_paid)
        return max(16, int(n_rollouts / 50))

    @property
    def n_briefs(self) -> int:
        """How many first briefs are written; 0: none is tried."""
        is_tried = type(self.gate).briefs is not Gate.briefs and self.reflection.brief is not None
        if not (is_tried and self.measures and self.data.n_validation) or self.data.is_recorded:
            return 0
        n_paid = max(1, _paid_drafts(self, self.data) / 4)
        return int(min(3, n_paid, _calls(self, self.data) / 50))

    @property
    def learning_limits(self) -> dict[str, float | None]:
        """The limits, without the LM calls that `auto` adds for the test set."""
        n_calls, data = self.max_lm_calls, self.data
        if n_calls is not None and data.is_test_on_top:
            n_calls -= data.n_of_test_set * data.calls_per_rollout
        return {**asdict(self.budget), "max_lm_calls": n_calls}

    @property
    def rollouts_of_update(self) -> int:
        """The number of rollouts that are run for one update."""
        return 0 if self.data.is_recorded else self.batch_size * self.group_size

    def result_scalars(self) -> dict[str, Any]:
        """The scalars that a result may depend on, without those of the run store."""
        scalars = {k: v for k, v in self.scalars().items() if k not in ("log_dir", "offline")}
        names = ", ".join(type(strategy).__name__ for strategy in self.strategies)
        return scalars | ({"strategies": names} if names else {})


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


def derive(settings: Settings, data: RunData) -> RunSettings:
    """The settings with the schedule that these data and the budget give. Raises SettingsError."""
    arguments = settings.arguments
    chosen = {name: arguments[name] for name in DERIVED if arguments[name] is not None}
    if settings.metric is None or not arguments["use_labels"] or not data.n_labelled:
        chosen["drafts"] = 0
    if not settings.measures or not data.n_validation:
        chosen["max_demos"] = 0
    derived = frozenset({*DERIVED} - chosen.keys())
    usual = _usual(settings, data, chosen)
    run_settings = RunSettings(**vars(settings) | usual, data=data, derived=derived)
    n_batch, n_valid = usual["batch_size"], usual["n_validation"]
    reductions: list[dict[str, int]] = [  # in the order in which they are tried for the budget
        *({}, {"drafts": 0}, {"group_size": MIN_GROUP_SIZE}),
        *({"batch_size": n} for n in range(n_batch, MIN_BATCH_SIZE - 1, -1)),
        *({"n_validation": n, "reserve": MIN_PROGRAMS_MEASURED * n, "max_demos": 0}
          for n in range(n_valid, min(MIN_VALIDATION, n_valid) - 1, -1)),
    ]  # fmt: skip
    for smaller in reductions:
        changes: dict[str, Any] = {
            name: value
            for name, value in smaller.items()
            if name not in chosen and value < getattr(run_settings, name)
        }
        run_settings = replace(run_settings, **changes)
        if not _unpaid(run_settings, data.calls_per_rollout):
            return run_settings
    if settings.max_cost is not None and settings.max_cost < data.dollars_of_dearest_call:
        raise SettingsError(
            f"max_cost={settings.max_cost} is too small: one call may cost "
            f"${data.dollars_of_dearest_call:.2g}. Pass more, or a lower max_tokens to the LM."
        )
    # more than one call per rollout, and what a call costs, are assumptions: they refuse nothing
    if unpaid := _unpaid(replace(run_settings, max_cost=None), 1):
        raise SettingsError(unpaid)
    return run_settings


def n_unlike_drafts(n_labelled: int, n_shown: int) -> int:
    """The number of unlike sets of `n_shown` that labelled examples make; `12, 10 -> 132`."""
    sizes = {min(n_labelled, n_shown), n_labelled % n_shown} - {0}  # of ten, and of two
    return sum(math.comb(n_labelled, size) for size in sizes)


def usual_demos(tokens_of_example: float) -> int:
    """The number of examples of this size in a set of demos, where the user does not say it."""
    return max(1, min(16, int(8_000 / max(1, tokens_of_example))))  # tokens of a prompt


def _usual(settings: Settings, data: RunData, chosen: dict[str, int]) -> dict[str, Any]:
    n, calls, n_threads = data.n_training, _calls(settings, data), settings.threads
    n_groups = calls / CALLS_PER_GROUP
    has_budget = calls < math.inf or settings.max_cost or settings.max_minutes
    n_shown = getattr(settings.arguments["draft"], "n_examples", EXAMPLES_OF_DRAFT)
    most_drafts = min(12, n_unlike_drafts(data.n_labelled, n_shown))
    n_programs = 4 if settings.measures else MIN_PROGRAMS_MEASURED
    # a fifth of the budget measures the student and chooses the result
    share = max(data.smallest_end, 1 / 5 * calls / data.calls_per_rollout)
    reserve = int(min(n_programs * data.n_validation, share))
    # Small batches learn more (simulated). With more threads they grow in proportion
    # (`benchmarks/utilisation.py` compares), but an epoch has at least four, and the calls pay for
    # six; with thousands of examples within reach, as each decision reads all rollouts so far.
    size = min(8, max(FEWEST_IN_BATCH, math.ceil(n / 8)))
    for_threads = min(math.ceil(size * n_threads / USUAL_THREADS), n / 4, n_groups / 6)
    n_reached = 0 if has_budget and calls == math.inf else min(n, n_groups)
    sizes = {
        "group_size": 3 if calls >= 15 * n else 2,  # groups of two see more examples
        "batch_size": max(size, math.ceil(for_threads), math.ceil(n_reached / 64)),
    } | chosen
    has_many = n_groups / sizes["batch_size"] >= 12
    fewest = 1 + (n_threads > USUAL_THREADS and has_many)
    # 1.5 rollouts of the batches made at once for a thread: one that ends early finds another
    staleness = math.ceil(1.5 * n_threads / (sizes["batch_size"] * sizes["group_size"])) - 1
    return {
        "temperature": settings.temperature or 0.7,
        "epochs": 1 if data.is_recorded else 50 if has_budget else 5,
        "max_staleness": min(4, max(fewest, staleness)),
        "drafts": int(min(most_drafts, calls / 16, max(1, _paid_drafts(settings, data)))),
        "groups_per_call": MOST_GROUPS_PER_CALL if settings.max_cost else GROUPS_PER_CALL,
        "reserve": reserve,
        "n_validation": min(data.n_validation, reserve // MIN_PROGRAMS_MEASURED),
        "max_demos": usual_demos(data.tokens_of_example), **sizes,
        "batch_size": min(n, sizes["batch_size"]),
    }  # fmt: skip


def _calls(settings: Settings, data: RunData) -> float:
    """The budget in LM calls without those of the test set; infinite without a limit on calls.

    Dollars are converted with the assumed cost of a call, a limit on rollouts with half a
    reflection per rollout.
    """
    calls, n_test = math.inf, data.n_of_test_set * data.calls_per_rollout
    if settings.max_lm_calls is not None:
        calls = settings.max_lm_calls - n_test
    if settings.max_cost is not None and data.dollars_per_rollout > 0:
        n_rollouts = settings.max_cost / data.dollars_per_rollout
        calls = min(calls, n_rollouts * data.calls_per_rollout - n_test)
    if settings.max_metric_calls is not None:
        n_rollouts = (settings.max_metric_calls - data.n_of_test_set) / data.n_metric_calls
        calls = min(calls, n_rollouts * (data.calls_per_rollout + 0.5))
    return max(0, calls)


def _paid_drafts(settings: Settings, data: RunData) -> float:
    """How many drafts the dollars pay for beside the first updates and the final choice."""
    if settings.max_cost is None or not data.dollars_per_draft > 0:
        return math.inf
    n_rollouts = data.smallest_end + UPDATES_KEPT * FEWEST_IN_BATCH * MIN_GROUP_SIZE
    n_reflections = UPDATES_KEPT * (1 + FEWEST_IN_BATCH / MOST_GROUPS_PER_CALL)
    left = settings.max_cost - n_rollouts * data.dollars_per_rollout
    return left / data.dollars_per_draft - n_reflections


def _unpaid(run_settings: RunSettings, calls_per_rollout: int) -> str:
    """A limit that does not pay for one whole update and the final choice; "": all pay."""
    data, n_training = run_settings.data, run_settings.rollouts_of_update
    n_rollouts = n_training + run_settings.reserve + data.n_of_test_set
    n_reflections = run_settings.batch_size + 1 + run_settings.drafts + (run_settings.drafts > 0)
    n_reflections += n_training * run_settings.reflection.summarize_always
    enough_calls = n_rollouts * data.calls_per_rollout + n_reflections
    dollars = enough_calls * data.dollars_per_rollout / data.calls_per_rollout
    dollars += data.dollars_of_dearest_call
    n_scores = n_rollouts + n_training * (data.n_metric_calls - 1)
    for name, needed, enough in (
        ("max_metric_calls", n_scores, n_scores),
        ("max_lm_calls", n_rollouts * calls_per_rollout + n_reflections, enough_calls),
        ("max_cost", dollars, dollars),
    ):
        limit = getattr(run_settings, name)
        if limit is not None and limit < needed:
            smallest = f"{n_rollouts} rollouts and {n_reflections} reflection calls"
            needs = f"The smallest run needs {smallest}. Pass {name}={enough} or more."
            return f"{name}={limit} is too small. {needs}"
    return ""
