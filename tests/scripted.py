"""A deterministic LM for tests: everything above `engine.complete` is real.

`ScriptedEngine(rules)` answers as a pure function of the request: the first rule whose pattern is
found in the prompt (system message, then the messages) gives the answer. A rule's answer is a
text, or a function of the `Prompt` (text, seed, temperature), or an exception to raise. A prompt
that no rule matches is an error that shows the prompt.
"""

import asyncio
import json
import random
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy import lm15


@dataclass(frozen=True)
class Prompt:
    """What an engine sees of a request."""

    system: str
    user: str
    seed: int | None
    temperature: float | None
    max_tokens: int | None = None

    @property
    def text(self) -> str:
        return f"{self.system}\n\n{self.user}"

    def random(self, salt: str = "") -> random.Random:
        """A generator that depends on this prompt and its seed only."""
        return random.Random(f"{salt}/{self.seed}/{self.text}")


class Cut(str):
    """A text that ends where the LM had no more room."""


class Filtered(str):
    """An answer, or a part of one, that a content filter of the provider held back."""


class Refused(str):
    """What the LM says in place of an answer."""


Answer = str | BaseException | Callable[[Prompt], Any]
Rule = tuple[str, Answer]


class ScriptedEngine:
    """Answers by rules, and keeps the prompts; `before` is called with each before its answer."""

    supported_params = frozenset({"temperature", "max_tokens", "seed"})

    def __init__(
        self, rules: Sequence[Rule], before: Callable[[Prompt], None] | None = None
    ) -> None:
        self.rules = rules
        self.before = before
        self.prompts: list[Prompt] = []
        self._lock = threading.Lock()

    def complete(self, request: lm15.Request) -> lm15.Response:
        prompt = _prompt_of(request)
        with self._lock:
            self.prompts.append(prompt)
        if self.before is not None:
            self.before(prompt)
        answer = self._answer(prompt)
        if isinstance(answer, BaseException):
            raise answer
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant([_part_of(answer)]),
            finish_reason=_finish_reason(answer),
            usage=lm15.Usage(
                input_tokens=len(prompt.text.split()), output_tokens=len(str(answer).split())
            ),
        )

    def _answer(self, prompt: Prompt) -> Any:
        for pattern, answer in self.rules:
            if re.search(pattern, prompt.text):
                return answer(prompt) if callable(answer) else answer
        raise AssertionError(f"no rule matches this prompt:\n{prompt.text}")

    def n_calls(self, pattern: str = "") -> int:
        return sum(bool(re.search(pattern, prompt.text)) for prompt in self.prompts)

    def __getstate__(self) -> dict[str, Any]:
        return {"rules": self.rules, "before": self.before}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ScriptedEngine.__init__(self, **state)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ScriptedEngine":
        raise AssertionError(f"{self!r} was deep-copied: the user's LM must be shared")


def scripted_lm(rules: Sequence[Rule], cache: bool = False, **kwargs: Any) -> dspy.LM:
    """A dspy.LM on a ScriptedEngine; the engine is `lm.engine`."""
    before = kwargs.pop("before", None)
    return dspy.LM("scripted", engine=ScriptedEngine(rules, before), cache=cache, **kwargs)


def chat(**fields: Any) -> str:
    """The answer of a chat-adapter prompt with these output fields."""
    parts = [
        f"[[ ## {name} ## ]]\n{value if isinstance(value, str) else json.dumps(value)}"
        for name, value in fields.items()
    ]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


EXTRACT, UPDATE, SUMMARIZE = r"`(?:semantic_advantage|critique)`", "`operations`", "`summary`"
"""Found in the prompts of ExtractAdvantage, UpdateLibrary and SummarizeTrajectory only."""


def lessons(*texts: str, why: str = "The better attempts follow the advice.") -> str:
    """An answer of ExtractAdvantage."""
    return chat(semantic_advantage=why, critique=why, lessons=list(texts))


def operations(*items: dict[str, Any]) -> str:
    """An answer of UpdateLibrary."""
    return chat(operations=list(items))


def _finish_reason(answer: Any) -> Any:
    if isinstance(answer, Cut):
        return "length"
    return "content_filter" if isinstance(answer, Filtered) else "stop"


def _part_of(answer: Any) -> Any:
    return lm15.RefusalPart(answer) if isinstance(answer, Refused) else lm15.TextPart(str(answer))


def _prompt_of(request: lm15.Request) -> Prompt:
    system = request.system or ""
    if not isinstance(system, str):
        system = "".join(part.text for part in system)
    user = "\n\n".join(
        message.text or "\n".join(map(str, message.parts)) for message in request.messages
    )
    config = request.config
    return Prompt(system, user, config.seed, config.temperature, config.max_tokens)


class Latency:
    """Lets each call wait for a random time of at most a few milliseconds."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.never = threading.Event()

    def __call__(self, _prompt: Prompt) -> None:
        self.never.wait(self.draw.random() * 0.004)


class AsyncEngine:
    """The same engine for `acall`: awaits before it answers."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        await asyncio.sleep(0)
        return self.engine.complete(request)
