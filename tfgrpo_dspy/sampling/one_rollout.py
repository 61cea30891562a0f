"""One rollout: running the program on an example, and scoring what comes out.

Its steps are noted as DSPy tells of them. A rollout that goes on from a step of another one runs
the program again: before that step, the recorded outputs of predictors are fed back, and no LM is
called. Tools are called again, and must give what they gave; those that are `replay_only` have the
recorded result. Each call is verified: its name and its inputs must be those of the record.
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import dspy

from tfgrpo_dspy import dspy_seam, rollout
from tfgrpo_dspy.budget import Ledger, Prices
from tfgrpo_dspy.budget.meter import CallWatcher, Meter, is_too_long, judging, metered
from tfgrpo_dspy.errors import CallSparedError, MetricError, RunStopped, described, sentence
from tfgrpo_dspy.rollout import OWN, Failure, FailureKind, Rollout, ScoringFunction, Step, mean_of
from tfgrpo_dspy.sampling import examples
from tfgrpo_dspy.sampling.examples import as_fields, as_text, copied_example, parsed, with_values
from tfgrpo_dspy.text import shortened
from tfgrpo_dspy.user_code import copy_program, in_loop, named_predictors, settled, without_partials

REPLAY = "tfgrpo_replay"
"""Under this name DSPy's settings hold the `_Recorder` of the rollout that is being made."""
MARK = "tfgrpo_replay_only"
_CALL_ID = re.compile(r'"call_id": "[^"]*"')  # which providers give to calls of tools


def replay_only(tool: Any) -> Any:
    """Mark a function, a method or a `dspy.Tool` that has side effects; use what this gives back.

    A rollout that goes on from a step of another one never calls it, wherever it is called from. A
    tool is given the result that the other rollout got for the same arguments; if there is none, or
    if the function is called without a tool, the rollout ends, with no score.
    """
    if isinstance(tool, dspy.Tool):
        tool.func = replay_only(tool.func)
        return tool
    is_object = not (inspect.isroutine(tool) or isinstance(tool, functools.partial))

    @functools.wraps(tool.__call__ if is_object else tool)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        replay: _Recorder | None = dspy.settings.get(REPLAY)
        if replay is not None:
            why = "is replay_only, and is called by another way than its tool"
            raise replay.fail(f"tool {guarded.__name__!r} {why}", FailureKind.STOPPED)
        return tool(*args, **kwargs)

    if is_object:  # DSPy names its tool by the class
        guarded.__name__ = type(tool).__name__
    setattr(guarded, MARK, True)
    return guarded


@dataclass(frozen=True, slots=True)
class Start:
    """The place to go on from: after the first `n_steps` steps of the rollout `source`.

    With `answers_now`, the LM is asked for the outputs at once, in place of the program.
    """

    source: Rollout
    n_steps: int
    answers_now: bool = False


class ReplayEndedError(CallSparedError):
    """Ends a rollout, whatever the program catches."""


class _Trace(list[Any]):
    """DSPy's trace, which tells `note` of each call, and whether the program made it itself."""

    def __init__(self, note: Callable[[Any, bool], None]) -> None:
        super().__init__()
        self._note = note

    def append(self, call: Any) -> None:
        self._note(call, True)
        super().append(call)

    def extend(self, calls: Any) -> None:  # what Refine has traced elsewhere
        for call in calls:
            self._note(call, False)
        super().extend(calls)


