"""The tables of `worlds.py`: scores of each cell, and stated effects beside true ones."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import running
from scipy.stats import spearmanr

Runs = Sequence[Mapping[str, Any]]
Z_90 = 1.6449


def show(results: Mapping[str, Any]) -> None:
    """Prints a result file."""
    runs, seeds = results["runs"], results["seeds"]
    rows = list(dict.fromkeys(run["row"] for run in runs))
    print(f"{results['command']}  (seeds {seeds[0]} to {seeds[-1]}; simulated)")
    for budget in sorted({run["budget"] for run in runs}):
        of_budget = [run for run in runs if run["budget"] == budget]
        lines = [
            _line(cell, [run for run in of_budget if run["cell"] == cell], rows)
            for cell in dict.fromkeys(run["cell"] for run in of_budget)
        ]
        title = f"{budget} LM calls: held-out score (harmful left)"
        running.show(("cell", "student", "best", *rows, "unchanged"), lines, title)
    title = "Stated effects: 90 % intervals that hold the true one, rank correlation"
    running.show(("cells", "effects", "covered", "rank"), list(_effects(runs)), title)
    print(f"{len(runs)} runs in {results['seconds']} s")


def _line(cell: str, runs: Runs, rows: Sequence[str]) -> list[str]:
    by_row = {row: [run for run in runs if run["row"] == row] for row in rows}
    scores = [
        f"{mean(own, 'score'):.3f} ({fmean(r['left']['harmful'] for r in own):.1f})" if own else ""
        for own in by_row.values()
    ]
    first = next(own for own in by_row.values() if own)
    unchanged = f"{mean(first, 'unchanged'):.0%}"
    return [cell, f"{mean(runs, 'student'):.3f}", f"{mean(runs, 'best'):.3f}", *scores, unchanged]


def mean(runs: Runs, name: str) -> float:
    """The mean of a figure over runs."""
    return fmean(float(run[name]) for run in runs)


def _effects(runs: Runs) -> Iterator[Sequence[str]]:
    """All stated effects of this optimizer together, and those of each family of cells."""
    ours = [run for run in runs if run["row"] == "tfgrpo"]
    for family in ("all", *dict.fromkeys(run["cell"].split("/")[0] for run in ours)):
        effects = [
            effect
            for run in ours
            if family in ("all", run["cell"].split("/")[0])
            for effect in run["effects"]
        ]
        if len(effects) < 10:
            continue
        stated, true = ([own[name] for own in effects] for name in ("estimate", "true"))
        covered = fmean(
            abs(own["estimate"] - own["true"]) <= Z_90 * own["standard_error"] for own in effects
        )
        rank = spearmanr(stated, true).statistic
        yield family, str(len(effects)), f"{covered:.0%}", f"{rank:.2f}"
