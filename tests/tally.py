"""An engine that counts the dollars of its answers too, and LMs and prices for it."""

from collections.abc import Callable
from typing import Any

import dspy
from dspy import lm15
from runs import polite_rules
from scripted import AsyncEngine, Prompt, ScriptedEngine

MAX_TOKENS = 100


class Tally(ScriptedEngine):
    """Counts the dollars of its answers too; refuses a share of its calls, always the same ones."""

    def __init__(
        self,
        rules: Any = None,
        before: Callable[[Prompt], None] | None = None,
        refused_share: float = 0.0,
    ) -> None:
        super().__init__(rules or polite_rules(), before)
        self.refused_share = refused_share
        self.dollars = self.at_once = self.most_at_once = 0

    def complete(self, request: lm15.Request) -> lm15.Response:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        response = super().complete(request)
        is_refused = self.prompts[-1].random(str(len(self.prompts))).random() < self.refused_share
        with self._lock:
            self.at_once -= 1
            if not is_refused:
                self.dollars += response.usage.input_tokens + response.usage.output_tokens
        overloaded = lm15.ServerError("overloaded", status=503)
        if is_refused:
            raise overloaded
        return response


def lm_on(engine: Tally, **kwargs: Any) -> dspy.LM:
    given_ = {"cache": False, "max_tokens": MAX_TOKENS, **kwargs}
    return dspy.LM("scripted", engine=engine, async_engine=AsyncEngine(engine), **given_)


def priced(dollars: float = 1e-6) -> dict[str, Any]:
    """Prices of so many dollars a token."""
    return {"prices": {"scripted": (1e6 * dollars, 1e6 * dollars)}}
