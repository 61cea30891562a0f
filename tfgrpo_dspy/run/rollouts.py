"""Rollouts: replayed where they are recorded, run where not, recorded as soon as they are done."""

import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfgrpo_dspy.errors import TrainingCut
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.rollout import ROLLOUTS, Failure, FailureKind, Rollout
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, run_rollout
from tfgrpo_dspy.sampling.replay import Start
from tfgrpo_dspy.tasks.loop import Priority
from tfgrpo_dspy.tasks.whereabouts import Whereabouts
from tfgrpo_dspy.tasks.worker import Request, packed, packed_bundle

KEPT_PROGRAMS = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """What one rollout is made of; `example` is the example's position in its set.

    `start`: where it goes on from, if it is not a whole rollout; then `rollout_id` depends on that.
    `asks_predictors`: whether the metric is also asked about each predictor.
    """

    given: Additions
    example: int
    rollout_id: int
    start: Start | None = field(default=None, compare=False)
    asks_predictors: bool = field(default=False, compare=False)


class Rollouts:
    """Makes rollouts on a set of examples, for one role of the report ("rollout": training)."""

    def __init__(
        self, run: RunContext, role: str, examples: Sequence[Any], temperature: float | str | None
    ) -> None:
        self._run = run
        self._role = role
        self._examples = examples
        self._metric = run.settings.metric
        self.score = None if self._metric is None else adapt_metric(self._metric)
        self._temperature = temperature
        self._program = functools.lru_cache(KEPT_PROGRAMS)(self._prepared)
        self._prices = run.settings.execution.prices or {}
        self._early: dict[Sample, Rollout] = {}
        self._bundle = b""
        if run.remote is not None and not run.settings.offline:
            self._bundle = packed_bundle(
                run.student, self._metric, temperature, self._prices, run.records.plain
            )

    def n_missing(self, samples: Sequence[Sample]) -> int:
        """How many of these rollouts are neither begun nor recorded, and so have to be paid."""
        return sum(
            sample not in self._early
            and self._run.records.find(self._key(sample), ROLLOUTS) is None
            for sample in samples
        )

    async def make_early(self, samples: Sequence[Sample], priority: Priority) -> list[Rollout]:
        """Make these rollouts, which `make` gives when it is asked for them."""
        rollouts = await self._make(samples, priority)
        self._early |= zip(samples, rollouts, strict=True)
        return rollouts

    async def make(self, samples: Sequence[Sample], priority: Priority) -> list[Rollout]:
        """A rollout for each sample, in their order.

        One that a limit cuts in training has a failure of kind "budget". Raises RunStopped: the run
        has ended; MissingRecordError: offline, and one is not recorded.
        """
        early = {sample: self._early.pop(sample) for sample in samples if sample in self._early}
        others = [sample for sample in samples if sample not in early]
        made = early | dict(zip(others, await self._make(others, priority), strict=True))
        return [made[sample] for sample in samples]

    async def _make(self, samples: Sequence[Sample], priority: Priority) -> list[Rollout]:
        keyed = [(sample, self._key(sample)) for sample in samples]
        found = [self._found(*each) for each in keyed]
        tasks = {
            k: self._submit(*keyed[k], priority) for k, each in enumerate(found) if each is None
        }
        return [rollout or await tasks[k] for k, rollout in enumerate(found)]

    def _key(self, sample: Sample) -> str:
        _, digest, _ = self._program(sample.given)
        made_of = (digest, self._examples[sample.example], self._metric)
        return self._run.records.keys.rollout(*made_of, sample.rollout_id, self._temperature)

    @property
    def _kind(self) -> str:
        return "training" if self._role == "rollout" else self._role

    def _found(self, sample: Sample, key: str) -> Rollout | None:
        """The recorded rollout; it costs what it cost when it was made."""
        run = self._run
        rollout = run.records.find(key, ROLLOUTS)
        try:
            if rollout is not None:
                usage = rollout.usage + rollout.metric_usage
                run.ledger.spend(usage.n_lm_calls, usage.cost_usd, rollout.n_metric_calls)
            elif run.settings.offline:
                where = f"{self._kind} example {sample.example}"
                run.stop_for_missing_record(f"{self._kind} rollout", where)
        except TrainingCut as cut:
            return Rollout(sample.example, sample.rollout_id, failure=_cut_by(cut))
        if rollout is not None:
            run.report.replayed[self._role] += 1
            self._count(rollout)
        return rollout

    def _count(self, rollout: Rollout, seconds: float = 0.0) -> None:
        self._run.report.count_rollout(self._role, rollout)
        if self._role == "rollout":
            self._run.reserve.note(rollout, seconds)

    def _submit(self, sample: Sample, key: str, priority: Priority) -> Any:
        """Have the rollout made; a future that gives the recorded rollout."""
        run, begun_s = self._run, time.monotonic()
        usual, place = "the program", "threads"
        if run.remote is not None:
            usual, place = "another process", "remote"
        where = Whereabouts(f"the rollout of {self._kind} example {sample.example}", usual)
        work = self._work(sample, where)

        async def begin() -> Any:
            nonlocal begun_s
            begun_s = time.monotonic()
            try:
                return await work()
            except TrainingCut as cut:
                return _cut_by(cut)

        def keep(made: Rollout | Failure | TimeoutError) -> Rollout:
            if isinstance(made, TimeoutError):
                why = f"the rollout {made}, which is rollout_timeout_s; it was in {where}"
                made = Failure(
                    FailureKind.TIMEOUT, f"{why} on the example {sample.example} ({self._kind})"
                )
            if isinstance(made, Failure):
                made = Rollout(sample.example, sample.rollout_id, failure=made)
            is_lost = made.failure is not None and not made.failure.kind.is_recorded
            rollout = run.records.keep(key, made, ROLLOUTS, is_lost)
            self._count(rollout, time.monotonic() - begun_s)
            run.report.check_errors(rollout.failure)
            return rollout

        return run.loop.submit(begin, priority, keep, place, where)

    def _work(self, sample: Sample, where: Whereabouts) -> Callable[[], Awaitable[Any]]:
        """What makes the rollout, in a thread or in another process."""
        run, example = self._run, self._examples[sample.example]
        program, _, given = self._program(sample.given)
        if run.remote is not None:
            made_of = sample.rollout_id, sample.start, sample.asks_predictors
            parts = (example, sample.example, *made_of)
            own = packed(parts, f"example {sample.example}")
            request = Request(self._bundle, given, own)
            n_metric_calls = 1 + len(run.predictors) * sample.asks_predictors
            n_metric_calls *= self._metric is not None
            return functools.partial(run.remote.rollout, request, n_metric_calls)
        task = RolloutTask(
            program=program,
            example=example,
            index=sample.example,
            rollout_id=sample.rollout_id,
            temperature=self._temperature,
            score=self.score,
            ledger=run.ledger,
            prices=self._prices,
            start=sample.start,
            asks_predictors=sample.asks_predictors,
            is_training=self._role == "rollout",
            calls=where.calls,
        )
        work = functools.partial(where.noted, functools.partial(run_rollout, task))
        return functools.partial(run.loop.in_thread, work)

    def _prepared(self, given: Additions) -> tuple[Any, str, bytes]:
        """The program with these; its digest; the additions, packed for other processes."""
        program = given.bake(self._run.student)
        sent = packed(given, "the library") if self._bundle else b""
        return program, self._run.records.keys.program(program), sent


def _cut_by(cut: TrainingCut) -> Failure:
    return Failure(FailureKind.BUDGET, str(cut))
