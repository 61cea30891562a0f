"""Notes the steps of a rollout as DSPy tells of them; feeds those of another one back up to a step.

The program runs again, but the recorded outputs of predictors and results of tools are fed back, so
nothing before the step costs a call of an LM or a tool. Each call is verified: its name and its
inputs must be those of the record. Calls of functions that are no `dspy.Tool` are not recorded; the
program makes them again, unless they are `replay_only`.
"""

import builtins
import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import dspy

from tfgrpo_dspy.budget.meter import CallWatcher, Meter
from tfgrpo_dspy.dspy_seam import ACTIVE_CALL_ID, caller
from tfgrpo_dspy.errors import CallSparedError, NotReplayedError
from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.rollout import (
    REASONING,
    WAYS_TO_AN_ANSWER,
    Failure,
    FailureKind,
    Rollout,
    Step,
    mean_of,
    trajectory_text,
)
from tfgrpo_dspy.sampling.fields import as_fields, as_text, parsed
from tfgrpo_dspy.user_code import in_loop, without_partials

REPLAY = "tfgrpo_replay"
"""Under this name DSPy's settings hold the `Replay` of the rollout that is being made."""
MARK = "tfgrpo_replay_only"
_BLAMES = r"During handling of the above exception|The above exception was the direct cause"
_PASSING = re.compile(
    rf"Traceback \(most recent (?:(?!Traceback \(most).)*?\n\n(?:{_BLAMES})[^\n]*\n\n"
    r'|"call_id": "[^"]*"'
    r"|^ {2}File \"[^\n]*\", line \d+, in [^\n]*\n(?:^ {4}[^\n]*\n)*|^(?:\w+\.)+(?=\w+: )",
    re.MULTILINE | re.DOTALL,
)
"""Parts of texts that differ from run to run: in a traceback all before its last error, frames and
the module of the error's class; the ids that providers give to calls of tools."""


def replay_only(tool: Any) -> Any:
    """Mark a function, a method or a `dspy.Tool` that has side effects; use what this gives back.

    A rollout that goes on from a step of another one never calls it, wherever it is called from. A
    tool is given the result that the other rollout got for the same arguments; if there is none, or
    if the function is called without a tool, the rollout ends, with no score.
    """
    if isinstance(tool, dspy.Tool):
        tool.func = replay_only(tool.func)
        return tool
    if isinstance(tool, staticmethod | classmethod):
        return type(tool)(replay_only(tool.__func__))
    is_object = not (inspect.isroutine(tool) or isinstance(tool, functools.partial))

    @functools.wraps(tool.__call__ if is_object else tool)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        replay: Replay | None = dspy.settings.get(REPLAY)
        if replay is not None:
            why = "is replay_only, and is called by another way than its tool"
            replay.refuse(f"tool {guarded.__name__!r} {why}")
        return tool(*args, **kwargs)

    if is_object:  # DSPy names its tool by the class
        guarded.__name__ = type(tool).__name__
    setattr(guarded, MARK, True)
    return guarded


@dataclass(frozen=True, slots=True)
class Start:
    """The place to go on from: after the first `n_steps` steps of the rollout `source`.

    With `answers_now`, the LM is asked for the outputs at once, in place of the program. With
    `ends_if_same`, the rollout ends if its first fresh step decides as the source did. After all
    steps of the source nothing is fresh: the outputs must be those of the source. The tool of the
    step `called` (-1: none) is called all the same, to find out whether its result depends on calls
    that were only fed back.
    """

    source: Rollout
    n_steps: int
    answers_now: bool = False
    ends_if_same: bool = False
    called: int = -1

    @property
    def is_check(self) -> bool:
        """True if all steps are replayed, to verify the record."""
        return self.n_steps == len(self.source.steps) and not self.answers_now


def checks(rollout: Rollout) -> list[Start]:
    """The starts that verify that a rollout repeats. Raises NotReplayedError: its tools do not."""
    first: dict[tuple[object, ...], int] = {}
    for k, step in enumerate(rollout.steps):
        if step.kind == "tool":
            before = rollout.steps[first.setdefault((step.name, *sorted(step.inputs.items())), k)]
            if (before.outputs, before.error) != (step.outputs, step.error):
                raise NotReplayedError(_unlike(step.name))
    return [Start(rollout, len(rollout.steps), called=k) for k in (-1, *first.values())]


