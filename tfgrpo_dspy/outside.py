"""Text that comes from outside (LMs, people, files, tools, metrics): what is taken out of it.

Letters that nobody sees may carry orders to an LM; codes for terminals move what a reader sees;
markers of adapters close the section that a text stands in.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable

_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_NEXT = r"[^\x00-\u02af\u2000-\u206f]"
_STRAY = re.compile(rf"(?<!{_NEXT})[\u200c\u200d]|[\u200c\u200d](?!{_NEXT})")
"""Joiners that are not between letters of Persian, Hindi and others, or of two emoji."""


@functools.cache
def _is_seen(char: str) -> bool:
    is_letter = char.isprintable() or char in "\n\t\u200c\u200d"
    return is_letter or unicodedata.category(char) == "Zs"  # such as the wide blank of Chinese


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def cleaned_text(text: str) -> str:
    """The text without letters that Python does not call printable; with Unix line ends."""
    if text.isprintable():
        return text
    text = _COLOURS.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    kept = (char if _is_seen(char) else " " * char.isspace() for char in _STRAY.sub("", text))
    return "".join(kept)


def printable(text: str) -> str:
    """The text with control and invisible characters as escapes: it cannot steer a terminal."""
    if text.isprintable():
        return text
    text = _STRAY.sub(lambda match: _escaped(match[0]), text)
    return "".join(char if _is_seen(char) else _escaped(char) for char in text)


def without_markers(text: str, tags: Iterable[str] = ()) -> str:
    """The text as it may stand in a prompt: it ends no section or block, nor `tags` of XML."""
    text = cleaned_text(text).replace("[[ ##", "[ [ ##").replace("<<CUSTOM-TYPE", "< <CUSTOM-TYPE")
    names = "|".join(map(re.escape, ("experiences", *tags)))
    return re.sub(rf"<(?=\s*/?\s*(?:{names})\s*/?>)", "< ", text, flags=re.IGNORECASE)
