"""Finds a task by its name: `support`, `rg:chain_sum`, `sim:easy`, `sim:easy@attention=3`.

Behind an `@` stand parameters of the simulated LM.
"""

from dataclasses import replace
from pathlib import Path

import tasks
from simlm import Parameters
from tasks import Task, simulated

SIMULATED = "sim:"


def find(name: str, seed: int, data: Path | None = None) -> Task:
    """The task of that name, drawn with the seed.

    Raises:
        ValueError: there is no such task, or no such parameter.
    """
    if not name.startswith(SIMULATED):
        return tasks.load(name, seed, data)
    variant, _, given = name.removeprefix(SIMULATED).partition("@")
    if variant not in simulated.VARIANTS:
        known = ", ".join(SIMULATED + known for known in simulated.VARIANTS)
        raise ValueError(f"task {name!r}: there is none; the simulated ones are {known}.")
    values = dict(pair.split("=") for pair in given.split(",") if pair)
    parameters = replace(Parameters(), **{k: float(value) for k, value in values.items()})
    return replace(simulated.load(seed, data, variant, parameters), name=name)
