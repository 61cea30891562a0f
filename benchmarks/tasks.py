"""What a task gives to the optimizers that are compared on it.

LMs that a task brings are `seeded`: DSPy's optimizers ask for several samples of one prompt by
rollout ids, which are part of the cache key and never reach an engine. An engine with a fixed seed,
or one that is a function of its request, would answer them all with one text.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

SEEDS = 2**31 - 1


@dataclass(frozen=True)
class Task:
    """What an optimizer is given, and what its result is measured on.

    Attributes:
        name: what tables call it.
        student: makes a fresh student.
        train: what the optimizer learns from.
        val: what it may select on.
        test: what nobody sees until the end.
        metric: `metric(gold, pred, trace=None, pred_name=None, pred_trace=None)` gives
            `dspy.Prediction(score=, feedback=)`, the score in [0, 1].
        plain_metric: `metric(gold, pred, trace=None)` gives the same score as a float, for
            optimizers that take no feedback. It is graded where the task is: what asks for a yes
            or no (few-shot bootstrapping) needs a threshold.
        make_lm: the policy LM, from a seed.
        make_reflection_lm: the reflection LM, from a seed.
        demo_threshold: the score that a run must reach to become a demo; in a task of 0 and 1 it
            changes nothing.
        notes: its output fields, and hand-written advice below them.
    """

    name: str
    student: Callable[[], dspy.Module]
    train: Sequence[dspy.Example]
    val: Sequence[dspy.Example]
    test: Sequence[dspy.Example]
    metric: Callable[..., dspy.Prediction]
    plain_metric: Callable[..., float]
    make_lm: Callable[[int], Any]
    make_reflection_lm: Callable[[int], Any]
    demo_threshold: float = 0.5
    notes: str = ""


def plain(metric: Callable[..., dspy.Prediction]) -> Callable[..., float]:
    """The metric without its feedback."""

    def plain_metric(gold: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> float:
        return float(metric(gold, pred, trace).score)

    return plain_metric


def in_gepas_form(judged: Callable[[Any, Any], dspy.Prediction]) -> Callable[..., dspy.Prediction]:
    """The judgement of a prediction as a metric of GEPA's form, which asks for more."""

    def metric(
        gold: Any,
        pred: Any,
        trace: Any = None,  # noqa: ARG001
        pred_name: Any = None,  # noqa: ARG001
        pred_trace: Any = None,  # noqa: ARG001
    ) -> dspy.Prediction:
        return judged(gold, pred)

    return metric


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
