"""Text: what is taken out of it where it comes from outside; compared, cut short, without secrets.

Letters that nobody sees may carry orders to an LM; codes for terminals move what a reader sees;
markers of adapters close the section that a text stands in. A secret is known by its name (of an
argument or attribute of an LM, of an environment variable), or by its place in a URL; never by how
it looks.
"""

import functools
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_NEXT = r"[^\x00-\u02af\u2000-\u206f]"
_STRAY = re.compile(rf"(?<!{_NEXT})[\u200c\u200d]|[\u200c\u200d](?!{_NEXT})")
"""Joiners that are not between letters of Persian, Hindi and others, or of two emoji."""


def _seen(text: str, instead: Callable[[str], str]) -> str:
    """The text with this in place of each letter that is not seen."""
    text = _STRAY.sub(lambda match: instead(match[0]), text)
    hidden = {char for char in {*text} - {*"\n\t\u200c\u200d"} if not char.isprintable()}
    others = (char for char in hidden if unicodedata.category(char) != "Zs")  # a wide blank is one
    return text.translate({ord(char): instead(char) for char in others})


def cleaned_text(text: str) -> str:
    """The text without letters that Python does not call printable; with Unix line ends."""
    if text.isprintable():
        return text
    text = _COLOURS.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _seen(text, lambda char: " " * char.isspace())


def printable(text: str) -> str:
    """The text with control and invisible characters as escapes: it cannot steer a terminal."""
    return _seen(text, lambda char: char.encode("unicode_escape").decode())


def without_markers(text: str, tags: Iterable[str] = ()) -> str:
    """The text as it may stand in a prompt: it ends no section or block, nor `tags` of XML."""
    text = cleaned_text(text).replace("[[ ##", "[ [ ##").replace("<<CUSTOM-TYPE", "< <CUSTOM-TYPE")
    names = "|".join(map(re.escape, ("experiences", *tags)))
    return re.sub(rf"<(?=\s*/?\s*(?:{names})\s*/?>)", "< ", text, flags=re.IGNORECASE)


WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\s\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]{1,40}"
)
# A normalized text keeps letters, marks (in many scripts the vowels), digits, `<`, `$`, `_`.
_MEANING = ("L", "M", "N", "Sm", "Sc", "Pc")
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


BYTES_PER_TOKEN = 3.5  # of UTF-8: an estimate, on the low side for English text


def estimate_tokens(text: str) -> int:
    """About how many tokens the text has, from its UTF-8 length; rather too many than too few."""
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)


def counted(n: int, singular: str) -> str:
    """`1 experience`, `1,200 experiences`."""
    return f"{n:,} {singular}" if n == 1 else f"{n:,} {singular}s"


