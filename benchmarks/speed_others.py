"""DSPy's optimizers beside ours, with about as many calls for each example.

They learn on `simulated.py`'s task, which can be learned (on `speed_lm`'s nothing can), so that
they evaluate candidates as they would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from flat_settings import grouped
from simulated import Triage, is_right, with_feedback

from tfgrpo_dspy import TrainingFreeGRPO


@dataclass(frozen=True)
class Given:
    """What an optimizer is given; the policy LM is `dspy.settings.lm`."""

    reflection_lm: Any
    trainset: Sequence[dspy.Example]
    valset: Sequence[dspy.Example]
    threads: int
    for_utilisation: bool = False


def feedback(example: Any, pred: Any, *_: Any) -> Any:
    """The metric with feedback."""
    return with_feedback(example, is_right(example, pred))


def number(example: Any, pred: Any, _trace: Any = None) -> float:
    """The metric as a number."""
    return is_right(example, pred)


def gepa(given: Given) -> Any:
    """Metric calls for four evaluations; for utilisation 600."""

    def metric(
        gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> Any:
        return feedback(gold, pred, trace, pred_name, pred_trace)

    optimizer = dspy.GEPA(
        metric,
        reflection_lm=given.reflection_lm,
        num_threads=given.threads,
        max_metric_calls=600 if given.for_utilisation else 4 * len(given.valset),
    )
    return optimizer.compile(Triage(), trainset=given.trainset, valset=given.valset)


def simba(given: Given) -> Any:
    """Its defaults but for the steps, 2; for utilisation 3. It uses no validation set."""
    steps = 3 if given.for_utilisation else 2

    def metric(gold: Any, pred: Any, trace: Any = None) -> Any:
        return feedback(gold, pred, trace)

    optimizer = dspy.SIMBA(
        metric=metric,
        prompt_model=given.reflection_lm,
        num_threads=given.threads,
        max_steps=steps,
    )
    return optimizer.compile(Triage(), trainset=given.trainset)


def mipro(given: Given) -> Any:
    """auto="light"; for utilisation 6 candidates, 8 trials on the whole validation set."""
    size: Any = {"auto": None, "num_candidates": 6} if given.for_utilisation else {"auto": "light"}
    trials: Any = {"num_trials": 8, "minibatch": False} if given.for_utilisation else {}
    optimizer = dspy.MIPROv2(
        number, prompt_model=given.reflection_lm, num_threads=given.threads, **size
    )
    return optimizer.compile(Triage(), trainset=given.trainset, valset=given.valset, **trials)


AS_MEASURED = {"group_size": 5, "epochs": 3, "drafts": 0, "max_demos": 0, "max_staleness": 1}


def ours(given: Given) -> Any:
    """TrainingFreeGRPO with groups of 5 and 3 epochs, gate included, on the same task."""

    def metric(gold: Any, pred: Any, trace: Any = None) -> Any:
        return feedback(gold, pred, trace)

    optimizer = TrainingFreeGRPO(
        metric,
        reflection_lm=given.reflection_lm,
        num_threads=given.threads,
        progress=False,
        **grouped(AS_MEASURED),
    )
    return optimizer.compile(Triage(), trainset=given.trainset, valset=given.valset)


OTHERS: dict[str, Callable[[Given], Any]] = {"GEPA": gepa, "SIMBA": simba, "MIPROv2": mipro}
