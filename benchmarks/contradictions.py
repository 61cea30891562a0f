"""Do lines that contradict each other, or say the same, stand in a result? NOTHING IS REAL.

    python benchmarks/contradictions.py --jobs 2
    python benchmarks/contradictions.py --show benchmarks/results/contradictions.json

Worlds of `random_world_model.py` with eight kinds of cases, 38 examples for training and 19 for
validation, in five wordings (Chinese among them), every fourth with two predictors, every line in
two forms. A share of what the reflection LM writes about a kind is wrong. *Mean*: a right and a
wrong line in one prompt have the mean of their effects; *picks*: the program follows the right one,
so that no score tells that the other is there. *Own*: the student brings a wrong line for three of
its kinds. Counted are results with two lines about a kind that differ in the code (pair) or say the
same (twice), and those with any wrong line. Scores are exact; seeds below 100 are for choosing.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
from compare_budget import Account
from compare_cells import Options, optimized, setup_of
from compare_optimizers import OPTIMIZERS
from random_world_engine import RandomEngine, lms_of
from random_world_model import WORDINGS, Line, Traits, World, traits_of
from random_worlds import task_of
from running import RESULTS, command, parser_of, results, show, silence, versions, write

from tfgrpo_dspy import ExperienceLibrary

CELLS = ("mean", "picks", "own")
SHARES, BUDGETS = (0.1, 0.4), (300, 600)
N_OWN = 3  # kinds about which the student brings a wrong line


def traits(seed: int, wrong: float) -> Traits:
    """The traits of the world of this seed."""
    plain = {"noise": 0.0, "wrong_labels": 0.0, "leaking": 0.0, "overreaching": 0.0, "deletes": 0.0}
    chosen: dict[str, Any] = {"wording": list(WORDINGS)[seed % 5], "wrong": wrong, **plain}
    chosen |= {"n_predictors": 1 + (seed % 4 == 3), "names_sources": bool(seed % 2), "useless": 0.1}
    chosen |= {"n_kinds": 8, "n_train": 57, "n_paraphrases": 2, "student": 0.35, "overwrites": 0.0}
    chosen |= {"has_labels": True, "has_feedback": True, "agreeing": False, "nothing": False}
    chosen |= {"n_broad_right": 0, "n_broad_harmful": 0, "combine": "add", "graded": False}
    chosen |= {"demos": "same", "demo_worth": 0.4, "writes": 0.6, "attention": 4}
    return replace(traits_of(seed), **chosen)


class Picking(World):
    """A world whose program follows the right one of two lines."""

    def chance(
        self, case: int, slot: int, lines: Collection[Line], demos: Collection[int] = ()
    ) -> float:
        """The exact chance of a right answer."""
        right = {line.kind for line in lines if line.what == "right"}
        kept = [line for line in lines if line.what != "wrong" or line.kind not in right]
        return super().chance(case, slot, kept, demos)


def run(cell: str, wrong: float, budget: int, seed: int) -> dict[str, Any]:
    """One compile: what stands in its result, and the exact score."""
    dspy.configure_cache(enable_disk_cache=False)  # no run profits from what another paid
    world = (Picking if cell == "picks" else World)(traits(seed, wrong), seed)
    task = task_of(world)
    if cell == "own":
        own = [world.text(Line("wrong", kind, 0)) for kind in range(N_OWN)]
        bare = task.student
        task = replace(task, student=lambda: ExperienceLibrary.from_texts(own).bake(bare()))
    setup = setup_of(task, lms_of(RandomEngine(world)), Account(budget), budget, seed,
                     Options(n_threads=1))  # fmt: skip
    with silence():
        program, _ = optimized(OPTIMIZERS["tfgrpo"], setup)
    told = world.told(program)
    counts = [[*_counted(world, predictor)] for predictor in program.predictors()]
    n_pairs, n_twice, n_wrong, n_lines = map(sum, zip(*counts, strict=True))
    return {
        **{
            "cell": cell,
            "wrong": wrong,
            "budget": budget,
            "seed": seed,
            "score": world.score(told),
        },
        **{"pairs": n_pairs, "twice": n_twice, "wrong lines": n_wrong, "lines": n_lines},
        **{"demos": sum(len(demos) for _, demos in told)},
    }


def _counted(world: World, predictor: Any) -> Iterator[int]:
    """Of the lines in a prompt: pairs that differ, repetitions, wrong ones, all."""
    found = [world.lessons[t] for t in world.planted.findall(predictor.signature.instructions)]
    codes: dict[int, list[int]] = {}
    for line in found:
        if not line.is_broad:
            codes.setdefault(line.kind, []).append(line.place if line.what == "wrong" else -1)
    yield sum(len(set(of_kind)) > 1 for of_kind in codes.values())
    yield sum(len(of_kind) - len(set(of_kind)) for of_kind in codes.values())
    yield sum(line.what == "wrong" for line in found)
    yield len(found)


def table(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print a row for each cell, share and budget."""
    rows = []
    for key in dict.fromkeys((r["cell"], r["wrong"], r["budget"]) for r in runs):
        own = [r for r in runs if (r["cell"], r["wrong"], r["budget"]) == key]
        n_with = [sum(r[name] > 0 for r in own) for name in ("pairs", "twice", "wrong lines")]
        means = [sum(r[name] for r in own) / len(own) for name in ("lines", "demos", "score")]
        shown = [f"{mean:.{digits}f}" for mean, digits in zip(means, (1, 1, 3), strict=True)]
        rows.append([*key, len(own), *n_with, *shown])
    heads = ("cell", "wrong", "calls", "runs", "with a pair", "with one twice", "with a wrong line")
    show([*heads, "lines", "demos", "held-out"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs, write them, print the table."""
    parser = parser_of(__doc__, RESULTS, seeds=8, first=0)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    asked = parser.parse_args(arguments)
    if asked.show:
        table(json.loads(asked.show.read_text())["runs"])
        return
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    tasks = [(c, w, b, s) for c in asked.cells for w in SHARES for b in BUDGETS for s in seeds]
    runs = [*results(run, tasks, asked.jobs)]
    head = {"command": command("contradictions.py", arguments), "versions": versions("numpy")}
    write(asked.out / "contradictions.json", head, runs)
    table(runs)


if __name__ == "__main__":
    main()
