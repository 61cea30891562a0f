"""The calls of LMs that are not metered: those that a metric, a tool or a program holds itself."""

from collections.abc import Callable
from typing import Any

import dspy
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from tfgrpo_dspy.budget.ledger import Reservation
from tfgrpo_dspy.budget.meter import Meter, is_metered


class _Entries(list[Any]):
    """A history of a caller that is always empty: each entry goes to `note`."""

    def __init__(self, note: Callable[[Any], None]) -> None:
        super().__init__()
        self._note = note

    def append(self, entry: Any) -> None:
        self._note(entry)


class CallWatcher(BaseCallback):
    """Takes each such call from the ledger, and settles it by its entry in DSPy's history.

    DSPy tells its callbacks when a call begins and ends, and adds its entry to the history of each
    caller; the watcher stands among both (`context`). DSPy tells of no retries, and of no entry
    where the user keeps no history; then a call counts as the most that it can cost. A
    BaseException is the veto.
    """

    def __init__(self, meter: Meter) -> None:
        self.history = _Entries(self._note)
        self._meter = meter
        self._open: dict[str, Reservation] = {}
        self._entries: dict[str, Any] = {}

    def context(self, *callbacks: BaseCallback) -> dict[str, Any]:
        """What `dspy.context` takes, with these further callbacks."""
        return {
            "callbacks": [*(dspy.settings.callbacks or []), *callbacks, self],
            "caller_modules": [*(dspy.settings.caller_modules or []), self],
        }

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Take the call, unless the LM does so itself."""
        if not is_metered(instance):
            args = (inputs.get("prompt"), inputs.get("messages"))
            kwargs = inputs.get("kwargs") or inputs
            self._open[call_id] = self._meter.take_unseen(instance, args, kwargs)

    def _note(self, entry: Any) -> None:
        if (call_id := ACTIVE_CALL_ID.get()) in self._open:
            self._entries[call_id] = entry

    def on_lm_end(
        self,
        call_id: str,
        outputs: Any | None,  # noqa: ARG002
        exception: BaseException | None = None,
    ) -> None:
        """Settle the call."""
        if (taken := self._open.pop(call_id, None)) is not None:
            entry = self._entries.pop(call_id, None)
            self._meter.settle_unseen(taken, entry, exception)
