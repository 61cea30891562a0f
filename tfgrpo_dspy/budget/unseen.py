"""The calls of LMs that are not metered: those that a metric, a tool or a program holds itself."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import dspy

from tfgrpo_dspy.budget.faults import is_refused, is_unanswered
from tfgrpo_dspy.budget.ledger import Reservation
from tfgrpo_dspy.budget.meter import ATTEMPT, POLL_S, Meter, is_metered, metered
from tfgrpo_dspy.dspy_seam import ACTIVE_CALL_ID, BaseCallback, Call, watching
from tfgrpo_dspy.rollout import Usage

logger = logging.getLogger(__name__)


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
    caller; the watcher stands among both (`watching`). DSPy tells of no retries, and of no entry
    where the user keeps no history; then a call counts as the most that it can cost. A
    BaseException is the veto. Code that sets other callbacks hides a call until its entry is there.
    """

    def __init__(self, meter: Meter) -> None:
        self.history = _Entries(self._note)
        self._meter = meter
        self._open: dict[str, tuple[Any, Reservation]] = {}
        self._entries: dict[str, Any] = {}

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Take the call, unless the LM does so itself. Raises RunStopped."""
        if is_metered(instance):
            return
        args, kwargs = (inputs.get("prompt"), inputs.get("messages")), inputs.get("kwargs")
        with self._meter.noting(instance):
            while (taken := self._meter.take(instance, args, kwargs or inputs)) is None:
                self._meter.ledger.wait(POLL_S)
        self._open[call_id] = instance, taken

    def _note(self, entry: Any) -> None:
        if (call_id := ACTIVE_CALL_ID.get()) in self._open:
            self._entries[call_id] = entry
        elif not ATTEMPT.get():  # else it is the call of a metered LM, which has counted it
            self._count_untaken(entry)

    def _count_untaken(self, entry: Mapping[str, Any]) -> None:
        """Count a call that was made unasked. Raises RunStopped: it was one too many."""
        meter, call = self._meter, Call.of(entry)
        model = call.model or "an LM"
        ledger, used = meter.ledger, meter.usage_of(call, SimpleNamespace(model=model))
        meter.count(used)
        if not used.n_lm_calls:
            return
        if ledger.take_first_unseen():
            logger.warning(
                "a call of %s was seen only after it was made, as the code around it sets the "
                "callbacks of dspy.context: such calls count, and one that is too many ends the "
                "run, but none is refused. Leave callbacks= out, or add to dspy.settings.callbacks",
                model,
            )
        has_price = call.cost is not None or model in meter.prices
        if ledger.budget.max_cost is not None and not has_price:
            ledger.stop(f"max_cost: DSPy knows no price of {model}.", is_failure=True)
        with meter.noting(SimpleNamespace(model=model)):
            ledger.charge(used.n_lm_calls, used.cost_usd)

    def on_lm_end(
        self,
        call_id: str,
        outputs: Any | None,  # noqa: ARG002
        exception: BaseException | None = None,
    ) -> None:
        """Settle the call by its entry; without one, by its error."""
        if call_id not in self._open:
            return
        lm, taken = self._open.pop(call_id)
        if (entry := self._entries.pop(call_id, None)) is not None:
            used = self._meter.usage_of(Call.of(entry), lm)
            cost = used.cost_usd or (taken.cost if used.n_lm_calls else 0.0)
        else:
            n, cost = taken.n_calls, taken.cost
            if isinstance(exception, dspy.LMError):
                n, cost = n * (not is_refused(exception)), cost * is_unanswered(exception)
            used = Usage(n, n_failed_calls=taken.n_calls * bool(exception), cost_usd=cost)
        self._meter.count(used)
        self._meter.ledger.settle(taken, used.n_lm_calls, cost)


@contextmanager
def judging(meter: Meter) -> Iterator[None]:
    """Within it, a judge in a metric is metered: the user's own LM."""
    judge = dspy.settings.lm
    judge = metered(judge.copy(), meter) if isinstance(judge, dspy.BaseLM) else judge
    with dspy.context(lm=judge, disable_history=False, **watching(CallWatcher(meter))):
        yield
