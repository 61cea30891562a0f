"""Texts compared by what they say (without case, spacing and fillers), cut short, and aligned."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Sequence

WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\s\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]{1,40}"
)
# A normalized text keeps letters, marks (in many scripts the vowels), digits, `<`, `$`, `_`.
_MEANING = ("L", "M", "N", "Sm", "Sc", "Pc")


class _KeptCharacters(dict[int, str]):
    """For `str.translate`: what a normalized text has in place of each character."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = char if unicodedata.category(char).startswith(_MEANING) else " "
        return self[code]


_KEPT = _KeptCharacters()
NEAR_DUPLICATE = 0.8  # of the words of a text stand in one that counts as the same
_FILLERS = re.compile(
    r"\b(?:in (?:every|each|any|all|general|most) ?(?:cases?)?|as a (?:general )?rule|at once"
    r"|for sure|of course|at all times|by all means|without (?:exception|fail)|if possible"
    r"|where possible|right away|(?:make|be) sure (?:to|that you)|remember to|take care to"
    r"|note that|it is important (?:to|that)|you (?:should|must)|please|kindly|always|simply|just"
    r"|then|normally|generally|usually|typically|really|very|certainly|clearly|definitely|surely"
    r"|indeed|also|too|now|first of all|basically|actually|carefully|strictly|ensure you|note"
    r"|important|tip|bitte|immer|einfach|stets|toujours|siempre|simplemente|por favor"
    r"|s il vous plaît|sempre|per favore|пожалуйста|всегда)\b|请|請|总是|總是"
)
"""Words that make no new text."""
_TURNING = re.compile(
    r"not?|never|t|avoid|without|instead|unless|except|cannot|nor|nicht|keine?|nie|ohne|ne|pas"
    r"|jamais|sans|nunca|sin|non|senza|não|sem|[不没沒别別勿未莫無无非]|.*\d.*"
)
"""Words that turn the meaning, and numbers; the t is that of "don't"."""


def shortened(text: str, most: int) -> str:
    """The text on one line; of a longer one the first `most` bytes of UTF-8, and "..."."""
    line = " ".join(text.split())
    encoded = line.encode("utf-8", "replace")
    if len(encoded) <= most:
        return line
    return f"{encoded[:most].decode('utf-8', 'ignore').rstrip()} ..."


def counted(n: int, singular: str) -> str:
    """`1 experience`, `1,200 experiences`."""
    return f"{n:,} {singular}" if n == 1 else f"{n:,} {singular}s"


def aligned(rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> list[str]:
    """A line for each row, with its cells below each other; `numbers` are columns of numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    places = [">" if column in numbers else "<" for column in range(len(widths))]
    form = "  ".join(f"{{:{p}{width}}}" for p, width in zip(places, widths, strict=True))
    return [form.format(*row).rstrip() for row in rows]


@functools.lru_cache(maxsize=4096)
def normalized(text: str) -> str:
    """The text without case, punctuation and spacing; the signs of mathematics and money stay."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_KEPT).split()) or text.strip()


def n_words(text: str) -> int:
    """The number of words of at most 40 characters; without spaces, each character is one."""
    return len(WORD.findall(text))


def words_of(text: str) -> tuple[str, ...]:
    """The words of the text; a character of a script without spaces is one."""
    parts = WORD.findall(normalized.__wrapped__(text))
    return tuple(word for word in parts if word.isalnum() or any(map(str.isalnum, word)))


words = functools.lru_cache(maxsize=4096)(words_of)  # each text is compared with each other


@functools.lru_cache(maxsize=4096)
def _core(text: str) -> tuple[str, ...]:
    """The words without fillers; all of them where nothing else stands there."""
    return tuple(_FILLERS.sub(" ", " ".join(words(text))).split()) or words(text)


def meaning(text: str) -> str:
    """A form of the text that is equal for texts that differ in layout, case and fillers only."""
    return " ".join(_FILLERS.sub(" ", normalized(text)).split()) or normalized(text)


def rest_after(beginning: str, text: str) -> str | None:
    """The part of the text below the lines of a known one; None if it begins otherwise.

    Blank lines, and blanks at the end of a line, make no difference. A list in JSON, to which an
    item was added, begins with what it was, too.
    """
    pairs = zip(beginning, text, strict=False)
    end = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(beginning), len(text)))
    if beginning != text and beginning[:1] in ("[", "{") and not beginning[end:].strip("]}"):
        added = text[end:].strip()
        if beginning[end - 1] in "[{" or added.startswith(","):
            return added.lstrip(", ")
    sought = [line.rstrip() for line in beginning.splitlines() if line.strip()]
    lines = text.splitlines()
    places = [place for place, line in enumerate(lines) if line.strip()]
    if [lines[place].rstrip() for place in places[: len(sought)]] != sought:
        return None
    return "\n".join(lines[places[len(sought)] :]).strip() if len(places) > len(sought) else ""


def says_same(text: str, other: str) -> bool:
    """True if two texts say the same: but for fillers, one is the other with a few words more.

    Those may not be numbers or signs ("<"), nor turn the meaning ("not", "never").
    """
    shorter, longer = sorted((_core(text), _core(other)), key=len)
    if len(shorter) < NEAR_DUPLICATE * len(longer) or _signs(text) != _signs(other):
        return False
    rest = iter(longer)
    if not all(word in rest for word in shorter):
        return False
    more = Counter(longer) - Counter(shorter)
    return not any(map(_TURNING.fullmatch, more))


def letter_groups(text: str, sizes: Sequence[int] = (2, 3)) -> frozenset[str]:
    """The groups of letters of these sizes in the words of the text, which work in any language."""
    folded = f" {' '.join(words_of(text))} "
    return frozenset(folded[i : i + n] for n in sizes for i in range(max(1, len(folded) - n + 1)))


def alike(groups: frozenset[str], other: frozenset[str]) -> float:
    """The share that both have of what either has; 1.0 where neither has anything."""
    either = groups | other
    return len(groups & other) / len(either) if either else 1.0


def n_single_letters(parts: Sequence[str]) -> int:
    """The number of words that are single characters of a script without spaces."""
    if "".join(parts).isascii():  # as most long documents are
        return 0
    return sum(len(word) == 1 and word >= "\u0e00" for word in parts)


def _signs(text: str) -> list[str]:
    """The signs of mathematics and of currencies, and #."""
    return [char for char in text if unicodedata.category(char) in ("Sm", "Sc") or char == "#"]
