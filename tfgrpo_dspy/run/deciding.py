"""Has the gate decide on each update, and keeps what it decided and what the updates have taken."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.budget import Account, Amount
from tfgrpo_dspy.errors import GateError
from tfgrpo_dspy.experience import ExperienceLibrary, Keep, Limits, Operation
from tfgrpo_dspy.gate import Decision, GroupEvidence, GroupPlan, RunEvidence, advice_of
from tfgrpo_dspy.reflection import DroppedExperience
from tfgrpo_dspy.results import TriedAdvice
from tfgrpo_dspy.rollout import Group, Rollout, fields_text
from tfgrpo_dspy.run.batches import Batch
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.sampling import as_fields


class Decider:
    """Decides on the updates of one run, one after another.

    `decisions` and `accounts` hold one entry more than there are decided updates: the first is
    what the run starts with.
    """

    def __init__(
        self,
        run: RunContext,
        start: ExperienceLibrary,
        trainset: Sequence[Any],
        training: Sequence[int],
    ) -> None:
        self.decisions = [Decision(start, "the library of the student")]
        calls = run.settings.schedule.facts.calls_per_rollout
        self.accounts = [Account(run.settings.budget, assumed=Amount(calls, 1.0))]
        self._settings = run.settings
        self._recorder = run.recorder
        self._trainset = trainset
        self._training = tuple(training)
        self._groups: list[GroupEvidence] = []
        self._texts: tuple[str, ...] = ()

    def decide(self, batch: Batch, operations: Sequence[Operation]) -> Decision:
        """The gate's decision on the operations.

        Raises:
            GateError: the gate answered with something else than a decision.
        """
        if not self._texts:
            self._texts = tuple(map(self._text_of, self._trainset))
        self._groups += [group_evidence(batch, group) for group in batch.groups]
        evidence = RunEvidence(
            previous=self.decisions[-1],
            operations=tuple(operations),
            groups=tuple(self._groups),
            texts=self._texts,
            training=self._training,
            limits=self._settings.limits,
        )
        gate = self._settings.gate
        decision = gate.decide(evidence)
        if not isinstance(decision, Decision) or not _are_libraries(
            (decision.library, decision.result)
        ):
            raise GateError(f"{gate!r} decided {decision!r}; return a Decision on a library.")
        decision = _with_keeps(decision, operations, self._settings.limits)
        self.decisions.append(decision)
        self.accounts.append(self._account(batch))
        return decision

    def _text_of(self, example: Any) -> str:
        """The inputs of an example, and its labels where the reflection LM may see them."""
        fields = as_fields(example.inputs())
        if self._settings.reflection.use_labels and self._settings.metric is not None:
            fields = {**fields, **as_fields(example.labels())}
        return fields_text(fields)

    def result_after(self, decision: Decision) -> ExperienceLibrary:
        """What a program would be given if the run ended with this decision."""
        return self.like_start(decision.result)

    def scaled(self, decision: Decision) -> Decision:
        """The decision with the spread of the training scores, if the gate does not tell it."""
        scores = [s for group in self._groups for s in group.scores if s is not None]
        spread = statistics.pstdev(scores) if scores else 0.0
        return replace(decision, score_sd=decision.score_sd or spread)

    def like_start(self, library: ExperienceLibrary) -> ExperienceLibrary:
        """The library that is equal to the student's where it has the same experiences.

        The ids that the run has retired since were never in a program.
        """
        start = self.decisions[0].library
        if list(library) != list(start):
            return library
        return ExperienceLibrary(library, next_number=start.next_number)  # with new evidence

    def dropped(self) -> list[DroppedExperience]:
        """The advice that was tried and is in the library no more, the most tried first."""
        decision = self.decisions[-1]
        held = {advice_of(experience) for experience in decision.library}
        tried = [item for item in decision.beliefs.items() if item[1].n_rollouts]
        tried.sort(key=lambda item: -item[1].n_rollouts)
        return [
            DroppedExperience(text, scope, belief.in_words())
            for (text, scope), belief in tried
            if (text, scope) not in held
        ]

    def tried(self) -> tuple[TriedAdvice, ...]:
        """All advice that rollouts were given, with what is believed of it."""
        return tuple(
            TriedAdvice(text, scope, belief.effect, belief.chance)
            for (text, scope), belief in self.decisions[-1].beliefs.items()
            if belief.effect is not None
        )

    def _account(self, batch: Batch) -> Account:
        before = self.accounts[-1]
        rollouts = [rollout for group in batch.groups for rollout in group.all_rollouts]
        if not batch.n_rollouts:  # they were made elsewhere
            rollouts = []
        taken = sum((amount_of(rollout) for rollout in rollouts), Amount())
        reflections = Amount.of(self._recorder.reflection_usage[batch.update], 0)
        account = before.after_rollouts(taken, len(rollouts)).after_reflections(reflections)
        return account.after_update(before, len(batch.groups)) if batch.groups else account


def amount_of(rollout: Rollout) -> Amount:
    """What a rollout has taken; its metric was called unless the program failed."""
    return Amount.of(rollout.usage + rollout.metric_usage, int(rollout.was_scored))


def assigned(gate: Any, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
    """The library of each rollout of a group, as the gate says.

    Raises:
        GateError: these are not as many libraries as the group has rollouts.
    """
    libraries = gate.assign(plan)
    if not _are_libraries(libraries) or len(libraries) != plan.n_rollouts:
        raise GateError(
            f"{gate!r} assigned {libraries!r}; return {plan.n_rollouts} libraries, one for each "
            f"rollout of the group."
        )
    return tuple(libraries)


def proposed_finalists(gate: Any, decision: Decision) -> tuple[ExperienceLibrary, ...]:
    """The libraries that the gate proposes for the final choice.

    Raises:
        GateError: these are no libraries.
    """
    libraries = gate.finalists(decision)
    if not _are_libraries(libraries):
        raise GateError(
            f"{gate!r} proposed {libraries!r} for the end; return a sequence of libraries."
        )
    return tuple(libraries)


def _are_libraries(given: Any) -> bool:
    return isinstance(given, Sequence) and all(isinstance(x, ExperienceLibrary) for x in given)


def _with_keeps(decision: Decision, operations: Iterable[Operation], limits: Limits) -> Decision:
    """The decision with the evidence of KEEPs, whatever the gate made of the other operations."""
    keeps = [op for op in operations if isinstance(op, Keep)]

    def kept(library: ExperienceLibrary) -> ExperienceLibrary:
        ids = {experience.id for experience in library}
        return library.apply([op for op in keeps if op.id in ids], limits)

    deployable = None if decision.deployable is None else kept(decision.deployable)
    return replace(decision, library=kept(decision.library), deployable=deployable)


def group_evidence(batch: Batch, group: Group) -> GroupEvidence:
    """The group as gates see it.

    A rollout that has no score because it timed out or its metric failed counts as the lowest of
    the group: the advice may be to blame. Where the provider failed, there is no score.
    """
    scores = {rollout.rollout_id: rollout.score for rollout in group.rollouts}
    floor = min([0.0, *(score for score in scores.values() if score is not None)])
    n = len(group.all_rollouts)
    return GroupEvidence(
        group.example,
        batch.assigned.get(group.example, (batch.decision.library,) * n),
        tuple(
            floor
            if rollout.failure is not None and rollout.failure.kind in ("timeout", "metric")
            else scores.get(rollout.rollout_id)
            for rollout in group.all_rollouts
        ),
    )