def _unlike(name: str) -> str:
    why = "its results depend on earlier calls, or on time"
    return f"tool {name!r} gives another result for the same arguments: {why}"


class ReplayEndedError(CallSparedError):
    """Ends a rollout, whatever the program catches."""


class Replay:
    """Feeds the record back to one run of the program; `failure` says why that ended, if it did."""

    def __init__(self, start: Start, name_of: Callable[[Any, str], str]) -> None:
        self.start = start
        self.failure: Failure | None = None
        self._name_of = name_of
        self._n_fed = 0
        self._tools: dict[str, tuple[str, Step | None, bool]] = {}
        """By the id of a call, the tool, its record, and whether it is called all the same."""
        self._is_compared = False  # whether the first fresh step was

    def _end(self, why: str, kind: FailureKind = FailureKind.REPLAY) -> None:
        self.failure = self.failure or Failure(kind, why)

    def refuse(self, why: str, kind: FailureKind = FailureKind.STOPPED) -> NoReturn:
        """Raises ReplayEndedError: the rollout ends."""
        self._end(why, kind)
        raise ReplayEndedError(why)

    def _go_on(self) -> None:
        """Raises ReplayEndedError: the rollout has ended."""
        if self.failure is not None:
            raise ReplayEndedError(self.failure.message)

    def _next(self, kind: str, name: str, inputs: Mapping[str, str]) -> Step | None:
        """The record of a call that is made now, once it is verified; None: it is fresh."""
        if self._n_fed == self.start.n_steps:
            if self.start.is_check:
                self._end(f"the program goes on with {kind} {name!r}, where it had ended")
            return None
        step = self.start.source.steps[self._n_fed]
        self._n_fed += 1
        was, now = ({n: _PASSING.sub("", t) for n, t in each.items()}
                    for each in (step.inputs, inputs))  # fmt: skip
        changed = [n for n in {**was, **now} if was.get(n) != now.get(n)]
        if (step.kind, step.name) != (kind, name):
            self._end(f"step {self._n_fed} is {kind} {name!r}, and was {step.kind} {step.name!r}")
        elif step.error and kind == "predictor":  # its answer could not be read: that ended it
            self.failure = self.start.source.failure
        elif changed:
            self._end(f"step {self._n_fed}, {kind} {name!r}: its {changed[0]!r} is another now")
        return step

    def outputs(self, signature: Any, inputs: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The recorded outputs of the predictor that is called now; None: the call is fresh."""
        self._go_on()
        module = caller()
        step = self._next(
            "predictor", self._name_of(module, type(module).__name__), as_fields(inputs)
        )
        self._go_on()
        if step is None:
            return None
        fields = signature.output_fields.items()
        try:
            return [{name: parsed(step.outputs[name], info.annotation) for name, info in fields}]
        except (KeyError, ValueError) as error:
            why = f"step {self._n_fed}: its outputs cannot be read back ({error})"
            self.refuse(why, FailureKind.REPLAY)

    def look_at(self, values: list[dict[str, Any]]) -> None:
        """End the rollout if it `ends_if_same`, and its first fresh step decides as before."""
        if self.start.ends_if_same and not self._is_compared:
            self._is_compared = True
            before = self.start.source.steps[self.start.n_steps]
            if decision(before.outputs) == decision(as_fields(values[0])):
                self.refuse("its first fresh step is that of the other rollout")

    def lm_called(self) -> None:
        """End the rollout before it pays for a call that it was to be spared."""
        if self.start.is_check or self._n_fed < self.start.n_steps:
            again = f"the program calls an LM in step {self._n_fed + 1} again"
            why = f"{again}: that is no call of a predictor through the adapter of the run"
            self.refuse(why, FailureKind.REPLAY)

    def tool_called(self, call_id: str, name: str, inputs: Mapping[str, str]) -> None:
        """Note which tool is called."""
        is_called = self._n_fed == self.start.called
        self._tools[call_id] = name, self._next("tool", name, inputs), is_called

    def result(self, function: Any, arguments: Mapping[str, Any]) -> Any:
        """The result of the tool that is called now: from the record, or from its function."""
        self._go_on()
        name, step, is_called = self._tools.get(ACTIVE_CALL_ID.get() or "", ("", None, True))
        is_marked = hasattr(without_partials(function), MARK)
        if step is None and is_marked:
            wanted = ("tool", name, as_fields(arguments))
            steps = self.start.source.steps
            step = next((s for s in steps if (s.kind, s.name, s.inputs) == wanted), None)
            if step is None:
                self.refuse(f"tool {name!r} is replay_only, and has no result for these arguments")
        if step is None or (is_called and not is_marked):
            return function(**arguments)
        if step.error:
            raise _error(step.error)
        if step.form == "other":
            self.refuse(f"tool {name!r}: its result is no JSON", FailureKind.REPLAY)
        text = step.outputs.get("result", "")
        return _value(text) if step.form == "json" else text

    def tool_ended(self, call_id: str, now: Step) -> None:
        """Compare what a tool gave with what it had given, where it was called to find out."""
        _, before, is_called = self._tools[call_id]
        is_same = before is None or (now.outputs, now.error) == (before.outputs, before.error)
        if is_called and not is_same:
            self._end(_unlike(now.name))

    def finish(self, outputs: Mapping[str, str], failure: Failure | None) -> None:
        """Verify how the program ends, and that it made all calls of the record."""
        source = self.start.source
        if self._n_fed < self.start.n_steps:
            self._end(f"the program ends after {self._n_fed} of {self.start.n_steps} steps")
        if self.start.is_check:
            failed, had_failed = (each.kind if each and each.kind.is_programs_own else ""
                                  for each in (failure, source.failure))  # fmt: skip
            is_same = bool(failed) or decision(outputs) == decision(source.outputs)
            if failed != had_failed or not is_same:
                self._end("the program returns something else after the same steps")


class _Trace(list[Any]):
    """DSPy's trace; of each answer, the inputs as they were at the call, and its entropy."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.noted: dict[int, tuple[dict[str, str], float | None]] = {}  # by the outputs' id
        self._surprisals, self._n_seen = meter.surprisals, 0

    def append(self, call: Any) -> None:
        _, inputs, outputs = call
        self.noted[id(outputs)] = as_fields(inputs), mean_of(self._surprisals[self._n_seen :])
        self._n_seen = len(self._surprisals)
        super().append(call)

    def extend(self, calls: Any) -> None:  # what Refine has traced elsewhere
        self._n_seen = len(self._surprisals)
        super().extend(calls)


class _Dispatcher:
    """Stands in a tool for its function: async ones run in the loop, a replay has the results."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.n_users = 0

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        replay: Replay | None = dspy.settings.get(REPLAY)
        function = self.function
        result = (
            function(*args, **arguments) if replay is None else replay.result(function, arguments)
        )
        return in_loop(result) if inspect.iscoroutine(result) else result


class CallRecorder(CallWatcher):
    """The tool calls of one rollout, each with how many predictor calls were answered before it.

    Calls of tools and LMs that have begun, and not ended, are in `begun`. The tools that the
    rollout calls, wherever it takes them from, hold a dispatcher until it is closed. `replay`:
    where the rollout goes on from a step of another one.
    """

    def __init__(self, meter: Meter, begun: dict[str, str], replay: Replay | None = None) -> None:
        super().__init__(meter)
        self.trace = _Trace(meter)
        self.calls: dict[str, tuple[int, Step]] = {}
        self._begun, self._replay = begun, replay
        self._changed: list[dspy.Tool] = []  # tools that hold a dispatcher

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Begin the record of the call, and change the tool before its function is called."""
        name, arguments = str(instance.name), as_fields(inputs.get("kwargs", inputs))
        if self._replay is not None:
            self._replay.tool_called(call_id, name, arguments)
        self._begun[call_id] = f"tool {name!r}"
        self.calls[call_id] = (len(self.trace), Step("tool", name, arguments, {}))
        with dspy.settings.lock:
            if not isinstance(instance.func, _Dispatcher):
                vars(instance)["func"] = _Dispatcher(instance.func)
            instance.func.n_users += 1
            self._changed.append(instance)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that the call has begun, and count it. Raises RunStopped."""
        if self._replay is not None:
            self._replay.lm_called()
        self._begun[call_id] = f"a call of {getattr(instance, 'model', 'an LM')}"
        super().on_lm_start(call_id, instance, inputs)

    def on_lm_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        """Note that the call is over, and settle it."""
        self._begun.pop(call_id, None)
        super().on_lm_end(call_id, outputs, exception)

    def on_tool_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        """Note what came of the call."""
        self._begun.pop(call_id, None)
        position, step = self.calls[call_id]
        self.calls[call_id] = position, _with_result(step, outputs, exception)
        if self._replay is not None:
            self._replay.tool_ended(call_id, self.calls[call_id][1])

    def close(self) -> None:
        """Give the tools their functions back, unless another rollout needs the dispatchers."""
        with dspy.settings.lock:
            for tool in self._changed:
                tool.func.n_users -= 1
                if not tool.func.n_users:
                    vars(tool)["func"] = tool.func.function


def answer_now(program: Any, start: Start, inputs: Mapping[str, Any]) -> Any:
    """The answer of the program's LM if it is asked for the outputs at once, without reasoning.

    It is asked under the instructions of the predictor that gives the outputs, and shown the steps
    so far. Raises ReplayEndedError: no predictor gives all outputs.
    """
    wanted = [name for name in start.source.outputs if name not in WAYS_TO_AN_ANSWER]
    for _, predictor in reversed(named_predictors(program)):
        fields = predictor.signature.output_fields
        if wanted and set(wanted) <= set(fields):
            break
    else:
        raise ReplayEndedError(f"no predictor of the program gives all outputs {wanted}")
    taken = predictor.signature.input_fields
    types = {name: (taken[name].annotation if name in taken else type(value), dspy.InputField())
             for name, value in inputs.items()}  # fmt: skip
    types["steps_so_far"] = (str, dspy.InputField(desc="what was done and found out until now"))
    types |= {name: (fields[name].annotation, dspy.OutputField()) for name in wanted}
    asked = dspy.Predict(dspy.Signature(types, predictor.signature.instructions))
    asked.lm, asked.config = predictor.lm, predictor.config
    steps = Rollout(start.source.example, 0, steps=start.source.steps[: start.n_steps])
    return asked(**inputs, steps_so_far=trajectory_text(steps) or "(nothing yet)")


def decision(outputs: Mapping[str, str]) -> dict[str, str]:
    """The outputs of a step without the reasoning that led to them."""
    decided = {name: text for name, text in outputs.items() if name not in REASONING}
    return decided or dict(outputs)


def _with_result(step: Step, outputs: Any, exception: BaseException | None) -> Step:
    """The call of a tool with what it gave, or raised."""
    if exception is not None:
        return replace(step, error=f"{type(exception).__name__}: {exception}")
    text = as_text(outputs)
    form: Literal["text", "json", "other"] = "text"
    if not isinstance(outputs, str):
        form = "other"
        with suppress(TypeError, ValueError):
            if _value(text) == outputs and as_text(_value(text)) == text:
                form = "json"
    return replace(step, outputs={"result": text}, form=form)


def _value(text: str) -> Any:
    """The value that was written as this text: in JSON, or in the forms of Python and DSPy."""
    singletons = {"None": None, "True": True, "False": False}
    return singletons[text] if text in singletons else json.loads(text)


def _error(text: str) -> Exception:
    """The recorded error of a tool; one of Python's own is caught by the name of its class."""
    name, _, message = text.partition(": ")
    kind = getattr(builtins, name, Exception)
    base = kind if isinstance(kind, type) and issubclass(kind, Exception) else Exception
    methods = {"__init__": lambda _: None, "__str__": lambda _: message, "__module__": "builtins"}
    error: Exception = type(name, (base,), methods)()
    return error
