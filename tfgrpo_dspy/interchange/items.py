"""What every format is read as: items, from which one function makes a library."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tfgrpo_dspy.checked import shown
from tfgrpo_dspy.errors import LibraryError, LibraryFormatError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import ALL, Effect, Experience

_ID = re.compile(r"[EG][0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Item:
    """One experience as it was written; `id` is "" if none was; `where` says where it stands."""

    where: str
    id: str
    text: str
    scope: str = ALL
    effect: Effect | None = None


def library_of(items: Sequence[Item], next_number: int = 1) -> ExperienceLibrary:
    """The library of the items; those without an id get the next free ones, in their order.

    `G0`, `G1`, ... of the reference implementation become `E1`, `E2`, ...

    Raises:
        LibraryFormatError: an item has no text, or an id of another form or of another item.
    """
    experiences = [(item, _own_id(item)) for item in items]
    free = max([next_number, *(int(id_[1:]) + 1 for _, id_ in experiences if id_)])
    built: dict[str, Experience] = {}
    for item, id_ in experiences:
        if not id_:
            id_, free = f"E{free}", free + 1
        if id_ in built:
            raise LibraryFormatError(
                f"{item.where}: the id {item.id} is taken by {shown(built[id_].text)}; write "
                f"another id, or none."
            )
        try:
            built[id_] = Experience(id_, item.text, item.scope, effect=item.effect)
        except LibraryError as error:
            raise LibraryFormatError(f"{item.where}: {error}") from error
    return ExperienceLibrary(built.values(), next_number=free)


def is_id(written: str) -> bool:
    """Whether this has the form of an id: `E1`, or `G0` of the reference implementation."""
    return _ID.fullmatch(written) is not None


def _own_id(item: Item) -> str:
    """The id as this package writes it: `E4` for `E4` and for `G3`; "" for none."""
    if item.id and not is_id(item.id):
        raise LibraryFormatError(
            f"{item.where}: the id {shown(item.id)} is not 'E' and a number from 1, or 'G' and a "
            f"number from 0; write 'E1', or leave it out."
        )
    return f"E{int(item.id[1:]) + 1}" if item.id.startswith("G") else item.id
