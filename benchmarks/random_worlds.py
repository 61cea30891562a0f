"""Does it win where nobody tuned it? Random simulated worlds with exact scores. NOTHING IS REAL.

    python benchmarks/random_worlds.py --worlds 20 --out runs/random            # seeds 0 to 19
    python benchmarks/random_worlds.py --show-half --worlds 40 --out runs/shown  # seeds 1000 on
    python benchmarks/random_worlds.py --shapes --worlds 12 --rows tfgrpo gepa-mb8 --out runs/shapes
    python benchmarks/random_worlds.py --shapes harder --first 3100 --worlds 50 --out runs/harder
    python benchmarks/random_worlds.py --dollars --out runs/random              # equal dollars
    python benchmarks/random_worlds.py --show runs/random/random_worlds.jsonl
    python benchmarks/random_worlds.py --publish runs/shown/random_worlds.jsonl

**A world** is drawn from its seed (`random_world_model.traits_of`): how many kinds of cases there
are, and in which words; how lines of advice work together (they add, saturate, average, conflict,
or weaken each other); the share of lines that are wrong, useless, leaking, overreaching or harmful
for all cases; errors of whoever edits; one to three predictors; binary, graded and noisy scores;
feedback or bare scores; labels, wrong labels or none; what demos do; how good the student is; how
many examples there are; and in one of ten there is nothing to learn. With `--shapes` the worlds
are programs of five real shapes instead: ChainOfThought, a ReAct agent, RAG with two predictors, a
judge without labels, extraction into several fields. With `--shapes harder` they are random worlds
with more bad advice and dearer mistakes (`harder_traits_of`): there, taking every lesson gains next
to nothing. With `--shapes together` several rules apply to a case, and an answer is right if it
follows all of them, as in most real tasks (`together_traits_of`).

**Rows** are the optimizers of `compare_optimizers.py`, each the real one, at the same number of LM
calls, or (`--dollars`) at the same cost, where a token of the reflection LM costs five times as
much as one of the policy: a budget of N then pays for the tokens of 1.5 N calls of the student.
All are answered by the same simulated reflection LM with the same skill.

**Scores** are exact means over 200 other cases. *Share*: (score - student) / max(.1, best -
student), where best is the highest score known: of right lines put together one by one, with and
without 16 labelled demos, or of any row's result. *Regret*: best row of the world minus this one.
*Cost*: thousands of tokens, those of the reflection LM five times.

**Seeds** below 1000 are for choosing, those from 1000 on for showing.
"""

import argparse
import itertools
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dspy
import numpy as np
from compare_budget import POLICY, REFLECTION, Account, counted
from compare_cells import Options, optimized, setup_of
from compare_optimizers import OPTIMIZERS, ours
from random_world_engine import RandomEngine, examples_of, lms_of, metric_of, student_of
from random_world_model import HARDER, SHAPES, TOGETHER, World, drawn_traits
from running import RESULTS, append, commit, results, silence, stored, versions, write
from tasks import Task, plain

from tfgrpo_dspy import Execution

BUDGETS = (200, 400, 800)
FIRST_SHOWN = 1000
DEARER, CALLS_OF_A_DOLLAR_BUDGET = 5, 1.5
PRICES = {"random/policy": (1e6, 1e6), "random/reflection": (DEARER * 1e6, DEARER * 1e6)}
BELOW, LEVEL = 0.005, 0.02
"""A score so much below the student's is worse; so near the best is level."""
ROWS = (
    *("none", "labelled", "tfgrpo", "tfgrpo-no-gate", "tfgrpo-paper"),
    *("gepa", "gepa-mb8", "mipro", "simba", "bootstrap"),
)
EVERY = ("random worlds", "harder worlds", "together worlds", ALL_SHAPES := "all shapes")
FREE = ("none", "labelled")  # rows that make no call: one run stands beside every budget


class DollarAccount(Account):
    """An account in dollars: a token of the policy costs 1, one of the reflection LM five."""

    def __init__(self, dollars: float) -> None:
        super().__init__()
        self.dollars = dollars

    def _reaches(self, n: int) -> bool:
        spent = {role: s.prompt_tokens + s.completion_tokens for role, s in self.spent.items()}
        return n > 0 and _cost(spent) < self.dollars


