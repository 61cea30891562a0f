"""Compare optimizers on your own task, at about the same number of LM calls, on held-out examples.

    python examples/optimizers_on_your_task.py [--lm openai/gpt-5-nano] [--reflection-lm MODEL]

Runs on a simulated LM in 7 seconds: which optimizer is first in this table says nothing about real
LMs. For your own task, replace the three names that come from `support_replies`. GEPA, SIMBA and
bootstrapping take no limit on LM calls; their settings are chosen so that they make about 300.
One seed is not enough to rank them: the intervals cover the test examples, not the luck of a run.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import dspy
from carry_over import mean_with_interval, scores
from dspy.utils.callback import BaseCallback
from simulated import arguments
from support_replies import house_style, load, program

from tfgrpo_dspy import TrainingFreeGRPO

N_CALLS, SEED = 300, 0


class LMCalls(BaseCallback):
    """Counts the LM calls of the process, answers from a cache included."""

    def __init__(self) -> None:
        self.n = 0

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        self.n += 1


def feedback_metric(
    gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> dspy.Prediction:
    """The same metric in the form that GEPA asks for."""
    del trace, pred_name, pred_trace
    return house_style(gold, pred)


def plain_metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> float:  # noqa: ARG001
    """The score alone, which bootstrapping asks for."""
    return float(house_style(example, pred).score)


def training_free_grpo(train: list[Any], val: list[Any], reflection_lm: dspy.LM) -> Any:
    optimizer = TrainingFreeGRPO(
        house_style, reflection_lm=reflection_lm, max_lm_calls=N_CALLS, seed=SEED, progress=False
    )
    return optimizer.compile(program(), trainset=train, valset=val)


def gepa(train: list[Any], val: list[Any], reflection_lm: dspy.LM) -> Any:
    optimizer = dspy.GEPA(
        feedback_metric, max_metric_calls=N_CALLS - 40, reflection_lm=reflection_lm, seed=SEED
    )
    return optimizer.compile(program(), trainset=[*train, *val[10:]], valset=val[:10])


def simba(train: list[Any], _val: list[Any], reflection_lm: dspy.LM) -> Any:
    optimizer = dspy.SIMBA(
        metric=house_style, bsize=8, num_candidates=3, max_steps=3, prompt_model=reflection_lm
    )
    return optimizer.compile(program(), trainset=train, seed=SEED)


def bootstrap(train: list[Any], val: list[Any], _reflection_lm: dspy.LM) -> Any:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        plain_metric, max_labeled_demos=0, num_candidate_programs=6, metric_threshold=0.6
    )
    return optimizer.compile(program(), trainset=train, valset=val)


OPTIMIZERS: dict[str, Callable[[list[Any], list[Any], dspy.LM], Any]] = {
    "the student": lambda *_: program(),
    "TrainingFreeGRPO": training_free_grpo,
    "GEPA": gepa,
    "SIMBA": simba,
    "bootstrapping": bootstrap,
}


if __name__ == "__main__":
    given = arguments(__doc__)
    trainset, valset, testset = load()
    student = scores(program(), given.lm, testset)
    rows = []
    for name, optimize in OPTIMIZERS.items():
        counter = LMCalls()
        with dspy.context(callbacks=[counter]), contextlib.redirect_stdout(sys.stderr):
            optimized = optimize(trainset[:30], valset[:20], given.reflection_lm)
        after = scores(optimized, given.lm, testset)
        gain = mean_with_interval([b - a for a, b in zip(student, after, strict=True)])
        rows.append(f"{name:17} {counter.n:8} {sum(after) / len(after):11.3f}  {gain}")
    print("optimizer         LM calls  test score  gain [95 % interval, paired by complaint]")
    print("\n".join(rows))
