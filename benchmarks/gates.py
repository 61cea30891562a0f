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
import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from gate_tables import CELLS, Cell, Figures, compare_power
from scipy.stats import spearmanr

from tfgrpo_dspy.gate.effects import Row, balanced_presence, estimate_effects

RESULTS = Path(__file__).parent / "results" / "gates.json"
CHUNK = 10
"""Runs that are made, and kept, together."""
TABLES = (*CELLS, "effects")
Results = dict[str, dict[str, Figures]]


def measured(cell: Cell, first: int) -> Counter[str]:
    """The sums of the next runs, the first of them by its number; with the CPU time they took."""
    began = time.process_time()
    total: Counter[str] = Counter()
    for number in range(first, min(first + CHUNK, cell.n_runs)):
        total.update(cell.sums_of(number))
    total["cpu_s"] = time.process_time() - began
    return total


class Kept:
    """The results file: sums and rows, by table and name of the row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.tables: Results = known.get("tables", {})

    def sums(self, cell: Cell) -> Counter[str]:
        """Of the runs that are there."""
        row = self.tables.get(cell.table, {}).get(cell.name, {})
        return Counter(row.get("sums", {}))

    def take(self, table: str, name: str, row: Figures) -> None:
        """Keep it, in place of what was there of that name."""
        self.tables.setdefault(table, {})[name] = row
        compare_power(self.tables.get("power", {}).values())
        text = json.dumps({"simulated": True, "tables": self.tables}, indent=1)
        new = self._path.with_suffix(".new")
        new.write_text(text + "\n", "utf-8")
        new.replace(self._path)

    def forget(self, cells: list[Cell]) -> None:
        """So that they are measured anew."""
        for cell in cells:
            self.tables.get(cell.table, {}).pop(cell.name, None)


def show(rows: list[Figures]) -> None:
    """The rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "sums"))
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row.get(name, "")) for name in names) + " |")


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


def fill_effects(kept: Kept, *, again: bool) -> None:
    """The rows of this table, which take a second each."""
    for spread, n_examples in itertools.product((0.05, 0.1, 0.15), (20, 50, 150)):
        name = f"spread {spread}, examples {n_examples}"
        if again or name not in kept.tables.get("effects", {}):
            kept.take("effects", name, effects_row(n_examples, spread))


# ---------------------------------------------------------------------- the command


def all_cells(tables: list[str], part: str) -> Iterator[Cell]:
    """Those of the tables whose names have that part."""
    for table in tables:
        yield from (cell for cell in CELLS[table]() if part in cell.name)


def measured_by_name(table: str, name: str, first: int) -> Counter[str]:
    """As `measured`, for another process: functions that cells are made with do not travel."""
    return measured(next(cell for cell in CELLS[table]() if cell.name == name), first)


def fill(cell: Cell, kept: Kept, until: float, pool: ProcessPoolExecutor | None) -> bool:
    """Make the runs of the cell that are missing; whether there was time for all of them."""
    known = kept.sums(cell)
    firsts = range(int(known["runs"]), cell.n_runs, CHUNK)
    n = len(firsts)
    if pool is None:
        chunks = map(measured, [cell] * n, firsts)
    else:
        chunks = pool.map(measured_by_name, [cell.table] * n, [cell.name] * n, firsts)
    for _ in firsts:
        if time.monotonic() > until:
            return False
        known.update(next(chunks))
        kept.take(cell.table, cell.name, {**cell.row(known), "sums": dict(known)})
    return True


def fill_all(cells: list[Cell], kept: Kept, minutes: float, n_jobs: int) -> None:
    """One cell after the other, until the time is up."""
    until = time.monotonic() + 60 * minutes
    pool = ProcessPoolExecutor(n_jobs) if n_jobs > 1 else None
    try:
        for cell in cells:
            if not fill(cell, kept, until, pool):
                break
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def main() -> None:
    """Measure what is missing, print the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--again", action="store_true", help="forget these rows, measure them anew")
    parser.add_argument("--show", action="store_true", help="measure nothing, print what is there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    kept = Kept(arguments.results)
    tables = [table for table in arguments.tables if table in CELLS]
    cells = list(all_cells(tables, arguments.rows))
    if arguments.again:
        kept.forget(cells)
    if not arguments.show:
        fill_all(cells, kept, arguments.minutes, arguments.jobs)
        if "effects" in arguments.tables:
            fill_effects(kept, again=arguments.again)
    for table in arguments.tables:
        print(f"\n{table} (simulated)\n")
        show([row for name, row in kept.tables.get(table, {}).items() if arguments.rows in name])


if __name__ == "__main__":
    main()
