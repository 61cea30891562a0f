"""What `estimate` says before a run, against what the run takes. SIMULATED LMs.

    python benchmarks/estimate.py [--seeds 1000 1001 ...] [--out benchmarks/results/estimate.json]

Random worlds (of `random_worlds.py`, among them programs of five real shapes), each with a budget
and without. The assumptions behind *likely* were chosen with seeds below 12; those used here chose
nothing.
"""

import argparse
import json
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dspy
from random_world_model import SHAPES, World, traits_of
from random_worlds import FIRST_SHOWN, task_of
from running import RESULTS, show

from tfgrpo_dspy import TrainingFreeGRPO

SEEDS = range(1000, 1010)
BUDGETS = (None, 400)
NEAR = 1.3


def cells(seeds: Sequence[int]) -> Iterator[tuple[str, int, Any]]:
    """Name, seed and task; of every third random world the shape is that of a real program."""
    for seed in seeds:
        k = seed - FIRST_SHOWN
        shape = None if k % 3 else SHAPES[k // 3 % len(SHAPES)]
        world = World(traits_of(seed, shape), seed)
        yield f"random, {shape or 'predict'}", seed, task_of(world)


def run(name: str, seed: int, task: Any, budget: int | None) -> Any:
    """The LM calls that were planned, and those that were made or came from a cache."""
    data = {"trainset": list(task.train), "valset": list(task.val)}
    settings = {"max_lm_calls": budget, "num_threads": 8, "seed": seed, "progress": False}
    reflection_lm = task.make_reflection_lm(seed)
    with dspy.context(lm=task.make_lm(seed)):
        optimizer = TrainingFreeGRPO(task.metric, reflection_lm=reflection_lm, **settings)
        plan = optimizer.estimate(task.student(), **data)
        results = optimizer.compile(task.student(), **data).detailed_results
    took = sum(each.n_lm_calls + each.n_cached_calls for each in results.usage.values())
    likely = plan.total.likely.n_lm_calls
    return {
        "task": name,
        "seed": seed,
        "budget": budget,
        "likely": likely,
        "at most": plan.total.at_most.n_lm_calls,
        "enough": plan.enough["max_lm_calls"],
        "took": took,
        "took / likely": round(took / likely, 2),
        "ended": results.ended_because,
    }


def main() -> None:
    """Run all cells, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Compare estimates with runs. SIMULATED.")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "estimate.json")
    given = parser.parse_args()
    logging.getLogger("tfgrpo_dspy").setLevel(logging.ERROR)
    dspy.configure_cache(enable_disk_cache=False)
    rows = []
    for cell in cells(given.seeds):
        rows += [run(*cell, budget) for budget in BUDGETS]
        results = {"dspy": dspy.__version__, "rows": rows}
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(list(rows[0]), [list(row.values()) for row in rows], "LM calls (SIMULATED)")
    for budget in BUDGETS:
        ratios = [row["took / likely"] for row in rows if row["budget"] == budget]
        n_near = sum(1 / NEAR <= ratio <= NEAR for ratio in ratios)
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(
            f"budget {budget}: {n_near} of {len(ratios)} within a factor of {NEAR}, "
            f"{min(ratios)} to {max(ratios)}, geometric mean {mean:.2f}"
        )


if __name__ == "__main__":
    main()
