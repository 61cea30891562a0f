"""The report: one HTML page that needs nothing else, with the tables and the learning curves."""

import html
import io
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from compare_sensitivity import label
from compare_statistics import WITHOUT_BUDGET, Record, curve
from compare_tables import Sheet

mpl.use("svg")
from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0 2em; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
"""


def page(records: Sequence[Record], made: Sequence[Sheet], about: str) -> str:
    """The page. `about` says how it was made, in one paragraph."""
    parts = [f"<h1>Comparison of prompt optimizers</h1><p>{html.escape(about)}</p>"]
    for task in dict.fromkeys(record["task"] for record in records):
        of_task = [record for record in records if record["task"] == task]
        parts.append(f"<h2>{html.escape(label(task))}</h2>{_figure(task, of_task)}")
    for sheet in made:
        parts.append(f"<h2>{html.escape(sheet.title)}</h2>{_table(sheet.heads, sheet.lines)}")
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>Comparison of prompt optimizers</title><style>{STYLE}</style>{body}</html>\n"
    )


def _figure(task: str, records: Sequence[Record]) -> str:
    """Held-out score against LM calls, as SVG."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes: Any = figure.subplots()
    levels = {
        name: statistics.fmean(scores)
        for name in WITHOUT_BUDGET
        if (scores := [r["mean"] for r in records if r["optimizer"] == name])
    }
    for (name, level), style in zip(levels.items(), (":", "--"), strict=False):
        axes.axhline(level, color="grey", linestyle=style, label=name)
    names = sorted({record["optimizer"] for record in records} - set(WITHOUT_BUDGET))
    for place, name in enumerate(names):
        of_optimizer = [record for record in records if record["optimizer"] == name]
        calls, scores = curve(of_optimizer, levels.get("none", 0.0))
        style = ("-", "--", "-.")[place // 10 % 3]
        axes.step(calls, scores, where="post", label=name, linestyle=style)
    axes.set(xlabel="LM calls spent", ylabel="held-out score, mean over seeds", title=label(task))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    fixed = {"svg.hashsalt": task, "svg.fonttype": "none"}  # same figures, same bytes
    with io.StringIO() as target, mpl.rc_context(fixed):
        figure.savefig(target, format="svg", metadata={"Date": None})
        drawn = target.getvalue()
    return drawn[drawn.index("<svg") :]


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in lines
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
