"""Rollouts: replayed where they are recorded, run where not, recorded as soon as they are done."""

import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.rollout import Failure, Rollout
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.loop import Priority, TimedOutError
from tfgrpo_dspy.run.records import CachedRollout
from tfgrpo_dspy.run.worker import Bundle, Request, packed_library
from tfgrpo_dspy.sampling import Outline, RolloutTask, run_rollout, score_again

KEPT_PROGRAMS = 32
CALLED = {
    "rollout": ("training rollout", "training"),
    "validation": ("final choice", "validation"),
    "test": ("final score", "test"),
}
"""How errors name the rollouts of a role, and their examples."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one rollout is made of: the library, the example's position in its set, the id."""

    library: ExperienceLibrary
    example: int
    rollout_id: int


@dataclass(frozen=True, slots=True)
class _Job:
    """A rollout that is not there yet; `found` where only its score is missing."""

    position: int
    sample: Sample
    task: RolloutTask
    key: str
    found: CachedRollout | None

    def do(self) -> Rollout:
        """The rollout; its program is run unless its outputs are there to be scored."""
        if self.found is not None and self.found.can_be_scored:
            return score_again(self.task, self.found.rollout)
        return run_rollout(self.task)

    def request(self) -> Request:
        """The same, to be done in another process."""
        is_scored = self.found is not None and self.found.can_be_scored
        recorded = self.found.rollout if self.found is not None and is_scored else None
        sample, example = self.sample, self.task.example
        library = packed_library(sample.library)
        return Request(library, example, sample.example, sample.rollout_id, recorded)


