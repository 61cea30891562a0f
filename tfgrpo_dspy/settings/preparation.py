"""A run before it begins: what is refused, what is warned of, the split of the data, and the plan.

What a call takes is assumed: agents take more or fewer turns, and answers are longer or shorter.
Retries after the faults of a provider are in no row of a plan, nor prompts that must be split.
"""

import inspect
import itertools
import logging
import math
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import dspy

from tfgrpo_dspy import settings as schedules
from tfgrpo_dspy import user_code
from tfgrpo_dspy.budget import price_of, token_price
from tfgrpo_dspy.dspy_seam import BY_MODULE, BY_SIGNATURE
from tfgrpo_dspy.errors import SettingsError, caution
from tfgrpo_dspy.experience import ExperienceLibrary, bare_instructions
from tfgrpo_dspy.gate.bayesian import NoGate
from tfgrpo_dspy.gate.model import FIRST_ROUND
from tfgrpo_dspy.rollout import Rollout, adapt_metric, held_lms
from tfgrpo_dspy.sampling.examples import Example, as_fields, has_none
from tfgrpo_dspy.sampling.one_rollout import allows_temperature
from tfgrpo_dspy.settings import AUTO, EXAMPLES_OF_DRAFT, RunData, RunInputs, RunSettings, Settings
from tfgrpo_dspy.text import aligned, counted, estimate_tokens, printable

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
) -> RunInputs:
    """The run's settings, student and examples; refuses, with every fault, what no run can use.

    `recorded` are rollouts of the examples that were made elsewhere.
    """
    if recorded is not None:
        settings = _for_recorded(settings, recorded, {"valset": valset, "testset": testset})
    if isinstance(valset, Sequence) and not valset:
        valset = None  # BetterTogether passes an empty list
    if not (settings.reflection_lm or dspy.settings.lm) and isinstance(student, dspy.Module):
        lms = {
            id(predictor.lm): predictor.lm for _, predictor in user_code.named_predictors(student)
        }
        settings = replace(settings, reflection_lm=lms.popitem()[1]) if len(lms) == 1 else settings
    data = {"trainset": trainset, "valset": valset, "testset": testset}
    if faults := " ".join(_faults(settings, student, data, recorded is not None)):
        raise SettingsError(faults)
    predictors = [predictor for _, predictor in user_code.named_predictors(student)]
    outputs = (item for each in predictors for item in each.signature.output_fields.items())
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
    run_data = RunData(
        n_training=len(training),
        n_validation=len(validation) if settings.metric is not None else 0,
        n_test=len(tested),
        n_labelled=sum(bool(example.labels) for example in trained_on),
        is_recorded=recorded is not None,
        n_metric_calls=1 + asks_predictors * n_predictors * (n_predictors > 1),
        **assumed(settings, student, trained_on),
    )
    if settings.auto is not None and settings.max_lm_calls is None:
        per_example, at_least = AUTO[settings.auto]
        n_calls = max(at_least, per_example * run_data.n_training * run_data.calls_per_rollout)
        n_calls += run_data.n_of_test_set * run_data.calls_per_rollout
        settings = replace(settings, max_lm_calls=n_calls)
        run_data = replace(run_data, is_test_on_top=True)
    run_settings = schedules.derive(settings, run_data)
    if not settings.offline:
        logger.info("the plan:\n%s", plan_of(run_settings))
    return RunInputs(run_settings, student, examples, (*training,), validation, tested)


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
    held = [lm for module in modules for lm in user_code.language_models(module)]
    holders = (dspy.settings.adapter, settings.metric, *settings.strategies)
    held += [lm for each in holders for lm in held_lms(each)]
    return [*policy_lms(student), settings.reflection_lm or dspy.settings.lm, *held]


def policy_lms(student: Any) -> list[Any]:
    """Every LM that the student may call: those of its modules, and the configured one."""
    lms = user_code.language_models(student)
    needs_default = any(
        predictor.lm is None for _, predictor in user_code.named_predictors(student)
    )
    return [*lms, dspy.settings.lm] if needs_default or not lms else lms


def programs_of(settings: Settings, student: Any) -> list[Any]:
    """The student, and the programs that strategies hold, such as teachers."""
    held = (pair for each in settings.strategies for pair in user_code.reached([("", each)]))
    return [student, *(each for _, each in held if isinstance(each, dspy.Module))]


