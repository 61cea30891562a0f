"""Secrets, and texts without any: for messages, records, logs and reports.

A secret is known by its name (of an argument or attribute of an LM, of an environment variable),
or by its place in a URL; never by how it looks.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

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
WORDS, WORD = re.compile(r"[a-z]+([_. -][a-z]+)*"), re.compile(r"[a-z]+")
"""Values such as `customer_id` are no secrets, and not even a password is `password`."""
FORMS = (json.dumps, partial(json.dumps, ensure_ascii=False), repr)  # of a text in other texts
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
        and not (WORD if PASSWORD.search(name) else WORDS).fullmatch(value)
        and (PASSWORD.search(name) or not NO_SECRET.search(name))
        and not os.path.exists(value)  # noqa: PTH110 - Path.exists() raises for a long value
    }


def _held_secrets(value: Any, depth: int = 0) -> Iterator[str]:
    """The secrets that an object or a mapping holds: all texts under a secret's name."""
    held = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    for name, item in list(held.items()) if depth < MAX_DEPTH else ():  # it may change meanwhile
        if SECRET_NAME.search(str(name)):
            yield from _texts(item)
        elif isinstance(item, str):
            yield from _secrets_in_url(item)
        elif not isinstance(item, type) and name not in ("history", "callbacks"):
            yield from _held_secrets(item, depth + 1)


def _secrets_in_url(text: str) -> Iterator[str]:
    """A password before the host, and arguments that are secrets by their names."""
    with suppress(ValueError):  # no URL after all
        url = urlsplit(text)
        if url.password:
            yield f":{url.password}@"  # a short one is also a word of other texts
            yield from _texts([url.password, unquote(url.password)])
        arguments = parse_qsl(url.query) if url.netloc else []
        yield from _texts([value for name, value in arguments if SECRET_NAME.search(name)])


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
