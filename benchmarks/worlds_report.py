"""The tables of `worlds.py`, and whether the bars for what the README claims hold."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

Runs = Sequence[Mapping[str, Any]]
Bar = tuple[str, str, bool]
"""What is asked, what was found, whether that is enough."""

OURS, NO_GATE, GEPA, REFERENCE = "tfgrpo", "no gate", "gepa-8", ":"
AT_LEAST = {
    200: {"0": 0.93, ".25": 0.85, ".5": 0.77},
    400: {"0": 0.95, ".25": 0.93, ".5": 0.90},
    800: {"0": 0.95, ".25": 0.95, ".5": 0.95},
}
"""Mean scores asked for, by LM calls and share of wrong lessons."""
BEHIND_OTHER_WORDINGS, BEHIND_NO_GATE, OF_REFERENCE = 0.04, 0.02, 0.95
Z_90 = 1.6449


def show(results: Mapping[str, Any]) -> None:
    """Prints a result file."""
    console = Console(width=120)
    runs = results["runs"]
    rows = list(dict.fromkeys(run["row"] for run in runs))
    seeds = results["seeds"]
    console.print(f"{results['command']}  (seeds {seeds[0]} to {seeds[-1]}; simulated)")
    for budget in sorted({run["budget"] for run in runs}):
        console.print(_table(budget, [run for run in runs if run["budget"] == budget], rows))
    if OURS in rows:
        console.print(_bars(bars(runs)))
    per_run = ", ".join(
        f"{row} {fmean(run['seconds'] for run in runs if run['row'] == row):.2f} s" for row in rows
    )
    console.print(f"{len(runs)} runs in {results['seconds']} s; a run of {per_run}")


def _table(budget: int, runs: Runs, rows: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"{budget} LM calls: held-out score (harmful left)")
    table.add_column("cell")
    for name in ("student", "best", *rows, "unchanged", "bar"):
        table.add_column(name, justify="right")
    for cell in dict.fromkeys(run["cell"] for run in runs):
        own = [run for run in runs if run["cell"] == cell]
        first = next((run["row"] for run in own if run["row"] == OURS), rows[0])
        unchanged = mean(_of(own, first), "unchanged")
        table.add_row(
            *(cell, f"{mean(own, 'student'):.3f}", f"{mean(own, 'best'):.3f}"),
            *(_shown(_of(own, row)) for row in rows),
            *(f"{unchanged:.0%}", _asked(cell, budget)),
        )
    return table


def _shown(runs: Runs) -> str:
    return f"{mean(runs, 'score'):.3f} ({harmful(runs):.1f})" if runs else ""


def _asked(cell: str, budget: int) -> str:
    found = AT_LEAST.get(budget, {}).get(cell.split("/")[-1]) if cell.startswith("kinds") else None
    return "" if found is None else f"{found:.2f}"


def _of(runs: Runs, row: str) -> Runs:
    return [run for run in runs if run["row"] == row]


def mean(runs: Runs, name: str) -> float:
    """The mean of a figure over runs."""
    return fmean(float(run[name]) for run in runs) if runs else float("nan")


def harmful(runs: Runs) -> float:
    """How many harmful lessons are left, on average."""
    return fmean(run["left"]["harmful"] for run in runs)


def bars(runs: Runs) -> list[Bar]:
    """The bars that these runs can tell about."""
    found: list[Bar] = []
    for budget in sorted({run["budget"] for run in runs}):
        by_cell: dict[str, dict[str, Runs]] = {}
        for run in runs:
            if run["budget"] == budget:
                by_cell.setdefault(run["cell"], {}).setdefault(run["row"], []).append(run)  # type: ignore[attr-defined]
        cells = {cell: rows for cell, rows in by_cell.items() if OURS in rows}
        kinds = {cell: rows for cell, rows in cells.items() if cell.startswith("kinds/")}
        for bar in (
            *_levels(kinds, budget),
            *_rivals(kinds),
            *_broad(cells),
            *_others(cells, budget),
        ):
            found.append((f"{budget}: {bar[0]}", *bar[1:]))
    return [*found, *_effects(_of(runs, OURS))]


def _levels(kinds: Mapping[str, Mapping[str, Runs]], budget: int) -> Iterator[Bar]:
    ours = {cell: mean(rows[OURS], "score") for cell, rows in kinds.items()}
    for share, least in AT_LEAST.get(budget, {}).items():
        own = {cell: score for cell, score in ours.items() if cell.endswith(f"/{share}")}
        if own:
            yield _worst(f"kinds, {share} wrong: at least {least:.2f}", own, least)
    margins = {}
    for cell, score in ours.items():
        _, wording, rest = cell.split("/", 2)
        others = [
            other
            for name, other in ours.items()
            if name.split("/", 2)[2] == rest and name.split("/")[1] != wording
        ]
        if others:
            margins[cell] = score - fmean(others)
    if margins:
        text = "no wording more than .04 below the mean of the others"
        yield _worst(text, margins, -BEHIND_OTHER_WORDINGS)


def _rivals(kinds: Mapping[str, Mapping[str, Runs]]) -> Iterator[Bar]:
    def lead(cell: str, row: str) -> float:
        return mean(kinds[cell][OURS], "score") - mean(kinds[cell][row], "score")

    gepa = {cell: lead(cell, GEPA) for cell, rows in kinds.items() if GEPA in rows}
    no_gate = {cell: lead(cell, NO_GATE) for cell, rows in kinds.items() if NO_GATE in rows}
    right = {cell: ahead for cell, ahead in no_gate.items() if cell.endswith("/0")}
    wrong = {cell: ahead for cell, ahead in no_gate.items() if cell not in right}
    if gepa:
        yield _worst("ahead of GEPA in every kinds cell", gepa, 0.0, is_strict=True)
    if wrong:
        yield _worst("ahead of NoGate where lessons are wrong", wrong, 0.0, is_strict=True)
    if right:
        yield _worst("within .02 of NoGate where all are right", right, -BEHIND_NO_GATE)


def _worst(text: str, values: Mapping[str, float], least: float, is_strict: bool = False) -> Bar:
    cell = min(values, key=lambda name: values[name])
    worst = values[cell]
    n = sum(value > least if is_strict else value >= least for value in values.values())
    told = f"{n} of {len(values)}; lowest {worst:+.3f} ({cell})"
    return text, told, n == len(values)


def _broad(cells: Mapping[str, Mapping[str, Runs]]) -> Iterator[Bar]:
    for cell, rows in cells.items():
        reference = next((row for row in rows if REFERENCE in row), None)
        if cell.startswith("broad/") and reference:
            ours, theirs = (mean(rows[row], "score") for row in (OURS, reference))
            told = f"{ours:.3f} against {theirs:.3f}"
            yield f"{cell}: .95 of {reference}", told, ours >= OF_REFERENCE * theirs


def _others(cells: Mapping[str, Mapping[str, Runs]], budget: int) -> Iterator[Bar]:
    for cell, rows in cells.items():
        own = rows[OURS]
        gain = mean(own, "score") - mean(own, "student")
        if cell.startswith("leaks") and budget >= 800:
            share = gain / (mean(own, "best") - mean(own, "student"))
            told = f"{harmful(own):.2f} left, {share:.2f} of the gain"
            yield f"{cell}: harmful <= .3, gain >= .9", told, harmful(own) <= 0.3 and share >= 0.9
        if cell.startswith(("nothing/", "perfect")):
            same = mean(own, "unchanged")
            told = f"{same:.0%} unchanged, {gain:+.3f}"
            yield f"{cell}: >= 90 % unchanged, harm <= .01", told, same >= 0.9 and gain >= -0.01


def _effects(runs: Runs) -> Iterator[Bar]:
    """All stated effects together, and those of each family of cells."""
    families = dict.fromkeys(run["cell"].split("/")[0] for run in runs)
    for family in ("all cells", *families):
        own = [
            effect
            for run in runs
            if family in ("all cells", run["cell"].split("/")[0])
            for effect in run["effects"]
        ]
        if len(own) < 10:
            continue
        covered, rank = (
            coverage(own),
            float(spearmanr([e["estimate"] for e in own], [e["true"] for e in own]).statistic),
        )
        told = f"{covered:.0%} of {len(own)} covered, rank correlation {rank:.2f}"
        text = f"effects, {family}: 90 % intervals cover 85 to 95 %, rank >= .8"
        yield text, told, 0.85 <= covered <= 0.95 and rank >= 0.8


def coverage(effects: Iterable[Mapping[str, float]]) -> float:
    """The share of the 90 % intervals that hold the true effect."""
    return fmean(
        abs(own["estimate"] - own["true"]) <= Z_90 * own["standard_error"] for own in effects
    )


def _bars(found: Sequence[Bar]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Bars")
    for name in ("asked", "found", "holds"):
        table.add_column(name)
    for asked, told, holds in found:
        table.add_row(asked, told, "yes" if holds else "NO")
    return table