def async_code(settings: RunSettings, student: Any) -> list[str]:
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
        awaits = forward is None or is_syncified or user_code.is_coroutine_function(forward)
        name = f"program {type(getattr(program, 'program', program)).__name__}"
        code.append((name, program.acall if awaits else None))
    names = [name for name, function in code if user_code.is_coroutine_function(function)]
    if names and user_code.running_loop():
        fault = "may need the event loop that is running here, and compile blocks it until the run"
        way = "call `await optimizer.acompile(...)` (of `learn`: `alearn`)"
        raise SettingsError(f"{', '.join(names)}: {fault} is over; {way}.")
    return names


def _faults(
    settings: Settings, student: Any, data: Mapping[str, Any], is_recorded: bool
) -> Iterator[str]:
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
    if not user_code.named_predictors(student):
        yield (
            f"student={name} has no predictors that DSPy finds (sub-modules with _compiled=True "
            f"are frozen; none is found that `forward` makes, or that stands in a list or dict "
            f"within another one: make them in `__init__`, in attributes)."
        )
        return
    names = {"trainset": "traces"} if is_recorded else {}
    usable = {names.get(n, n): examples for n, examples in sets.items() if not faults[n]}
    yield from _input_faults(student, usable)


def _lm_faults(settings: Settings, student: Any) -> Iterator[str]:
    reflection_lm = settings.reflection_lm or dspy.settings.lm
    modules = [*programs_of(settings, student), *settings.arguments["reflection"].modules]
    predictors = [
        predictor for each in modules for _, predictor in user_code.named_predictors(each)
    ]
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


# ------------------------------------------------------------------------------------- the plan

FORMAT_TOKENS, FIELD_TOKENS = 150, 8  # of DSPy's adapters: of a prompt; of a field of an answer
TEXT_TOKENS = 80  # of a text that an LM writes, where no label says how long it is
TURN_TOKENS = 100  # of a turn of an agent in the prompts of those that follow
AGENT_TURNS = 4  # how many calls an agent is likely to make, unless `max_iters` allows fewer
LIBRARY_TOKENS = 100  # of the experiences in a prompt, on average
DEMOS_SHARE = 0.8  # of the rollouts show demos, in runs in twelve random worlds
REFLECTION_TOKENS, ADVICE_TOKENS = 900, 200
"""Of the prompt of a reflection without what it shows, and of its answer (48 real runs)."""
MOST_SHOWN_TOKENS = 12_000  # of a group in a prompt for lessons
FEWEST_UPDATES = 20
"""An easy task is learned in about 20 updates; a hard one takes all epochs, or all that the
budget pays for, and most are hard. This and the next were chosen with simulated tasks."""
CONTRAST_SHARE, CHANGE_SHARE = 0.5, 0.5  # of groups that teach; of updates with new lessons
LIKELY_CANDIDATES, LIKELY_FINALISTS = 8, 5  # of the first round of the race, and of the others

