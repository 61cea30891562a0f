"""What a gate remembers of experiences from update to update: contrasts, by id and text.

A value that reduces to dicts, lists, strings and numbers (`Ledger.to_memory`), because that is
how it travels. Scores are kept as they are, with the range that was seen; they are brought into
[0, 1] when they are judged.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import Experience, ExperienceLibrary
from tfgrpo_dspy.gate.posterior import Contrast
from tfgrpo_dspy.gate.protocol import GroupEvidence


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one experience, for as long as its text and scope stay.

    `sources` are the examples that it was drawn from; `contrasts` hold sums of scores as the
    metric gave them. `before` is the record of the text that it took the place of by a MODIFY and
    gives it back to when it is dropped.
    """

    text: str
    scope: str
    sources: tuple[int, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    is_settled: bool = False
    before: "Record | None" = None

    @classmethod
    def of(cls, experience: Experience, **known: Any) -> "Record":
        """A record of the experience as it is, drawn from all groups of its evidence."""
        sources = tuple(sorted({group.example for group in experience.evidence}))
        return cls(experience.text, experience.scope, sources, **known)

    def is_about(self, experience: Experience) -> bool:
        """Whether the experience still says what was measured."""
        return (self.text, self.scope) == (experience.text, experience.scope)

    @property
    def n_outside(self) -> int:
        """How many contrasts it has on examples that it was not drawn from."""
        return sum(contrast.example not in self.sources for contrast in self.contrasts)

    @property
    def n_rollouts(self) -> int:
        """How many rollouts it was measured by."""
        return sum(contrast.n_rollouts for contrast in self.contrasts)

    def to_dict(self) -> dict[str, Any]:
        """Its fields as JSON has them."""
        return {
            "text": self.text,
            "scope": self.scope,
            "sources": list(self.sources),
            "contrasts": [list(astuple(contrast)) for contrast in self.contrasts],
            "is_settled": self.is_settled,
            "before": None if self.before is None else self.before.to_dict(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Record":
        """What `to_dict` gave."""
        before = fields["before"]
        return cls(
            text=fields["text"],
            scope=fields["scope"],
            sources=tuple(fields["sources"]),
            contrasts=tuple(Contrast(*values) for values in fields["contrasts"]),
            is_settled=fields["is_settled"],
            before=None if before is None else cls.from_dict(before),
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """The records by id, and the range of all scores seen: [0, 1], or as far as they go beyond."""

    records: Mapping[str, Record] = field(default_factory=dict)
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def from_memory(cls, memory: Any) -> "Ledger":
        """What `to_memory` gave; an empty one for None."""
        if memory is None:
            return cls()
        records = {id_: Record.from_dict(fields) for id_, fields in memory["records"].items()}
        return cls(records, memory["low"], memory["high"])

    def to_memory(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        records = {id_: record.to_dict() for id_, record in self.records.items()}
        return {"records": records, "low": self.low, "high": self.high}

    def having_seen(self, scores: Iterable[float | None]) -> "Ledger":
        """The same, its range wide enough for these scores."""
        known = [score for score in scores if score is not None]
        return replace(self, low=min([self.low, *known]), high=max([self.high, *known]))

    def having_read(self, groups: Sequence[GroupEvidence]) -> "Ledger":
        """The same, with what the groups show of experiences that only some rollouts held."""
        ledger = self.having_seen(score for group in groups for score in group.scores)
        records = {
            id_: replace(
                record, contrasts=(*record.contrasts, *_contrasts_within(groups, id_, record))
            )
            for id_, record in ledger.records.items()
        }
        return replace(ledger, records=records)

    def scaled(self, contrasts: Iterable[Contrast]) -> list[Contrast]:
        """The contrasts with their sums of scores brought into [0, 1]."""
        return [
            replace(
                contrast,
                sum_with=self._share(contrast.n_with, contrast.sum_with),
                sum_without=self._share(contrast.n_without, contrast.sum_without),
            )
            for contrast in contrasts
        ]

    def _share(self, n: int, total: float) -> float:
        share = n * (total / n - self.low) / (self.high - self.low) if n else 0.0
        return min(max(share, 0.0), float(n))  # a sum may miss its bounds by rounding

    def is_binary(self, scores: Iterable[float]) -> bool:
        """Whether each score is the lowest or the highest seen."""
        return all(score in (self.low, self.high) for score in scores)


def contrast_within(group: GroupEvidence, id_: str, record: Record) -> Contrast | None:
    """What the group shows of an experience; None unless some rollouts held it and some did not.

    Rollouts without a score do not count.
    """
    sides: dict[bool, list[float]] = {True: [], False: []}
    for library, score in zip(group.libraries, group.scores, strict=True):
        if score is not None:
            sides[_holds(library, id_, record)].append(score)
    if not sides[True] or not sides[False]:
        return None
    return contrast_of(group.example, sides[True], sides[False])


def contrast_of(
    example: int, held: Sequence[float], rest: Sequence[float], is_selected: bool = False
) -> Contrast:
    """The contrast of these scores."""
    return Contrast(example, len(held), math.fsum(held), len(rest), math.fsum(rest), is_selected)


def _contrasts_within(
    groups: Sequence[GroupEvidence], id_: str, record: Record
) -> list[Contrast]:
    found = [contrast_within(group, id_, record) for group in groups]
    return [contrast for contrast in found if contrast is not None]


def _holds(library: ExperienceLibrary, id_: str, record: Record) -> bool:
    return any(own.id == id_ and record.is_about(own) for own in library)
