"""Rollouts: replayed where they are recorded, run where not, recorded as soon as they are done."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.pipeline.archive import Found
from tfgrpo_dspy.pipeline.run import Run
from tfgrpo_dspy.pipeline.workers import Done, TimedOutError
from tfgrpo_dspy.rollout import Failure, Rollout
from tfgrpo_dspy.sampling import Outline, RolloutTask, run_rollout, score_again


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
    found: Found | None

    def do(self) -> Rollout:
        """The rollout; its program is run unless its outputs are there to be scored."""
        if self.found is not None and self.found.can_be_scored:
            return score_again(self.task, self.found.rollout)
        return run_rollout(self.task)


class Rollouts:
    """Makes rollouts on one set of examples, for one role of the report.

    Args:
        run: what the parts of the run share.
        role: of the report: "rollout" (training) or "gate".
        examples: the set.
        metric: the user's; None: rollouts are not scored.
        temperature: see `RolloutTask`.
    """

    def __init__(
        self, run: Run, role: str, examples: Sequence[Any], metric: Any, temperature: float | None
    ) -> None:
        self._run = run
        self._role = role
        self._examples = examples
        self._metric = metric
        self._score = None if metric is None else adapt_metric(metric)
        self._temperature = temperature

    def make(self, samples: Sequence[Sample]) -> list[Rollout]:
        """A rollout for each sample, in their order.

        Raises:
            RunStopped: a budget does not reach, or the run has ended; what was done is recorded.
            MissingRecordError: offline, and one of them is not recorded.
        """
        if self._metric is not None:
            self._run.ledger.take_metric_calls(len(samples))
        made: dict[int, Rollout] = {}
        try:
            self._fill(made, samples)
        finally:  # what was made counts, also where the run ends here
            rollouts = [made[position] for position in sorted(made)]
            self._run.recorder.count_rollouts(self._role, rollouts)
        if self._metric is not None:
            failed = [r.failure.kind for r in rollouts if r.failure is not None]
            # what took too long may have been in the metric
            not_scored = sum(kind not in ("metric", "timeout") for kind in failed)
            self._run.ledger.give_back_metric_calls(not_scored)
        return rollouts

    def _fill(self, made: dict[int, Rollout], samples: Sequence[Sample]) -> None:
        run = self._run
        programs = {lib: run.bake(lib) for lib in dict.fromkeys(s.library for s in samples)}
        outlines = {lib: Outline.of(program) for lib, program in programs.items()}
        jobs = []
        for position, sample in enumerate(samples):
            job = self._job(position, sample, programs[sample.library], outlines[sample.library])
            if job.found is None or not job.found.is_lost:
                lost = run.archive.lost_usage(job.key)  # paid before, to no avail
                run.ledger.spend(lost.n_lm_calls, lost.cost_usd)
            if job.found is not None and not job.found.needs_score:
                made[position] = self._replayed(job.found.rollout)
                continue
            if job.found is not None and job.found.can_be_scored:
                self._charge(job.found.rollout)
            jobs.append(job)
        if jobs:
            stage = "gate trial" if self._role == "gate" else "training rollout"
            what = stage if jobs[0].found is None else f"score of the {stage}"
            kind = "validation" if self._role == "gate" else "training"
            run.check_offline(what, f"{kind} example {jobs[0].sample.example}")
        n_new = sum(job.found is None or not job.found.can_be_scored for job in jobs)
        run.recorder.note_misses(self._role, n_new)
        for done in run.workers.run(_Job.do, jobs):
            job = jobs[done.index]
            made[job.position] = self._kept(job, self._outcome(job, done))

    def _job(self, position: int, sample: Sample, program: Any, outline: Outline) -> _Job:
        run, example = self._run, self._examples[sample.example]
        key, found = "", None
        if run.archive.store is not None:
            key = run.archive.rollout_key(
                sample.library, program, example, sample.rollout_id, self._temperature
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
            prices=run.settings.prices or {},
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

    def _outcome(self, job: _Job, done: Done[Rollout]) -> Rollout:
        if isinstance(done.error, TimedOutError):
            message = f"the rollout {done.error}, which is rollout_timeout_s"
            failure = Failure("timeout", message)
            return Rollout(job.sample.example, job.sample.rollout_id, failure=failure)
        if done.error is not None:
            raise done.error
        assert done.result is not None  # noqa: S101 - a task gives a result or an error
        return done.result

    def _kept(self, job: _Job, rollout: Rollout) -> Rollout:
        run, example = self._run, self._examples[job.sample.example]
        rollout = Rollout.from_dict(run.archive.without_secrets(rollout.to_dict()))
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
