"""Which step was it? The strategies that value steps, on agents whose critical steps are known.

    python benchmarks/credit.py --jobs 2                # everything, seeds 100 and up
    python benchmarks/credit.py --part found --first-seed 0 --seeds 2
    python benchmarks/credit.py --show benchmarks/results/credit.json

SIMULATED; NOTHING IS REAL but the program, a `dspy.ReAct`, and the optimizer. What is simulated
stands in `credit_world.py`.

**found**: groups of five rollouts at a time, without any advice. Of the rollout whose score is
furthest from the mean of its group, the true value of each state is known, and so the turns that
changed it by a fifth of its range or more: the critical ones. *Found* is the share of these that
are among as many turns with the largest changes by a strategy. *Outcome* chooses by chance among
the turns in which the rollout differs from one with another score, *guess* among all. *Calls* are
the LM calls of group and credit, as a multiple of those of a group of five whole rollouts.

**learned**: the optimizer with the strategy and without, groups of five; without it, with up to
twice as many LM calls. The score is exact: the mean chance of a good end with the advice that was
learned. The critical turn is right with a chance of .5 without advice.

**Seeds.** Settings were chosen on seeds 0 to 99; those shown are 100 and up.
"""

import argparse
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dspy
from credit_world import KINDS, N_TRAIN, Engine, World, metric
from rich.console import Console
from rich.table import Table
from running import command, results, versions

from tfgrpo_dspy import NoGate, TrainingFreeGRPO
from tfgrpo_dspy.results.records import Gain, bounds_text
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.strategies import (
    Ask,
    BranchingRollouts,
    GroupContext,
    ImplicitStepRewards,
    InformationGain,
    MonteCarloCredit,
    Shown,
    Strategy,
)
from tfgrpo_dspy.strategies.state_values import states

OUT = Path(__file__).parent / "results" / "credit.json"
GROUP = 5
STRATEGIES = {
    "MonteCarloCredit": MonteCarloCredit(),
    "BranchingRollouts": BranchingRollouts(leaves=GROUP),
    "InformationGain": InformationGain(),
    "ImplicitStepRewards": ImplicitStepRewards(),
}
WORLDS = [(5, 1, 0.0), (5, 2, 0.0), (10, 1, 0.0), (10, 2, 0.0), (10, 1, 0.1), (30, 1, 0.0),
          (30, 2, 0.0)]  # fmt: skip
"""Turns, critical ones, luck."""
BUDGETS = (1_500, 3_000, 6_000)
LEARNED_IN, LEARNED_USUAL = (10, 1), 0.5
ARMS = {"outcome": BUDGETS, "MonteCarloCredit": BUDGETS[:2]}
"""Each with the numbers of LM calls that it is given."""


class Witness(Strategy):
    """Keeps the groups as the reflection LM is shown them."""

    def __init__(self) -> None:
        self.groups: list[SampledGroup] = []

    async def show(self, context: GroupContext, ask: Ask) -> Shown:  # noqa: ARG002
        self.groups.append(context.sampled)
        return Shown(context.group.rollouts)


def optimized(world: World, seed: int, *strategies: Strategy, **arguments: Any) -> Any:
    """The agent of a world after a compile."""
    engine = Engine(world)
    given = {"engine": engine, "max_tokens": 4000, "cache": False}
    policy = dspy.LM("simulated/policy", temperature=0.0, **given)
    reflection = dspy.LM("simulated/reflection", temperature=1.0, **given)
    optimizer = TrainingFreeGRPO(
        metric, reflection_lm=reflection, strategies=strategies, group_size=GROUP, max_demos=0,
        num_threads=1, seed=seed, progress=False, **arguments,
    )  # fmt: skip
    data = world.examples()
    n = arguments.get("batch_size", len(data))
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        if "epochs" in arguments:
            return optimizer.compile(world.student(), trainset=data[:n])
        return optimizer.compile(world.student(), trainset=data[:N_TRAIN], valset=data[N_TRAIN:])


def found(name: str, world_of: Sequence[float], seed: int) -> Iterator[dict[str, Any]]:
    """How much of the critical turns a strategy finds, in one batch of groups."""
    n_turns, n_critical, luck = world_of
    world, witness = World(int(n_turns), int(n_critical), seed, luck=luck), Witness()
    settings = {"epochs": 1, "batch_size": 10, "gate": NoGate()}
    program = optimized(world, seed, STRATEGIES[name], witness, **settings)
    n_judged = program.detailed_results.usage["strategy"].n_lm_calls / len(witness.groups)
    for sampled in witness.groups:
        group, kind = sampled.unaided, KINDS[sampled.group.example % len(KINDS)]
        mean = fmean(group.scores)
        rollout = max(group.rollouts, key=lambda r: (round(abs(r.score - mean), 9), -r.score))
        rollout = next(r for r in sampled.group.rollouts if r.rollout_id == rollout.rollout_id)
        critical = world.critical(kind, _taken(rollout))
        if not group.has_contrast or not critical:
            continue
        others = [_taken(r) for r in group.rollouts if r.score != rollout.score]
        differ = {k for k, option in enumerate(_taken(rollout)) if option != others[0][k]}
        made = [*sampled.group.all_rollouts, *sampled.probes]
        calls = sum(r.usage.n_lm_calls for r in made) + n_judged
        yield {
            "found": len(critical & _named(rollout, len(critical))) / len(critical),
            "outcome": len(critical & differ) / max(1, len(differ)),
            "guess": len(critical) / n_turns,
            "calls": calls / (GROUP * (n_turns + 1)),
            "leaves": len(sampled.group.all_rollouts),
        }


