"""Counts what LM calls cost: calls, tokens, dollars, answers from a cache, failures.

An LM is counted by running as a copy whose class, made at run time, reports each call to a
`Meter`: callbacks cannot tell a cached answer, and an engine wrapper does not fit every LM. That
class never reaches a program that is given back. What the calls are for is their callers' business.
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import ContextWindowExceededError, LMError

from tfgrpo_dspy.rollout import SEED_RANGE, Failure, Usage, rollout_id_for

SHORTEST_KEY = 8
"""Shorter values of API keys are placeholders, such as "none"."""


@dataclass(frozen=True, slots=True)
class Call:
    """One answered LM call: the module that made it, the last message sent, the text received."""

    caller: Any
    prompt: str
    answer: str


class Meter:
    """What the LM copies that carry it have done; each rollout or reflection has its own.

    Calls may come from several threads of one program: while it runs, all that happens here is
    an append.
    """

    def __init__(self) -> None:
        self.provider_failure: Failure | None = None
        self.keeps_history = not dspy.settings.disable_history
        self._answered: list[tuple[list[Any], Mapping[str, Any]]] = []
        self._failed: list[LMError] = []

    def answered(self, entry: Mapping[str, Any]) -> None:
        """Count a call by its entry in DSPy's history."""
        self._answered.append((dspy.settings.caller_modules or [None], entry))

    def failed(self, error: LMError, lm: Any) -> None:
        """Count a call that ended in an error; a provider's failure is remembered.

        A prompt that is too long is the program's doing, not the provider's.
        """
        self._failed.append(error)
        if not isinstance(error, ContextWindowExceededError):
            message = _without_keys(f"{type(error).__name__}: {error}", lm)
            self.provider_failure = Failure("provider", message)

    @property
    def usage(self) -> Usage:
        """What all calls together have cost.

        DSPy makes one list of callers for each call of a module: it tells an adapter's second
        attempt apart from a predictor's second call. (A module that is no predictor may call its
        LM as often as it likes.)
        """
        predictions = [id(c) for c, _ in self._answered if isinstance(c[-1], dspy.Predict)]
        extra = Usage(
            n_lm_calls=len(self._failed),
            n_failed_calls=len(self._failed),
            n_second_calls=len(predictions) - len(set(predictions)),
        )
        return sum((_usage_of(entry) for _, entry in self._answered), start=extra)

    @property
    def last_call(self) -> Call | None:
        """The last call that was answered."""
        if not self._answered:
            return None
        callers, entry = self._answered[-1]
        prompt = entry["messages"][-1]["content"] if entry["messages"] else entry["prompt"]
        answer = entry["outputs"][0] if entry["outputs"] else ""
        answer = answer.get("text") if isinstance(answer, Mapping) else answer
        return Call(callers[-1], str(prompt), str(answer or ""))


def metered(lm: Any, meter: Meter) -> Any:
    """The LM, a copy of the user's, made to report to the meter (as will copies of it)."""
    kind: Any = type(lm)
    lm.__class__ = _metered_class(kind)
    lm.tfgrpo_meter = meter
    return lm


class _Metered:
    """What a metered LM does besides what its own class does, which comes next in the order."""

    tfgrpo_meter: Meter
    kwargs: dict[str, Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        except LMError as error:
            self.tfgrpo_meter.failed(error, self)
            raise

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().acall(*args, **kwargs)  # type: ignore[misc]
        except LMError as error:
            self.tfgrpo_meter.failed(error, self)
            raise

    def update_history(self, entry: dict[str, Any]) -> None:
        self.tfgrpo_meter.answered(entry)
        if self.tfgrpo_meter.keeps_history:
            super().update_history(entry)  # type: ignore[misc]

    def copy(self, **changes: Any) -> Any:
        """A program that asks for another sample (another rollout id) gets another seed too."""
        seed, rollout_id = self.kwargs.get("seed"), changes.get("rollout_id")
        if seed is not None and rollout_id is not None and "seed" not in changes:
            changes["seed"] = rollout_id_for(seed, 0, 0, rollout_id, "copy") % SEED_RANGE
        return super().copy(**changes)  # type: ignore[misc]


@functools.cache
def _metered_class(kind: Any) -> Any:
    return kind if issubclass(kind, _Metered) else type(kind.__name__, (_Metered, kind), {})


def _without_keys(message: str, lm: Any) -> str:
    """The message without the API keys of the LM and the environment: some providers echo them."""
    in_environment = [value for name, value in os.environ.items() if name.endswith("_API_KEY")]
    for key in [lm.kwargs.get("api_key"), *in_environment]:
        if isinstance(key, str) and len(key) >= SHORTEST_KEY:
            message = message.replace(key, "(API key)")
    return message


def _usage_of(entry: Mapping[str, Any]) -> Usage:
    usage, response = entry["usage"], entry["response"]
    responses = response if isinstance(response, tuple) else (response,)
    if not usage and any(_reports_tokens(response) for response in responses):
        # DSPy empties the usage of an answer from its cache
        return Usage(n_cached_calls=len(responses))
    return Usage(
        n_lm_calls=len(responses),  # an engine is called once for each completion
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        cost_usd=entry.get("cost") or 0.0,
    )


def _reports_tokens(response: Any) -> bool:
    usage = getattr(response, "usage", None) or {}
    names = ("input_tokens", "prompt_tokens")
    counts = [
        usage.get(n) if isinstance(usage, Mapping) else getattr(usage, n, None) for n in names
    ]
    return any(count is not None for count in counts)
