"""What an LM really answered: the raw text, and whether the provider cut it off."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.dspy_seam import Call, abilities_of

MORE_ROOM = 4  # times as many tokens, where an answer was cut before anything could be read


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """The text of an answer, that of a refusal; `is_cut`: it ends where the LM had no more room.

    `is_filtered`: a content filter of the provider held it back, or a part of it.
    """

    text: str
    is_cut: bool
    refusal: str = ""
    is_filtered: bool = False


_WATCHED: ContextVar[list[RawAnswer] | None] = ContextVar("tfgrpo_raw_answers", default=None)


@contextmanager
def raw_answers() -> Iterator[list[RawAnswer]]:
    """The answers that metered LMs give within, in their order."""
    seen: list[RawAnswer] = []
    token = _WATCHED.set(seen)
    try:
        yield seen
    finally:
        _WATCHED.reset(token)


def note_answer(call: Call) -> None:
    """Keep the answer of a call for who waits for it."""
    if (seen := _WATCHED.get()) is not None:
        seen.append(RawAnswer(call.text, call.is_cut, call.refusal, call.is_filtered))


def more_room(lm: Any) -> dict[str, int]:
    """Arguments for a longer answer, up to the most that DSPy lists; none if it has no limit."""
    most = abilities_of(lm).get("max_output_tokens")
    for name in ("max_completion_tokens", "max_tokens"):
        limit = getattr(lm, "kwargs", {}).get(name)
        if isinstance(limit, int):
            room = min(MORE_ROOM * limit, most or MORE_ROOM * limit)
            return {name: room} if room > limit else {}
    return {}
