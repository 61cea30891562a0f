"""Text that comes from outside (LMs, people, files, tools, metrics): what is taken out of it.

Letters that nobody sees may carry orders to an LM; codes for terminals move what a reader sees;
markers of adapters close the section that a text stands in.
"""

import re
from collections.abc import Iterable

_JOINING = r"[\u0600-\u1aff\ua800-\uabff]"  # Arabic to Balinese, scripts of India
_EMOJI = r"\u2190-\u2bff\U0001f000-\U0001faff"
_TAGGED_FLAGS = "|".join(
    "".join(chr(0xE0000 + ord(letter)) for letter in name) for name in ("gbeng", "gbsct", "gbwls")
)
_KEPT = (
    rf"(?<={_JOINING})[\u200c\u200d](?={_JOINING})"  # they choose the form of a letter
    rf"|(?<=[{_EMOJI}\ufe0f])\u200d(?=[{_EMOJI}])"  # of two emoji one
    rf"|(?<=[#*0-9\xa9\xae\u203c-\u3299{_EMOJI}])[\ufe0e\ufe0f]"  # text or emoji
    r"|(?<=[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\U000e0100-\U000e01ef]"  # of names
    r"|(?<=[\u1820-\u18aa])[\u180b-\u180f]"  # forms of Mongolian letters
    rf"|\U0001f3f4(?:{_TAGGED_FLAGS})\U000e007f"  # England, Scotland, Wales
)
_UNSEEN = (
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_TERMINAL = (
    r"(?:\x1b\[|\x9b)[0-?]{0,99}[ -/]{0,9}[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]{0,999}(?:\x07|\x1b\\|\x9c)|\x1b[ -/]{0,9}[0-~]"
)
UNSEEN = re.compile(_UNSEEN)
_CLEANED = re.compile(rf"(?P<kept>{_KEPT})|{_TERMINAL}|{_UNSEEN}")
_SHOWN = re.compile(rf"(?P<kept>{_KEPT})|[^\n\t]")
_BLANKS = re.compile(r"\r\n?|[\x0b\x0c\x85]")


def cleaned_text(text: str) -> str:
    """The text without unseen letters that no script needs, and terminal codes; Unix line ends."""
    if not UNSEEN.search(text):
        return text
    text = _BLANKS.sub(lambda match: "\n" if match[0][0] == "\r" else " ", text)
    return _CLEANED.sub(lambda match: match["kept"] or "", text)


def printable(text: str) -> str:
    """The text with control and invisible characters as escapes: it cannot steer a terminal."""
    if text.isprintable():
        return text
    return _SHOWN.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    if match["kept"] or char.isprintable():
        return char
    return char.encode("unicode_escape").decode()


def without_markers(text: str, tags: Iterable[str] = ()) -> str:
    """The text as it may stand in a prompt: it ends no section or block, nor `tags` of XML."""
    text = cleaned_text(text).replace("[[ ##", "[ [ ##").replace("<<CUSTOM-TYPE", "< <CUSTOM-TYPE")
    names = "|".join(map(re.escape, ("experiences", *tags)))
    return re.sub(rf"<(?=\s*/?\s*(?:{names})\s*/?>)", "< ", text, flags=re.IGNORECASE)
