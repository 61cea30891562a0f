"""How unlikely the tokens of an answer were, if the LM was asked (`logprobs=True`) and says so."""

import math
from collections.abc import Mapping
from typing import Any


def has_log_probabilities(value: Any) -> bool:
    """Whether it is what DSPy calls `logprobs`, in an entry of its history or in a Prediction."""
    return isinstance(_of(value, "content"), list | tuple)


def surprisals(entry: Mapping[str, Any]) -> list[float]:
    """The negative log-probability of each token that a call chose, by its entry in DSPy's history.

    Empty where the LM was not asked for log-probabilities, or gives none. In nats.
    """
    given = [_of(output, "logprobs") for output in entry["outputs"] or ()]
    tokens = [token for each in given for token in _of(each, "content") or ()]
    chosen = [_of(token, "logprob") for token in tokens]
    return [-float(each) for each in chosen if each is not None and math.isfinite(each)]


def _of(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
