"""The plan of `estimate` beside what the run takes: LM calls and dollars. SIMULATED LMs.

    python benchmarks/estimate.py [--seeds 1000 1001 ...] [--out benchmarks/results/estimate.json]

Random worlds (of `random_worlds.py`, among them programs of five real shapes), each with a budget
and without. The assumptions about calls were chosen with seeds below 12, those about tokens with
real runs (`real.jsonl`) and seeds 1000 to 1003.
"""

import argparse
import itertools
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

from tfgrpo_dspy import Execution, TrainingFreeGRPO

SEEDS = range(1000, 1010)
BUDGETS = (None, 400)
NEAR = {"calls": 1.3, "dollars": 2.0}
PRICE = 1.25, 10.0  # dollars for a million tokens
TOKENS_OF_WORD = 1.3  # the simulated LMs count words


def cells(seeds: Sequence[int]) -> Iterator[tuple[str, int, Any]]:
    """Name, seed and task; of every third random world the shape is that of a real program."""
    for seed in seeds:
        k = seed - FIRST_SHOWN
        shape = None if k % 3 else SHAPES[k // 3 % len(SHAPES)]
        world = World(traits_of(seed, shape), seed)
        yield f"random, {shape or 'predict'}", seed, task_of(world)


def run(name: str, seed: int, task: Any, budget: int | None) -> Any:
    """The LM calls and dollars that were planned, and those that were made or came from a cache."""
    dspy.configure_cache(enable_disk_cache=False)  # an empty one
    data = {"trainset": list(task.train), "valset": list(task.val)}
    lm, reflection_lm = task.make_lm(seed), task.make_reflection_lm(seed)
    with dspy.context(lm=lm):
        optimizer = TrainingFreeGRPO(
            task.metric,
            reflection_lm=reflection_lm,
            max_lm_calls=budget,
            num_threads=8,
            seed=seed,
            progress=False,
            execution=Execution(prices={lm.model: PRICE, reflection_lm.model: PRICE}),
        )
        plan = optimizer.estimate(task.student(), **data)
        results = optimizer.compile(task.student(), **data).detailed_results
    usages = results.usage.values()
    took = sum(each.n_lm_calls + each.n_cached_calls for each in usages)
    cost = TOKENS_OF_WORD * sum(each.cost_usd for each in usages)
    return {
        "task": name,
        "seed": seed,
        "budget": budget,
        "calls": plan.total.n_lm_calls,
        "calls taken": took,
        "of calls": round(took / plan.total.n_lm_calls, 2),
        "dollars": round(plan.total.cost, 3),
        "dollars taken": round(cost, 3),
        "of dollars": round(cost / plan.total.cost, 2),
        "ended": results.ended_because,
    }


def main() -> None:
    """Run all cells, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Compare plans with runs. SIMULATED.")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "estimate.json")
    given = parser.parse_args()
    logging.getLogger("tfgrpo_dspy").setLevel(logging.ERROR)
    rows = []
    for cell in cells(given.seeds):
        rows += [run(*cell, budget) for budget in BUDGETS]
        results = {"dspy": dspy.__version__, "rows": rows}
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(list(rows[0]), [list(row.values()) for row in rows], "The plan and the run (SIMULATED)")
    for budget, (name, near) in itertools.product(BUDGETS, NEAR.items()):
        ratios = [row[f"of {name}"] for row in rows if row["budget"] == budget]
        n_near = sum(1 / near <= ratio <= near for ratio in ratios)
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(
            f"budget {budget}, {name}: {n_near} of {len(ratios)} within a factor of {near}, "
            f"{min(ratios)} to {max(ratios)}, geometric mean {mean:.2f}"
        )


if __name__ == "__main__":
    main()
