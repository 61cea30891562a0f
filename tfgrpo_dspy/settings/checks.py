"""Student, data and LMs of a run: what is refused, what is warned of, and the split of the data."""

import inspect
import itertools
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import dspy

from tfgrpo_dspy.budget import price_of
from tfgrpo_dspy.dspy_seam import BY_MODULE, BY_SIGNATURE
from tfgrpo_dspy.errors import SettingsError, caution
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.experience.programs import introduced, language_models, named_predictors
from tfgrpo_dspy.gate.protocol import NoGate
from tfgrpo_dspy.metric import adapt_metric, held_lms
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.fields import Example, has_none
from tfgrpo_dspy.sampling.one_rollout import allows_temperature
from tfgrpo_dspy.settings import AUTO, PaperReflection, Settings, schedule
from tfgrpo_dspy.user_code import held_by, is_coroutine_function, running_loop

logger = logging.getLogger(__name__)

MAX_HELD_OUT, MIN_EXAMPLES_TO_SPLIT = 100, 6


def prepare(
    settings: Settings,
    student: Any,
    trainset: Any,
    valset: Any = None,
    teacher: Any = None,
    testset: Any = None,
    recorded: Sequence[Sequence[Rollout]] | None = None,
) -> schedule.RunInputs:
    """The run's settings, student and examples; refuses, with every fault, what no run can use.

    `recorded` are rollouts of the examples that were made elsewhere.
    """
    if recorded is not None:
        settings = _for_recorded(settings, recorded, {"valset": valset, "testset": testset})
    if isinstance(valset, Sequence) and not valset:
        valset = None  # BetterTogether passes an empty list
    if not (settings.reflection_lm or dspy.settings.lm) and isinstance(student, dspy.Module):
        lms = {id(predictor.lm): predictor.lm for _, predictor in named_predictors(student)}
        settings = replace(settings, reflection_lm=lms.popitem()[1]) if len(lms) == 1 else settings
    data = {"trainset": trainset, "valset": valset, "testset": testset}
    if faults := " ".join(_faults(settings, student, data, recorded)):
        raise SettingsError(faults)
    reflection = settings.arguments["reflection"]
    if isinstance(reflection, PaperReflection) and reflection.injection:
        student = introduced(student)
    predictors = [predictor for _, predictor in named_predictors(student)]
    outputs = [item for each in predictors for item in each.signature.output_fields.items()]
    nullable = {name for name, info in outputs if has_none(info.annotation)}
    examples, held_out, tested = (  # in lists that the user does not change
        [Example(each, nullable) for each in of_one or ()] for of_one in data.values()
    )
    sets = {"training": examples, "validation": held_out, "test": tested}
    if teacher is not None:
        caution("teacher: this optimizer uses no teacher, and ignores it.")
    if settings.metric is None and recorded is None:
        source = "metric=None: lessons are drawn from agreement and self-critique"
        caution(f"{source}; nothing checks that the result is not worse than the student.")
    for used, held in itertools.combinations(sets, 2):
        inputs = {example.identity for example in sets[used]}
        if n := sum(example.identity in inputs for example in sets[held]):
            which = f"{n} of {len(sets[held])} {held} examples are {used} examples too"
            caution(f"{which}; scores on them are optimistic.")
    training, validation = split(settings, examples, held_out)
    trained_on, n_predictors = [examples[index] for index in training], len(predictors)
    asks_predictors = settings.metric is not None and adapt_metric(settings.metric).asks_predictors
    run_data = schedule.RunData(
        n_training=len(training),
        n_validation=len(validation) if settings.metric is not None else 0,
        n_test=len(tested),
        n_labelled=sum(bool(example.labels) for example in trained_on),
        is_recorded=recorded is not None,
        n_metric_calls=1 + asks_predictors * n_predictors * (n_predictors > 1),
        **schedule.assumed(settings, student, trained_on),
    )
    if settings.auto is not None and settings.max_lm_calls is None:
        per_example, at_least = AUTO[settings.auto]
        n_calls = max(at_least, per_example * run_data.n_training * run_data.calls_per_rollout)
        n_calls += run_data.n_of_test_set * run_data.calls_per_rollout
        settings = replace(settings, max_lm_calls=n_calls)
        run_data = replace(run_data, is_test_on_top=True)
    run_settings = schedule.derive(settings, run_data)
    if not settings.offline:
        logger.info("the plan:\n%s", schedule.plan_of(run_settings))
    return schedule.RunInputs(run_settings, student, examples, (*training,), validation, tested)


def _for_recorded(
    settings: Settings, recorded: Sequence[Sequence[Rollout]], measured: Mapping[str, Any]
) -> Settings:
    is_scored = any(rollout.score is not None for group in recorded for rollout in group)
    if settings.metric is None or not is_scored:
        needed = "a metric" if is_scored else "traces with scores"
        for name in [name for name, examples in measured.items() if examples is not None]:
            raise SettingsError(f"{name}: measuring on it needs {needed}; else pass no {name}.")
    metric = (settings.metric or _scores_of_traces) if is_scored else None
    is_gated = isinstance(measured["valset"], Sequence) and measured["valset"] and settings.measures
    return replace(settings, metric=metric, gate=settings.gate if is_gated else NoGate())