def run(seed: int, shape: str, row: str, budget: int, in_dollars: bool) -> dict[str, Any]:
    """One optimizer in one world; what it returned, measured exactly."""
    with silence():
        dspy.configure_cache(enable_disk_cache=False)  # no run profits from what another paid
        world = World(drawn_traits(seed, shape), seed)
        task = task_of(world)
        lms = lms_of(RandomEngine(world))
        account: Account = Account(budget)
        if in_dollars:
            account = DollarAccount(budget * CALLS_OF_A_DOLLAR_BUDGET * _tokens(task, lms[0]))
        student = task.student()
        setup = setup_of(task, lms, account, budget, seed, Options(n_threads=1))
        make = OPTIMIZERS[row]
        if isinstance(account, DollarAccount) and row == "tfgrpo":
            prices = Execution(prices=PRICES)
            make = ours(max_lm_calls=None, max_cost=account.dollars, execution=prices)
        program, ended = optimized(make, setup)
    told = world.told(program)
    return {
        "seed": seed,
        "shape": shape,
        "row": row,
        "budget": budget,
        "dollars": in_dollars,
        "score": world.score(told),
        "student": world.score(world.told(student)),
        "attainable": world.attainable,
        "n_lines": sum(len(lines) for lines, _ in told),
        "n_demos": sum(len(demos) for _, demos in told),
        "unchanged": _texts(program) == _texts(student),
        "calls": {role: spent.calls for role, spent in account.spent.items()},
        "tokens": {
            role: spent.prompt_tokens + spent.completion_tokens
            for role, spent in account.spent.items()
        },
        "ended": ended,
        "traits": asdict(world.traits),
    }


def task_of(world: World) -> Task:
    """The world as a task: two thirds of the cases for training, the others for validation."""
    n = world.traits.n_train
    examples, metric = list(examples_of(world, range(n))), metric_of(world)
    return Task(
        name="random",
        student=lambda: student_of(world),
        train=examples[: round(n * 2 / 3)],
        val=examples[round(n * 2 / 3) :],
        test=(),
        metric=metric,
        plain_metric=plain(metric),
        make_lm=lambda _: lms_of(RandomEngine(world))[0],
        make_reflection_lm=lambda _: lms_of(RandomEngine(world))[1],
        demo_threshold=0.8 if world.traits.graded or world.traits.n_slots > 1 else 0.5,
    )


def _tokens(task: Task, policy: Any) -> float:
    """The tokens of a call of the bare student."""
    account = Account()
    with dspy.context(lm=counted(policy.copy(cache=False), POLICY, account)):
        task.student()(**task.train[0].inputs())
    spent = account.spent[POLICY]
    return (spent.prompt_tokens + spent.completion_tokens) / spent.calls


def _texts(program: Any) -> list[str]:
    return [f"{own.signature.instructions} {own.demos}" for own in program.predictors()]


# ---------------------------------------------------------------- tables
def tables(records: Sequence[dict[str, Any]]) -> str:
    """For each unit, shape and budget: a line for each row."""
    lines = []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[_family(record), record["dollars"], record["budget"]].append(record)
    free = [record for record in records if record["row"] in FREE]
    head = f"{'row':<14}{'share':>7}{'90 % interval':>16}{'regret':>8}{'level':>7}"
    head += f"{'worst 10 %':>12}{'below':>7}{'student':>9}{'harm':>8}{'cost':>6}"
    for (family, in_dollars, budget), members in sorted(groups.items()):
        if all(record["row"] in FREE for record in members):
            continue
        beside = [record for record in free if _family(record) == family]
        every = EVERY[family]
        shapes = dict.fromkeys(record["shape"] for record in members if every == ALL_SHAPES)
        for shape in (every, *shapes):
            chosen = [r for r in (*members, *beside) if shape in (every, r["shape"])]
            unit = "dollars of" if in_dollars else ""
            lines += ["", f"{unit} {budget} LM calls, {shape}".strip(), head, *_rows(chosen)]
    return "\n".join(lines)


def _family(record: dict[str, Any]) -> int:
    """The place in EVERY of the worlds that a record belongs to."""
    return {"": 0, HARDER: 1, TOGETHER: 2}.get(record["shape"], 3)


