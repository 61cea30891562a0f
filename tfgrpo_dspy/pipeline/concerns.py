"""Which training examples experiences concern, asked once for each text and its sources."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfgrpo_dspy.experience import Experience
from tfgrpo_dspy.rollout import fields_text
from tfgrpo_dspy.sampling import as_fields
from tfgrpo_dspy.settings import Settings


class Concerns:
    """Asks the gate's `concern`, where it has one, about examples as the reflection LM sees them.

    Args:
        settings: of the run.
        trainset: the examples, whose positions are meant.
    """

    def __init__(self, settings: Settings, trainset: Sequence[Any]) -> None:
        self._concern: Any = getattr(settings.gate, "concern", None)
        self._domain: str | None = getattr(settings.gate, "domain", None)
        self._trainset = trainset
        self._inputs: list[str] | None = None
        self._domains: list[str] = []
        self._known: dict[Any, frozenset[int] | None] = {}

    def of(self, experiences: Iterable[Experience]) -> Mapping[str, frozenset[int]] | None:
        """Positions by the experience's id, absent where nobody knows; None: the gate asks not."""
        if self._concern is None:
            return None
        asked = list(experiences)
        new = [experience for experience in asked if _key(experience) not in self._known]
        if new:
            found = self._concern(new, self._texts(), self._domains)
            for experience in new:
                self._known[_key(experience)] = found.get(experience.id)
        by_id = {experience.id: self._known[_key(experience)] for experience in asked}
        return {id_: positions for id_, positions in by_id.items() if positions is not None}

    def _texts(self) -> list[str]:
        if self._inputs is None:
            self._inputs = [fields_text(as_fields(ex.inputs())) for ex in self._trainset]
            if self._domain is not None:
                self._domains = [str(example.get(self._domain, "")) for example in self._trainset]
        return self._inputs


def _key(experience: Experience) -> Any:
    return (experience.content, tuple(sorted({group.example for group in experience.evidence})))
