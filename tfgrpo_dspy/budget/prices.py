"""What a call to an LM can cost at most: given prices, or DSPy's own price list."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Prices = Mapping[str, tuple[float, float]]
"""US dollars for a million prompt tokens and a million completion tokens, by `lm.model`."""
TOKENS_IN_A_PRICE = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for each prompt and completion token, and the most completion tokens of a call."""

    prompt: float
    completion: float
    max_tokens: int

    def most(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], n: int) -> float:
        """The most that a call for n completions can cost; a token has at least one byte."""
        n_bytes = len(json.dumps([args, dict(kwargs)], default=_as_sent).encode())
        longest = _max_tokens(kwargs) or self.max_tokens
        return n * (n_bytes * self.prompt + longest * self.completion)


def price_of(lm: Any, prices: Prices) -> Price | str:
    """The price of a dspy.LM, or what is missing to know it, in words."""
    listed = _listed(lm)
    if lm.model in prices:
        prompt, completion = (float(p) / TOKENS_IN_A_PRICE for p in prices[lm.model])
    elif listed.get("input_cost_per_token") is None or listed.get("output_cost_per_token") is None:
        return (
            f"DSPy knows no price of {lm.model}; pass prices={{{lm.model!r}: (dollars for a "
            f"million prompt tokens, dollars for a million completion tokens)}}."
        )
    else:
        prompt, completion = listed["input_cost_per_token"], listed["output_cost_per_token"]
    limit = _max_tokens(getattr(lm, "kwargs", {})) or listed.get("max_output_tokens")
    if not limit:
        return f"nothing limits how long an answer of {lm.model} gets; set max_tokens on it."
    return Price(prompt, completion, int(limit))


def _max_tokens(kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("max_tokens") or kwargs.get("max_completion_tokens")


def _as_sent(value: Any) -> Any:
    schema = getattr(value, "model_json_schema", None)  # of a response format
    return str(value) if schema is None else schema()


def _listed(lm: Any) -> Mapping[str, Any]:
    """DSPy's entry for the model in its price list; empty where it has none."""
    from dspy.clients.capabilities import resolve  # noqa: PLC0415 - internal to DSPy, may move
    from dspy.clients.model_metadata import model_info  # noqa: PLC0415

    try:
        route = resolve(lm)
        return dict(model_info(route.provider, route.model))
    except Exception:  # noqa: BLE001 - an LM that DSPy has no route for is one without a price
        return {}