def _rows(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    by_world: dict[tuple[int, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        by_world[record["seed"], record["shape"]][record["row"]] = record
    names = [name for name in ROWS if any(name in rows for rows in by_world.values())]
    learnable = [r for r in by_world.values() if not next(iter(r.values()))["traits"]["nothing"]]
    nothing = [r for r in by_world.values() if next(iter(r.values()))["traits"]["nothing"]]
    for name in names:
        worlds = [rows for rows in learnable if name in rows]
        if not worlds:
            continue
        best = [max(max(r["score"] for r in w.values()), w[name]["attainable"]) for w in worlds]
        shares = [share(w[name], top) for w, top in zip(worlds, best, strict=True)]
        regrets = [max(r["score"] for r in w.values()) - w[name]["score"] for w in worlds]
        every = [w[name] for w in (*learnable, *nothing) if name in w]
        below = statistics.fmean(r["score"] < r["student"] - BELOW for r in every)
        level = statistics.fmean(regret <= LEVEL for regret in regrets)
        low, high = bootstrapped(shares)
        tenth = statistics.fmean(sorted(shares)[: max(1, len(shares) // 10)])
        idle = [w[name] for w in nothing if name in w]
        kept = f"{statistics.fmean(r['unchanged'] for r in idle):9.2f}" if idle else f"{'-':>9}"
        harm = statistics.fmean(r["student"] - r["score"] for r in idle) if idle else 0.0
        costs = [_cost(r["tokens"]) for r in every if "tokens" in r]
        cost = f"{statistics.fmean(costs) / 1000:6.0f}" if costs else f"{'-':>6}"
        yield (
            f"{name:<14}{statistics.fmean(shares):7.3f}{f'[{low:.2f}, {high:.2f}]':>16}"
            f"{statistics.fmean(regrets):8.3f}{level:7.2f}{tenth:12.2f}{below:7.2f}{kept}{harm:8.3f}{cost}"
            f"  ({len(worlds)} worlds)"
        )


def _cost(tokens: dict[str, int]) -> int:
    return tokens[POLICY] + DEARER * tokens[REFLECTION]


def share(record: dict[str, Any], best: float) -> float:
    """The share of the attainable gain."""
    return float((record["score"] - record["student"]) / max(0.1, best - record["student"]))


def bootstrapped(values: Sequence[float], level: float = 0.9) -> tuple[float, float]:
    """The bounds of the mean, by drawing worlds anew."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------- the command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worlds", type=int, default=20, help="how many (of each shape)")
    parser.add_argument("--first", type=int, help="first seed; default: 0, or 1000")
    parser.add_argument("--show-half", action="store_true", help="seeds from 1000 on")
    parser.add_argument(
        "--shapes",
        nargs="*",
        choices=(*SHAPES, HARDER, TOGETHER),
        help="default: none; empty: all five",
    )
    parser.add_argument("--nothing", action="store_true", help="only where nothing can be learned")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--dollars", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/random"))
    parser.add_argument("--show", type=Path, metavar="FILE")
    parser.add_argument("--publish", type=Path, nargs="+", metavar="FILE")
    asked = parser.parse_args(arguments)
    if asked.show:
        print(tables(stored(asked.show)))
        return
    if asked.publish:
        latest = {_key(record): record for path in asked.publish for record in stored(path)}
        records = list(latest.values())
        write(RESULTS / "random_worlds.json", {"versions": versions("gepa", "numpy")}, records)
        print(tables(records))
        return
    path = asked.out / "random_worlds.jsonl"
    tasks = list(_tasks(asked))
    done = {_key(record) for record in stored(path)}
    made_by = {"date": datetime.now(UTC).date().isoformat(), "commit": commit()}
    for record in results(run, [task for task in tasks if task not in done], asked.jobs):
        append(path, record | made_by)
    print(tables([record for record in stored(path) if _key(record) in set(tasks)]))


def _tasks(asked: argparse.Namespace) -> Iterator[tuple[int, str, str, int, bool]]:
    first = asked.first if asked.first is not None else FIRST_SHOWN if asked.show_half else 0
    shapes = [""] if asked.shapes is None else asked.shapes or list(SHAPES)
    for shape in shapes:
        every = itertools.count(first)
        if asked.nothing:
            every = (seed for seed in every if drawn_traits(seed, shape).nothing)
        for seed in itertools.islice(every, asked.worlds):
            for row in asked.rows:
                for budget in [0] if row in FREE else asked.budgets:
                    yield seed, shape, row, budget, asked.dollars and row not in FREE


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("seed", "shape", "row", "budget", "dollars"))


if __name__ == "__main__":
    main()
