"""Asks a gate, and checks what it answers: a gate may be the user's own."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.errors import GateError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.operations import Limits
from tfgrpo_dspy.experience.values import Keep, Operation
from tfgrpo_dspy.gate.protocol import Decision, GroupPlan, RunEvidence


def decision_of(gate: Any, evidence: RunEvidence) -> Decision:
    """The gate's decision, with the evidence of KEEPs whatever it made of the other operations.

    Raises:
        GateError: the gate answered with something else than a decision.
    """
    decision = gate.decide(evidence)
    if not isinstance(decision, Decision) or not _are_libraries(
        (decision.library, decision.result)
    ):
        raise GateError(f"{gate!r} decided {decision!r}; return a Decision on a library.")
    return _with_keeps(decision, evidence.operations, evidence.limits)


def assigned_libraries(gate: Any, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
    """The library of each rollout of a group.

    Raises:
        GateError: these are not as many libraries as the group has rollouts.
    """
    if not any(experience.is_on_trial for experience in plan.decision.library):
        return (plan.decision.library,) * plan.n_rollouts
    libraries = gate.assign(plan)
    if not _are_libraries(libraries) or len(libraries) != plan.n_rollouts:
        raise GateError(
            f"{gate!r} assigned {libraries!r}; return {plan.n_rollouts} libraries, one for each "
            f"rollout of the group."
        )
    return tuple(libraries)


def finalists_of(gate: Any, decision: Decision) -> tuple[ExperienceLibrary, ...]:
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
    keeps = [op for op in operations if isinstance(op, Keep)]

    def kept(library: ExperienceLibrary) -> ExperienceLibrary:
        ids = {experience.id for experience in library}
        return library.apply([op for op in keeps if op.id in ids], limits)

    deployable = None if decision.deployable is None else kept(decision.deployable)
    return replace(decision, library=kept(decision.library), deployable=deployable)
