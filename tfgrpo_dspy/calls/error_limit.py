"""Ends a run where too many of its rollouts and reflections fail; others: `run.endings`."""

from collections import Counter

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.budget.left_out import OWN
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.rollout import Failure
from tfgrpo_dspy.wording import shortened

ERRORS_ALLOWED = 20  # so many errors never end a run by themselves, unless `max_errors` says so
QUOTED_BYTES = 500  # of an error, whose message may quote a whole answer of an LM


class ErrorLimit:
    """Counts what was done and what of it failed; `max_errors` may, None: the usual share."""

    def __init__(self, ledger: Ledger, max_errors: int | None) -> None:
        self._ledger, self._max_errors = ledger, max_errors
        self._n_done = 0
        self._errors: Counter[str] = Counter()

    def check(self, failure: Failure | None) -> None:
        """Count what was done just now; end the run where too much of it failed."""
        self._n_done += 1
        if failure is None or not failure.kind.is_error:
            return
        message = failure.message.partition(" on the example ")[0]  # equal but for the example
        self._errors[shortened(printable(message), QUOTED_BYTES)] += 1
        max_errors = self._max_errors
        allowed = max(ERRORS_ALLOWED, self._n_done // 2) if max_errors is None else max_errors
        n_errors = self._errors.total()
        if n_errors > allowed:
            ((message, times),) = self._errors.most_common(1)
            rule = "without max_errors the run" if max_errors is None else "max_errors"
            self._ledger.stop(
                f"{n_errors} of {self._n_done} rollouts and reflections failed, and {rule} allows "
                f"{allowed}. The most frequent error ({times} of {n_errors}): {message}\n"
                f"Fix its cause ({_way_out(failure)}), or pass a higher Execution(max_errors=).",
                is_failure=True,
            )


def _way_out(failure: Failure) -> str:
    """The argument that most often helps against such failures."""
    ways = {
        "provider": "arguments of dspy.LM such as the name of the model, api_key or num_retries, a "
        f'lower num_threads where a rate limit is reached, temperature="{OWN}" where a sampling '
        "parameter is refused",
        "timeout": "a higher Execution(rollout_timeout_s=), or a lower num_threads",
        "worker": "the memory and the packages of the executor's workers",
    }
    return ways.get(failure.kind, f"the {failure.kind}'s own")
