"""What is a secret, and texts without any: for messages, records, logs and reports.

A secret is known by its name (of an argument of an LM, of an environment variable), never by how
it looks.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

SECRET_NAME = re.compile(
    r"(^|_|-)(api_?key|key|keys|secret|secrets|password|passwd|credentials?|headers?|auth"
    r"|authorization|cookies?|bearer|token)($|_(id|value)$)",
    re.IGNORECASE,
)
"""Names of an LM's arguments that hold secrets; `max_tokens` is none of them."""
SECRET_VARIABLE = re.compile(
    r"key|token|secret|passw|pwd|credential|bearer|cookie|(^|_)pat($|_)", re.I
)
"""Names of environment variables that may hold secrets: rather too many than too few."""
SHORTEST_SECRET = 8
"""Shorter values are placeholders, such as "none"."""
REDACTED = "(secret)"


def without_secret_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping without what is a secret by its name, also in mappings inside it."""
    return {
        str(name): without_secret_names(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if not SECRET_NAME.search(str(name))
    }


def secrets_in(values: Mapping[str, Any], names: "re.Pattern[str]" = SECRET_NAME) -> Iterator[str]:
    """The values that are secrets by their name; all texts under such a name.

    An engine's own mappings may change meanwhile, as its other calls go on.
    """
    for name, value in list(values.items()):
        if names.search(str(name)):
            yield from _texts(value)
        elif isinstance(value, Mapping):
            yield from secrets_in(value, names)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and len(value) >= SHORTEST_SECRET:
        yield value
        yield from (word for word in value.split()[1:] if len(word) >= SHORTEST_SECRET)
    elif isinstance(value, Mapping):
        for item in list(value.values()):
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def known_secrets(lms: Iterable[Any]) -> list[str]:
    """The secrets of these LMs, of their engines and of the environment, the longest first."""
    found = {text for text in secrets_in(os.environ, SECRET_VARIABLE) if not _is_word(text)}
    for lm in lms:
        found.update(secrets_in(getattr(lm, "kwargs", None) or {}))
        found.update(secrets_in(getattr(getattr(lm, "engine", None), "__dict__", {})))
    return sorted(found, key=lambda secret: (-len(secret), secret))


def _is_word(text: str) -> bool:
    """Such as "password", or a path: no secret worth the name, and texts are full of them."""
    return (text.isalpha() and text.islower()) or text.startswith(("/", "~", "./"))


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text with `(secret)` in place of each of the secrets."""
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, REDACTED)
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