def aligned(rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> list[str]:
    """A line for each row, with its cells below each other; `numbers` are columns of numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    places = [">" if column in numbers else "<" for column in range(len(widths))]
    form = "  ".join(f"{{:{p}{width}}}" for p, width in zip(places, widths, strict=True))
    return [form.format(*row).rstrip() for row in rows]


def normalized(text: str) -> str:
    """The text without case, punctuation and spacing; the signs of mathematics and money stay."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    dropped = (c for c in {*folded} if not unicodedata.category(c).startswith(_MEANING))
    return " ".join(folded.translate(dict.fromkeys(map(ord, dropped), " ")).split()) or text.strip()


def n_words(text: str) -> int:
    """The number of words of at most 40 characters; without spaces, each character is one."""
    return len(WORD.findall(text))


@functools.lru_cache(maxsize=256)
def words_of(text: str) -> tuple[str, ...]:
    """The words of the text; a character of a script without spaces is one."""
    parts = WORD.findall(normalized(text))
    return tuple(word for word in parts if word.isalnum() or any(map(str.isalnum, word)))


@functools.lru_cache(maxsize=4096)
def _core(text: str) -> tuple[str, ...]:
    """The words without fillers; all of them where nothing else stands there."""
    return tuple(_FILLERS.sub(" ", " ".join(words_of(text))).split()) or words_of(text)


@functools.lru_cache(maxsize=4096)
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


@functools.lru_cache(maxsize=4096)
def letter_groups(text: str, sizes: Sequence[int] = (2, 3)) -> frozenset[str]:
    """The groups of letters of these sizes in the words of the text, which work in any language."""
    folded = f" {' '.join(words_of(text))} "
    return frozenset(folded[i : i + n] for n in sizes for i in range(max(1, len(folded) - n + 1)))


@functools.lru_cache(maxsize=4096)
def _signs(text: str) -> list[str]:
    """The signs of mathematics and of currencies, and #."""
    return [char for char in text if unicodedata.category(char) in ("Sm", "Sc") or char == "#"]


SECRET_NAME = re.compile(
    r"(^|_|-)(api_?key|key|keys|secret|secrets|password|passwd|credentials?|headers?|auth"
    r"|authorization|cookies?|bearer|token)($|_(id|value)$)",
    re.IGNORECASE,
)
"""Names of an LM's arguments that hold secrets; `max_tokens` is none of them."""
SECRET_VARIABLE = re.compile(
    r"(api|access|secret|private|auth|service|account|signing|encryption)_?key|keys?[_\d]*$"
    r"|token|secret|passw|pwd|credential|bearer|cookie|(^|_)pat($|_)",
    re.IGNORECASE,
)
"""Names of environment variables that may hold secrets: rather too many than too few."""
PASSWORD = re.compile(r"secret|passw|pwd|credential", re.IGNORECASE)
NO_SECRET = re.compile(
    r"(^|_)(expir\w*|max|min|limit|count|total|ttl|region|timeout|created|issued|version|path|file"
    r"|dir|home|sock)(_|$)",
    re.IGNORECASE,
)
"""Names of other variables that describe a secret and hold none: `TOKEN_EXPIRES`."""
PLAIN_WORDS = re.compile(r"[a-z]+([_. -][a-z]+)*")
"""Values such as `customer_id` are no secrets, and not even a password is `password`."""
FORMS = (json.dumps, functools.partial(json.dumps, ensure_ascii=False), repr)  # in other texts
PLAIN_HEADERS = ("accept", "accept-encoding", "connection", "content-type", "host", "user-agent")
SHORTEST_SECRET = 8  # shorter values are placeholders, such as "none"
MAX_DEPTH = 4  # how deep in an LM secrets are looked for: `lm.engine.client.headers` is three deep


def without_secret_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without what is a secret by its name, also in mappings inside it."""
    return {
        str(name): without_secret_names(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if not SECRET_NAME.search(str(name))
    }


def known_secrets(lms: Iterable[Any], visible: str = "") -> list[str]:
    """The secrets of LMs and environment, longest first, also as JSON; none that is `visible`."""
    secrets: set[str] = set()
    held = (text for lm in lms for text in _held_secrets(lm))
    for text in {*_texts([*secret_variables().values()]), *held}:
        forms = {text}
        for _ in range(2):  # a text of JSON may stand in another
            forms |= {form(each)[1:-1] for each in forms for form in FORMS}
        secrets |= set() if any(form in visible for form in forms) else forms
    return sorted(secrets, key=lambda secret: (-len(secret), secret))


def secret_variables() -> dict[str, str]:
    """The environment variables whose values count as secrets, by name."""
    return {
        name: value
        for name, value in os.environ.items()
        if SECRET_VARIABLE.search(name)
        and len(value) >= SHORTEST_SECRET
        and not (re.compile("[a-z]+") if PASSWORD.search(name) else PLAIN_WORDS).fullmatch(value)
        and (PASSWORD.search(name) or not NO_SECRET.search(name))
        and not os.path.exists(value)  # noqa: PTH110 - Path.exists() raises for a long value
    }


def _held_secrets(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts that an object, a mapping or a URL has under a secret's name; passwords in URLs."""
    held = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    for name, item in list(held.items()) if depth < MAX_DEPTH else ():  # it may change meanwhile
        if SECRET_NAME.search(str(name)):
            yield from _texts(item)
        elif isinstance(item, str):
            with suppress(ValueError):  # no URL after all
                url = urlsplit(item)
                if url.password:
                    yield f":{url.password}@"  # a short one is also a word of other texts
                    yield from _texts([url.password, unquote(url.password)])
                if url.netloc:  # its arguments
                    yield from _held_secrets(dict(parse_qsl(url.query)), depth + 1)
        elif not isinstance(item, type) and name not in ("history", "callbacks"):
            yield from _held_secrets(item, depth + 1)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and len(value) >= SHORTEST_SECRET:
        yield value
        yield from (word for word in value.split()[1:] if len(word) >= SHORTEST_SECRET)
    elif isinstance(value, Mapping):
        for name, item in list(value.items()):
            yield from () if str(name).lower() in PLAIN_HEADERS else _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text with `(secret)` in place of each of the secrets."""
    for secret in secrets:
        text = text.replace(secret, "(secret)")
    return text


def cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    """JSON-like values with every text in them cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {cleaned(name, clean): cleaned(item, clean) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(item, clean) for item in value]
    return value
