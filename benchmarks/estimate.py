"""What `estimate` says before a run, against what the run takes. SIMULATED LM.

    python benchmarks/estimate.py [--first-seed 100] [--out benchmarks/results/estimate.json]

Four tasks, budgets of 200 and 500 LM calls and none, and each program as `Predict` and as
`ChainOfThought`. The assumptions behind *likely* were chosen with seed 0 of `sim:easy`, of the
first three tasks and of two tasks of the tests in view; `sim:misleading` was not looked at.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import dspy
import tasks
from rich.console import Console
from rich.table import Table

from tfgrpo_dspy import TrainingFreeGRPO

TASKS = ("sim:many", "sim:noisy", "sim:sparse", "sim:misleading")
BUDGETS = (None, 200, 500)
PROGRAMS = {"Predict": dspy.Predict, "ChainOfThought": dspy.ChainOfThought}


def run(name: str, kind: str, budget: int | None, seed: int) -> dict[str, Any]:
    """The LM calls that were planned, and those that were made or came from a cache."""
    task = tasks.load(name, seed)
    (ask,) = task.student().predictors()
    student = PROGRAMS[kind](dspy.Signature("request -> answer", ask.signature.instructions))
    data = {"trainset": list(task.train), "valset": list(task.val)}
    settings = {"max_lm_calls": budget, "num_threads": 8, "seed": seed, "progress": False}
    with dspy.context(lm=task.make_lm(seed)):
        reflection_lm = task.make_reflection_lm(seed)
        optimizer = TrainingFreeGRPO(task.metric, reflection_lm=reflection_lm, **settings)
        total = optimizer.estimate(student, **data).total
        results = optimizer.compile(student, **data).detailed_results
    took = sum(each.n_lm_calls + each.n_cached_calls for each in results.usage.values())
    return {
        "task": name,
        "program": kind,
        "budget": budget,
        "likely": round(total.likely.n_lm_calls),
        "at most": round(total.at_most.n_lm_calls),
        "took": took,
        "factor": round(max(took / total.likely.n_lm_calls, total.likely.n_lm_calls / took), 2),
    }


def main() -> None:
    """Run all cells, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Compare estimates with runs. SIMULATED.")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/estimate.json"))
    given = parser.parse_args()
    logging.getLogger("tfgrpo_dspy").setLevel(logging.ERROR)
    cells = [(task, kind, budget) for task in TASKS for kind in PROGRAMS for budget in BUDGETS]
    rows = [run(*cell, given.first_seed) for cell in cells]
    table = Table(*rows[0], title="LM calls (SIMULATED)")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    results = {"seed": given.first_seed, "dspy": dspy.__version__, "rows": rows}
    given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
