"""The default gate: each lesson goes to the gate that can tell what it is worth.

A lesson with a condition ('When <condition>, <advice>') concerns some examples, and would drown in
an average over all: it is probed, and tried in the training groups that it concerns. Advice without
one concerns every example: it is measured on the validation set, all of it at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import Add, Experience, ExperienceLibrary, Operation
from tfgrpo_dspy.gate.concern import Concern, WordConcern, condition_of
from tfgrpo_dspy.gate.factorial import FactorialGate
from tfgrpo_dspy.gate.protocol import (
    Decision,
    GroupEvidence,
    GroupPlan,
    TrialEvidence,
    Trials,
)
from tfgrpo_dspy.gate.trial import ProbeThenTrial


@dataclass(frozen=True, slots=True)
class AutoGate:
    """Lessons with a condition go to `narrow`, all others to `broad`.

    `broad` decides first, with what is on trial left as it is; `narrow` then goes on from its
    library.

    Args:
        broad: for advice that concerns every example.
        narrow: for advice with a condition, and for all that is on trial.
        concern: says which training examples experiences concern.
        domain: the field of the examples that names their domain, if there is one; advice that is
            drawn from one domain is then thought to concern it only.
    """

    broad: Any = field(default_factory=FactorialGate)
    narrow: ProbeThenTrial = field(default_factory=ProbeThenTrial)
    concern: Concern = field(default_factory=WordConcern)
    domain: str | None = None
    metric: Callable[..., Any] | None = field(default=None, init=False)

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The next trials, or the decision."""
        memory = evidence.memory or {"broad": None, "narrow": None}
        broad_ones, narrow_ones = self._parted(evidence, memory)
        first: Trials | Decision = Decision(evidence.incumbent, "", memory=memory["broad"])
        if broad_ones:
            first = self.broad.next(
                replace(evidence, operations=broad_ones, memory=memory["broad"])
            )
        if isinstance(first, Trials):
            return first
        library = _with_ids_of(first, evidence, broad_ones, narrow_ones)
        own = replace(evidence, incumbent=library, operations=narrow_ones, memory=memory["narrow"])
        second = self.narrow.next(replace(own, concerns=_renamed(evidence, own.proposed)))
        if isinstance(second, Trials):
            return second
        return replace(
            second,
            reason="; ".join(filter(None, (first.reason, second.reason))),
            dropped={**first.dropped, **second.dropped},
            memory={"broad": first.memory, "narrow": second.memory},
        )

    def assign(self, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
        """Which rollouts are given what is on trial: as `narrow` says."""
        return self.narrow.assign(plan)

    def skips(self, group: GroupEvidence, memory: Any) -> str:
        """Why the group is not worth reflecting on: as `narrow` says."""
        return self.narrow.skips(group, (memory or {}).get("narrow"))

    def _parted(
        self, evidence: TrialEvidence, memory: Mapping[str, Any]
    ) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
        """The operations of `broad` and those of `narrow`."""
        on_trial = {own.id for own in evidence.incumbent if own.is_on_trial}
        known = on_trial | set(((memory["narrow"] or {}).get("records")) or {})
        proposed = {own.id: own for own in evidence.proposed}
        new = (id_ for id_, own in proposed.items() if own.number >= evidence.incumbent.next_number)
        parts: tuple[list[Operation], list[Operation]] = ([], [])
        for operation in evidence.operations:
            id_ = next(new) if isinstance(operation, Add) else operation.id
            is_narrow = id_ in known or self._has_condition(proposed.get(id_), evidence)
            parts[is_narrow].append(operation)
        return tuple(parts[0]), tuple(parts[1])

    def _has_condition(self, experience: Experience | None, evidence: TrialEvidence) -> bool:
        if experience is None:  # it is to be deleted, and nobody has measured it
            return False
        is_of_domain = self.domain is not None and experience.id in (evidence.concerns or {})
        return is_of_domain or bool(condition_of(experience.text))


def _with_ids_of(
    first: Decision,
    evidence: TrialEvidence,
    broad_ones: tuple[Operation, ...],
    narrow_ones: tuple[Operation, ...],
) -> ExperienceLibrary:
    """Its library, so that no ADD that follows is given an id that was tried."""
    if not any(isinstance(operation, Add) for operation in narrow_ones):
        return first.library
    tried = replace(evidence, operations=broad_ones).proposed.next_number
    number = max(first.library.next_number, tried)
    return ExperienceLibrary(first.library, next_number=number)


def _renamed(evidence: TrialEvidence, proposed: ExperienceLibrary) -> dict[str, frozenset[int]]:
    """What experiences concern, by the ids that they have in another library."""
    concerns = evidence.concerns or {}
    by_text = {_said(own): concerns[own.id] for own in evidence.proposed if own.id in concerns}
    return {own.id: by_text[_said(own)] for own in proposed if _said(own) in by_text}


def _said(experience: Experience) -> tuple[str, str]:
    return (experience.text, experience.scope)
