"""Asks the gate until it decides, and has the trials made that it wants."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.errors import GateError
from tfgrpo_dspy.experience import ExperienceLibrary, Keep, Limits, Operation
from tfgrpo_dspy.gate import Decision, GroupEvidence, GroupPlan, Trial, TrialEvidence, Trials
from tfgrpo_dspy.pipeline.batches import Batch
from tfgrpo_dspy.pipeline.concerns import Concerns
from tfgrpo_dspy.pipeline.measuring import Measurements
from tfgrpo_dspy.pipeline.pace import Pace
from tfgrpo_dspy.pipeline.run import Run
from tfgrpo_dspy.pipeline.shares import GATE_SHARE, affordable
from tfgrpo_dspy.rollout import Group


class Decider:
    """Decides over the updates of one run, one after another.

    `exported` are the libraries that a program would have been given: the first the student's, then
    one for each update. `memories` are what the gate left for later, `groups` all training groups;
    `pace` knows how far the budget reaches.
    """

    def __init__(
        self,
        run: Run,
        measured: Measurements,
        concerns: Concerns,
        start: ExperienceLibrary,
        training: Sequence[int],
        n_trainset: int,
    ) -> None:
        self.exported = [start]
        self.memories: list[Any] = [None]
        self.groups: list[GroupEvidence] = []
        self._settings = run.settings
        self._recorder = run.recorder
        self._measured = measured
        self._concerns = concerns
        self._training = tuple(training)
        self._n_trainset = n_trainset
        self.pace = Pace(run.settings)

    async def decide(
        self, batch: Batch, library: ExperienceLibrary, operations: Sequence[Operation]
    ) -> Decision:
        """What the gate makes of the operations.

        Raises:
            GateError: the gate asks for what there is not, or for nothing new.
            RunStopped: a budget does not reach for its trials.
        """
        groups = tuple(group_evidence(batch, group) for group in batch.groups)
        self.groups += groups
        reflections = self._recorder.reflection_usage[batch.update]
        n_trials, trials = self._measured.n_rollouts, self._recorder.usage["gate"]
        self.pace.note(batch, reflections, n_trials, trials)
        evidence: dict[str, Any] = {
            "incumbent": library,
            "operations": tuple(operations),
            "n_examples": self._measured.n_examples,
            "order": self._measured.order,
            "update": batch.update,
            "limits": self._settings.limits,
            "n_updates": batch.n_updates,
            "n_training": len(self._training),
            "training": self._training,
            "groups": groups,
            "memory": self.memories[-1],
            "max_trials": self._affordable(),
            "n_ahead": self._n_ahead(batch),
        }
        proposed = TrialEvidence(**evidence).proposed
        if proposed == library and not has_trials(library):
            last = self.exported[-1]
            decision = Decision(proposed, "nothing to decide", last, memory=self.memories[-1])
        else:
            ids = {experience.id for experience in proposed}
            deleted = [experience for experience in library if experience.id not in ids]
            evidence["concerns"] = self._concerns.of([*proposed, *deleted])
            decision = await self._asked(evidence)
        decision = self._with_keeps(decision, operations)
        exported = decision.library if decision.exported is None else decision.exported
        self.exported.append(self.like_start(exported))
        self.memories.append(decision.memory)
        return decision

    def _affordable(self) -> int | None:
        """How many trials the budget leaves for this decision; None: nothing limits them.

        It does not look at the clock or at what is in flight: the same run decides the same.
        """
        n, usage = self._measured.n_rollouts, self._recorder.usage
        most = affordable(self._settings, GATE_SHARE, usage["gate"], n) if n else None
        return None if most is None else max(0, most - n)

    def _n_ahead(self, batch: Batch) -> int:
        """How many training rollouts are to come with the library that is decided on now.

        As many as are planned, or as the budget has room for at the pace so far.
        """
        n_batches = self.pace.n_updates_left(batch.n_updates - batch.update - 1)
        n_batches -= self._settings.max_staleness
        return max(0, n_batches) * batch.n_rollouts

    def _with_keeps(self, decision: Decision, operations: Sequence[Operation]) -> Decision:
        """With the evidence of KEEPs, whatever the gate made of the other operations."""
        limits, exported = self._settings.limits, decision.exported
        return replace(
            decision,
            library=with_keeps(decision.library, operations, limits),
            exported=None if exported is None else with_keeps(exported, operations, limits),
        )

    def like_start(self, library: ExperienceLibrary) -> ExperienceLibrary:
        """Equal to the student's, where it holds the same experiences: it is not measured anew.

        The ids that the run has retired since then were never in a program.
        """
        start = self.exported[0]
        if list(library) != list(start):
            return library
        return ExperienceLibrary(library, next_number=start.next_number)

    async def _asked(self, evidence: dict[str, Any]) -> Decision:
        gate: Any = self._settings.gate
        while True:
            answer = gate.next(TrialEvidence(**evidence, scores=self._measured.scores))
            if isinstance(answer, Decision) and all(map(_is_library, _libraries_of(answer))):
                return answer
            if not isinstance(answer, Trials):
                raise GateError(
                    f"{gate!r} answered {answer!r}; return Trials or a Decision on a library."
                )
            self._check(answer)
            if not await self._measured.run(answer.trials):
                raise GateError(f"{gate!r} asks again for trials that it has the scores of.")

    def _check(self, trials: Trials) -> None:
        sizes = {"validation": self._measured.n_examples, "training": self._n_trainset}
        for trial in trials.trials:
            is_trial = isinstance(trial, Trial) and _is_library(trial.library)
            if not is_trial or trial.on not in sizes:
                raise GateError(f"{self._settings.gate!r} asks for {trial!r}, which is no Trial.")
            if trial.example not in range(sizes[trial.on]):
                raise GateError(
                    f"{self._settings.gate!r} asks for a trial on {trial.on} example "
                    f"{trial.example}; there are {sizes[trial.on]}, counted from 0."
                )


def with_keeps(
    library: ExperienceLibrary, operations: Sequence[Operation], limits: Limits
) -> ExperienceLibrary:
    """The library with the evidence of those KEEPs that are on one of its experiences."""
    ids = {experience.id for experience in library}
    keeps = [op for op in operations if isinstance(op, Keep) and op.id in ids]
    return library.apply(keeps, limits)


def assigned(gate: Any, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
    """The library of each rollout of a group, as the gate says.

    Raises:
        GateError: these are not as many libraries as the group has rollouts.
    """
    libraries = gate.assign(plan)
    is_group = isinstance(libraries, Sequence) and len(libraries) == plan.n_rollouts
    if not is_group or not all(map(_is_library, libraries)):
        raise GateError(
            f"{gate!r} assigned {libraries!r}; return {plan.n_rollouts} libraries, one for each "
            f"rollout of the group."
        )
    return tuple(libraries)


def _is_library(value: object) -> bool:
    return isinstance(value, ExperienceLibrary)


def _libraries_of(decision: Decision) -> list[Any]:
    return [decision.library, decision.library if decision.exported is None else decision.exported]


def has_trials(library: ExperienceLibrary) -> bool:
    """Whether an experience of it is on trial."""
    return any(experience.is_on_trial for experience in library)


def group_evidence(batch: Batch, group: Group) -> GroupEvidence:
    """The group as gates see it."""
    scores = {rollout.rollout_id: rollout.score for rollout in group.rollouts}
    n = len(group.all_rollouts)
    return GroupEvidence(
        group.example,
        batch.assigned.get(group.example, (batch.library,) * n),
        tuple(scores.get(rollout.rollout_id) for rollout in group.all_rollouts),
    )
