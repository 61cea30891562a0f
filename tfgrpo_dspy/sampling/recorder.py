"""Notes what a rollout does, as DSPy tells of it: its predictor and tool calls, in their order."""

import functools
import inspect
from contextlib import suppress
from typing import Any

import dspy

from tfgrpo_dspy.budget.meter import CallWatcher, Meter
from tfgrpo_dspy.rollout import Step, mean_of
from tfgrpo_dspy.sampling.fields import as_fields, containers_copied
from tfgrpo_dspy.sampling.replay import REPLAY, Replay, with_result
from tfgrpo_dspy.user_code import in_loop


class _Trace(list[Any]):
    """DSPy's trace; inputs stay as they were at the call, and each answer has its entropy."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.entropies: list[float | None] = []
        self._surprisals, self._n_seen = meter.surprisals, 0

    def append(self, call: Any) -> None:
        predictor, inputs, outputs = call
        self.entropies.append(mean_of(self._surprisals[self._n_seen :]))
        self._n_seen = len(self._surprisals)
        with suppress(RecursionError):  # a list that holds itself stays as it is
            inputs = containers_copied(inputs)
        super().append((predictor, inputs, outputs))

    def extend(self, calls: Any) -> None:  # what Refine has traced elsewhere
        for call in calls:
            self.append(call)
            self.entropies[-1] = None

    def pop(self, index: Any = -1) -> Any:
        self.entropies.pop(index)
        return super().pop(index)


class _Dispatcher:
    """Stands in a tool for its function: async ones run in the loop, a replay has the results."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.n_users = 0

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        replay: Replay | None = dspy.settings.get(REPLAY)
        if replay is None:
            result = self.function(*args, **arguments)
        else:
            result = replay.result(self.function, arguments)
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
        if self._replay is not None:
            self._replay.tool_ended(call_id, outputs, exception)
        self._begun.pop(call_id, None)
        position, step = self.calls[call_id]
        self.calls[call_id] = (position, with_result(step, outputs, exception))

    def close(self) -> None:
        """Give the tools their functions back, unless another rollout needs the dispatchers."""
        with dspy.settings.lock:
            for tool in self._changed:
                tool.func.n_users -= 1
                if not tool.func.n_users:
                    vars(tool)["func"] = tool.func.function
