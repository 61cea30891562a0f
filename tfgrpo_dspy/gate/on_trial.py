"""What gates remember that try advice in all groups: who is on trial, what was shown, what spent.

A value that reduces to dicts, lists, strings and numbers (`OnTrial.to_memory`), because that is how
it travels.
"""

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import Experience, ExperienceLibrary
from tfgrpo_dspy.gate.effects import Estimate, Row, estimate_effects
from tfgrpo_dspy.gate.halves import random_half
from tfgrpo_dspy.gate.protocol import GroupEvidence, GroupPlan, TrialEvidence
from tfgrpo_dspy.gate.sequential import Verdict

Said = tuple[str, str]
"""Text and scope."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One experience on trial: what it says, and what was said before it under its id, if anything.

    `is_delete`: a DELETE put it on trial; until that is decided the program has it.
    """

    said: Said
    before: Said | None = None
    is_delete: bool = False


@dataclass(frozen=True, slots=True)
class OnTrial:
    """Who is on trial, by id; a row for each rollout of their groups; the error that was spent."""

    tried: Mapping[str, Tried] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    error_spent: float = 0.0

    @classmethod
    def from_memory(cls, memory: Any) -> "OnTrial":
        """What `to_memory` gave; an empty one for None."""
        if memory is None:
            return cls()
        rows = tuple(Row(block, frozenset(ids), score) for block, ids, score in memory["rows"])
        return replace(cls.who(memory), rows=rows, error_spent=memory["error_spent"])

    @classmethod
    def who(cls, memory: Any) -> "OnTrial":
        """Who is on trial by what `to_memory` gave, without the rows, of which there are many."""
        tried = {
            id_: Tried(tuple(said), before and tuple(before), is_delete)
            for id_, (said, before, is_delete) in (memory or {"tried": {}})["tried"].items()
        }
        return cls(tried)

    def to_memory(self) -> dict[str, Any]:
        """Everything as JSON has it, without the groups in which nobody varies who is on trial."""
        held: dict[Any, Counter[str]] = {}
        sizes = Counter(row.block for row in self.rows)
        for row in self.rows:
            held.setdefault(row.block, Counter()).update(row.present & self.tried.keys())
        telling = {b for b, counts in held.items() if any(n < sizes[b] for n in counts.values())}
        return {
            "tried": {
                id_: [list(it.said), it.before and list(it.before), it.is_delete]
                for id_, it in self.tried.items()
            },
            "rows": [
                [row.block, sorted(row.present), row.score]
                for row in self.rows
                if row.block in telling
            ],
            "error_spent": self.error_spent,
        }

    # ------------------------------------------------------------------ what the groups show

    def having_read(self, evidence: TrialEvidence) -> "OnTrial":
        """The same, with the rows of this update's groups."""
        rows = [row for group in evidence.groups for row in self._rows(group, evidence.update)]
        return replace(self, rows=self.rows + tuple(rows))

    def _rows(self, group: GroupEvidence, update: int) -> list[Row]:
        """A row for each of its rollouts, if some of them were without somebody."""
        present = {
            id(library): frozenset(
                own.id
                for own in library
                if own.id in self.tried and (own.text, own.scope) == self.tried[own.id].said
            )
            for library in group.libraries
        }
        if len(set(present.values())) < 2:
            return []
        return [
            Row(f"{update}/{group.example}", present[id(library)], score)
            for library, score in zip(group.libraries, group.scores, strict=True)
        ]

    def estimates(self) -> dict[str, Estimate]:
        """The effects of those on trial, as far as the rows show them."""
        found = estimate_effects(self.rows)
        return {id_: found[id_] for id_ in self.tried if id_ in found}

    def n_groups(self, id_: str) -> int:
        """In how many groups this one was present in some rollouts and absent in others.

        Pairs that were made extra are no groups.
        """
        sizes = Counter(row.block for row in self.rows if "/" in str(row.block))
        held = Counter(row.block for row in self.rows if id_ in row.present)
        return sum(0 < held[block] < size for block, size in sizes.items())

    # ------------------------------------------------------------------ who is on trial

    def having_begun(
        self, own: Experience, before: Experience | None = None, is_delete: bool = False
    ) -> "OnTrial":
        """The same, with this one on trial afresh, in place of what was settled under its id."""
        known = self.tried.get(own.id)
        old = None if before is None else (before.text, before.scope)
        if known is not None and not known.is_delete:
            old = known.before
        ended = self.having_ended(own.id)
        said = (own.text, own.scope)
        if old == said:  # what was settled is said again
            return ended
        return replace(ended, tried={**ended.tried, own.id: Tried(said, old, is_delete)})

    def having_ended(self, id_: str) -> "OnTrial":
        """The same, without this one on trial; its presence in the rows counts as another's."""
        if id_ not in self.tried:
            return self
        name = _free_name(id_, frozenset().union(*(row.present for row in self.rows)))
        rows = tuple(
            Row(row.block, row.present - {id_} | {name}, row.score) if id_ in row.present else row
            for row in self.rows
        )
        tried = {other: it for other, it in self.tried.items() if other != id_}
        return replace(self, tried=tried, rows=rows)

    def without(self, own: Experience) -> Experience | None:
        """What stands under its id if it is not accepted: the old text, or nothing."""
        before = self.tried[own.id].before
        if before is None:
            return None
        return Experience(own.id, before[0], before[1], own.evidence, price=None)

    def exported(
        self, library: ExperienceLibrary, also: frozenset[str] = frozenset()
    ) -> list[Experience]:
        """What a program would be given of the library: what is settled, and those of `also`."""
        to_be_deleted = {id_ for id_, tried in self.tried.items() if tried.is_delete}
        return self.holding(library, also | to_be_deleted)

    def holding(self, library: ExperienceLibrary, present: Container[str]) -> list[Experience]:
        """All that is settled; of those on trial these, and for the others what stood before."""
        held = [
            own if own.id not in self.tried or own.id in present else self.without(own)
            for own in library
        ]
        return [own for own in held if own is not None]

    def assigned(self, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
        """The library of each rollout of a group: a random half holds each experience on trial."""
        halves = {own.id: random_half(plan, own) for own in plan.library if own.id in self.tried}
        present = [
            {id_ for id_, half in halves.items() if rollout in half}
            for rollout in range(plan.n_rollouts)
        ]
        return tuple(
            ExperienceLibrary(self.holding(plan.library, ids), next_number=plan.library.next_number)
            for ids in present
        )

    # ------------------------------------------------------------------ the error of the run

    def error_left(self, error: float) -> float:
        """How much of the run's error is not spent."""
        return max(error - self.error_spent, 0.0)

    def after_test(self, verdict: Verdict) -> "OnTrial":
        """The same, with what the test spent."""
        return replace(self, error_spent=self.error_spent + verdict.error_spent)


def _free_name(id_: str, taken: Container[str]) -> str:
    """A name in rows for a text that is on trial no more: never one of a later text."""
    name = f"{id_}'"
    while name in taken:
        name += "'"
    return name
