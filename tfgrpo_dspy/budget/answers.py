"""What an LM really answered: the raw text, and whether the provider cut it off."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from dspy.clients.model_metadata import model_info

CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "incomplete"})
"""The finish reasons of answers that were cut, as providers name them."""
MORE_ROOM = 4  # times as many tokens, where an answer was cut before anything could be read


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """The text of an answer; `is_cut`: it ends where the LM had no more room."""

    text: str
    is_cut: bool


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


def note_answer(entry: Mapping[str, Any]) -> None:
    """Keep the answer of an entry in DSPy's history for who waits for it."""
    if (seen := _WATCHED.get()) is not None:
        seen.append(RawAnswer(text_of(entry), is_cut(entry.get("response"))))


def text_of(entry: Mapping[str, Any]) -> str:
    """The text of the first answer of an entry in DSPy's history."""
    answer = entry["outputs"][0] if entry["outputs"] else ""
    return str((answer.get("text") if isinstance(answer, Mapping) else answer) or "")


def is_cut(response: Any) -> bool:
    """Whether the provider says so of the response, in the form of DSPy's LMs or of LiteLLM's."""
    responses = response if isinstance(response, tuple | list) else (response,)
    parts = [*responses, *(part for each in responses for part in _value(each, "choices") or ())]
    reasons = (_value(part, name) for part in parts for name in ("finish_reason", "stop_reason"))
    return any(str(reason or "").rpartition(".")[2].lower() in CUT for reason in reasons)


def _value(of: Any, name: str) -> Any:
    return of.get(name) if isinstance(of, Mapping) else getattr(of, name, None)


def more_room(lm: Any) -> dict[str, int]:
    """The arguments that let an answer of the LM get longer; none where it has no limit or no more.

    The limit is the one that is set on it; the most is what DSPy's list of models says.
    """
    provider, _, model = str(getattr(lm, "model", "")).partition("/")
    most = model_info(provider, model).get("max_output_tokens")
    for name in ("max_completion_tokens", "max_tokens"):
        limit = getattr(lm, "kwargs", {}).get(name)
        if isinstance(limit, int):
            room = min(MORE_ROOM * limit, most or MORE_ROOM * limit)
            return {name: room} if room > limit else {}
    return {}
