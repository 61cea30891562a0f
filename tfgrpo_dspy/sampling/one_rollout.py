"""One rollout: running the program on an example, and scoring what comes out."""

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import dspy

from tfgrpo_dspy.budget.faults import is_too_long
from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.budget.meter import Meter, judging, metered
from tfgrpo_dspy.budget.prices import Prices
from tfgrpo_dspy.dspy_seam import (
    Call,
    Unheard,
    demo_keeping_adapter,
    recording,
    replaying_adapter,
    watching,
)
from tfgrpo_dspy.errors import MetricError, RunStopped, described, sentence
from tfgrpo_dspy.experience.programs import copy_program, named_predictors
from tfgrpo_dspy.metric import PredictorTrace, ScoringFunction
from tfgrpo_dspy.rollout import OWN, SEED_RANGE, Failure, FailureKind, Rollout, Step, mean_of
from tfgrpo_dspy.sampling.fields import as_fields, copied_example, with_values
from tfgrpo_dspy.sampling.replay import (
    REPLAY,
    CallRecorder,
    Replay,
    ReplayEndedError,
    Start,
    answer_now,
)
from tfgrpo_dspy.user_code import settled
from tfgrpo_dspy.wording import shortened


@dataclass(frozen=True, slots=True)
class RolloutTask:
    """Everything that one rollout depends on."""

    program: Any  # with its library baked in; it is not changed
    example: dspy.Example
    index: int  # the example's position in its set
    rollout_id: int
    temperature: float | str | None  # None, or `OWN`: that of each LM and predictor
    metric: ScoringFunction | None  # None: there is none
    ledger: Ledger = field(default_factory=Ledger)
    prices: Prices = field(default_factory=dict)
    start: Start | None = None  # the step of another rollout from which it goes on
    asks_predictors: bool = False
    is_training: bool = False
    advice: tuple[str, ...] = ()  # the texts of its library
    calls: dict[str, str] = field(default_factory=dict)  # those that it is in, by their ids
    kept_demos: dict[Any, Any] = field(default_factory=dict)  # the run's messages of demos


def run_rollout(task: RolloutTask) -> Rollout:
    """Run the program on the example, score what comes out, and record all of it.

    Each LM is called through a copy that carries the rollout id (so that no other sample's cached
    answer is replayed) and the temperature. Nothing that another thread uses is touched, and no
    exception of program or metric leaves this room: each becomes a `Failure`. Raises RunStopped:
    the ledger refused a call, whatever the program made of that.
    """
    run = _Run(task)
    with closing(run.tools), run.context():
        prediction, failure = run.execute()
        trace = list(run.tools.trace)
    run.meter.check()
    rollout = Rollout(
        example=task.index,
        rollout_id=task.rollout_id,
        outputs=as_fields(prediction),
        steps=run.steps(trace, failure),
        failure=failure,
        usage=run.meter.usage,
        entropy=mean_of(run.meter.surprisals),
        n_replayed=task.start.n_steps if task.start else None,
        shows_advice=run.meter.shows_advice,
        dearest_call=run.meter.dearest_call,
    )
    if failure or task.metric is None or (task.start and task.start.is_check):
        return rollout
    return replace(rollout, **run.verdict(task.metric, rollout, prediction, trace))


