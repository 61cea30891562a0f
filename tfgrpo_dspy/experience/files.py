"""A library as values of JSON: what is written to a file, and how it is checked when it is read."""

from collections.abc import Iterable, Mapping
from typing import Any

from tfgrpo_dspy.errors import LibraryFormatError
from tfgrpo_dspy.experience.values import Effect, Evidence, Experience

FORMAT = {"format": "tfgrpo_dspy.library", "version": 1}


def record_of(experiences: Iterable[Experience], next_number: int) -> dict[str, Any]:
    """The library with its evidence, as values that JSON has."""
    listed = [experience.to_dict() for experience in experiences]
    return {**FORMAT, "next_number": next_number, "experiences": listed}


def listed_in(record: Any, source: str) -> list[Any]:
    """The experiences that a record lists, unread; `source` is what errors call the record.

    Raises:
        LibraryFormatError: the record is not a library, or one of a newer version.
    """
    is_library = isinstance(record, dict) and isinstance(record.get("experiences"), list)
    if not is_library or {name: record.get(name, FORMAT[name]) for name in FORMAT} != FORMAT:
        raise LibraryFormatError(
            f"{source} is not a library of version {FORMAT['version']}; pass a file that "
            f"ExperienceLibrary.save wrote, or one that holds "
            f'{{"experiences": [{{"id": "E1", "text": "..."}}]}}.'
        )
    return list(record["experiences"])


def experience_from(fields: Any) -> Experience:
    """The experience that its fields make. Raises KeyError, TypeError or LibraryError."""
    if not isinstance(fields, Mapping):
        raise TypeError(f"{fields!r} is no mapping with 'id' and 'text'")
    evidence = tuple(Evidence(**item) for item in fields.get("evidence", ()))
    effect = Effect(**fields["effect"]) if fields.get("effect") else None
    return Experience(**{**fields, "evidence": evidence, "effect": effect})
