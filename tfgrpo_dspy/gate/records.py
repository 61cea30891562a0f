"""What a gate remembers of experiences from update to update: contrasts, by id and text.

A value that reduces to dicts, lists, strings and numbers (`Ledger.to_memory`), because that is
how it travels. Scores are kept as they are, with the range that was seen; they are brought into
[0, 1] when they are judged.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import Experience
from tfgrpo_dspy.gate.posterior import Beliefs, Contrast, Posterior
from tfgrpo_dspy.gate.protocol import GroupEvidence


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one experience, for as long as its text and scope stay.

    `sources` are the examples that it was drawn from; `contrasts` hold sums of scores as the
    metric gave them. `n_groups` are the training groups made since it is on trial. `is_in_use`: it
    was in use when its trial began, and the program has it until it is dropped. `before` is the
    record of the text that it took the place of by a MODIFY, and gives it back to when it is
    dropped.
    """

    text: str
    scope: str
    sources: tuple[int, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    is_settled: bool = False
    before: "Record | None" = None
    n_groups: int = 0
    is_in_use: bool = False

    @classmethod
    def of(cls, experience: Experience, **known: Any) -> "Record":
        """A record of the experience as it is, drawn from all groups of its evidence."""
        sources = tuple(sorted({group.example for group in experience.evidence}))
        return cls(experience.text, experience.scope, sources, **known)

    @property
    def outside(self) -> tuple[Contrast, ...]:
        """Its contrasts on examples that it was not drawn from."""
        return tuple(each for each in self.contrasts if each.example not in self.sources)

    def to_dict(self) -> dict[str, Any]:
        """Its fields as JSON has them."""
        return {
            "text": self.text,
            "scope": self.scope,
            "sources": list(self.sources),
            "contrasts": [contrast.to_list() for contrast in self.contrasts],
            "is_settled": self.is_settled,
            "n_groups": self.n_groups,
            "is_in_use": self.is_in_use,
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
            n_groups=fields["n_groups"],
            is_in_use=fields["is_in_use"],
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
        shown = [Shown.by(group) for group in groups]
        records = {}
        for id_, record in ledger.records.items():
            new = tuple(c for each in shown if (c := each.contrast(id_, record)) is not None)
            n_groups = record.n_groups + len(groups)
            records[id_] = replace(record, contrasts=record.contrasts + new, n_groups=n_groups)
        return replace(ledger, records=records)

    def posterior(self, record: Record, beliefs: Beliefs) -> Posterior:
        """What is believed of an experience by its record."""
        return beliefs.posterior(self.scaled(record.contrasts), record.sources)

    def elsewhere(self, record: Record, beliefs: Beliefs) -> Posterior:
        """What is believed of it by the examples that it was not drawn from."""
        return self.posterior(replace(record, contrasts=record.outside), beliefs)

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


@dataclass(frozen=True, slots=True)
class Shown:
    """What the rollouts of a group held and scored; those without a score do not count."""

    example: int
    rollouts: tuple[tuple[frozenset[tuple[str, str, str]], float], ...]

    @classmethod
    def by(cls, group: GroupEvidence) -> "Shown":
        """What this group shows."""
        distinct = {id(library): library for library in group.libraries}
        contents = {
            name: frozenset(own.content for own in library) for name, library in distinct.items()
        }
        pairs = zip(group.libraries, group.scores, strict=True)
        return cls(
            group.example,
            tuple((contents[id(lib)], score) for lib, score in pairs if score is not None),
        )

    def contrast(self, id_: str, record: Record) -> Contrast | None:
        """Of an experience; None unless some of the rollouts held it and some did not."""
        content = (id_, record.text, record.scope)
        held = [score for contents, score in self.rollouts if content in contents]
        if not held or len(held) == len(self.rollouts):
            return None
        rest = [score for contents, score in self.rollouts if content not in contents]
        return contrast_of(self.example, held, rest)


def contrast_of(
    example: int, held: Sequence[float], rest: Sequence[float], is_selected: bool = False
) -> Contrast:
    """The contrast of these scores."""
    return Contrast(example, len(held), math.fsum(held), len(rest), math.fsum(rest), is_selected)
