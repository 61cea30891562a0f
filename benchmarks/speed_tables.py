"""The lines of `speed.py` as tables and as a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.table import Table

mpl.use("agg")  # before pyplot is loaded
from matplotlib import pyplot as plt

OURS_COLOUR, OTHER_COLOUR, IDEAL_COLOUR = "#1f6f8b", "#b0b0b0", "#e0a030"

Line = dict[str, Any]


def table(title: str, lines: Sequence[Line]) -> Table:
    """All figures of a row; what a line does not have is empty."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    names = [name for name in names if name not in ("bar", "reached")]
    made = Table(title=title)
    for name in names:
        made.add_column(name.replace("_", " "), justify="left" if name == "what" else "right")
    made.add_column("bar")
    made.add_column("reached")
    for line in lines:
        reached = {None: "", True: "yes", False: "NO"}[line["reached"]]
        made.add_row(*[_shown(line.get(name, "")) for name in names], line["bar"], reached)
    return made


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot(rows: dict[str, list[Line]], path: Path) -> None:
    """Four panels, as far as they were measured; bars to be reached are dashed lines."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 9))
    figure.suptitle("tfgrpo-dspy, benchmarks/speed.py: simulated LM")
    panels = (
        ("overhead", _overhead),
        ("utilisation", _utilisation),
        ("wall", _wall),
        ("memory", _memory),
    )
    for axis, (name, draw) in zip(axes.flat, panels, strict=True):
        if name in rows:
            draw(axis, rows[name])
        else:
            axis.set_title(f"{name}: not measured")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _overhead(axis: Any, lines: Sequence[Line]) -> None:
    sizes = list(dict.fromkeys(line["examples"] for line in lines))
    for what in dict.fromkeys(line["what"] for line in lines):
        own = [line for line in lines if line["what"] == what]
        colour = OURS_COLOUR if what.startswith("ours") else None
        style = "--" if "disk" in what else "-"
        axis.plot(
            [sizes.index(line["examples"]) for line in own],
            [line["ratio"] for line in own],
            style,
            marker="o",
            color=colour,
            label=what,
        )
    axis.axhline(1.25, color="black", linestyle=":", linewidth=1)
    axis.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axis.set_xlabel("examples")
    axis.set_title("wall per LM call over a bare call, instant LM (bar in memory: 1.25)")
    axis.legend(fontsize=8)


def _utilisation(axis: Any, lines: Sequence[Line]) -> None:
    places = range(len(lines))
    colours = [OURS_COLOUR if "ours" in line["what"] else OTHER_COLOUR for line in lines]
    axis.barh(places, [line["utilisation"] for line in lines], color=colours)
    ideals = [
        (place, line["ideal"]) for place, line in zip(places, lines, strict=True) if "ideal" in line
    ]
    axis.scatter(
        [i for _, i in ideals], [p for p, _ in ideals], color=IDEAL_COLOUR, marker="|", s=80
    )
    axis.set_yticks(places, [line["what"] for line in lines], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_title("busy time over threads x wall (mark: ideal list scheduler)")


def _wall(axis: Any, lines: Sequence[Line]) -> None:
    places = range(len(lines))
    colours = [OURS_COLOUR if "ours" in line["what"] else OTHER_COLOUR for line in lines]
    axis.barh(places, [line["wall_s"] for line in lines], color=colours)
    labels = [f"{line['what']}\n{line['calls']:g} calls" for line in lines]
    axis.set_yticks(places, labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_title("seconds for the same questions, max_staleness=1")


def _memory(axis: Any, lines: Sequence[Line]) -> None:
    places = range(len(lines))
    colours = [OURS_COLOUR if "ours" in line["what"] else OTHER_COLOUR for line in lines]
    axis.barh(places, [line["growth_mb"] for line in lines], color=colours)
    both = [(n, line) for n, line in enumerate(lines) if "without_history_mb" in line]
    without = [line["without_history_mb"] for _, line in both]
    axis.barh([n for n, _ in both], without, color="#10394a")
    axis.axvline(60, color="black", linestyle=":", linewidth=1)
    axis.set_yticks(places, [line["what"] for line in lines], fontsize=8)
    axis.invert_yaxis()
    axis.set_title("peak MB above start (dark: without DSPy's call history)")
