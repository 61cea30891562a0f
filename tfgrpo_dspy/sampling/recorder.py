"""What one rollout does, as DSPy tells of it: its predictor and tool calls, in their order."""

import statistics
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tfgrpo_dspy.budget.meter import Meter
from tfgrpo_dspy.dspy_seam import BaseCallback
from tfgrpo_dspy.rollout import Step
from tfgrpo_dspy.sampling.fields import as_fields, containers_copied
from tfgrpo_dspy.sampling.replay import with_result


def mean_of(surprisals: Sequence[float]) -> float | None:
    """Their mean; None: there are none."""
    return statistics.fmean(surprisals) if surprisals else None


class _Trace(list[Any]):
    """DSPy's trace, with the inputs of each call as they were then, and the entropy of its answer.

    DSPy keeps the values themselves, and a program may go on to change a list that it passed.
    """

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


class CallRecorder(BaseCallback):
    """The tool calls of one rollout, each with how many predictor calls were answered before it.

    Calls of tools and LMs that have begun, and not ended, are in `open_calls`.
    """

    def __init__(self, meter: Meter, open_calls: dict[str, str]) -> None:
        self.trace = _Trace(meter)
        self._open = open_calls
        self.calls: dict[str, tuple[int, Step]] = {}

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Begin the record of the call."""
        arguments = as_fields(inputs.get("kwargs", inputs))
        self._open[call_id] = f"tool {str(instance.name)!r}"
        self.calls[call_id] = (len(self.trace), Step("tool", str(instance.name), arguments, {}))

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        """Note that the call is open."""
        self._open[call_id] = f"a call of {getattr(instance, 'model', 'an LM')}"

    def on_lm_end(self, call_id: str, **_: Any) -> None:
        """Note that the call is over."""
        self._open.pop(call_id, None)

    def on_tool_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        """Note what came of the call."""
        self._open.pop(call_id, None)
        position, step = self.calls[call_id]
        self.calls[call_id] = (position, with_result(step, outputs, exception))
