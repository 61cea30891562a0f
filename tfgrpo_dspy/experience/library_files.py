"""A library's record as text that people can read and write, and what is wrong with theirs."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, Field, StrictInt, ValidationError

from tfgrpo_dspy.checked import faults_in, shown
from tfgrpo_dspy.errors import LibraryFormatError, sentence
from tfgrpo_dspy.experience.values import Experience

FORMAT = {"format": "tfgrpo_dspy.library", "version": 1}
_MOST_FAULTS = 5  # in one message
_FORM = 'Write version 1 of the form: {"experiences": [{"id": "E1", "text": "..."}]}.'
_NEXT_VALUE = re.compile(r"\n(?=[\[{])")
_NO_BLANK = re.compile(r"[^ \t\r\n]")


class LibraryRecord(BaseModel, extra="forbid"):
    """The record of `ExperienceLibrary.to_dict`, with experiences as values."""

    experiences: list[Experience]
    next_number: StrictInt | None = None
    briefs: dict[str, str] = Field(default_factory=dict)
    format: Literal["tfgrpo_dspy.library"] = "tfgrpo_dspy.library"
    version: Literal[1] = 1


def record_text(record: dict[str, Any]) -> str:
    """The record as JSON: each field of an experience has a line, and all its evidence just one."""
    experiences = [
        ",\n".join(f"      {_json(k)}: {_json(v)}" for k, v in each.items() if v not in ([], ()))
        for each in record["experiences"]
    ]
    head = "".join(f"  {_json(k)}: {_json(v)},\n" for k, v in record.items() if k != "experiences")
    body = ",\n".join(f"    {{\n{lines}\n    }}" for lines in experiences)
    return f'{{\n{head}  "experiences": [' + (f"\n{body}\n  " if body else "") + "]\n}\n"


def json_value(text: str, source: str, is_lines: bool = False) -> Any:
    """The value of a JSON text, of JSON lines (`is_lines`) a list. Raises LibraryFormatError."""
    values = list(itertools.islice(json_values(text, source), None if is_lines else 2))
    if faults := [each for each in values if isinstance(each, LibraryFormatError)]:
        raise faults[0]
    if not values or (len(values) > 1 and not is_lines):
        fault = "there is more than one value" if values else "line 1, column 1: Expecting value"
        raise LibraryFormatError(f"{source} is not JSON: {fault}.")
    return values[0] if len(values) == 1 else values


def json_values(text: str, source: str) -> Iterator[Any]:
    """Each value of a JSON text, such as those of JSON lines.

    A LibraryFormatError, with line and column, stands in the place of what cannot be read; what
    follows is read from the next line on that begins with a bracket.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
    place = 0
    while (begun := _NO_BLANK.search(text, place)) is not None:
        place = begun.start()
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            value = LibraryFormatError(f"{source} is not JSON: {where}: {sentence(error.msg)}")
        except RecursionError:
            value = LibraryFormatError(f"{source} cannot be read: it is nested too deeply.")
        except ValueError as error:
            value = LibraryFormatError(f"{source} cannot be read: {sentence(error)}")
        yield value
        if isinstance(value, LibraryFormatError):
            following = _NEXT_VALUE.search(text, place)
            place = len(text) if following is None else following.end()


def checked_record(record: Any, source: str) -> LibraryRecord:
    """The record, if it is of the right form. Raises LibraryFormatError: names every field."""
    try:
        return LibraryRecord.model_validate(record)
    except ValidationError as error:
        faults = faults_in(error)
        n_more = len(faults) - _MOST_FAULTS
        more = f" And {n_more} more." if n_more > 0 else ""
        message = f"{source}: {' '.join(faults[:_MOST_FAULTS])}{more} {_FORM}"
        raise LibraryFormatError(message) from error


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields. Raises LibraryFormatError: a name occurs twice."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise LibraryFormatError(f"the name {shown(name)} occurs twice in one object")
        fields[name] = value
    return fields