class _Dispatcher:
    """Stands in a tool for its function: async ones run in the loop, a replay has some results."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.n_users = 0

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        replay: _Recorder | None = dspy.settings.get(REPLAY)
        if replay is not None and hasattr(without_partials(self.function), MARK):
            return replay.result(arguments)
        result = self.function(*args, **arguments)
        return in_loop(result) if inspect.iscoroutine(result) else result


class _Recorder(CallWatcher):
    """Notes the steps of a rollout as DSPy tells of them; of a replay, it verifies each call.

    `failure` says why a replay ended, if it did. Calls of tools and LMs that have begun, and not
    ended, are in `begun`. The tools that the rollout calls, wherever it takes them from, hold a
    dispatcher until it is closed.
    """

    def __init__(self, meter: Meter, start: Start | None) -> None:
        super().__init__(meter)
        self.names: dict[int, str] = {}  # by the id of a predictor, or of its signature
        self.steps, self.trace = list[Step](), _Trace(self._note_step)
        self.failure: Failure | None = None
        self._surprisals, self._n_seen, self._begun = meter.surprisals, 0, meter.begun
        self._every = start.source.steps if start else ()
        self._left = [*self._every[: start.n_steps]] if start else []
        self._tools: dict[str, tuple[int, Step | None]] = {}  # place and record, by the call's id
        self._changed: list[dspy.Tool] = []  # tools that hold a dispatcher

    def name_of(self, predictor: Any, unknown: str) -> str:
        """The predictor's name; `Refine` and `BestOfN` call copies, which share the signature."""
        by_signature = self.names.get(id(getattr(predictor, "signature", None)), unknown)
        return self.names.get(id(predictor), by_signature)

    def _note_step(self, call: Any, is_own: bool) -> None:
        predictor, inputs, outputs = call
        name = self.name_of(predictor, type(predictor).__name__)
        entropy = mean_of(self._surprisals[self._n_seen :]) if is_own else None
        step = Step("predictor", name, as_fields(inputs), as_fields(outputs), entropy=entropy)
        self.steps.append(step)
        self._n_seen = len(self._surprisals)

    def fail(self, why: str, kind: FailureKind = FailureKind.REPLAY) -> ReplayEndedError:
        """The error that ends the rollout, whose failure this is, unless it has one."""
        self.failure = self.failure or Failure(kind, why)
        return ReplayEndedError(self.failure.message)

    def finish(self) -> Failure | None:
        """The reason that a replay has failed; it must have made all calls of the record."""
        if self._left:
            self.fail(f"the program ends {len(self._left)} steps before its record")
        return self.failure

    def _recorded(self, kind: str, name: str, inputs: Mapping[str, str]) -> Step | None:
        """The record of a call that is made now, once it is verified; None: it is fresh.

        Raises ReplayEndedError: the record has another call, or the rollout has ended.
        """
        if self.failure is not None:
            raise ReplayEndedError(self.failure.message)
        if not self._left:
            return None
        step = self._left.pop(0)
        if (step.kind, step.name) != (kind, name):
            raise self.fail(f"{kind} {name!r} is called, and it was {step.kind} {step.name!r}")
        was, now = ({n: _CALL_ID.sub("", text) for n, text in each.items()}
                    for each in (step.inputs, inputs))  # fmt: skip
        if changed := [n for n in {**was, **now} if was.get(n) != now.get(n)]:
            raise self.fail(f"{kind} {name!r}: its {changed[0]!r} is another now")
        return step

    def outputs(self, signature: Any, inputs: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The recorded outputs of the predictor that is called now; None: the call is fresh."""
        module = dspy_seam.caller()
        name = self.name_of(module, type(module).__name__)
        if (step := self._recorded("predictor", name, as_fields(inputs))) is None:
            return None
        fields = signature.output_fields.items()
        try:
            return [{name: parsed(step.outputs[name], info.annotation) for name, info in fields}]
        except (KeyError, ValueError) as error:
            raise self.fail(f"the outputs of {name!r} cannot be read back ({error})") from error

    def result(self, arguments: Mapping[str, Any]) -> Any:
        """The recorded result of the `replay_only` tool that is called now, for these arguments."""
        place, step = self._tools.get(dspy_seam.ACTIVE_CALL_ID.get() or "", (None, None))
        name = "" if place is None else self.steps[place].name
        call = ("tool", name, as_fields(arguments))
        step = step or next((s for s in self._every if (s.kind, s.name, s.inputs) == call), None)
        if step is None:
            why = "is replay_only, and has no result for these arguments"
            raise self.fail(f"tool {name!r} {why}", FailureKind.STOPPED)
        if step.error or step.form == "other":
            raise self.fail(f"tool {name!r} is replay_only, and its result cannot be given again")
        text = step.outputs.get("result", "")
        return _value(text) if step.form == "json" else text

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        name, arguments = str(instance.name), as_fields(inputs.get("kwargs", inputs))
        self._tools[call_id] = len(self.steps), self._recorded("tool", name, arguments)
        self._begun[call_id] = f"tool {name!r}"
        self.steps.append(Step("tool", name, arguments, {}))
        with dspy.settings.lock:
            if not isinstance(instance.func, _Dispatcher):
                vars(instance)["func"] = _Dispatcher(instance.func)
            instance.func.n_users += 1
            self._changed.append(instance)

    def on_tool_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self._begun.pop(call_id, None)
        place, before = self._tools[call_id]
        step = self.steps[place]
        if exception is not None:
            step = replace(step, error=f"{type(exception).__name__}: {exception}")
        else:
            form: Literal["text", "json", "other"] = "text" if isinstance(outputs, str) else "other"
            text = as_text(outputs)
            with suppress(TypeError, ValueError):
                if form == "other" and _value(text) == outputs and as_text(_value(text)) == text:
                    form = "json"
            step = replace(step, outputs={"result": text}, form=form)
        self.steps[place] = step
        if before is not None and (step.outputs, step.error) != (before.outputs, before.error):
            self.fail(f"tool {step.name!r} gives another result for the same arguments")

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if self._left:  # before it pays for a call that it was to be spared
            how = "that is no call of a predictor through the adapter of the run"
            raise self.fail(f"the program calls an LM again: {how}")
        super().on_lm_start(call_id, instance, inputs)

    def close(self) -> None:
        """Give the tools their functions back, unless another rollout needs the dispatchers."""
        del self.trace  # each holds the other
        with dspy.settings.lock:
            for tool in self._changed:
                tool.func.n_users -= 1
                if not tool.func.n_users:
                    vars(tool)["func"] = tool.func.function


def answer_now(program: Any, start: Start, /, **inputs: Any) -> Any:
    """The answer of the program's LM if it is asked for the outputs at once, without reasoning.

    It is asked under the instructions of the predictor that gives the outputs, and shown the steps
    so far. Raises ReplayEndedError: no predictor gives all outputs.
    """
    wanted = [name for name in start.source.outputs if name not in rollout.WAYS_TO_AN_ANSWER]
    giving = (predictor for _, predictor in reversed(named_predictors(program))
              if wanted and set(wanted) <= set(predictor.signature.output_fields))  # fmt: skip
    if (predictor := next(giving, None)) is None:
        raise ReplayEndedError(f"no predictor of the program gives all outputs {wanted}")
    taken, fields = predictor.signature.input_fields, predictor.signature.output_fields
    types = {name: (taken[name].annotation if name in taken else type(value), dspy.InputField())
             for name, value in inputs.items()}  # fmt: skip
    types["steps_so_far"] = (str, dspy.InputField(desc="what was done and found out until now"))
    types |= {name: (fields[name].annotation, dspy.OutputField()) for name in wanted}
    asked = dspy.Predict(dspy.Signature(types, predictor.signature.instructions))
    asked.lm, asked.config = predictor.lm, predictor.config
    steps = Rollout(start.source.example, 0, steps=start.source.steps[: start.n_steps])
    return asked(**inputs, steps_so_far=rollout.trajectory_text(steps) or "(nothing yet)")


def decision(outputs: Mapping[str, str]) -> dict[str, str]:
    """The outputs of a step without the reasoning that led to them."""
    decided = {name: text for name, text in outputs.items() if name not in rollout.REASONING}
    return decided or dict(outputs)


def _value(text: str) -> Any:
    singletons = {"None": None, "True": True, "False": False}
    return singletons[text] if text in singletons else json.loads(text)


@dataclass(frozen=True, slots=True)
class RolloutTask:
    """Everything that one rollout depends on."""

    program: Any  # it is not changed
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
    additions: examples.Additions | None = None  # to the program; None: they are baked into it
    calls: dict[str, str] = field(default_factory=dict)  # those that it is in, by their ids
    kept_demos: dict[Any, Any] = field(default_factory=dict)  # the run's messages of demos


def run_rollout(task: RolloutTask) -> Rollout:
    """Run the program on the example, score what comes out, and record all of it.

    Each LM is called through a copy that carries the rollout id (so that no other sample's cached
    answer is replayed) and the temperature. Nothing that another thread uses is touched, and no
    exception of program or metric leaves this room: each becomes a `Failure`. Raises RunStopped:
    the ledger refused a call, whatever the program made of that.
    """
    run, prediction, failure = _Run(task), None, None
    inputs, meter, start = copied_example(task.example).inputs(), run.meter, task.start
    with closing(run.recorder), run.context():
        try:
            prediction = settled(run.called(**inputs))
        except (RunStopped, KeyboardInterrupt):
            raise
        except ReplayEndedError as error:
            failure = Failure(FailureKind.REPLAY, str(error))
        except BaseException as error:  # noqa: BLE001 - it may raise anything; recorded
            task.ledger.raised.append(error)
            failure = _failure_of(error)
        if run.recorder.finish() is not None:
            prediction, failure = None, run.recorder.failure
        failure = run.explained(meter.provider_failure or failure)
        trace, steps = list(run.recorder.trace), run.recorder.steps
    meter.check()
    if start is not None:
        n_again = 0 if start.answers_now else start.n_steps
        steps = [*start.source.steps[: start.n_steps], *steps[n_again:]]
    result = Rollout(
        example=task.index, rollout_id=task.rollout_id, outputs=as_fields(prediction),
        steps=tuple(steps), failure=failure, usage=meter.usage,
        entropy=mean_of(meter.surprisals), n_replayed=start.n_steps if start else None,
        shows_advice=meter.shows_advice,
    )  # fmt: skip
    if failure or task.metric is None:
        return result
    return run.scored(task.metric, result, prediction, trace)


class _Run:
    def __init__(self, task: RolloutTask) -> None:
        self.task = task
        start = task.start if task.start and not task.start.answers_now else None
        added, advice = task.additions, list[str]()
        if added:
            advice = [*[each.text for each in added.library], *dict(added.library.briefs).values()]
        self.meter = Meter(task.ledger, task.prices, task.is_training, advice, task.calls)
        self.recorder = _Recorder(self.meter, start)
        names = self.recorder.names
        self.replay = self.recorder if start else None
        self.program = (added.bake if added else copy_program)(task.program, self._lm_for_sample)
        for name, module in self.program.named_sub_modules():
            module.callbacks = dspy_seam.Unheard(getattr(module, "callbacks", []))
            if isinstance(module, dspy.Predict):
                names[id(module)] = name.removeprefix("self.")
                # its own config would win over its LM's copy
                config = {key: x for key, x in module.config.items() if key != "rollout_id"}
                if task.temperature not in (None, OWN):
                    config.pop("temperature", None)
                elif config.get("temperature") == 0:
                    config["rollout_id"] = None  # there is only one sample; DSPy warns of an id
                module.config = config
        self.predictors = dict(named_predictors(self.program))
        for name, predictor in self.predictors.items():
            names |= {id(predictor): name, id(predictor.signature): name}

    def _lm_for_sample(self, lm: Any) -> Any:
        if not isinstance(lm, dspy.BaseLM):
            return lm
        lm = metered(sampling_copy(lm, self.task.rollout_id, self.task.temperature), self.meter)
        lm.callbacks = [*lm.callbacks] if self.replay else lm.callbacks  # a replay spares its calls
        return lm

    def context(self) -> Any:
        """The settings of DSPy under which the program runs."""
        adapter = dspy_seam.demo_keeping_adapter(dspy.settings.adapter, self.task.kept_demos)
        if self.replay is not None:
            adapter = dspy_seam.replaying_adapter(adapter, self.replay)
        return dspy.context(
            **{REPLAY: self.replay},
            lm=self._lm_for_sample(dspy.settings.lm),
            adapter=adapter,
            **dspy_seam.recording(self.recorder.trace),  # the meter reads each call's entry
            **dspy_seam.watching(self.recorder),
        )

    @property
    def called(self) -> Callable[..., Any]:
        """The program, or what else gives the outputs for the inputs; async code may be awaited."""
        start, program = self.task.start, self.program
        if start is not None and start.answers_now:
            return functools.partial(answer_now, program, start)
        forward = inspect.getattr_static(program, "forward", None)
        if getattr(forward, "__module__", "") == dspy.syncify.__module__:  # it would run a loop
            program, forward = getattr(program, "program", program), None
        return program.acall if forward is None else program  # type: ignore[no-any-return]

    def explained(self, failure: Failure | None) -> Failure | None:
        """The failure; why an answer did not parse, which becomes the last step."""
        if failure is None or failure.kind is not FailureKind.PARSE or not self.meter.last_call:
            return failure
        asking, call = self.meter.last_call
        cause = "The answer was cut off at max_tokens. " if call.is_cut else ""
        if call.refusal:
            cause = f"The LM refused to answer: {sentence(shortened(call.refusal, 200))} "
        elif call.is_filtered:
            cause = "A content filter of the provider held the answer back. "
        failure = replace(failure, message=f"{cause}{failure.message}")
        name, outputs = self.recorder.name_of(asking, "predictor"), {"unparsed answer": call.text}
        unread = Step("predictor", name, {"prompt": call.prompt}, outputs, failure.message)
        self.recorder.steps.append(unread)
        return failure

    def scored(
        self, metric: ScoringFunction, result: Rollout, prediction: Any, trace: list[Any]
    ) -> Rollout:
        """The rollout with its score; an LM judge runs on the user's own LM, as it is set."""
        task, score, failure, n_calls = self.task, None, None, 0
        meter, feedback = Meter(task.ledger, task.prices, task.is_training), dict[str, str]()
        calls = dict[str, list[Any]]()  # of each predictor that the metric is asked about
        for call in trace if metric.asks_predictors and task.asks_predictors else ():
            if (name := self.recorder.name_of(call[0], "")) in self.predictors:
                calls.setdefault(name, []).append(call)

        def asked(ask: Callable[..., Any], *about: Any) -> Any:
            nonlocal n_calls
            task.ledger.take_metric_call()
            n_calls += 1
            task.calls["metric"] = "the metric"
            try:
                return ask(*about, copied_example(task.example), prediction, trace)
            finally:
                del task.calls["metric"]

        try:
            with judging(meter):
                score = asked(metric)
                for name, of_predictor in calls.items():
                    feedback[name] = asked(metric.feedback_on, name, of_predictor)
        except MetricError as error:
            cause = error.__cause__ or error
            task.ledger.raised.append(cause)
            is_providers = _failure_of(cause).kind is FailureKind.PROVIDER
            kind = FailureKind.PROVIDER if is_providers else FailureKind.METRIC
            failure = Failure(kind, str(error))
        meter.check()
        if hidden := meter.provider_failure:  # what the metric returned all the same is no score
            failure = replace(hidden, message=f"the metric's LM failed: {hidden.message}")
        steps = list(result.steps)
        for k in reversed(range(len(steps))):  # the last call of each predictor
            text = feedback.pop(steps[k].name, "") if steps[k].kind == "predictor" else ""
            if text and not (score and text == score.feedback):  # that on the whole is not repeated
                text = with_values(text, task.example, prediction)
                steps[k] = replace(steps[k], feedback=text)
        measured: dict[str, Any] = {"n_metric_calls": n_calls, "metric_usage": meter.usage}
        if score is not None and failure is None:
            words = with_values(score.feedback, task.example, prediction)
            measured |= {"score": score.value, "feedback": words, "objectives": score.objectives}
        return replace(result, steps=tuple(steps), failure=failure, **measured)


def _failure_of(error: BaseException) -> Failure:
    if isinstance(error, dspy.AdapterParseError):
        return Failure(FailureKind.PARSE, str(error).strip())
    if not isinstance(error, dspy.LMError):
        return Failure(FailureKind.PROGRAM, described(error))
    if is_too_long(error):
        return Failure(FailureKind.PROGRAM, f"The prompt was too long for the LM: {error}")
    return Failure(FailureKind.PROVIDER, described(error))


def allows_temperature(lm: Any, temperature: Any) -> bool:
    """True if DSPy would build this LM with that temperature; reasoning models allow none."""
    if temperature not in (None, OWN) and isinstance(lm, dspy.LM) and isinstance(lm.engine, str):
        try:
            dspy.LM(lm.model, model_type=lm.model_type, temperature=temperature)
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
            changes["seed"] = rollout_id % rollout.SEED_RANGE
    return lm.copy(**changes)
