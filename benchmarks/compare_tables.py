"""The tables of the comparison, for the terminal (rich) and as Markdown."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compare_optimizers import OWN, WITHOUT_BUDGET
from compare_statistics import (
    ENOUGH_SEEDS,
    RATIOS,
    Record,
    Runs,
    at_budget,
    difference,
    dollars,
    mean,
    n_calls,
)
from rich.console import Console
from rich.table import Table

HEADS = [
    "optimizer",
    "held-out (sd)",
    "against none [95 %]",
    f"against {OWN} [95 %]",
    "LM calls (reflection)",
    "used",
    *(f"cents, reflection x{ratio}" for ratio in RATIOS),
    "s",
    "prompt words",
    "failures",
    "ended",
]


@dataclass(frozen=True)
class Sheet:
    """A table: title, column heads, lines."""

    title: str
    heads: list[str]
    lines: list[list[str]]


def budgets_of(records: Sequence[Record], task: str) -> list[int]:
    """The budgets that a task was run at."""
    return sorted({r["budget"] for r in records if r["task"] == task} - {0})


def sheets(records: Sequence[Record]) -> list[Sheet]:
    """An overview for each budget, and a table for each task and budget."""
    tasks = list(dict.fromkeys(record["task"] for record in records))
    made = []
    for budget in sorted({record["budget"] for record in records} - {0}):
        here = [task for task in tasks if budget in budgets_of(records, task)]
        if len(here) > 1:
            made.append(_overview(budget, {t: at_budget(records, t, budget) for t in here}))
    for task in tasks:
        for budget in budgets_of(records, task) or [0]:
            made.append(_table_of(task, budget, at_budget(records, task, budget)))
    return made


def _overview(budget: int, runs: Mapping[str, Mapping[str, Runs]]) -> Sheet:
    """A line for each task, a column for each optimizer; the best is starred, but the oracle."""
    scores = {(name, task): mean(r) for task, here in runs.items() for name, r in here.items()}
    names = list(dict.fromkeys(name for name, _ in scores))
    names.sort(key=lambda name: -statistics.fmean(s for (n, _), s in scores.items() if n == name))
    lines = []
    for task in runs:
        best = max((s for (n, t), s in scores.items() if t == task and n != "oracle"), default=0)
        of_task = [scores.get((name, task)) for name in names]
        starred = [
            "" if score is None else f"{score:.3f}{'*' if score == best else ''}"
            for score in of_task
        ]
        lines.append([task, *starred])
    return Sheet(f"Held-out scores at {budget} LM calls", ["task", *names], lines)


def _table_of(task: str, budget: int, here: Mapping[str, Runs]) -> Sheet:
    n = max(len(runs) for runs in here.values())
    over = "seeds" if n >= ENOUGH_SEEDS else "test examples only"
    title = f"{task} (simulated), {budget} LM calls, {n} seeds; intervals over {over}"
    names = sorted(here, key=lambda name: -mean(here[name]))
    return Sheet(title, HEADS, [_line(name, budget, here) for name in names])


def _line(name: str, budget: int, here: Mapping[str, Runs]) -> list[str]:
    runs = list(here[name].values())
    means = [run["mean"] for run in runs]
    calls = statistics.fmean(map(n_calls, runs))
    reflections = statistics.fmean(run["spent"]["reflection"]["calls"] for run in runs)
    endings = Counter(run["ended"].partition(":")[0] for run in runs)
    gaps = [
        None if name == other else difference(here[name], here.get(other, {}))
        for other in ("none", OWN)
    ]
    cents = [100 * statistics.fmean(dollars(run, ratio) for run in runs) for ratio in RATIOS]
    return [
        name,
        f"{statistics.fmean(means):.3f} ({statistics.stdev(means) if len(means) > 1 else 0:.3f})",
        *("" if gap is None else str(gap) for gap in gaps),
        f"{calls:.0f} ({reflections:.0f})",
        "" if name in WITHOUT_BUDGET or not budget else f"{calls / budget:.2f}",
        *(f"{cost:.2f}" for cost in cents),
        f"{statistics.fmean(run['wall_s'] for run in runs):.1f}",
        f"{statistics.fmean(run['prompt_words'] for run in runs):.0f}",
        str(sum(sum(run["failed"].values()) for run in runs)),
        ", ".join(k if n == len(runs) else f"{k} {n}" for k, n in endings.items()),
    ]


def show(made: Sequence[Sheet], console: Console) -> None:
    """Print all tables."""
    for sheet in made:
        table = Table(title=sheet.title, title_justify="left")
        for place, column in enumerate(sheet.heads):
            table.add_column(column, justify="left" if place == 0 else "right", no_wrap=True)
        for cells in sheet.lines:
            table.add_row(*cells)
        console.print(table)


def markdown(made: Sequence[Sheet]) -> str:
    """All tables as Markdown."""
    return "\n\n".join(f"### {s.title}\n\n{_markdown(s)}" for s in made) + "\n"


def _markdown(sheet: Sheet) -> str:
    rows = (sheet.heads, ["---"] * len(sheet.heads), *sheet.lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
