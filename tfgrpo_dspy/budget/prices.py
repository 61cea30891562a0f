"""What a call of an LM can cost: the prices of its tokens, and how many there can be."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfgrpo_dspy.dspy_seam import prices_of

Prices = Mapping[str, tuple[float, float]]
"""US dollars for a million prompt tokens and a million completion tokens, by `lm.model`."""
TOKENS_IN_A_PRICE = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for each prompt and completion token; the most completion tokens (0: no limit)."""

    prompt: float
    completion: float
    max_tokens: int = 0

    def most(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], n: int) -> float:
        """The most that a call for n completions can cost; a token has at least one byte."""
        n_bytes = len(json.dumps([args, dict(kwargs)], default=_as_sent).encode())
        longest = _max_tokens(kwargs) or self.max_tokens
        return n * (n_bytes * self.prompt + longest * self.completion)


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
    limit = _max_tokens(getattr(lm, "kwargs", {})) or listed.get("max_output_tokens")
    return Price(prompt, completion, int(limit or 0))


def price_of(lm: Any, prices: Prices) -> Price | str:
    """`token_price`, if the length of an answer is limited; else, in words, what is missing."""
    price = token_price(lm, prices)
    if isinstance(price, str) or price.max_tokens:
        return price
    return f"nothing limits how long an answer of {lm.model} gets; set max_tokens on it."


def _max_tokens(kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("max_tokens") or kwargs.get("max_completion_tokens")


def _as_sent(value: Any) -> Any:
    schema = getattr(value, "model_json_schema", None)  # of a response format
    return str(value) if schema is None else schema()