def _scores_of_traces(example: Any, prediction: Any, trace: Any = None) -> float:
    """Stands for the unknown metric that scored the traces. Never called: nothing is run."""
    raise NotImplementedError((example, prediction, trace))


def split(
    settings: Settings, trainset: Sequence[Example], valset: Sequence[Example]
) -> tuple[list[int], list[Example]]:
    """The positions of the examples to train on, and the validation set.

    Without a `valset`, a third of at least 6 different examples (at most 100, drawn by the seed) is
    held out, with all examples of the same inputs; nothing for a gate that measures nothing.
    """
    order = list(range(len(trainset)))
    if valset or not settings.measures:
        return order, list(valset)
    random.Random(f"{settings.seed}/split").shuffle(order)
    same: dict[str, list[int]] = {}
    for i in order:
        same.setdefault(trainset[i].identity, []).append(i)
    if len(same) < MIN_EXAMPLES_TO_SPLIT:
        compared = "student and result are compared on the training examples themselves"
        few = f"{len(same)} different examples are too few to hold some out"
        caution(f"{few}: {compared}; pass a valset.")
        return sorted(order), list(trainset)
    n_held_out = min(MAX_HELD_OUT, round(len(trainset) / 3))
    held_out: set[int] = set()
    for repeated in [*same.values()][:-1]:  # at least one input is for training
        held_out |= set(repeated) if len(held_out) < n_held_out else set()
    return sorted({*order} - held_out), [trainset[i] for i in sorted(held_out)]


def all_lms(settings: Settings, student: Any) -> list[Any]:
    """Every LM that the run may call, if it can be found in student, modules or metric."""
    modules = settings.arguments["reflection"].modules
    held = [lm for module in modules for lm in language_models(module)]
    holders = (dspy.settings.adapter, settings.metric, *settings.strategies)
    held += [lm for each in holders for lm in held_lms(each)]
    return [*policy_lms(student), settings.reflection_lm or dspy.settings.lm, *held]


def policy_lms(student: Any) -> list[Any]:
    """Every LM that the student may call: those of its modules, and the configured one."""
    lms = language_models(student)
    needs_default = any(predictor.lm is None for _, predictor in named_predictors(student))
    return [*lms, dspy.settings.lm] if needs_default or not lms else lms


def programs_of(settings: Settings, student: Any) -> list[Any]:
    """The student, and the programs that strategies hold, such as teachers."""
    held = (each for strategy in settings.strategies for each in held_by(strategy))
    return [student, *(each for each in held if isinstance(each, dspy.Module))]


def async_code(settings: schedule.RunSettings, student: Any) -> list[str]:
    """The names of the async code that the run awaits.

    Raises SettingsError: it may need the event loop of this thread, which is blocked.
    """
    if settings.offline:
        return []
    code = [(name, getattr(settings, name)) for name in ("metric", "approve")]
    for program in programs_of(settings, student):
        tools = program.named_sub_modules(dspy.Tool)
        code += [(f"tool {tool.name!r}", tool.func) for _, tool in tools]
        forward = inspect.getattr_static(program, "forward", None)
        is_syncified = getattr(forward, "__module__", "") == dspy.syncify.__module__
        awaits = forward is None or is_syncified or is_coroutine_function(forward)
        name = f"program {type(getattr(program, 'program', program)).__name__}"
        code.append((name, program.acall if awaits else None))
    names = [name for name, function in code if is_coroutine_function(function)]
    if names and running_loop():
        fault = "may need the event loop that is running here, and compile blocks it until the run"
        way = "call `await optimizer.acompile(...)` (of `learn`: `alearn`)"
        raise SettingsError(f"{', '.join(names)}: {fault} is over; {way}.")
    return names


def _faults(
    settings: Settings,
    student: Any,
    data: Mapping[str, Any],
    recorded: Sequence[Sequence[Rollout]] | None,
) -> Iterator[str]:
    """A sentence on each thing that no run can use."""
    sets = {n: examples for n, examples in data.items() if n == "trainset" or examples is not None}
    faults = {name: _data_fault(name, examples) for name, examples in sets.items()}
    yield from filter(None, faults.values())
    if "testset" in sets and settings.metric is None:
        yield "testset and metric=None: nothing scores the test set; pass a metric."
    if not isinstance(student, dspy.Module):
        yield f"student={student!r}: pass a dspy.Module, such as dspy.Predict('q -> a')."
        return
    most, name = settings.max_experiences, type(student).__name__
    if (n := len(ExperienceLibrary.from_program(student))) > most:
        starts = f"max_experiences={most}: the student starts with {n} experiences"
        yield f"{starts}; allow as many, or bake a smaller library into it first."
    yield from _lm_faults(settings, student)
    if not named_predictors(student):
        yield (
            f"student={name} has no predictors that DSPy finds (sub-modules with _compiled=True "
            f"are frozen; none is found that `forward` makes, or that stands in a list or dict "
            f"within another one: make them in `__init__`, in attributes)."
        )
        return
    names = {} if recorded is None else {"trainset": "traces"}
    yield from _input_faults(
        student, {names.get(n, n): examples for n, examples in sets.items() if not faults[n]}
    )