class _Run:
    """The copies of program and LMs that one rollout works on, and what they record."""

    def __init__(self, task: RolloutTask) -> None:
        self.task = task
        self.meter = Meter(task.ledger, task.prices, task.is_training, task.advice)
        is_replayed = task.start is not None and not task.start.answers_now
        self.replay = Replay(task.start, self._name_of) if is_replayed else None  # type: ignore[arg-type]
        self.tools = CallRecorder(self.meter, task.calls, self.replay)
        self.program = copy_program(task.program, self._lm_for_sample)
        self.names: dict[int, str] = {}  # by the id of a predictor, or of its signature
        for name, module in self.program.named_sub_modules():
            module.callbacks = Unheard(getattr(module, "callbacks", []))
            if isinstance(module, dspy.Predict):
                module.config = self._config_for_sample(module.config)
                self.names[id(module)] = name.removeprefix("self.")
        for name, predictor in named_predictors(self.program):
            self.names |= {id(predictor): name, id(predictor.signature): name}

    def _name_of(self, predictor: Any, unknown: str) -> str:
        """The predictor's name; `Refine` and `BestOfN` call copies, which share the signature."""
        by_signature = self.names.get(id(getattr(predictor, "signature", None)), unknown)
        return self.names.get(id(predictor), by_signature)

    def _lm_for_sample(self, lm: Any) -> Any:
        if not isinstance(lm, dspy.BaseLM):
            return lm
        return metered(sampling_copy(lm, self.task.rollout_id, self.task.temperature), self.meter)

    def _config_for_sample(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A predictor's own config would win over its LM's copy; so the sample is set here too."""
        changed = {key: value for key, value in config.items() if key != "rollout_id"}
        if self.task.temperature not in (None, OWN):
            changed.pop("temperature", None)
        elif changed.get("temperature") == 0:
            changed["rollout_id"] = None  # there is only one sample; DSPy warns of an id
        return changed

    def context(self) -> Any:
        adapter = demo_keeping_adapter(dspy.settings.adapter, self.task.kept_demos)
        return dspy.context(
            **{REPLAY: self.replay},
            lm=self._lm_for_sample(dspy.settings.lm),
            adapter=adapter if self.replay is None else replaying_adapter(adapter, self.replay),
            **recording(self.tools.trace),  # the meter reads each call's entry
            **watching(self.tools),
        )

    def execute(self) -> tuple[Any, Failure | None]:
        """The program's outputs, and its failure."""
        prediction, failure, start = None, None, self.task.start
        inputs = copied_example(self.task.example).inputs()
        try:
            if start is not None and start.answers_now:
                prediction = answer_now(self.program, start, inputs)
            else:
                prediction = _called(self.program, inputs)
        except (RunStopped, KeyboardInterrupt):
            raise
        except ReplayEndedError as error:
            failure = Failure(FailureKind.REPLAY, str(error))
        except BaseException as error:  # noqa: BLE001 - it may raise anything; recorded
            self.task.ledger.raised.note(error)
            failure = _failure_of(error)
        if self.replay is not None:
            self.replay.finish(as_fields(prediction), failure)
            failure = self.replay.failure or failure
            prediction = None if self.replay.failure else prediction
        if failure is not None and failure.kind is FailureKind.PARSE and self.meter.last_call:
            cause = _cause_of(self.meter.last_call[1])
            failure = replace(failure, message=f"{cause}{failure.message}")
        return prediction, self.meter.provider_failure or failure

    def steps(self, trace: list[Any], failure: Failure | None) -> tuple[Step, ...]:
        """Predictor and tool calls in their order; an answer that did not parse stands last."""
        calls = [((at, 0), step) for at, step in self.tools.calls.values()]
        for position, (predictor, inputs, outputs) in enumerate(trace):
            name = self._name_of(predictor, type(predictor).__name__)
            texts, entropy = self.tools.trace.noted.get(id(outputs)) or (as_fields(inputs), None)
            step = Step("predictor", name, texts, as_fields(outputs), entropy=entropy)
            calls.append(((position, 1), step))
        steps = [step for _, step in sorted(calls, key=itemgetter(0))]
        if (start := self.task.start) is not None:
            n_again = 0 if start.answers_now else start.n_steps
            steps = [*start.source.steps[: start.n_steps], *steps[n_again:]]
        if failure is not None and failure.kind is FailureKind.PARSE and self.meter.last_call:
            asking, call = self.meter.last_call
            name, outputs = self._name_of(asking, "predictor"), {"unparsed answer": call.text}
            steps.append(Step("predictor", name, {"prompt": call.prompt}, outputs, failure.message))
        return tuple(steps)

    def verdict(
        self, metric: ScoringFunction, rollout: Rollout, prediction: Any, trace: list[Any]
    ) -> dict[str, Any]:
        """What scoring adds to the rollout; an LM judge runs on the user's own LM, as it is set."""
        task, score, failure, n_calls = self.task, None, None, 0
        meter = Meter(task.ledger, task.prices, task.is_training)
        calls: dict[str, PredictorTrace] = {}  # of each predictor that the metric is asked about
        if metric.asks_predictors and task.asks_predictors:
            names = {name for name, _ in named_predictors(self.program)}
            for call in trace:
                if (name := self._name_of(call[0], "")) in names:
                    calls.setdefault(name, []).append(call)
        feedback: dict[str, str] = {}

        def asked(ask: Callable[..., Any], *about: Any) -> Any:
            nonlocal n_calls
            task.ledger.take_metric_call()
            n_calls += 1
            task.calls["metric"] = "the metric"
            try:
                return ask(*about, copied_example(task.example), prediction, trace)
            finally:
                del task.calls["metric"]

        meter.check()
        try:
            with judging(meter):
                score = asked(metric)
                for name, of_predictor in calls.items():
                    feedback[name] = asked(metric.feedback_on, name, of_predictor)
        except MetricError as error:
            task.ledger.raised.note(error.__cause__ or error)
            is_providers = _failure_of(error.__cause__ or error).kind is FailureKind.PROVIDER
            kind = FailureKind.PROVIDER if is_providers else FailureKind.METRIC
            failure = Failure(kind, str(error))
        meter.check()
        if (
            hidden := meter.provider_failure
        ):  # where the metric hid it, what it returned is no score
            message = f"the metric's LM failed: {hidden.message}"
            failure = replace(hidden, message=message, refuses_prompt=False)
        steps = list(rollout.steps)
        for k in reversed(range(len(steps))):  # the last call of each predictor
            text = feedback.pop(steps[k].name, "") if steps[k].kind == "predictor" else ""
            if text and not (score and text == score.feedback):  # that on the whole is not repeated
                text = with_values(text, task.example, prediction)
                steps[k] = replace(steps[k], feedback=text)
        added = {
            "n_metric_calls": n_calls,
            "metric_usage": meter.usage,
            "dearest_call": max(rollout.dearest_call, meter.dearest_call),
            "steps": tuple(steps),
            "failure": failure,
        }
        if score is not None and failure is None:
            words = with_values(score.feedback, task.example, prediction)
            added |= {"score": score.value, "feedback": words, "objectives": score.objectives}
        return added


def _cause_of(call: Call) -> str:
    """The reason that the answer of a call did not parse, as far as the answer says."""
    if call.refusal:
        return f"The LM refused to answer: {sentence(shortened(call.refusal, 200))} "
    if call.is_filtered:
        return "A content filter of the provider held the answer back. "
    return "The answer was cut off at max_tokens. " if call.is_cut else ""


def _called(program: Any, inputs: Mapping[str, Any]) -> Any:
    """The program's prediction; one with `aforward` only, or that awaits, runs in an event loop."""
    forward = inspect.getattr_static(program, "forward", None)
    if getattr(forward, "__module__", "") == dspy.syncify.__module__:  # it would run a loop itself
        program, forward = getattr(program, "program", program), None
    return settled(program.acall(**inputs) if forward is None else program(**inputs))


def _failure_of(error: BaseException) -> Failure:
    if isinstance(error, dspy.AdapterParseError):
        return Failure(FailureKind.PARSE, str(error).strip())
    if isinstance(error, dspy.LMError) and is_too_long(error):
        return Failure(FailureKind.PROGRAM, f"The prompt was too long for the LM: {error}")
    is_providers = isinstance(error, dspy.LMError)
    return Failure(FailureKind.PROVIDER if is_providers else FailureKind.PROGRAM, described(error))


def allows_temperature(lm: Any, temperature: Any) -> bool:
    """True if DSPy would build this LM with that temperature; reasoning models allow none."""
    if temperature in (None, OWN) or not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return True
    return _can_be_built(lm.model, lm.model_type, temperature)


@functools.cache
def _can_be_built(model: str, model_type: Any, temperature: float) -> bool:
    try:
        dspy.LM(model, model_type=model_type, temperature=temperature)
    except dspy.LMConfigurationError:
        return False
    return True


def sampling_copy(lm: Any, rollout_id: int, temperature: float | str | None) -> Any:
    """A copy of the LM for one sample; `temperature` None or `OWN` leaves it at its own.

    `rollout_id` is part of DSPy's cache key only; an engine object is given a seed besides,
    and so is an LM to which its user gave one. At temperature 0 there is only one sample.
    """
    changes: dict[str, Any] = {}
    if temperature not in (None, OWN) and allows_temperature(lm, temperature):
        changes["temperature"] = temperature
    if {**getattr(lm, "kwargs", {}), **changes}.get("temperature") != 0:
        changes["rollout_id"] = rollout_id
        has_engine_object = not isinstance(getattr(lm, "engine", "none"), str)
        if has_engine_object or lm.kwargs.get("seed") is not None:
            changes["seed"] = rollout_id % SEED_RANGE
    return lm.copy(**changes)
