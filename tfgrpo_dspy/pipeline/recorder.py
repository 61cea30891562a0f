"""What the run has cost, what failed, what each update did; and the one line that says why nothing
was learned."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary, Operation, Refusal
from tfgrpo_dspy.results import OperationRecord, RunResults, ScoreSummary, UpdateRecord
from tfgrpo_dspy.rollout import Rollout, Usage

logger = logging.getLogger(__name__)

LOGGED_CHARACTERS = 500
"""How much of a failure is logged: a message may quote a whole answer of an LM."""


class Recorder:
    """Counts while the run goes on; `results` at its end."""

    def __init__(self) -> None:
        self.updates: list[UpdateRecord] = []
        self.failures: Counter[str] = Counter()
        self.usage = {"policy": Usage(), "reflection": Usage(), "metric": Usage()}
        self.ended_because = "all epochs are done"
        self._first_of_kind: dict[str, str] = {}
        self._started = time.monotonic()

    def count_rollouts(self, rollouts: Sequence[Rollout]) -> None:
        """Count what rollouts have cost and how they failed."""
        for rollout in rollouts:
            self.usage["policy"] += rollout.usage
            self.usage["metric"] += rollout.metric_usage
            if rollout.failure is not None:
                self.count_failure(rollout.failure.kind, rollout.failure.message)

    def count_failure(self, kind: str, message: str, times: int = 1) -> None:
        """Count a failure; the first of its kind is logged."""
        if times and kind not in self._first_of_kind:
            self._first_of_kind[kind] = message
            shown = " ".join(message.split())[:LOGGED_CHARACTERS]
            logger.warning("first failure of kind %r: %s", kind, shown)
        self.failures[kind] += times

    @property
    def n_lm_calls(self) -> int:
        """All LM calls so far, of every role."""
        return sum(usage.n_lm_calls for usage in self.usage.values())

    def results(
        self,
        start: ExperienceLibrary,
        library: ExperienceLibrary,
        student: ScoreSummary | None,
        best: ScoreSummary | None,
        settings: Mapping[str, Any],
    ) -> RunResults:
        """The report of the run."""
        nothing_learned = "" if library != start else self._why_nothing_was_learned()
        if nothing_learned:
            logger.warning("nothing was learned: %s", nothing_learned)
        return RunResults(
            student=student,
            best=best,
            updates=tuple(self.updates),
            usage=dict(self.usage),
            failures=dict(sorted((+self.failures).items())),
            ended_because=self.ended_because,
            nothing_learned=nothing_learned,
            wall_time_s=time.monotonic() - self._started,
            library=library.to_dict(),
            settings=settings,
        )

    def _why_nothing_was_learned(self) -> str:
        groups = [group for update in self.updates for group in update.groups]
        used = Counter(group.used_as for group in groups)
        policy = self.usage["policy"]
        changing = [
            update
            for update in self.updates
            if any(op.op != "KEEP" and not op.refused for op in update.operations)
        ]
        n_stood = sum(update.accepted for update in changing)
        n_rejected = len(changing) - n_stood
        reasons = {
            f"{used['no contrast']} of {len(groups)} groups had no contrast": used["no contrast"],
            f"{used['too few rollouts']} groups had fewer than two rollouts that count": used[
                "too few rollouts"
            ],
            f"{policy.n_cached_calls} answers were replayed from a cache": policy.n_cached_calls,
            **{f"{n} failures of kind '{kind}'": n for kind, n in sorted(self.failures.items())},
            f"{n_rejected} updates were rejected by the gate": n_rejected,
            f"{n_stood} updates stood, but did not beat the student in the end": n_stood,
            f"{len(self.updates)} updates brought no change that the library takes": not changing,
        }
        return "; ".join(reason for reason, holds in reasons.items() if holds)


def operation_record(operation: Operation | Refusal) -> OperationRecord:
    """The record of an operation, or of its refusal."""
    refused = operation.reason if isinstance(operation, Refusal) else ""
    given = operation.operation if isinstance(operation, Refusal) else operation
    names = ("op", "id", "text", "scope", "reason")
    if isinstance(given, Mapping):
        values = {name: str(given.get(name) or "") for name in names}
    else:
        values = {name: str(getattr(given, name, None) or "") for name in names}
    return OperationRecord(**values, refused=refused)