def _lm_faults(settings: Settings, student: Any) -> Iterator[str]:
    reflection_lm = settings.reflection_lm or dspy.settings.lm
    modules = [*programs_of(settings, student), *settings.arguments["reflection"].modules]
    predictors = [predictor for each in modules for _, predictor in named_predictors(each)]
    of_predictors = [predictor.lm for predictor in predictors if predictor.lm]
    for lm in (*of_predictors, *policy_lms(student), reflection_lm):
        if lm is None:
            configured = "lm=None: no LM is configured; call dspy.configure(lm=dspy.LM(...))"
            yield f"{configured}, or set one on every predictor and pass reflection_lm."
            return
        if not isinstance(lm, dspy.BaseLM) and not getattr(lm, "supports_decision_requests", False):
            instance = f"dspy.LM({lm!r})" if isinstance(lm, str) else "dspy.LM(...)"
            yield f"lm={lm!r:.80} is no LM; configure and set an instance, such as {instance}."
            return
    for lm in policy_lms(student):
        if not allows_temperature(lm, (t := settings.temperature)):
            model = f"temperature={t}: {lm.model} is a reasoning model"
            yield f"{model} and allows no temperature but its own; leave temperature out."
    if settings.max_cost is not None:
        for lm in {id(lm): lm for lm in all_lms(settings, student)}.values():
            if isinstance(price := price_of(lm, settings.arguments["prices"] or {}), str):
                yield f"max_cost={settings.max_cost}: {price}"


def _data_fault(name: str, examples: Any) -> str:
    """The first fault of a set; "" if there is none."""
    if not isinstance(examples, Sequence) or not examples:
        return f"{name}={examples!r:.80}: pass a list of at least one dspy.Example."
    for index, example in enumerate(examples):
        if not isinstance(example, dspy.Example) or isinstance(example, dspy.Prediction):
            fault = f"{name}: position {index} is of type {type(example).__name__}"
            way = "pass dspy.Example(question=..., answer=...).with_inputs('question')"
            return f"{fault}, not a dspy.Example; {way}."
    without = [index for index, example in enumerate(examples) if not _inputs_of(example)]
    how_many = f"{name}: {len(without)} of {len(examples)} examples have no inputs"
    way = "call example.with_inputs('question') on each, with the names of its inputs."
    return f"{how_many} (the first at position {without[0]}); {way}" if without else ""


def _inputs_of(example: Any) -> set[str]:
    """The names of an example's inputs; none where it cannot tell."""
    with suppress(Exception):  # a class of the user's own may raise anything
        return {*example.inputs().keys()}
    return set()


def _input_faults(student: Any, sets: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """A sentence for each set with examples that lack inputs of the program, or have too many."""
    name, entry = type(student).__name__, _entry(student)
    if entry is None or inspect.isgeneratorfunction(entry):
        yield f"student={name}: define `forward` (or `aforward`), which returns a prediction."
        return
    needed, taken = _taken_by(student)
    for set_name, examples in sets.items():
        for position, inputs in enumerate(map(_inputs_of, examples)):
            if not needed <= inputs <= (inputs if taken is None else taken):
                takes = f"{set_name}: {name} takes the inputs {sorted(taken or needed)}"
                has = f"the example at position {position} has {sorted(inputs)}"
                yield f"{takes}, and {has}; rename its fields, or use example.with_inputs(...)."
                break


def _entry(module: Any) -> Any:
    """The method that runs the module, bound. DSPy warns where `module.forward` is read."""
    for name in ("forward", "aforward"):
        with suppress(AttributeError):
            return object.__getattribute__(module, name)
    return None


def _taken_by(module: Any) -> tuple[set[str], set[str] | None]:
    """The inputs that a module needs (DSPy's only warn), and all that it takes; None: unknown."""
    kind = type(module)
    name = kind.__name__ if kind.__module__.startswith("dspy.") else ""
    if isinstance(module, dspy.Predict) or (name in BY_SIGNATURE and hasattr(module, "signature")):
        return {f for f, info in module.signature.input_fields.items() if info.is_required()}, None
    if name in BY_MODULE and hasattr(module, BY_MODULE[name]):
        return _taken_by(getattr(module, BY_MODULE[name]))
    try:
        parameters = inspect.signature(_entry(module)).parameters.values()
    except (TypeError, ValueError):  # it does not tell
        return set(), None
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = {p.name for p in named if p.default is p.empty}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return needed, None if takes_all else {p.name for p in named}
