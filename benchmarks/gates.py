"""What gates let through, and what they find: whole runs of 12 updates, gates asked turn by turn.

    python benchmarks/gates.py                            # all that is not in the results yet
    python benchmarks/gates.py --tables null --rows auto --minutes 4

Simulated: there is no LM. Lessons have a known worth, scores are drawn at random from the model
that `gate_world` states; the gates are the package's own, asked and answered as the optimizer does.
Rules of other optimizers stand beside (`gate_rules`, simplified). Writes sums over runs, and what
they show, into `benchmarks/results/gates.json` as they come: what was stopped goes on from there.
Rollouts are those that a gate asks for in an update; the training groups, which are made whatever
the gate, are another 40.

null    lessons that do nothing: runs that end with any, share of lessons accepted
harm    lessons that cost something: runs whose program is truly worse than the student by > 0.02
power   lessons worth something among useless ones: found (of all; of those of the first 8 updates)
        and false; by what the effects are off that the gate states of those found; and what ours
        find where they take in no more useless ones, and cost no more, than another rule
effects 10 candidates with effects from N(0, 0.1), 300 rollouts: rank correlation, coverage of 90 %
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gate_tables import CELLS, Cell, Figures, compared
from scipy.stats import spearmanr

from tfgrpo_dspy.gate.effects import Row, balanced_presence, estimate_effects

RESULTS = Path(__file__).parent / "results" / "gates.json"
CHUNK = 10
"""Runs that are made, and kept, together."""
Results = dict[str, dict[str, Figures]]


def measured(cell: Cell, first: int) -> Counter[str]:
    """The sums of the next runs, the first of them by its number; with the CPU time they took."""
    began = time.process_time()
    total: Counter[str] = Counter()
    for number in range(first, min(first + CHUNK, cell.n_runs)):
        total.update(cell.sums_of(number))
    total["cpu_s"] = time.process_time() - began
    return total


# ---------------------------------------------------------------------- effects


def draw_effects(n_examples: int, spread: float, seed: int) -> tuple[float, float, float]:
    """Rank correlation and coverage (pooled, and before pooling) of one draw of 10 candidates."""
    rng = np.random.default_rng([3, n_examples, seed])
    base, true = 0.25 + 0.5 * rng.beta(2, 2, n_examples), rng.normal(0, spread, 10)
    rows = []
    for pair, half in enumerate(balanced_presence(10, 150, str(seed))):
        for present in (np.array(half), ~np.array(half)):
            mean = base[pair % n_examples] + true[present].sum() - true.sum() / 2
            names = frozenset(str(k) for k in np.flatnonzero(present))
            rows.append(Row(pair % n_examples, names, float(rng.random() < mean)))
    found = [estimate_effects(rows)[str(k)] for k in range(10)]
    covered = [
        statistics.fmean(
            abs(effect.estimate - value) <= 1.6449 * effect.standard_error
            for effect, value in zip(effects, true, strict=True)
        )
        for effects in ([f.effect for f in found], [f.measured for f in found])
    ]
    rank = spearmanr([f.effect.estimate for f in found], true)[0]
    return float(rank), covered[0], covered[1]


def effects_row(n_examples: int, spread: float, n_draws: int = 100) -> Figures:
    """How well the effects of ten candidates are known after 300 rollouts."""
    draws = [draw_effects(n_examples, spread, seed) for seed in range(n_draws)]
    rank, pooled, raw = zip(*draws, strict=True)
    return {
        "examples": n_examples,
        "spread": spread,
        "draws": n_draws,
        "rank correlation": round(statistics.median(rank), 3),
        "90 % covers": round(statistics.fmean(pooled), 3),
        "before pooling": round(statistics.fmean(raw), 3),
    }


# ---------------------------------------------------------------------- the command


class Kept:
    """The results file: sums and rows, by table and name of the row."""

    def __init__(self, path: Path, *, is_new: bool) -> None:
        self._path = path
        known = {} if is_new or not path.exists() else json.loads(path.read_text("utf-8"))
        self.tables: Results = known.get("tables", {})

    def sums(self, cell: Cell) -> Counter[str]:
        """Of the runs that are there."""
        row = self.tables.get(cell.table, {}).get(cell.name, {})
        return Counter(row.get("sums", {"runs": 0}))

    def take(self, table: str, name: str, row: Figures) -> None:
        """Keep it, in place of what was there of that name."""
        self.tables.setdefault(table, {})[name] = row
        compared(self.tables.get("power", {}).values())
        text = json.dumps({"simulated": True, "tables": self.tables}, indent=1)
        new = self._path.with_suffix(".new")
        new.write_text(text + "\n", "utf-8")
        new.replace(self._path)


def show(rows: list[Figures]) -> None:
    """The rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in HIDDEN))
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row.get(name, "")) for name in names) + " |")


HIDDEN = ("sums",)


def all_cells(tables: list[str], part: str) -> Iterator[Cell]:
    """Those of the tables whose names have that part."""
    for table in tables:
        for cell in CELLS.get(table, tuple)():
            if part in cell.name:
                yield cell


def measured_by_name(table: str, name: str, first: int) -> Counter[str]:
    """As `measured`, for another process: gates with functions in them do not travel."""
    return measured(next(cell for cell in CELLS[table]() if cell.name == name), first)


def fill(cell: Cell, kept: Kept, until: float, pool: ProcessPoolExecutor | None) -> bool:
    """Make the runs of the cell that are missing; whether there was time for all of them."""
    known = kept.sums(cell)
    firsts = range(int(known["runs"]), cell.n_runs, CHUNK)
    if pool is None:
        chunks = (measured(cell, first) for first in firsts)
    else:
        names = ([cell.table] * len(firsts), [cell.name] * len(firsts))
        chunks = pool.map(measured_by_name, *names, firsts)
    for _ in firsts:
        if time.monotonic() > until:
            return False
        known.update(next(chunks))
        kept.take(cell.table, cell.name, {**cell.row(known), "sums": dict(known)})
    return True


def main() -> None:
    """Measure what is missing, print the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=[*CELLS, "effects"])
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--again", action="store_true", help="forget what is there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    ...
