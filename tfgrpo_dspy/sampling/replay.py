"""Replays a recorded rollout up to a step, and goes on from there with fresh samples.

The program runs again, but the recorded outputs of predictors and results of tools are fed back, so
nothing before the step costs a call of an LM or a tool. Each call is verified: its name and its
inputs must be those of the record. Tools are recognised when they are called, wherever they were
built. Calls of functions that are no `dspy.Tool` are not recorded; the program makes them again,
unless they are `replay_only`.
"""

import builtins
import functools
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import dspy

from tfgrpo_dspy.dspy_seam import ACTIVE_CALL_ID, caller
from tfgrpo_dspy.errors import NotReplayedError
from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.rollout import (
    REASONING,
    WAYS_TO_AN_ANSWER,
    Failure,
    FailureKind,
    Rollout,
    Step,
    trajectory_text,
)
from tfgrpo_dspy.sampling.dispatch import REPLAY, DispatchedTools
from tfgrpo_dspy.sampling.fields import as_fields, as_text, parsed
from tfgrpo_dspy.user_code import without_partials

MARK = "tfgrpo_replay_only"
LAST_TOOLS = ("finish", "submit")  # the tools with which DSPy's agents end
OF_A_TOOL = "tool "
"""So the reasons begin that lie in the tools of one rollout, and not in the program."""
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
    if isinstance(tool, functools.partial):
        marked = functools.partial(replay_only(tool.func), *tool.args, **tool.keywords)
        return functools.update_wrapper(marked, tool, ())
    function: Any = getattr(tool, "__func__", tool)
    if not inspect.isroutine(function):  # an object that can be called
        return replay_only(function.__call__)
    setattr(function, MARK, True)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        replay: Replay | None = dspy.settings.get(REPLAY)
        if replay is not None:
            why = "is replay_only, and is called by another way than its tool"
            replay.refuse(f"{OF_A_TOOL}{function.__name__!r} {why}")
        return function(*args, **kwargs)

    if function.__name__ == "__call__":  # DSPy names the tool of an object by its class
        guarded.__name__ = type(tool.__self__).__name__
    return guarded if function is tool else types.MethodType(guarded, tool.__self__)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a rollout goes on from: after the first `n_steps` steps of the rollout `source`.

    With `answers_now`, the LM is asked for the outputs at once, in place of the program. With
    `ends_if_same`, the rollout ends if its first fresh step decides as the source did. After all
    steps of the source nothing is fresh: the outputs must be those of the source. One call of a
    tool is made all the same, to find out whether its result depends on calls that were only fed
    back: that of the step `called` (-1: none), by default the last one.
    """

    source: Rollout
    n_steps: int
    answers_now: bool = False
    ends_if_same: bool = False
    called: int | None = None

    @property
    def is_check(self) -> bool:
        """Whether all steps are replayed, to verify the record."""
        return self.n_steps == len(self.source.steps) and not self.answers_now


class ReplayEndedError(BaseException):
    """Ends a rollout, whatever the program catches."""


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
    return f"{OF_A_TOOL}{name!r} gives another result for the same arguments: {why}"


def with_result(step: Step, outputs: Any, exception: BaseException | None) -> Step:
    """The call of a tool with what it gave, or raised."""
    if exception is not None:
        return replace(step, error=f"{type(exception).__name__}: {exception}")
    return replace(step, outputs={"result": as_text(outputs)}, form=form_of(outputs))


class Replay(DispatchedTools):
    """Feeds the record back to one run of the program; `failure` says why that ended, if it did."""

    def __init__(self, start: Start, name_of: Callable[[Any, str], str]) -> None:
        super().__init__()
        self.start = start
        self.failure: Failure | None = None
        self._name_of = name_of
        self._n_fed = 0
        self._tools: dict[str, tuple[str, Step | None, bool]] = {}
        """By the id of a call, the tool, its record, and whether it is called all the same."""
        self._is_compared = False  # whether the first fresh step was
        of_tools = [k for k, step in enumerate(start.source.steps) if step.kind == "tool"
                    and step.name not in LAST_TOOLS]  # fmt: skip
        last = of_tools[-1] if of_tools and start.is_check else -1
        self._called = last if start.called is None else start.called

    def _end(self, why: str, kind: FailureKind = FailureKind.REPLAY) -> None:
        self.failure = self.failure or Failure(kind, why)

    def refuse(self, why: str, kind: FailureKind = FailureKind.STOPPED) -> NoReturn:
        """Raises ReplayEndedError: the rollout ends."""
        self._end(why, kind)
        raise ReplayEndedError(why)

    def check(self) -> None:
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
        if (step.kind, step.name) != (kind, name):
            self._end(f"step {self._n_fed} is {kind} {name!r}, and was {step.kind} {step.name!r}")
        elif step.error and kind == "predictor":  # its answer could not be read: that ended it
            self.failure = self.start.source.failure
        elif changed := [n for n in {**step.inputs, **inputs} if _differ(n, step.inputs, inputs)]:
            self._end(f"step {self._n_fed}, {kind} {name!r}: its {changed[0]!r} is another now")
        return step

    def outputs(self, signature: Any, inputs: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The recorded outputs of the predictor that is called now; None: the call is fresh."""
        self.check()
        module = caller()
        name = self._name_of(module, type(module).__name__)
        step = self._next("predictor", name, as_fields(inputs))
        self.check()
        if step is None:
            return None
        fields = signature.output_fields.items()
        try:
            values = {name: parsed(step.outputs[name], info.annotation) for name, info in fields}
        except (KeyError, ValueError) as error:
            why = f"step {self._n_fed}: its outputs cannot be read back ({error})"
            self.refuse(why, FailureKind.REPLAY)
        return [values]

    def look_at(self, values: list[dict[str, Any]]) -> None:
        """End the rollout if it `ends_if_same`, and its first fresh step decides as before."""
        if not self.start.ends_if_same or self._is_compared:
            return
        self._is_compared = True
        before = self.start.source.steps[self.start.n_steps]
        if decision(before.outputs) == decision(as_fields(values[0])):
            self.refuse("its first fresh step is that of the other rollout")

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        """End the rollout before it pays for a call that it was to be spared."""
        if self.start.is_check or self._n_fed < self.start.n_steps:
            why = "that is no call of a predictor through the adapter of the run"
            again = f"the program calls an LM in step {self._n_fed + 1} again"
            self.refuse(f"{again}: {why}", FailureKind.REPLAY)

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note which tool is called, and see to it that its function comes here."""
        name, is_called = str(instance.name), self._n_fed == self._called
        step = self._next("tool", name, as_fields(inputs.get("kwargs", inputs)))
        self._tools[call_id] = name, step, is_called
        super().on_tool_start(call_id, instance, inputs)

    def called(self, function: Any, arguments: Mapping[str, Any]) -> Any:
        """What the function of the tool that is called now gives, or gave."""
        self.check()
        name, step, is_called = self._tools.get(ACTIVE_CALL_ID.get() or "", ("", None, True))
        is_marked = hasattr(without_partials(function), MARK)
        if step is None and is_marked:
            step = self._known(name, as_fields(arguments))
        if step is None or (is_called and not is_marked):
            return function(**arguments)
        if step.error:
            raise _error(step.error)
        if step.form == "other":
            self.refuse(f"{OF_A_TOOL}{name!r}: its result is no JSON", FailureKind.REPLAY)
        text = step.outputs.get("result", "")
        return _value(text) if step.form == "json" else text

    def _known(self, name: str, arguments: Mapping[str, str]) -> Step:
        wanted = ("tool", name, dict(arguments))
        same = (s for s in self.start.source.steps if (s.kind, s.name, dict(s.inputs)) == wanted)
        if (step := next(same, None)) is None:
            why = "is replay_only, and has no result for these arguments"
            self.refuse(f"{OF_A_TOOL}{name!r} {why}")
        return step

    def on_tool_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        """Compare what a tool gave with what it had given, where it was called to find out."""
        _, before, is_called = self._tools[call_id]
        if is_called and before and not self.failure:
            now = with_result(before, outputs, exception)
            if (now.outputs, now.error) != (before.outputs, before.error):
                self._end(_unlike(before.name))

    def finish(self, outputs: Mapping[str, str], failure: Failure | None) -> None:
        """Verify how the program ends, and that it made all calls of the record."""
        source = self.start.source
        if self._n_fed < self.start.n_steps:
            self._end(f"the program ends after {self._n_fed} of {self.start.n_steps} steps")
        if self.start.is_check:
            failed = [each.kind if each and each.kind.is_programs_own else ""
                      for each in (failure, source.failure)]  # fmt: skip
            is_same = bool(failed[0]) or decision(outputs) == decision(source.outputs)
            if failed[0] != failed[1] or not is_same:
                self._end("the program returns something else after the same steps")


def answer_now(program: Any, start: Start, inputs: Mapping[str, Any]) -> Any:
    """What the program's LM answers if it is asked for the outputs at once, without reasoning.

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
    signature = dspy.Signature(types, predictor.signature.instructions)
    steps = Rollout(start.source.example, 0, steps=start.source.steps[: start.n_steps])
    asked = dspy.Predict(signature)
    asked.lm = predictor.lm
    asked.config = predictor.config
    return asked(**inputs, steps_so_far=trajectory_text(steps) or "(nothing yet)")


