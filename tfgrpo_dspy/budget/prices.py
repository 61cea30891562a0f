"""What a call of an LM can cost: the prices of its tokens, and how many there can be."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.dspy_seam import prices_of
from tfgrpo_dspy.rollout import Usage

Prices = Mapping[str, tuple[float, float]]
"""US dollars for a million prompt tokens and a million completion tokens, by `lm.model`."""
TOKENS_IN_A_PRICE = 1_000_000
MORE = 1.5  # times the densest prompt so far: what the next one may have at most


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for each prompt and completion token; the most completion tokens (0: no limit)."""

    prompt: float
    completion: float
    max_tokens: int = 0

    def of(self, n_prompt: float, n_completion: float) -> float:
        """Dollars for so many tokens."""
        return n_prompt * self.prompt + n_completion * self.completion


@dataclass(slots=True)
class Seen:
    """The most tokens that calls of a model have had so far: by them the next one is reckoned."""

    prompt: int = 0
    a_byte: float = 0.0  # of the prompt
    answer: int = 0

    def note(self, used: Usage, n_bytes: int) -> None:
        """Note a call whose request had so many bytes."""
        self.prompt = max(self.prompt, used.prompt_tokens)
        self.a_byte = max(self.a_byte, used.prompt_tokens / max(1, n_bytes))
        self.answer = max(self.answer, used.completion_tokens)

    def most_tokens(self, n_bytes: int, longest: int) -> tuple[int, int]:
        """The most tokens of a prompt, and the least that its answer needs room for.

        Where nothing is known: one a byte, and as long as an answer may get.
        """
        prompt = min(n_bytes, max(self.prompt, math.ceil(MORE * self.a_byte * n_bytes)))
        return (prompt, min(longest, 2 * self.answer)) if self.prompt else (n_bytes, longest)


def n_bytes_sent(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The length of a request; a token has at least one byte."""
    return len(json.dumps([args, dict(kwargs)], default=_as_sent).encode())


def token_price(lm: Any, prices: Prices) -> Price | str:
    """The price of a dspy.LM, or in words that none is known."""
    listed = prices_of(lm)
    if lm.model in prices:
        prompt, completion = (float(p) / TOKENS_IN_A_PRICE for p in prices[lm.model])
    elif listed.get("input_cost_per_token") is None or listed.get("output_cost_per_token") is None:
        return (
            f"DSPy knows no price of {lm.model}; pass Execution(prices={{{lm.model!r}: (dollars "
            f"for a million prompt tokens, dollars for a million completion tokens)}})."
        )
    else:
        prompt, completion = listed["input_cost_per_token"], listed["output_cost_per_token"]
    limit = max_tokens_of(getattr(lm, "kwargs", {})) or listed.get("max_output_tokens")
    return Price(prompt, completion, int(limit or 0))


def price_of(lm: Any, prices: Prices) -> Price | str:
    """`token_price`, if the length of an answer is limited; else, in words, what is missing."""
    price = token_price(lm, prices)
    if isinstance(price, str) or price.max_tokens:
        return price
    return f"nothing limits how long an answer of {lm.model} gets; set max_tokens on it."


def max_tokens_of(kwargs: Mapping[str, Any]) -> Any:
    """The limit on the length of an answer among these arguments; None: there is none."""
    return kwargs.get("max_tokens") or kwargs.get("max_completion_tokens")


def _as_sent(value: Any) -> Any:
    schema = getattr(value, "model_json_schema", None)  # of a response format
    return str(value) if schema is None else schema()
