"""Finds a task by its name: `support`, `sim:easy`, `rg:chain_sum`, `sim:easy@attention=3`.

The name is that of a module in `tasks/`; before a colon it may be short for it, and what follows
is the module's own variant. Behind an `@` stand parameters of the simulated LM.
"""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from simlm import Parameters
from tasks import Task

SHORT = {"sim": "simulated", "rg": "reasoning"}


def find(name: str, seed: int, data: Path | None = None) -> Task:
    """The task of that name, drawn with the seed.

    Raises:
        ValueError: there is no such task.
    """
    plain, _, given = name.partition("@")
    family, _, variant = plain.partition(":")
    module_name = SHORT.get(family, family)
    if not (Path(__file__).parent / "tasks" / f"{module_name}.py").exists():
        known = sorted(p.stem for p in (Path(__file__).parent / "tasks").glob("[a-z]*.py"))
        raise ValueError(f"--task {name}: no module tasks/{module_name}.py; there are {known}.")
    module: Any = importlib.import_module(f"tasks.{module_name}")
    options: dict[str, Any] = {"variant": variant} if variant else {}
    if given:
        pairs = dict(pair.split("=") for pair in given.split(","))
        values = {parameter: float(value) for parameter, value in pairs.items()}
        options["parameters"] = replace(Parameters(), **values)
    task: Task = module.load(seed, data, **options)
    return replace(task, name=name)