def decision(outputs: Mapping[str, str]) -> dict[str, str]:
    """The outputs of a step without the reasoning that led to them."""
    decided = {name: text for name, text in outputs.items() if name not in REASONING}
    return decided or dict(outputs)


def form_of(result: Any) -> Literal["text", "json", "other"]:
    """How the result of a tool comes back from its text: as "text", as "json", or not ("other")."""
    if isinstance(result, str):
        return "text"
    try:
        text = as_text(result)
        is_same = _value(text) == result and as_text(_value(text)) == text
    except (TypeError, ValueError):
        return "other"
    return "json" if is_same else "other"


def _value(text: str) -> Any:
    """The value that was written as this text: in JSON, or in the forms of Python and DSPy."""
    singletons = {"None": None, "True": True, "False": False}
    return singletons[text] if text in singletons else json.loads(text)


def _differ(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether an input differs by more than what differs between runs anyway."""
    texts = [_PASSING.sub("", fields.get(name, "\0")) for fields in (before, now)]
    return texts[0] != texts[1]


def _error(text: str) -> Exception:
    """The recorded error of a tool; one of Python's own is caught by the name of its class."""
    name, _, message = text.partition(": ")
    kind = getattr(builtins, name, Exception)
    base = kind if isinstance(kind, type) and issubclass(kind, Exception) else Exception
    methods = {"__init__": lambda _: None, "__str__": lambda _: message, "__module__": "builtins"}
    error: Exception = type(name, (base,), methods)()
    return error
