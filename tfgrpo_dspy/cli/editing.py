"""Texts in the user's editor ($VISUAL, $EDITOR), opened again until they can be read."""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import click

from tfgrpo_dspy.cli.sources import Source
from tfgrpo_dspy.errors import LibraryError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Experience
from tfgrpo_dspy.interchange import parse, render

Read = TypeVar("Read")
FAULT = "# Error: "
_HINT = """\
# One experience for each bullet; indent its further lines. A new one needs no id. The id of one
# that you remove is not used again. Save and close; close without saving to change nothing.

"""


def edited(text: str, read: Callable[[str], Read], extension: str) -> Read | None:
    """What `read` makes of the text after the user has edited it; None if it was not changed.

    Where `read` refuses the text, the editor shows it again, with the error in its first line.
    Raises LibraryError: a refused text was left as it was; ClickException: the editor failed, or
    none is named, and there is no terminal for one.
    """
    is_named = any(os.environ.get(name) for name in ("VISUAL", "EDITOR"))
    if not is_named and not sys.stdin.isatty():
        why = "there is no terminal for an editor"
        raise click.ClickException(f"{why}: set $VISUAL or $EDITOR to a command that needs none.")
    shown, refused = text, None
    while True:
        try:
            saved = click.edit(shown, extension=extension)
        except UnicodeDecodeError as error:
            raise click.ClickException(f"{error}; let the editor save UTF-8.") from error
        lines = (saved or "").splitlines(keepends=True)
        saved_text = "".join(line for line in lines if not line.startswith(FAULT))
        if saved is None or saved_text == text:
            if refused is not None:
                raise refused
            return None
        try:
            return read(saved_text)
        except LibraryError as error:
            refused, text = error, saved_text
            shown = f"{FAULT}{' '.join(str(error).split())}\n{saved_text}"


def edited_library(
    source: Source, check: Callable[[Iterable[Experience]], None]
) -> tuple[ExperienceLibrary, str] | None:
    """The library as the user edited it, if `check` lets it in, and its file; None: not changed."""

    def read(text: str) -> tuple[ExperienceLibrary, str]:
        library = _read(text, source.library)
        check(each for each in library if each not in source.library.experiences)
        return library, source.rewritten(library)

    return edited(_HINT + render(source.library, "md"), read, ".md")


def _read(text: str, old: ExperienceLibrary) -> ExperienceLibrary:
    """The edited library with what is known of unchanged experiences. Raises LibraryError."""
    ids = f"\n\n(next id: E{old.next_number})\n"  # behind the user's own, and before it counts
    new = parse(text.rstrip("\n") + ids, "md", source="the edited text")
    for each in new:
        if each.number < old.next_number and each.id not in old:
            raise LibraryError(f"{each.id} was in use before: leave out the id of a new one.")
    return new.holding(_known(each, old) for each in new)


def _known(new: Experience, old: ExperienceLibrary) -> Experience:
    """The experience with its evidence and, if it says the same as before, with its effect."""
    if new.id not in old:
        return new
    before = old[new.id]
    return before if new == before else replace(new, evidence=before.evidence)