Taken = tuple[float, float, float]
"""Rollouts, LM calls and US dollars, which are nan where a price is missing."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """The whole rollouts and LM calls that one purpose is likely to take, and the US dollars."""

    purpose: str
    n_rollouts: int
    n_lm_calls: int
    cost: float | None  # None: a price is missing, which the plan names


@dataclass(frozen=True, slots=True)
class Plan:
    """The likely course of a compile; `str` is a table, with the schedule below it.

    Where one lesson solves the task, a run takes less. What strategies try and ask besides is in no
    row.
    """

    rows: tuple[PlanRow, ...]  # the last one is their sum, within the limits
    n_updates: int
    schedule: Mapping[str, int]
    limits: Mapping[str, float]  # those that are set
    has_strategies: bool = False
    unpriced: tuple[str, ...] = ()  # what is missing to know the dollars

    @property
    def total(self) -> PlanRow:
        """All rollouts, all LM calls and all dollars."""
        return self.rows[-1]

    @property
    def _limits(self) -> str:
        limits = (f"{name}={limit:.9g}" for name, limit in self.limits.items())
        return ", ".join(limits) or "none is set"

    def __repr__(self) -> str:
        return f"<Plan: likely {self.total.n_lm_calls:,} LM calls; limits: {self._limits}>"

    def __str__(self) -> str:
        cells = [("likely", "rollouts", "calls", "dollars")]
        for row in self.rows:
            dollars = "?" if row.cost is None else f"{row.cost:.3g}"
            cells.append((row.purpose, f"{row.n_rollouts:,}", f"{row.n_lm_calls:,}", dollars))
        lines = [
            *aligned(cells, range(1, 4)),
            f"in {counted(self.n_updates, 'update')}; limits: {self._limits}",
            *(f"?: {why}" for why in self.unpriced if self.total.cost is None),
            *["what the strategies try and ask besides is not known"] * self.has_strategies,
            "",
            *(f"{name:<16}{value:>6}" for name, value in self.schedule.items()),
        ]
        return printable("\n".join(lines))


def assumed(settings: Settings, student: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """The assumptions about a rollout, as fields of `RunData`; the first examples stand for all."""
    examples, prices = examples[:100], settings.arguments["prices"] or {}
    iterations = [getattr(each, "max_iters", 0) for _, each in student.named_sub_modules()]
    n_besides = sum(min(n, AGENT_TURNS - 1) for n in iterations)
    most = sum(iterations) - n_besides  # turns that an agent may take besides
    inputs = _mean_tokens(each.inputs for each in examples)
    whole = _mean_tokens(as_fields(dict(each.raw.items())) for each in examples)
    n_demos = settings.arguments["max_demos"]
    demos = (
        whole * (schedules.usual_demos(whole) if n_demos is None else n_demos) * settings.measures
    )
    beside, calls, attempt, dollars, longest = LIBRARY_TOKENS + DEMOS_SHARE * demos, 0, 0.0, 0.0, 0
    lms: list[Any] = []
    for _, predictor in user_code.named_predictors(student):
        lms.append(lm := predictor.lm or dspy.settings.lm)
        n = predictor.config.get("n") or getattr(lm, "kwargs", {}).get("n") or 1
        n_calls, n_turns = n * (1 + n_besides), n_besides
        n_besides = 0  # the first predictor is that of the agent
        answer = 0.0  # as long as the labels, where there are any
        for name, field in predictor.signature.output_fields.items():
            labels = [{name: each.labels[name]} for each in examples if name in each.labels]
            usual = TEXT_TOKENS if field.annotation is str else FIELD_TOKENS
            answer += FIELD_TOKENS + (_mean_tokens(labels) if labels else usual)
        longest = int(estimate_tokens(bare_instructions(predictor)) + FORMAT_TOKENS + inputs)
        prompt = longest + beside + n_turns * TURN_TOKENS / 2
        calls, most = calls + n_calls, most + n_calls
        attempt += n_calls * answer + n_turns * TURN_TOKENS
        dollars += n_calls * _cost(lm, settings, prompt, answer)
    holders = settings.metric, dspy.settings.adapter  # a call of each LM that they hold
    judges = {id(lm): lm for each in holders for lm in held_lms(each)}.values()
    dollars += sum(_cost(lm, settings, longest, TEXT_TOKENS) for lm in judges)
    calls, most, lms = calls + len(judges), most + len(judges), [*lms, *judges]
    lms += [lm for strategy in settings.strategies for lm in held_lms(strategy)]  # a teacher's
    dearest = [(longest + int(demos)) * price.prompt + price.max_tokens * price.completion
               for lm in lms if not isinstance(price := price_of(lm, prices), str)]  # fmt: skip
    every = (*lms, settings.reflection_lm or dspy.settings.lm)
    unpriced = (price for lm in every if isinstance(price := token_price(lm, prices), str))
    return {
        "calls_per_rollout": calls,
        "most_calls_per_rollout": most,
        "tokens_of_example": int(whole),
        "tokens_of_attempt": int(attempt),
        "dollars_per_rollout": dollars,
        "dollars_per_draft": _reflection_cost(settings, EXAMPLES_OF_DRAFT * whole),
        "dollars_of_dearest_call": max(dearest, default=0.0) if len(dearest) == len(lms) else 0.0,
        "unpriced": tuple(dict.fromkeys(unpriced)),
    }


def _mean_tokens(fields: Iterable[Mapping[str, str]]) -> float:
    return statistics.fmean(estimate_tokens(" ".join(texts.values())) for texts in fields)


def _cost(lm: Any, settings: Settings, prompt: float, answer: float) -> float:
    price = token_price(lm, settings.arguments["prices"] or {})
    if isinstance(price, str):
        return math.nan
    return prompt * price.prompt + min(answer, price.max_tokens or math.inf) * price.completion


def _reflection_cost(settings: Settings, n_shown: float) -> float:
    """Dollars of a call of the reflection LM that is shown so many tokens of examples."""
    lm = settings.reflection_lm or dspy.settings.lm
    return _cost(lm, settings, REFLECTION_TOKENS + n_shown, ADVICE_TOKENS)


def plan_of(settings: RunSettings) -> Plan:
    """The plan of a run within its limits."""
    data, budget, n_kept = settings.data, settings.budget, settings.reserve
    most = (budget.max_metric_calls, budget.max_lm_calls, budget.max_cost)
    n_scores, n_calls, cost = (math.inf if limit is None else limit for limit in most)
    limits = (min(n_scores / data.n_metric_calls, n_calls), n_calls, cost)

    def taken(n_updates: int, n_final: float) -> list[float]:
        return [*map(sum, zip(*_rows(settings, n_updates, n_final).values(), strict=True))]

    def affordable(fixed: list[float], with_one: list[float]) -> float:
        """The number of times that the limits pay for one more beside what is fixed."""
        numbers = zip(limits, fixed, with_one, strict=True)
        return min((max(0.0, (m - a) / (b - a)) for m, a, b in numbers if b > a), default=math.inf)

    n_batches = math.ceil(data.n_training / settings.batch_size)
    every = (settings.drafts > 0) + settings.epochs * n_batches
    n_paid = min(every, affordable(taken(0, n_kept), taken(1, n_kept)))
    n_updates = math.ceil(min(n_paid, FEWEST_UPDATES**0.25 * n_paid**0.75))
    n_validation = data.n_validation if n_kept else 0
    n_first = min(FIRST_ROUND, n_validation)
    n_race = LIKELY_CANDIDATES * n_first + LIKELY_FINALISTS * (n_validation - n_first)
    n_left = max(n_kept, affordable(taken(n_updates, 0), taken(n_updates, 1)))
    n_final = min(n_race, n_left) if settings.measures else n_kept
    rows = [_row(name, each) for name, each in _rows(settings, n_updates, n_final).items()]
    whole = (sum(r.n_rollouts for r in rows), sum(r.n_lm_calls for r in rows))
    in_all = (*whole, taken(n_updates, n_final)[2])
    return Plan(
        rows=(*rows, _row("in all", map(min, in_all, limits))),
        n_updates=n_updates,
        schedule=settings.schedule,
        limits={name: most for name, most in asdict(budget).items() if most is not None},
        has_strategies=bool(settings.strategies),
        unpriced=data.unpriced,
    )


def _rows(settings: RunSettings, n_updates: int, n_final: float) -> dict[str, Taken]:
    """By purpose, what `n_updates` and `n_final` rollouts of the final choice take."""
    data, example = settings.data, settings.data.tokens_of_example
    n_training = n_updates * settings.rollouts_of_update
    n_lessons = math.ceil(settings.batch_size / settings.groups_per_call) * CONTRAST_SHARE
    shown_tokens = min(MOST_SHOWN_TOKENS, example + settings.group_size * data.tokens_of_attempt)
    has_drafts, is_summarized = settings.drafts > 0, settings.reflection.summarize_always
    of_test = "test set, on top of auto" if data.n_test and data.is_test_on_top else "test set"

    def rollouts(n: float) -> Taken:
        return n, n * data.calls_per_rollout, n and n * data.dollars_per_rollout

    def calls(n: float, n_shown: float) -> Taken:
        """Of the reflection LM, each of which is shown so many tokens."""
        return 0, n, n and n * _reflection_cost(settings, n_shown)

    return {
        "student and final choice": rollouts(n_final),
        of_test: rollouts(data.n_of_test_set),
        "training rollouts": rollouts(n_training),
        "briefs": calls(settings.n_briefs * has_drafts, schedules.EXAMPLES_OF_BRIEF * example),
        "drafts from labels": calls(settings.drafts, EXAMPLES_OF_DRAFT * example),
        "summaries": calls(n_training * is_summarized, data.tokens_of_attempt),
        "lessons": calls(n_updates * n_lessons, settings.groups_per_call * shown_tokens),
        "updates of the library": calls(CHANGE_SHARE * (n_updates + has_drafts), ADVICE_TOKENS),
    }


def _row(purpose: str, taken: Iterable[float]) -> PlanRow:
    n_rollouts, n_calls, dollars = taken
    cost = None if math.isnan(dollars) else dollars
    return PlanRow(purpose, math.ceil(n_rollouts - 1e-9), math.ceil(n_calls - 1e-9), cost)
