"""Notes what a rollout does, as DSPy tells of it: its predictor and tool calls, in their order."""

from contextlib import suppress
from typing import Any

from tfgrpo_dspy.budget.meter import Meter
from tfgrpo_dspy.budget.unseen import CallWatcher
from tfgrpo_dspy.dspy_seam import BaseCallback
from tfgrpo_dspy.rollout import Step
from tfgrpo_dspy.sampling.dispatch import DispatchedTools
from tfgrpo_dspy.sampling.fields import as_fields, containers_copied
from tfgrpo_dspy.sampling.replay import with_result
from tfgrpo_dspy.scores import mean_of


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


class CallRecorder(CallWatcher):
    """The tool calls of one rollout, each with how many predictor calls were answered before it.

    Calls of tools and LMs that have begun, and not ended, are in `begun`. `dispatched` hears of all
    through this callback: DSPy takes time for each callback at every call.
    """

    def __init__(
        self, meter: Meter, begun: dict[str, str], dispatched: DispatchedTools | None = None
    ) -> None:
        super().__init__(meter)
        self.trace = _Trace(meter)
        self._begun, self._dispatched = begun, dispatched or BaseCallback()
        self.calls: dict[str, tuple[int, Step]] = {}

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Begin the record of the call."""
        self._dispatched.on_tool_start(call_id, instance, inputs)
        arguments = as_fields(inputs.get("kwargs", inputs))
        self._begun[call_id] = f"tool {str(instance.name)!r}"
        self.calls[call_id] = (len(self.trace), Step("tool", str(instance.name), arguments, {}))

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that the call has begun, and count it. Raises RunStopped."""
        self._dispatched.on_lm_start(call_id, instance, inputs)
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
        self._dispatched.on_tool_end(call_id, outputs, exception)
        self._begun.pop(call_id, None)
        position, step = self.calls[call_id]
        self.calls[call_id] = (position, with_result(step, outputs, exception))
