"""The tables of the comparison, for the terminal (rich) and as Markdown."""

from collections.abc import Sequence

from compare_statistics import ENOUGH_SEEDS, Interval, Reached, Row
from rich.console import Console
from rich.table import Table

REACHED_TITLE = "LM calls until 90 % of the attainable gain (median; seeds that reached it)"
REACHED_HEADS = ["task", "optimizer", "calls", "seeds"]


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
        _interval(row.against_none),
        _interval(row.against_reference),
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
    return f"{first.task}{simulated}, {first.budget} LM calls, {n} seeds; intervals over {over}"


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each table."""
    tables: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.task, row.budget), []).append(row)
    return list(tables.values())


def reached_lines(found: Sequence[Reached]) -> list[list[str]]:
    """The rows of the table of calls."""
    return [
        [
            item.task,
            item.optimizer,
            "never" if item.median is None else f"{item.median:.0f}",
            f"{sum(n is not None for n in item.calls_by_seed)}/{len(item.calls_by_seed)}",
        ]
        for item in found
    ]


def show(rows: Sequence[Row], found: Sequence[Reached], reference: str, console: Console) -> None:
    """Print all tables."""
    for group in grouped(rows):
        _print(title(group), heads(reference), [line(row) for row in group], console)
    if found:
        _print(REACHED_TITLE, REACHED_HEADS, reached_lines(found), console)


def _print(
    name: str, columns: Sequence[str], lines: Sequence[Sequence[str]], console: Console
) -> None:
    table = Table(title=name, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", no_wrap=place > 0)
    for cells in lines:
        table.add_row(*cells)
    console.print(table)


def markdown(rows: Sequence[Row], found: Sequence[Reached], reference: str) -> str:
    """All tables as Markdown."""
    parts = []
    for group in grouped(rows):
        parts += [f"## {title(group)}", _table(heads(reference), [line(row) for row in group])]
    if found:
        parts += [f"## {REACHED_TITLE}", _table(REACHED_HEADS, reached_lines(found))]
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *lines))


def _interval(found: Interval | None) -> str:
    return "" if found is None else f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
