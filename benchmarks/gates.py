"""What gates let through, and what they find: whole runs of 12 updates, gates asked turn by turn.

    python benchmarks/gates.py                       # all rows, several minutes
    python benchmarks/gates.py --only harm effects  # some of them

Simulated: there is no LM. Lessons have a known worth, scores are drawn at random from the model
that `gate_world` states; the gates are the package's own, asked and answered as the optimizer does.
Rules of other optimizers stand beside (`gate_rules`, simplified). Prints tables; writes the rows
that were run into `benchmarks/results/gates.json`.

null    lessons that do nothing: runs that end with any, share of lessons accepted
harm    lessons that cost something: runs whose program is truly worse than the student by > 0.02
power   lessons worth something among useless ones: found and false, against rollouts; and what ours
        find where they take in no more useless ones, and cost no more, than another rule
effects 10 candidates with effects from N(0, 0.1), 300 rollouts: rank correlation, coverage of 90 %
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gate_rules import EachAlone, GepaRule, MeanRises, SimbaRule
from gate_world import N_UPDATES, Outcome, run, worlds
from scipy.stats import beta, spearmanr

from tfgrpo_dspy.gate import FactorialGate, NoGate, PairedGate
from tfgrpo_dspy.gate.effects import Row, balanced_presence, estimate_effects

RESULTS = Path(__file__).parent / "results" / "gates.json"
OURS = {"paired": PairedGate(), "factorial": FactorialGate()}
OTHERS = {
    "none": NoGate(),
    "mean rises": MeanRises(),
    "GEPA's rule": GepaRule(),
    "SIMBA's rule": SimbaRule(),
}
Table = list[dict[str, Any]]


def upper_limit(count: int, n: int) -> float:
    """The upper 95 % limit of a share (Clopper and Pearson, one-sided)."""
    return float(beta.ppf(0.95, count + 1, n - count)) if count < n else 1.0


def played(
    gate: Any,
    n_runs: int,
    n_examples: int,
    updates: Callable[[int], Sequence[Sequence[float]]],
    kind: str = "bernoulli",
) -> list[Outcome]:
    """That gate's runs; `updates` says what each update of a run proposes."""
    return [
        run(gate, world, updates(number))
        for number, world in enumerate(worlds(n_runs, n_examples, 1, kind))
    ]


def shares(outcomes: Iterable[Outcome], worth: float) -> float:
    """The share of the lessons of that worth that ended in the returned library."""
    counts = [outcome.share(worth) for outcome in outcomes]
    return sum(got for got, _ in counts) / max(sum(n for _, n in counts), 1)


def paid(outcomes: Sequence[Outcome]) -> float:
    """Rollouts for an update."""
    return round(statistics.fmean(outcome.n_paid for outcome in outcomes) / N_UPDATES, 1)


# ---------------------------------------------------------------------- null


def null_row(
    name: str, gate: Any, n: int, n_lessons: int, kind: str, n_runs: int
) -> dict[str, Any]:
    """One line: that many useless lessons in each update."""
    outcomes = played(gate, n_runs, n, lambda _: [[0.0] * n_lessons] * N_UPDATES, kind)
    n_any = sum(bool(outcome.returned) for outcome in outcomes)
    return {
        "gate": name,
        "scores": kind,
        "examples": n,
        "lessons": n_lessons,
        "runs": n_runs,
        "runs with any": round(n_any / n_runs, 4),
        "upper limit": round(upper_limit(n_any, n_runs), 4),
        "lessons accepted": round(shares(outcomes, 0.0), 4),
        "rollouts": paid(outcomes),
    }


def null(scale: float, n: int) -> Table:
    """Lessons that do nothing. With a single one, factorial and paired gate do the same."""
    table = []
    for kind in ("bernoulli", "rare", "skewed"):
        runs = int(scale * (300 if kind == "rare" else 1000))
        table.append(null_row("paired", PairedGate(), n, 1, kind, runs))
    for name, gate in OURS.items():
        table.append(null_row(name, gate, n, 4, "bernoulli", int(scale * 100)))
    for name, gate in OTHERS.items():
        table.append(null_row(name, gate, n, 1, "bernoulli", int(scale * 100)))
    return table


# ---------------------------------------------------------------------- harm


def harm_row(
    name: str, gate: Any, n: int, cost: float, n_lessons: int, n_runs: int
) -> dict[str, Any]:
    """One line: that many harmful lessons in each update."""
    outcomes = played(gate, n_runs, n, lambda _: [[-cost] * n_lessons] * N_UPDATES)
    worse = sum(outcome.change < -0.02 for outcome in outcomes)
    return {
        "gate": name,
        "examples": n,
        "cost": cost,
        "lessons": n_lessons,
        "runs": n_runs,
        "worse by > 0.02": round(worse / n_runs, 4),
        "upper limit": round(upper_limit(worse, n_runs), 4),
        "rollouts": paid(outcomes),
    }


def harm(scale: float) -> Table:
    """Lessons that cost something."""
    table = []
    for n in (20, 50, 200):
        for cost in (0.05, 0.1, 0.2):
            table.append(harm_row("paired", PairedGate(), n, cost, 1, int(scale * 200)))
            table.append(harm_row("factorial", FactorialGate(), n, cost, 4, int(scale * 40)))
            for name, gate in OTHERS.items():
                table.append(harm_row(name, gate, n, cost, 1, int(scale * 60)))
    return table


