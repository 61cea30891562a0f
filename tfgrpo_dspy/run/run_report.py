"""What the run has cost, what failed, what each update did; and the one line that says why nothing
was learned."""

import logging
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Operation, Refusal
from tfgrpo_dspy.gate import Decision
from tfgrpo_dspy.results import (
    REFLECTIONS,
    GroupRecord,
    OperationRecord,
    RunResults,
    UpdateRecord,
)
from tfgrpo_dspy.rollout import Failure, Rollout, Usage
from tfgrpo_dspy.run.batches import Batch, Extracted, SampledGroup
from tfgrpo_dspy.settings import RunSettings

logger = logging.getLogger(__name__)

ROLES = ("rollout", "validation", "test", *REFLECTIONS, "metric")
"""What LM calls are for: training rollouts, the final choice, the test set, reflections,
judges inside metrics."""
ERRORS_ALLOWED = 20
"""So many errors never end a run by themselves, unless `max_errors` says so."""
LOGGED_CHARACTERS = 500
"""How much of a failure is logged: a message may quote a whole answer of an LM."""


class RunReport:
    """Counts while the run goes on; `results` at its end.

    Args:
        ledger: of the run.
        max_errors: how many rollouts and reflections may fail by other than an unparsed answer;
            None: half of them, and in any case `ERRORS_ALLOWED`.
    """

    def __init__(self, ledger: Ledger, max_errors: int | None = None) -> None:
        self.updates: list[UpdateRecord] = []
        self.failures: Counter[str] = Counter()
        self.usage = {role: Usage() for role in ROLES}
        self.reflection_usage: defaultdict[int, Usage] = defaultdict(Usage)  # by update
        self.replayed: Counter[str] = Counter()
        self.ended_because = "all epochs are done"
        self._ledger = ledger
        self._max_errors = max_errors
        self._n_done = 0
        self._errors: Counter[str] = Counter()
        self._first_of_kind: dict[str, str] = {}
        self._started = time.monotonic()
        self._progress: Any = None

    def count_rollout(self, role: str, rollout: Rollout) -> None:
        """Count what a rollout has cost and how it failed."""
        self.usage[role] += rollout.usage
        self.usage["metric"] += rollout.metric_usage
        if rollout.failure is not None:
            self.count_failure(rollout.failure.kind, rollout.failure.message)

    def count_reflection(
        self, stage: str, update: int, usage: Usage, error: str, n_unparsed: int
    ) -> None:
        """Count what an answer has cost, and what went wrong with it."""
        self.usage[stage] += usage
        self.reflection_usage[update] += usage
        self.count_failure("reflection error", error, bool(error))
        message = "an answer of the reflection LM did not parse"
        self.count_failure("reflection parse", message, n_unparsed)

    def unknown_scope(self, message: str) -> None:
        """Count a scope that names no predictor."""
        self.count_failure("unknown scope", message)

    def check_errors(self, failure: Failure | None) -> None:
        """Count what was done just now; end the run where too much of it failed."""
        self._n_done += 1
        if failure is None or failure.kind == "parse":
            return
        message = failure.message.partition(" on the example ")[0]  # equal but for the example
        self._errors[" ".join(message.split())[:LOGGED_CHARACTERS]] += 1
        allowed = self._max_errors
        if allowed is None:
            allowed = max(ERRORS_ALLOWED, self._n_done // 2)
        n_errors = self._errors.total()
        if n_errors > allowed:
            ((message, times),) = self._errors.most_common(1)
            given = "max_errors" if self._max_errors is not None else "without max_errors the run"
            self._ledger.stop(
                f"{n_errors} of {self._n_done} rollouts and reflections failed, and {given} allows "
                f"{allowed}; fix the cause, or pass a higher max_errors. The most frequent "
                f"error ({times} of {n_errors}): {message}",
                is_failure=True,
            )

    def count_failure(self, kind: str, message: str, times: int = 1) -> None:
        """Count a failure; the first of its kind is logged."""
        if times and kind not in self._first_of_kind:
            self._first_of_kind[kind] = message
            shown = " ".join(message.split())[:LOGGED_CHARACTERS]
            logger.warning("first failure of kind %r: %s", kind, shown)
        self.failures[kind] += times

    def show(self, n_updates: int, is_shown: bool) -> None:
        """Begin the progress bar."""
        self._progress = tqdm(
            total=n_updates, desc="Training-Free GRPO", unit="update", disable=not is_shown
        )

    def close(self) -> None:
        """End the progress bar."""
        if self._progress is not None:
            self._progress.close()

    def add_update(
        self,
        batch: Batch,
        extracted: Extracted,
        proposed: Sequence[Operation | Refusal],
        before: ExperienceLibrary,
        decision: Decision,
    ) -> None:
        """Keep the record of an update that is decided, log it and show it.

        `before` was the library when it was decided.
        """
        record = UpdateRecord(
            update=batch.update,
            epoch=batch.epoch,
            groups=tuple(map(_group_record, extracted.groups, extracted.uses)),
            lessons=tuple(lesson.text for lesson in extracted.lessons),
            refused_lessons=extracted.refused,
            operations=tuple(map(_operation_record, proposed)),
            accepted=list(decision.library) != list(before),
            reason=decision.reason,
            dropped=dict(decision.dropped),
            library_size=len(decision.library),
        )
        self.updates.append(record)
        n_lm_calls = self._ledger.n_lm_calls
        logger.info(
            "update %d: %d lessons, %d operations, %s (%s), %d experiences, %d LM calls so far",
            record.update,
            len(record.lessons),
            len(record.operations),
            "accepted" if record.accepted else "not accepted",
            record.reason,
            record.library_size,
            n_lm_calls,
        )
        scores = [s for group in record.groups for s in group.scores if s is not None]
        training = {"training": f"{statistics.fmean(scores):.3f}"} if scores else {}
        self._progress.update()
        self._progress.set_postfix(**training, experiences=record.library_size, calls=n_lm_calls)

    def results(self, settings: RunSettings, is_student: bool, **found: Any) -> RunResults:
        """The report of the run.

        Args:
            settings: of the run.
            is_student: whether the student is returned as it was.
            found: what the final choice has found: further fields of `RunResults`.
        """
        nothing_learned = self._why_nothing_was_learned() if is_student else ""
        if is_student:
            logger.warning("nothing was learned: %s", nothing_learned)
        return RunResults(
            updates=tuple(self.updates),
            usage=self._all_usage(),
            metric_calls=self._ledger.n_metric_calls_made,
            replayed=dict(sorted((+self.replayed).items())),
            failures=dict(sorted((+self.failures).items())),
            ended_because=self.ended_because,
            nothing_learned=nothing_learned,
            wall_time_s=time.monotonic() - self._started,
            settings=settings.result_scalars(),
            schedule=settings.schedule,
            **found,
        )

    def _all_usage(self) -> dict[str, Usage]:
        """By role; what calls have cost that came to nothing, under "unfinished"."""
        ledger = self._ledger
        known = sum(self.usage.values(), start=Usage())
        n_lost = max(0, ledger.n_lm_calls - known.n_lm_calls)
        cost = max(0.0, ledger.cost - known.cost_usd) if n_lost else 0.0
        unfinished = Usage(n_lm_calls=n_lost, cost_usd=cost)
        return dict(self.usage) | {"unfinished": unfinished}

    def _why_nothing_was_learned(self) -> str:
        groups = [group for update in self.updates for group in update.groups]
        used = Counter(group.used_as for group in groups)
        n_cached = self.usage["rollout"].n_cached_calls
        changing = [
            update
            for update in self.updates
            if any(op.op != "KEEP" and not op.refused for op in update.operations)
        ]
        n_stood = sum(update.accepted for update in changing)
        n_rejected = len(changing) - n_stood
        reasons = {
            f"the run ended early: {self.ended_because}": self.ended_because.startswith("max_"),
            f"{used['no contrast']} of {len(groups)} groups had no contrast": used["no contrast"],
            f"{used['too few rollouts']} groups had fewer than two rollouts that count": used[
                "too few rollouts"
            ],
            f"{n_cached} answers were replayed from a cache": n_cached,
            **{f"{n} failures of kind '{kind}'": n for kind, n in sorted(self.failures.items())},
            f"{n_rejected} updates were rejected by the gate": n_rejected,
            f"{n_stood} updates stood, but did not beat the student in the end": n_stood,
            f"{len(self.updates)} updates brought no change that the library takes": not changing,
        }
        return "; ".join(reason for reason, holds in reasons.items() if holds)


def _group_record(sampled: SampledGroup, use: str) -> GroupRecord:
    group = sampled.group
    return GroupRecord(
        group.example,
        tuple(rollout.score for rollout in group.rollouts),
        tuple(r.failure.kind for r in group.all_rollouts if r.failure is not None),
        use,
    )


def _operation_record(operation: Operation | Refusal) -> OperationRecord:
    """The record of an operation, or of its refusal."""
    refused = operation.reason if isinstance(operation, Refusal) else ""
    given = operation.operation if isinstance(operation, Refusal) else operation
    names = ("op", "id", "text", "scope", "reason")
    if isinstance(given, Mapping):
        values = {name: str(given.get(name) or "") for name in names}
    else:
        values = {name: str(getattr(given, name, None) or "") for name in names}
    return OperationRecord(**values, refused=refused)
