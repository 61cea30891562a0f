"""The answer of a reflection module, as the run keeps and records it."""

from dataclasses import dataclass, field
from typing import Any

from tfgrpo_dspy.rollout import Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """A module's answer, and what went wrong."""

    output: Any  # None if no part of it can be used
    usage: Usage = field(default_factory=Usage)
    parse_failures: int = 0
    error: str = ""
    is_too_long: bool = False  # the prompt was, for the model
    is_lost: bool = False  # the provider or the clock failed
    explanation: str = ""  # what an extraction gives beside its lessons
    unread: str = ""  # how an answer begins that could not be read

    @property
    def is_useless(self) -> bool:
        """True if the call failed, or nothing in the answer could be read."""
        return self.output is None and bool(self.error or self.parse_failures)