def _taken(rollout: Rollout) -> list[str]:
    return [step.inputs["option"] for step in rollout.steps if step.kind == "tool"]


def _named(rollout: Rollout, n: int) -> set[int]:
    """The turns with the `n` largest changes of the value."""
    ends = states(rollout)[1:]
    sizes = {ends.index(step + 1): abs(after - before)
             for step, (before, after) in rollout.changes.items() if step + 1 in ends}  # fmt: skip
    ranked = sorted(sizes, key=lambda turn: -sizes[turn])
    return {turn for turn in ranked[:n] if sizes[turn] > 0}


def learned(arm: str, budget: int, seed: int) -> dict[str, float]:
    """The exact score of what an arm learns, and the share of the attainable gain."""
    world = World(*LEARNED_IN, seed, usual=LEARNED_USUAL)
    strategies = [STRATEGIES[arm]] if arm in STRATEGIES else []
    program = optimized(world, seed, *strategies, max_lm_calls=budget)
    score = world.mean_value(program.react.signature.instructions)
    student = world.mean_value("")
    return {"score": score, "gain": (score - student) / (world.attainable - student)}


def run(part: str, name: str, where: Any, seed: int) -> list[dict[str, Any]]:
    """One task."""
    logging.disable(logging.CRITICAL)
    rows = list(found(name, where, seed)) if part == "found" else [learned(name, where, seed)]
    return [{"part": part, "name": name, "where": where, "seed": seed, **row} for row in rows]


def tasks(part: str, seeds: Sequence[int]) -> Iterator[tuple[str, str, Any, int]]:
    """All tasks of a part, or of both ("all")."""
    for seed in seeds:
        if part in ("found", "all"):
            yield from (("found", name, where, seed) for where in WORLDS for name in STRATEGIES)
        if part in ("learned", "all"):
            yield from (("learned", arm, n, seed) for arm, budgets in ARMS.items() for n in budgets)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The means over groups and seeds, and the paired difference to learning by outcomes."""
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault(json.dumps([row["part"], row["where"], row["name"]]), []).append(row)
    found_ = []
    for key, own in cells.items():
        part, where, name = json.loads(key)
        figures = ("found", "outcome", "guess", "calls", "leaves") if part == "found" else (
            "score", "gain")  # fmt: skip
        cell = {"part": part, "where": where, "name": name, "n": len(own)}
        cell |= {figure: fmean(row[figure] for row in own) for figure in figures}
        if part == "learned":
            usual = {row["seed"]: row["score"] for row in rows
                     if row["where"] == where and row["name"] == "outcome"}  # fmt: skip
            gain = Gain.between([usual[row["seed"]] for row in own], [r["score"] for r in own])
            cell["difference"] = [gain.mean, gain.low, gain.high] if gain else None
        found_.append(cell)
    return found_


def show(shown: Mapping[str, Any]) -> None:
    """Print both tables."""
    figures = ("found", "outcome", "guess", "calls", "leaves")
    table = Table("turns", "critical", "luck", "strategy", "groups", *figures)
    for cell in shown["cells"]:
        if cell["part"] == "found":
            numbers = [f"{cell[figure]:.2f}" for figure in figures]
            table.add_row(*map(str, cell["where"]), cell["name"], str(cell["n"]), *numbers)
    other = Table("LM calls", "arm", "seeds", "score", "share of the gain", "difference")
    for cell in shown["cells"]:
        if cell["part"] == "learned":
            mean, *bounds = cell["difference"]
            row = f"{cell['score']:.3f}", f"{cell['gain']:.2f}"
            difference = f"{mean:+.3f}{bounds_text(*bounds, '+.3f')}"
            other.add_row(str(cell["where"]), cell["name"], str(cell["n"]), *row, difference)
    console = Console(width=140)
    console.print(table)
    console.print(other)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what was asked for, writes it, shows it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("all", "found", "learned"), default="all")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--show", type=Path, help="print the tables of a result file")
    asked = parser.parse_args(arguments)
    if asked.show:
        show(json.loads(asked.show.read_text()))
        return
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    rows = [row for part in results(run, [*tasks(asked.part, seeds)], asked.jobs) for row in part]
    shown = {
        "command": command("credit.py", arguments),
        "versions": versions(),
        "seeds": list(seeds),
        "cells": summary(rows),
    }
    asked.out.write_text(json.dumps(shown, indent=1) + "\n")
    show(shown)


if __name__ == "__main__":
    main()