# ---------------------------------------------------------------------- power


def mixed(worth: float, n_useless: int) -> Callable[[int], list[list[float]]]:
    """In 3 of the 12 updates a good lesson among useless ones; in the others, useless ones."""

    def updates(number: int) -> list[list[float]]:
        good = set(np.random.default_rng([2, number]).choice(N_UPDATES, 3, replace=False).tolist())
        return [
            [worth, *[0.0] * n_useless] if update in good else [0.0] * max(n_useless, 1)
            for update in range(N_UPDATES)
        ]

    return updates


def power_row(
    name: str, gate: Any, n: int, worth: float, n_useless: int, n_runs: int
) -> dict[str, Any]:
    """One line: the share of good and of useless lessons in the returned library, the rollouts."""
    outcomes = played(gate, n_runs, n, mixed(worth, n_useless))
    return {
        "gate": name,
        "examples": n,
        "worth": worth,
        "useless": n_useless,
        "runs": n_runs,
        "found": round(shares(outcomes, worth), 3),
        "false": round(shares(outcomes, 0.0), 4),
        "rollouts": paid(outcomes),
    }


def power_gates(n_useless: int) -> dict[str, Any]:
    """Ours as they are, the others' rules as they are and stricter, ours as lax as the others."""
    gates: dict[str, Any] = {**OURS, "mean rises": OTHERS["mean rises"]}
    for bar in (0.0, 1.0, 2.0):
        suffix = f", > {bar:g} errors" if bar else ""
        gates[f"GEPA's rule{suffix}"] = GepaRule(min_errors=bar)
        gates[f"SIMBA's rule{suffix}"] = SimbaRule(min_errors=bar)
    ours = FactorialGate if n_useless else PairedGate
    for max_trials in (60, 150, 300):
        for error in (0.1, 0.6):
            lax = ours(error=error, max_trials=max_trials)
            gates[f"ours, {error} an update, {max_trials}"] = EachAlone(lax)
    return gates


def power_cell(n: int, worth: float, n_useless: int, n_runs: int) -> Table:
    """All gates on one mixture; beside each other rule, the best of ours that costs no more."""
    table = [
        power_row(name, gate, n, worth, n_useless, n_runs)
        for name, gate in power_gates(n_useless).items()
    ]
    ours = [row for row in table if row["gate"].startswith("ours") or row["gate"] in OURS]
    for row in table:
        if row not in ours:
            row["ours at equal false and rollouts"] = best_within(ours, row)
    return table


def best_within(ours: Table, row: dict[str, Any]) -> float | None:
    """The most that ours find with no more useless lessons and 5 % more rollouts than this one."""
    fair = [
        mine["found"]
        for mine in ours
        if mine["false"] <= row["false"] + 0.002 and mine["rollouts"] <= 1.05 * row["rollouts"]
    ]
    return max(fair, default=None)


def power(scale: float, useless: Sequence[int] = (0, 4, 12)) -> Table:
    """Lessons that are worth something."""
    table: Table = []
    for n_useless in useless:
        for worth in (0.05, 0.1, 0.2):
            table += power_cell(50, worth, n_useless, int(scale * (100 if not n_useless else 40)))
    return table


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


def effects(scale: float) -> Table:
    """How well the effects of ten candidates are known after 300 rollouts."""
    table = []
    for spread in (0.05, 0.1, 0.15):
        for n in (20, 50, 150):
            draws = [draw_effects(n, spread, seed) for seed in range(int(scale * 100))]
            rank, pooled, raw = zip(*draws, strict=True)
            table.append(
                {
                    "examples": n,
                    "spread": spread,
                    "draws": len(draws),
                    "rank correlation": round(statistics.median(rank), 3),
                    "90 % covers": round(statistics.fmean(pooled), 3),
                    "before pooling": round(statistics.fmean(raw), 3),
                }
            )
    return table


# ---------------------------------------------------------------------- the command


ROWS: dict[str, Callable[[float], Table]] = {
    "null, 20 examples": lambda scale: null(scale, 20),
    "null, 50 examples": lambda scale: null(scale, 50),
    "null, 200 examples": lambda scale: null(scale, 200),
    "harm": harm,
    "power alone": lambda scale: power(scale, (0,)),
    "power among 4": lambda scale: power(scale, (4,)),
    "power among 12": lambda scale: power(scale, (12,)),
    "effects": effects,
}


def show(table: Table) -> None:
    """The rows as a Markdown table."""
    names = list(dict.fromkeys(name for row in table for name in row))
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in table:
        print("| " + " | ".join(str(row.get(name, "")) for name in names) + " |")


def main() -> None:
    """Run the rows, print them, keep them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--scale", type=float, default=1.0, help="times as many runs")
    arguments = parser.parse_args()
    for name in arguments.only:
        began = time.process_time()
        table = ROWS[name](arguments.scale)
        seconds = math.ceil(time.process_time() - began)
        print(f"\n{name} (simulated; {seconds} s of CPU)\n", flush=True)
        show(table)
        known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        known[name] = {"simulated": True, "cpu_seconds": seconds, "rows": table}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
