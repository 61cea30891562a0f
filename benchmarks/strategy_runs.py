"""A run of the optimizer in a simulated world, for the modules `strategies_*`. NOTHING IS REAL."""

from collections.abc import Sequence
from typing import Any

import dspy
from worlds_engine import WorldEngine
from worlds_model import World

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.strategies.base import Strategy


def compiled(
    world: World,
    engine: WorldEngine,
    strategies: Sequence[Strategy],
    budget: int,
    seed: int,
    **arguments: Any,
) -> Any:
    """The program that the optimizer returns; `arguments` are further ones of the optimizer.

    `engine` plays both LMs. `trainset`, `metric` and `student` may replace those of the world,
    `valset` may be given beside them.
    """
    policy = dspy.LM("simulated/policy", engine=engine, temperature=0.0, max_tokens=4000)
    reflection = dspy.LM("simulated/reflection", engine=engine, temperature=1.0, max_tokens=32000)
    student = arguments.pop("student", None) or world.student()
    trainset = arguments.pop("trainset", None) or world.examples()
    valset = arguments.pop("valset", None)
    optimizer = TrainingFreeGRPO(
        arguments.pop("metric", None) or world.metric,
        reflection_lm=reflection,
        max_lm_calls=budget,
        strategies=tuple(strategies),
        num_threads=1,
        seed=seed,
        progress=False,
        **arguments,
    )
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        return optimizer.compile(student, trainset=trainset, valset=valset)
