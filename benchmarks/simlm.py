"""What all simulated LMs share: how requests are read and answers written, and luck from keys.

Knows DSPy's ChatAdapter and JSONAdapter, which is what the optimizers use; nothing of the task.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspy import lm15

_FIELD = re.compile(r"^\d+\. `(\w+)` \((.+?)\):?", re.MULTILINE)
_SECTION = re.compile(r"^\[\[ ## (\w+) ## \]\][^\S\n]*\n?", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """A request: its system text, the turns before the last (demos), the last, and the sample."""

    system: str
    demos: str
    user: str
    sample: str

    @classmethod
    def of(cls, request: lm15.Request, sample: str) -> "Prompt":
        """The prompt of a request."""
        system = request.system or ""
        if not isinstance(system, str):
            system = "".join(part.text for part in system)
        *before, last = [message.text or "" for message in request.messages]
        return cls(system, "\n".join(before), last, sample)

    @property
    def n_words(self) -> int:
        """Blanks and line ends, for the number of words."""
        return sum(text.count(" ") + text.count("\n") for text in (self.system, self.demos)) + (
            self.user.count(" ") + self.user.count("\n")
        )


def response(request: lm15.Request, prompt: Prompt, answer: str) -> lm15.Response:
    """The response with this answer, whose words count as its tokens."""
    usage = lm15.Usage(input_tokens=prompt.n_words, output_tokens=answer.count(" ") + 1)
    message = lm15.Message.assistant([lm15.TextPart(answer)])
    return lm15.Response(
        id=None, model=request.model, message=message, finish_reason="stop", usage=usage
    )


@dataclass(frozen=True)
class OutputFields:
    """The output fields that a system message asks for: names, types, and the format."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    is_json: bool

    def formatted(self, values: Mapping[str, Any]) -> str:
        """The answer as the adapter expects it."""
        if self.is_json:
            return json.dumps({name: values[name] for name in self.names})
        parts = []
        for name in self.names:
            value = values[name]
            text = value if isinstance(value, str) else json.dumps(value)
            parts.append(f"[[ ## {name} ## ]]\n{text}\n")
        return "\n".join([*parts, "[[ ## completed ## ]]"])


@functools.lru_cache(maxsize=4096)
def output_fields(system: str) -> OutputFields:
    """The output fields that the system message of an adapter asks for."""
    asked = system.partition("Your output fields are:")[2].partition("\nAll interactions")[0]
    found = _FIELD.findall(asked)
    names, types = zip(*found, strict=True) if found else ((), ())
    return OutputFields(names, types, "Outputs will be a JSON object" in system)


def sections(user: str) -> dict[str, str]:
    """The input fields of the last turn."""
    names = _SECTION.findall(user)
    texts = _SECTION.split(user)[2::2]
    return dict(zip(names, texts, strict=True))


def draw(*key: object) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def pick(n: int, *key: object) -> int:
    """A number below n that depends on nothing but the key."""
    return int(draw(*key) * n)
