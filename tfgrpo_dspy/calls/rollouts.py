"""Rollouts: replayed where they are recorded, run where not, recorded as soon as they are done."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tfgrpo_dspy.calls.paid import Calls
from tfgrpo_dspy.errors import TrainingCut
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.rollout import ROLLOUTS, Failure, FailureKind, Rollout
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.sampling.fields import Example
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, Start, run_rollout
from tfgrpo_dspy.settings.schedule import RunInputs
from tfgrpo_dspy.tasks.executors import Request, packed, packed_bundle
from tfgrpo_dspy.tasks.pool import Job, Priority

KEPT_PROGRAMS, KEPT_SENT, KEPT_DIGESTS = 4, 64, 1024
"""A program may hold much, and a library that is sent a teacher; what is not kept is made again."""
THREADS, OTHER_PROCESSES = ("threads", "the program"), ("remote", "another process")
NO_MORE = Failure(
    FailureKind.BUDGET, "beside the final choice, the budget does not reach for more rollouts"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one rollout is made of."""

    additions: Additions
    example: int  # the example's position in its set
    rollout_id: int  # it depends on `start`, too
    temperature: float | str | None = None  # None, or "own": that of each LM and predictor
    start: Start | None = field(default=None, compare=False)  # None: it is a whole rollout
    asks_predictors: bool = field(default=False, compare=False)

    def failed(self, failure: Failure) -> Rollout:
        """The rollout where it has failed before it began, or without a trace."""
        return Rollout(self.example, self.rollout_id, failure=failure)


class Rollouts:
    """Makes rollouts on a set of examples, for one role of the report ("rollout": training)."""

    def __init__(
        self, inputs: RunInputs, calls: Calls, role: str, examples: Sequence[Example]
    ) -> None:
        settings, self._inputs, self._calls = inputs.settings, inputs, calls
        self._role, self._set = role, "training" if role == "rollout" else role
        self._examples = examples
        self._metric = settings.metric
        self._scoring = None if self._metric is None else adapt_metric(self._metric)
        self._program = functools.lru_cache(KEPT_PROGRAMS)(lambda added: added.bake(inputs.student))
        self._digest = functools.lru_cache(KEPT_DIGESTS)(
            lambda additions: calls.journal.keys.program(self._program(additions))
        )
        self._sent = functools.lru_cache(KEPT_SENT)(lambda sent: packed(sent, "the library"))
        self._prices = settings.execution.prices or {}
        self._begun: dict[Sample, Job[Rollout]] = {}
        self._kept_demos: dict[Any, Any] = {}
        self._bundle = b""
        if calls.remote is not None and not settings.offline:
            plain = calls.journal.plain
            self._bundle = packed_bundle(inputs.student, self._metric, self._prices, plain)

    def begin(self, sample: Sample, priority: Priority) -> Job[Rollout]:
        """The rollout of the sample, recorded or to come; asked again, it is the same.

        One that a limit cuts in training has a failure of kind "budget".
        """
        if sample in self._begun:
            return self._begun[sample]
        place, usual = THREADS if self._calls.remote is None else OTHER_PROCESSES
        with self._calls.pool.lock:
            job = self._begun[sample] = self._calls.begin(
                about=f"{self._set} rollout of {self._set} example {sample.example}",
                key=self._key(sample),
                kind=ROLLOUTS,
                role=self._role,
                do=functools.partial(self._done, sample),
                without=functools.partial(self._without, sample),
                count=functools.partial(self._count, sample),
                priority=priority,
                usual=usual,
                place=place,
            )
            self._calls.n_begun += self._role == "rollout" and not job.is_done
        return job

    def begin_extra(
        self, samples: Sequence[Sample], priority: Priority
    ) -> list[Job[Rollout]] | None:
        """Further training rollouts; None if not all of them are paid for, which is noted.

        Those that are begun or recorded are.
        """
        others = [sample for sample in samples if sample not in self._begun]
        records = [self._calls.journal.find(self._key(sample), ROLLOUTS) for sample in others]
        if any(record is not None and record.failure == NO_MORE for record in records):
            return None
        missing = [sample for sample, record in zip(others, records, strict=True) if record is None]
        with self._calls.turn(len(missing)) as is_paid:
            if is_paid:
                return [self.begin(sample, priority) for sample in samples]
        for sample in () if self._inputs.settings.offline else missing:
            refusal = sample.failed(NO_MORE)
            self._calls.journal.keep(self._key(sample), refusal, ROLLOUTS, is_lost=True)
        return None

    def again(self, sample: Sample, priority: Priority) -> Job[Rollout]:
        """The rollout, made once more."""
        del self._begun[sample]
        return self.begin(sample, priority)

    def _key(self, sample: Sample) -> str:
        keys = self._calls.journal.keys
        return keys.rollout(
            self._digest(sample.additions) if keys.is_used else "",
            self._examples[sample.example].raw,
            self._metric,
            sample.rollout_id,
            sample.temperature,
        )

    def _without(self, sample: Sample, why: TrainingCut | TimeoutError, where: str) -> Rollout:
        """The rollout that a limit has cut, or that took too long."""
        if isinstance(why, TrainingCut):
            return sample.failed(Failure(FailureKind.BUDGET, str(why)))
        message = f"the rollout {why}, which is rollout_timeout_s; it was in {where}"
        message += f" on the example {sample.example} ({self._set})"
        return sample.failed(Failure(FailureKind.TIMEOUT, message))

    def _count(self, sample: Sample, rollout: Rollout, seconds: float | None) -> None:
        if self._role == "rollout":
            self._calls.note_training(rollout, seconds)
        is_whole = rollout.failure is None and sample.start is None
        if is_whole and sample.additions.is_for_all(self._inputs.predictors):
            self._calls.report.count_advice(rollout)

    def _done(self, sample: Sample, job: Job[Rollout]) -> Rollout:
        """The rollout, made in a thread or in another process."""
        calls = self._calls
        if calls.remote is not None:
            of_example = packed(self._own(sample), f"example {sample.example}")
            request = Request(self._bundle, self._sent(sample.additions), of_example)
            n_metric_calls = 1 + len(self._inputs.predictors) * sample.asks_predictors
            n_metric_calls *= self._metric is not None
            reply = calls.remote.rollout(request, n_metric_calls)
            return reply if isinstance(reply, Rollout) else sample.failed(reply)
        task = RolloutTask(
            program=self._program(sample.additions),
            metric=self._scoring,
            ledger=calls.ledger,
            prices=self._prices,
            is_training=self._role == "rollout",
            calls=job.calls,
            kept_demos=self._kept_demos,
            **self._own(sample),
        )
        return run_rollout(task)

    def _own(self, sample: Sample) -> dict[str, Any]:
        """The fields of its `RolloutTask` that are the rollout's own."""
        return {
            "example": self._examples[sample.example].raw,
            "index": sample.example,
            "rollout_id": sample.rollout_id,
            "temperature": sample.temperature,
            "start": sample.start,
            "asks_predictors": sample.asks_predictors,
            "advice": tuple(experience.text for experience in sample.additions.library),
        }
