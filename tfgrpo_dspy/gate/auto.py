"""The default gate: each lesson goes to the gate that can tell what it is worth.

A lesson with a condition ('When <condition>, <advice>') concerns some examples, and would drown in
an average over all: it is probed, and tried in the training groups that it concerns. Advice without
one concerns every example: it is measured on the validation set, all of it at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import Add, Experience, ExperienceLibrary, Operation, sift
from tfgrpo_dspy.gate.concern import Concern, WordConcern, condition_of
from tfgrpo_dspy.gate.factorial import FactorialGate
from tfgrpo_dspy.gate.protocol import (
    Decision,
    GroupEvidence,
    GroupPlan,
    TrialEvidence,
    Trials,
)
from tfgrpo_dspy.gate.sequential import Account
from tfgrpo_dspy.gate.trial import ProbeThenTrial

COMMON = 1 / 3
"""A lesson that this share of an update's groups brought is about more than a part of them."""


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
        narrow_ones, refused = _taken(narrow_ones, library, evidence)
        own = replace(evidence, incumbent=library, operations=narrow_ones, memory=memory["narrow"])
        second = self.narrow.next(replace(own, concerns=_renamed(evidence, own.proposed)))
        if isinstance(second, Trials):
            return second
        return replace(
            second,
            reason="; ".join(filter(None, (first.reason, second.reason, *refused))),
            dropped={**first.dropped, **second.dropped},
            memory={
                "broad": _of_incumbent(first.memory, first.library == second.library),
                "narrow": second.memory,
            },
        )

    def most_trials(self, n_examples: int) -> int | None:
        """How many rollouts the decision on one update takes at most; None: a part does not say."""
        known = [getattr(gate, "most_trials", None) for gate in (self.broad, self.narrow)]
        most = [None if of is None else of(n_examples) for of in known]
        return None if None in most else sum(n or 0 for n in most)

    def assign(self, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
        """Which rollouts are given what is on trial: as `narrow` says."""
        return self.narrow.assign(plan)

    def skips(self, group: GroupEvidence, memory: Any) -> str:
        """Why the group is not worth reflecting on: as `narrow` says."""
        return self.narrow.skips(group, (memory or {}).get("narrow"))

    def _parted(
        self, evidence: TrialEvidence, memory: Mapping[str, Any]
    ) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
        """The operations of `broad` and those of `narrow`.

        What the library takes only together with operations of `narrow`, such as an ADD for which
        a DELETE of theirs makes room, is theirs too.
        """
        on_trial = {own.id for own in evidence.incumbent if own.is_on_trial}
        known = on_trial | set(((memory["narrow"] or {}).get("records")) or {})
        old, proposed = _by_id(evidence.incumbent), _by_id(evidence.proposed)
        new = (id_ for id_, own in proposed.items() if own.number >= evidence.incumbent.next_number)
        is_narrow = []
        for operation in evidence.operations:
            id_ = next(new, "") if isinstance(operation, Add) else operation.id
            about = proposed.get(id_) or old.get(id_)
            is_narrow.append(
                id_ in known or (about is not None and self._is_narrow(about, evidence))
            )
        given = list(zip(evidence.operations, is_narrow, strict=True))
        broad_ones, _ = _taken(
            [op for op, narrow in given if not narrow], evidence.incumbent, evidence
        )
        return broad_ones, tuple(op for op in evidence.operations if op not in broad_ones)

    def _is_narrow(self, experience: Experience, evidence: TrialEvidence) -> bool:
        """Whether it is about a part of the examples, as far as its text and its sources say.

        A condition that no example's words bear out is believed unless many groups of the update
        brought the same lesson: 'When a user asks, ...' is a condition in name only.
        """
        is_known = experience.id in (evidence.concerns or {})
        if not condition_of(experience.text):
            return is_known and self.domain is not None
        sources = {group.example for group in experience.evidence}
        is_common = len(sources) >= max(2, COMMON * len(evidence.groups))
        return is_known or not is_common


def _by_id(library: ExperienceLibrary) -> dict[str, Experience]:
    return {own.id: own for own in library}


def _taken(
    operations: Sequence[Operation], library: ExperienceLibrary, evidence: TrialEvidence
) -> tuple[tuple[Operation, ...], tuple[str, ...]]:
    """The operations that the library takes, and why it does not take the others."""
    taken, refused = sift(library, operations, evidence.limits)
    return tuple(taken), tuple(f"an operation is left out: {each.reason}" for each in refused)


def _of_incumbent(memory: Any, is_incumbent: bool) -> Any:
    """What `broad` remembers; of its library no trials are known when `narrow` has changed it."""
    if is_incumbent or not isinstance(memory, Account):
        return memory
    return replace(memory, n_known=0)


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
    staying = {own.id for own in evidence.proposed}
    leaving = {
        own.id: concerns[own.id]
        for own in evidence.incumbent
        if own.id not in staying and own.id in concerns
    }
    return leaving | {own.id: by_text[_said(own)] for own in proposed if _said(own) in by_text}


def _said(experience: Experience) -> tuple[str, str]:
    return (experience.text, experience.scope)