class Rollouts:
    """Makes rollouts on one set of examples, for one role of the report.

    Args:
        run: what the parts of the run share.
        role: of the report: "rollout" (training), "validation" or "test".
        examples: the set.
        metric: the user's; None: rollouts are not scored.
        temperature: see `RolloutTask`.
    """

    def __init__(
        self,
        run: RunContext,
        role: str,
        examples: Sequence[Any],
        metric: Any,
        temperature: float | None,
    ) -> None:
        self._run = run
        self._role = role
        self._examples = examples
        self._metric = metric
        self._score = None if metric is None else adapt_metric(metric)
        self._temperature = temperature
        self._programs: dict[ExperienceLibrary, tuple[Any, Outline]] = {}
        settings = run.settings
        self._bundle: Bundle | None = None
        if run.remote is not None and not settings.offline:
            prices = settings.execution.prices or {}
            self._bundle = Bundle.of(run.student, metric, temperature, prices)

    def beside(self, run: RunContext) -> "Rollouts":
        """The same rollouts, of the student of this run."""
        return Rollouts(run, self._role, self._examples, self._metric, self._temperature)

    def admit(self, n: int) -> None:
        """Take the metric calls of so many rollouts. Raises RunStopped: a budget does not reach."""
        if self._metric is not None:
            self._run.ledger.take_metric_calls(n)

    def settle(self, rollouts: Sequence[Rollout]) -> None:
        """Give the metric calls back that were not made, because the program failed.

        What took too long, or was lost with a worker, may have been in the metric.
        """
        failed = [rollout.failure.kind for rollout in rollouts if rollout.failure is not None]
        if self._metric is not None:
            not_scored = sum(kind in ("program", "parse", "provider") for kind in failed)
            self._run.ledger.give_back_metric_calls(not_scored)

    async def make(
        self, samples: Sequence[Sample], order: Priority, update: int = 0
    ) -> list[Rollout]:
        """A rollout for each sample, in their order; they were admitted before.

        Raises:
            RunStopped: the run has ended; what was done is recorded.
            MissingRecordError: offline, and one of them is not recorded.
        """
        made: dict[int, Rollout] = {}
        try:
            for handle in self._begun(made, samples, order, update):
                await handle
        finally:  # what was made counts, also where the run ends here
            rollouts = [made[position] for position in sorted(made)]
            self._run.recorder.count_rollouts(self._role, rollouts)
        return rollouts

    def _begun(
        self, made: dict[int, Rollout], samples: Sequence[Sample], order: Priority, update: int
    ) -> list[Awaitable[None]]:
        """Put what is recorded into `made`; begin the rest, which comes there when it is done."""
        run = self._run
        jobs = []
        for position, sample in enumerate(samples):
            job = self._job(position, sample)
            if job.found is not None and not job.found.needs_score:
                made[position] = self._replayed(job.found.rollout)
                continue
            if job.found is not None and job.found.can_be_scored:
                self._charge(job.found.rollout)
            jobs.append(job)
        if jobs and run.settings.offline:
            stage, kind = CALLED[self._role]
            what = stage if jobs[0].found is None else f"score of the {stage}"
            run.lacking(what, f"{kind} example {jobs[0].sample.example}")
        if any(job.found is None or not job.found.can_be_scored for job in jobs):
            run.recorder.note_misses(self._role, update)

        def keep(job: _Job, rollout: Any) -> None:
            if isinstance(rollout, TimedOutError):
                failure = Failure("timeout", f"the rollout {rollout}, which is rollout_timeout_s")
                rollout = Rollout(job.sample.example, job.sample.rollout_id, failure=failure)
            made[job.position] = self._kept(job, rollout)

        return [self._submitted(job, order, functools.partial(keep, job)) for job in jobs]

    def _submitted(
        self, job: _Job, order: Priority, keep: Callable[[Any], None]
    ) -> Awaitable[None]:
        if self._bundle is None or self._run.remote is None:
            return self._run.loop.submit(job.do, order, keep)
        return self._run.remote.submit(self._bundle, job.request(), order, keep)

    def _baked(self, library: ExperienceLibrary) -> tuple[Any, Outline]:
        """The student with this library, and what rollouts need to know of it; a few are kept."""
        if library not in self._programs:
            if len(self._programs) >= KEPT_PROGRAMS:
                self._programs.clear()
            program = self._run.bake(library)
            self._programs[library] = (program, Outline.of(program))
        return self._programs[library]

    def _job(self, position: int, sample: Sample) -> _Job:
        program, outline = self._baked(sample.library)
        run, example = self._run, self._examples[sample.example]
        key, found = "", None
        if run.archive.store is not None:
            key = run.archive.rollout_key(
                run.student,
                sample.library,
                program,
                example,
                sample.rollout_id,
                self._temperature,
            )
            found = run.archive.find_rollout(key, self._metric, example)
        task = RolloutTask(
            program=program,
            example=example,
            index=sample.example,
            rollout_id=sample.rollout_id,
            temperature=self._temperature,
            score=self._score,
            ledger=run.ledger,
            prices=run.settings.execution.prices or {},
            outline=outline,
        )
        return _Job(position, sample, task, key, found)

    def _replayed(self, rollout: Rollout) -> Rollout:
        self._charge(rollout)
        self._run.recorder.replayed[self._role] += 1
        if rollout.was_scored and self._metric is not None:
            self._run.ledger.note_metric_call()
        return rollout

    def _charge(self, rollout: Rollout) -> None:
        """Take from the ledger what it cost when it was made: a budget is that of the whole run."""
        for usage in (rollout.usage, rollout.metric_usage):
            self._run.ledger.spend(usage.n_lm_calls, usage.cost_usd)

    def _kept(self, job: _Job, rollout: Rollout) -> Rollout:
        run, example = self._run, self._examples[job.sample.example]
        rollout = run.archive.cleaned_rollout(rollout)
        is_rescored = job.found is not None and job.found.can_be_scored
        is_rerun = job.found is not None and not job.found.can_be_scored
        run.recorder.rescored += is_rescored
        found = run.archive.keep_rollout(
            job.key, rollout, self._metric, example, job.sample.library, is_rerun
        )
        kept = found.rollout
        if found.needs_score:  # another process was first, with another metric
            return self._kept(replace(job, found=found), score_again(job.task, kept))
        run.recorder.check_errors(run.ledger, kept.failure)
        return kept
