"""The default gate: each lesson goes to the gate that can tell what it is worth.

A lesson with a condition ('When <condition>, <advice>') concerns some examples, and would drown in
an average over all: it is probed, and tried in the training groups that it concerns. Advice without
one concerns every example: it is tried in all training groups, and confirmed on the validation set.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import (
    Add,
    Delete,
    Experience,
    ExperienceLibrary,
    Limits,
    Modify,
    Operation,
    sift,
)
from tfgrpo_dspy.gate.concern import Concern, WordConcern, condition_of
from tfgrpo_dspy.gate.paired import PairedGate
from tfgrpo_dspy.gate.protocol import (
    Decision,
    GroupEvidence,
    GroupPlan,
    TrialEvidence,
    Trials,
)
from tfgrpo_dspy.gate.sequential import Account
from tfgrpo_dspy.gate.then_confirm import TrialThenConfirm
from tfgrpo_dspy.gate.trial import ProbeThenTrial

COMMON = 1 / 3
"""A lesson that this share of an update's groups brought is about more than a part of them."""


@dataclass(frozen=True, slots=True)
class AutoGate:
    """Lessons with a condition go to `narrow`, all others to `broad`.

    `broad` decides first, on a library without what `narrow` has on trial, and `narrow` then on
    what came of it, without what `broad` has on trial.

    Args:
        broad: for advice that concerns every example.
        narrow: for advice with a condition.
        concern: says which training examples experiences concern.
        domain: the field of the examples that names their domain, if there is one; advice that is
            drawn from one domain is then thought to concern it only.
        whole: for all lessons with a condition of an update that comes from no group, such as a
            draft from labels: they have no rollouts behind them, and together they show soonest
            what they are worth. What it accepts is in use; each of them of which somebody knows
            whom it concerns is then on trial against its absence.
    """

    broad: Any = field(default_factory=TrialThenConfirm)
    narrow: ProbeThenTrial = field(default_factory=ProbeThenTrial)
    concern: Concern = field(default_factory=WordConcern)
    domain: str | None = None
    whole: Any = field(default_factory=lambda: PairedGate(max_trials=40, max_singles=0))
    metric: Callable[..., Any] | None = field(default=None, init=False)

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The next trials, or the decision."""
        conditional = [op for op in evidence.operations if _is_conditional(op)]
        together, _ = _taken(conditional, evidence.incumbent, evidence.limits)
        if evidence.groups or not together:
            return self._decided_in_parts(evidence)
        own = replace(evidence, operations=together, update=0, n_updates=1, memory=None)
        whole: Trials | Decision = self.whole.next(own)
        if isinstance(whole, Trials):
            return whole
        parts = self._decided_in_parts(_left_to_decide(whole.library, own, evidence))
        if isinstance(parts, Trials):
            return parts
        return replace(
            parts,
            reason="; ".join(filter(None, (f"together: {whole.reason}", parts.reason))),
            dropped={**whole.dropped, **parts.dropped},
        )

    def _decided_in_parts(self, evidence: TrialEvidence) -> Trials | Decision:
        memory = evidence.memory or {"broad": None, "narrow": None}
        mine = self._of_broad(memory["broad"])
        broad_ones, narrow_ones = self._parted(evidence, memory, mine)
        if evidence.max_trials is not None and (broad_ones or mine) and narrow_ones:
            evidence = replace(evidence, max_trials=evidence.max_trials // 2)  # half for each
        theirs = [own for own in evidence.incumbent if own.is_on_trial and own.id not in mine]
        first = self._decided_broadly(evidence, broad_ones, theirs, memory["broad"])
        if isinstance(first, Trials):
            return first
        mine = self._of_broad(first.memory)
        library = _with_ids_of(first, theirs, evidence, broad_ones, narrow_ones)
        second, refused = self._decided_narrowly(
            evidence, narrow_ones, library, mine, memory["narrow"]
        )
        if isinstance(second, Trials):
            return second
        exported = first.library if first.exported is None else first.exported
        return Decision(
            _joined(second.library, [own for own in library if own.id in mine], evidence),
            _both(first.reason, second.reason, refused),
            exported=_joined(
                second.library if second.exported is None else second.exported,
                [own for own in exported if own.id in mine],
                evidence,
            ),
            dropped={**first.dropped, **second.dropped},
            memory={
                "broad": _of_incumbent(first.memory, first.library == second.library),
                "narrow": second.memory,
            },
        )

    def most_trials(self, n_examples: int) -> int | None:
        """How many rollouts the decision on one update takes at most; None: a part does not say."""
        gates = (self.broad, self.narrow, self.whole)
        known = [getattr(gate, "most_trials", None) for gate in gates]
        broad, narrow, whole = (None if of is None else of(n_examples) for of in known)
        if broad is None or narrow is None or whole is None:
            return None
        return int(broad + max(narrow, whole))  # what was tried as a whole needs no probes

    def assign(self, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
        """Which rollouts are given what is on trial: each part says it of its own."""
        memory = plan.memory or {"broad": None, "narrow": None}
        mine = self._of_broad(memory["broad"])
        narrowly = self.narrow.assign(
            replace(plan, library=_without(plan.library, mine), memory=memory["narrow"])
        )
        if not mine:
            return narrowly
        own_ones = ExperienceLibrary(
            [own for own in plan.library if own.id in mine], next_number=plan.library.next_number
        )
        broadly = self.broad.assign(replace(plan, library=own_ones, memory=memory["broad"]))
        place = {own.id: number for number, own in enumerate(plan.library)}
        return tuple(
            ExperienceLibrary(
                sorted([*ours, *others], key=lambda own: place[own.id]),
                next_number=plan.library.next_number,
            )
            for ours, others in zip(broadly, narrowly, strict=True)
        )

    def skips(self, group: GroupEvidence, memory: Any) -> str:
        """Why the group is not worth reflecting on: as `narrow` says."""
        return self.narrow.skips(group, (memory or {}).get("narrow"))

    def _of_broad(self, memory: Any) -> frozenset[str]:
        """The ids of what `broad` has on trial."""
        on_trial = getattr(self.broad, "on_trial", None)
        return frozenset() if on_trial is None else on_trial(memory)

    def _decided_broadly(
        self,
        evidence: TrialEvidence,
        operations: tuple[Operation, ...],
        aside: Sequence[Experience],
        memory: Any,
    ) -> Trials | Decision:
        """What `broad` says; `aside` is what `narrow` has on trial."""
        library = _without(evidence.incumbent, {own.id for own in aside})
        if not operations and not self._of_broad(memory):
            return Decision(library, "", memory=memory)
        limits = _with_room_for(len(aside), evidence.limits)
        own = replace(
            evidence, incumbent=library, operations=operations, limits=limits, memory=memory
        )
        decision: Trials | Decision = self.broad.next(own)
        return decision

    def _decided_narrowly(
        self,
        evidence: TrialEvidence,
        operations: tuple[Operation, ...],
        library: ExperienceLibrary,
        aside: frozenset[str],
        memory: Any,
    ) -> tuple[Trials | Decision, tuple[str, ...]]:
        """What `narrow` says; `aside` is what `broad` has on trial. And what is left out."""
        limits = _with_room_for(len(aside), evidence.limits)
        incumbent = _without(library, aside)
        operations, refused = _taken(operations, incumbent, limits)
        own = replace(
            evidence, incumbent=incumbent, operations=operations, limits=limits, memory=memory
        )
        return self.narrow.next(replace(own, concerns=_renamed(evidence, own.proposed))), refused

    def _parted(
        self, evidence: TrialEvidence, memory: Mapping[str, Any], mine: frozenset[str]
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
            is_about_narrow = about is not None and self._is_narrow(about, evidence)
            is_narrow.append(id_ not in mine and (id_ in known or is_about_narrow))
        given = list(zip(evidence.operations, is_narrow, strict=True))
        broad_ones, _ = _taken(
            [op for op, narrow in given if not narrow], evidence.incumbent, evidence.limits
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


def _both(broadly: str, narrowly: str, refused: Sequence[str]) -> str:
    """The reasons of both parts in one line; whose they are, where both say something."""
    if broadly and narrowly:
        broadly = f"advice on every example: {broadly}"
        narrowly = f"advice on some: {narrowly}"
    return "; ".join(filter(None, (broadly, narrowly, *refused)))


def _left_to_decide(
    library: ExperienceLibrary, tried: TrialEvidence, evidence: TrialEvidence
) -> TrialEvidence:
    """What the parts are asked when this library is what came of trying some operations together.

    What was added to it is put on trial by a DELETE, if anybody knows which examples it concerns.
    No id that was tried is given to another experience.
    """
    proposed = tried.proposed
    library = ExperienceLibrary(library, next_number=proposed.next_number)
    before, concerns = _by_id(evidence.incumbent), _renamed(evidence, library)
    added = [own.id for own in library if own.id not in before and own.id in concerns]
    deletes = [Delete(id_, "accepted with others, not by itself") for id_ in added]
    others = [operation for operation in evidence.operations if operation not in tried.operations]
    most = evidence.max_trials
    if most is not None:
        most = max(0, most - sum(trial.library == proposed for trial in evidence.scores))
    return replace(
        evidence,
        incumbent=library,
        operations=(*others, *deletes),
        concerns=None if evidence.concerns is None else concerns,
        max_trials=most,
    )


def _is_conditional(operation: Operation) -> bool:
    return isinstance(operation, Add | Modify) and bool(condition_of(operation.text))


def _by_id(library: ExperienceLibrary) -> dict[str, Experience]:
    return {own.id: own for own in library}


def _without(library: ExperienceLibrary, ids: Container[str]) -> ExperienceLibrary:
    return ExperienceLibrary(
        [own for own in library if own.id not in ids], next_number=library.next_number
    )


def _joined(
    library: ExperienceLibrary, others: Sequence[Experience], evidence: TrialEvidence
) -> ExperienceLibrary:
    """Both in one library: in the order of the incumbent, then of their ids."""
    place = {own.id: number for number, own in enumerate(evidence.incumbent)}
    experiences = sorted(
        [*library, *others], key=lambda own: (place.get(own.id, len(place)), own.number)
    )
    return ExperienceLibrary(experiences, next_number=library.next_number)


def _with_room_for(n: int, limits: Limits) -> Limits:
    """The limits of a library beside which another of this size stands."""
    return replace(limits, max_experiences=max(0, limits.max_experiences - n))


def _taken(
    operations: Sequence[Operation], library: ExperienceLibrary, limits: Limits
) -> tuple[tuple[Operation, ...], tuple[str, ...]]:
    """The operations that the library takes, and why it does not take the others."""
    taken, refused = sift(library, operations, limits)
    return tuple(taken), tuple(f"an operation is left out: {each.reason}" for each in refused)


def _of_incumbent(memory: Any, is_incumbent: bool) -> Any:
    """What `broad` remembers; of its library no trials are known when `narrow` has changed it."""
    if is_incumbent or not isinstance(memory, Account):
        return memory
    return replace(memory, n_known=0)


def _with_ids_of(
    first: Decision,
    theirs: Sequence[Experience],
    evidence: TrialEvidence,
    broad_ones: tuple[Operation, ...],
    narrow_ones: tuple[Operation, ...],
) -> ExperienceLibrary:
    """Its library and what `narrow` has on trial; no ADD that follows gets an id that was tried."""
    number = first.library.next_number
    if any(isinstance(operation, Add) for operation in narrow_ones):
        number = max(number, replace(evidence, operations=broad_ones).proposed.next_number)
    library = ExperienceLibrary(first.library, next_number=number)
    return _joined(library, theirs, evidence)


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
