"""The tables of the comparison, for the terminal (rich) and as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compare_curves import Reached
from compare_sensitivity import label
from compare_statistics import ENOUGH_SEEDS, Interval, Row
from rich.console import Console, JustifyMethod
from rich.table import Table

REACHED_TITLE = (
    "LM calls until 90 % of the attainable gain, at each optimizer's best budget (medians)"
)


def heads(reference: str) -> list[str]:
    """The column heads of the main table."""
    return [
        "optimizer",
        "held-out (sd)",
        "against none [95 %]",
        f"against {reference} [95 %]",
        "LM calls (reflection)",
        "k tokens",
        "cost",
        "s",
        "prompt words",
        "failures",
        "ended",
    ]


def line(row: Row) -> list[str]:
    """A row of the main table."""
    return [
        row.optimizer,
        f"{row.held_out:.3f} ({row.spread:.3f})",
        interval_text(row.against_none),
        interval_text(row.against_reference),
        f"{row.policy_calls + row.reflection_calls:.0f} ({row.reflection_calls:.0f})",
        f"{row.tokens / 1000:.0f}",
        "" if row.cost is None else f"{row.cost:.3f}",
        f"{row.wall_s:.1f}",
        f"{row.prompt_words:.0f}",
        str(row.n_failures),
        row.ended,
    ]


def title(rows: Sequence[Row]) -> str:
    """The title of one table: its task, budget, and what its intervals rest on."""
    first = rows[0]
    n = max(row.n_seeds for row in rows)
    over = "seeds" if n >= ENOUGH_SEEDS else "test examples only"
    simulated = " (simulated)" if first.task.startswith("sim:") else ""
    return (
        f"{label(first.task)}{simulated}, {first.budget} LM calls, {n} seeds; intervals over {over}"
    )


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each table."""
    tables: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.task, row.budget), []).append(row)
    return list(tables.values())


@dataclass(frozen=True)
class Sheet:
    """A table: title, column heads, lines."""

    title: str
    heads: list[str]
    lines: list[list[str]]


def sheets(rows: Sequence[Row], found: Sequence[Reached], reference: str) -> list[Sheet]:
    """All tables: an overview for each budget, one for each task and budget, the calls needed."""
    made = overviews(rows) if len({row.task for row in rows}) > 1 else []
    for group in grouped(rows):
        made.append(Sheet(title(group), heads(reference), [line(row) for row in group]))
    if found:
        columns = ["task", "optimizer", "budget", "kept", "seeds", "for the first time"]
        made.append(Sheet(REACHED_TITLE, columns, reached_lines(found)))
    return made


def overviews(rows: Sequence[Row]) -> list[Sheet]:
    """Held-out scores, a line for each task, a column for each optimizer; the best is starred.

    The oracle is no candidate for the star.
    """
    made = []
    for budget in sorted({row.budget for row in rows}):
        score = {(r.optimizer, r.task): r.held_out for r in rows if r.budget == budget}
        tasks = list(dict.fromkeys(task for _, task in score))
        names = list(dict.fromkeys(name for name, _ in score))
        best = {
            task: max((s for (n, t), s in score.items() if t == task and n != "oracle"), default=0)
            for task in tasks
        }
        names.sort(key=lambda n: -_mean_of(score, n))
        lines = [
            [label(task), *(_starred(score.get((name, task)), best[task]) for name in names)]
            for task in tasks
        ]
        made.append(Sheet(f"Held-out scores at {budget} LM calls", ["task", *names], lines))
    return made


def _mean_of(score: Mapping[tuple[str, str], float], name: str) -> float:
    return statistics.fmean(value for (other, _), value in score.items() if other == name)


def _starred(score: float | None, best: float) -> str:
    if score is None:
        return ""
    return f"{score:.3f}{'*' if score == best else ''}"


def reached_lines(found: Sequence[Reached]) -> list[list[str]]:
    """The rows of the table of calls."""
    return [
        [
            label(item.task),
            item.optimizer,
            str(item.budget),
            calls_text(item.median),
            f"{item.n_seeds}/{len(item.calls_by_seed)}",
            calls_text(item.first_median),
        ]
        for item in found
    ]


def calls_text(calls: float | None) -> str:
    """A number of calls."""
    return "never" if calls is None else f"{calls:.0f}"


def show(made: Sequence[Sheet], console: Console) -> None:
    """Print all tables."""
    for sheet in made:
        table = Table(title=sheet.title, title_justify="left")
        for place, column in enumerate(sheet.heads):
            justify: JustifyMethod = "left" if place == 0 else "right"
            table.add_column(column, justify=justify, no_wrap=place > 0)
        for cells in sheet.lines:
            table.add_row(*cells)
        console.print(table)


def markdown(made: Sequence[Sheet]) -> str:
    """All tables as Markdown."""
    return "\n\n".join(f"### {s.title}\n\n{_table(s.heads, s.lines)}" for s in made) + "\n"


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *lines))


def interval_text(found: Interval | None) -> str:
    """A difference with its interval."""
    return "" if found is None else f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
