"""An LM that turns a rollout id into a seed, the same for every optimizer.

DSPy's optimizers ask for several samples of one prompt by rollout ids, which are part of the cache
key and never reach an engine. An engine with a fixed seed, or one that is a function of its
request, would answer them all with one text.
"""

import functools
import hashlib
from typing import Any

import dspy

SEEDS = 2**31 - 1


def seeded(lm: dspy.LM) -> dspy.LM:
    """A copy of the LM, of which requests with another rollout id have another seed.

    The seed is drawn from the LM's own seed and the rollout id; without a rollout id the request
    is as it was. Copies do the same.
    """
    if isinstance(lm, _Seeded):
        return lm
    copy = lm.copy()
    copy.__class__ = _seeded_class(type(lm))
    return copy


class _Seeded:
    """What a seeded LM does besides what its own class does, which comes next in the order."""

    kwargs: dict[str, Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **self._with_seed(kwargs))  # type: ignore[misc]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return await super().acall(*args, **self._with_seed(kwargs))  # type: ignore[misc]

    def _with_seed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = {**self.kwargs, **kwargs}
        if given.get("rollout_id") is None:
            return kwargs
        text = f"{given.get('seed')}/{given['rollout_id']}"
        digest = hashlib.sha256(text.encode()).digest()
        return {**kwargs, "seed": int.from_bytes(digest[:8]) % SEEDS}


@functools.cache
def _seeded_class(kind: type) -> type:
    return type(kind.__name__, (_Seeded, kind), {})
