"""The report: its parts, and one HTML page that needs nothing else, with learning curves.

The parts: the comparison itself, with its bars; the ablations; the varied simulated LM.
"""

import html
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from compare_ablations import ABLATIONS, NO_DRAFTS
from compare_bars import bars
from compare_curves import curve, reached
from compare_optimizers import OPTIMIZERS
from compare_sensitivity import label
from compare_statistics import WITHOUT_BUDGET, Record, rows
from compare_tables import Sheet, markdown, overviews, sheets

mpl.use("svg")
from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0 2em; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
"""


VARIED = "@"
"""Stands in the name of a task whose simulated LM has other parameters."""


@dataclass(frozen=True)
class Part:
    """A part of the report: its records are those that its curves show."""

    title: str
    records: list[Record]
    sheets: list[Sheet]


def parts(records: Sequence[Record], reference: str) -> list[Part]:
    """The parts for which there are records."""
    plain = [record for record in records if VARIED not in record["task"]]
    compared = [r for r in plain if r["optimizer"] in (*OPTIMIZERS, "oracle")]
    ablated = {(r["task"], r["budget"]) for r in plain if _is_ablation(r)}
    beside = (*ABLATIONS, "none", reference)
    ablations = [
        r
        for r in plain
        if r["optimizer"] in beside
        and ((r["task"], r["budget"]) in ablated or r["optimizer"] in WITHOUT_BUDGET)
    ]
    found = []
    if not ablated or {r["optimizer"] for r in compared} - {*WITHOUT_BUDGET, reference}:
        made = sheets(rows(compared, reference), reached(compared), reference)
        found.append(Part("Comparison", compared, [*bars(compared, reference), *made]))
    if ablated:
        tasks = {task for task, _ in ablated}
        ablations = [r for r in ablations if r["task"] in tasks]
        whole = NO_DRAFTS if any(r["optimizer"] == NO_DRAFTS for r in ablations) else reference
        made = sheets(rows(ablations, whole), reached(ablations), whole)
        found.append(Part("Ablations", [], made))
    if len(plain) < len(records):
        lines = overviews(rows(_varied(records), reference))
        found.append(Part("The simulated LM varied", [], lines))
    return found


def _varied(records: Sequence[Record]) -> list[Record]:
    """The records of varied tasks, and of the same seeds and budgets those of the task as it is."""
    varied = [record for record in records if VARIED in record["task"]]
    of_task = {record["task"].partition(VARIED)[0] for record in varied}
    budgets, seeds = ({record[name] for record in varied} for name in ("budget", "seed"))
    return [
        record
        for record in records
        if record["task"].partition(VARIED)[0] in of_task
        and record["optimizer"] in (*OPTIMIZERS, "oracle")
        and record["budget"] in budgets
        and record["seed"] in seeds
    ]


def _is_ablation(record: Record) -> bool:
    return record["optimizer"] in ABLATIONS and record["optimizer"] not in WITHOUT_BUDGET


def page(found: Sequence[Part], about: str) -> str:
    """The page. `about` says how it was made, in one paragraph."""
    written = [f"<h1>Comparison of prompt optimizers</h1><p>{html.escape(about)}</p>"]
    for part in found:
        written.append(f"<h2>{html.escape(part.title)}</h2>")
        for task in dict.fromkeys(record["task"] for record in part.records):
            of_task = [record for record in part.records if record["task"] == task]
            written.append(f"<h3>{html.escape(label(task))}</h3>{_figure(task, of_task)}")
        for sheet in part.sheets:
            written.append(f"<h3>{html.escape(sheet.title)}</h3>{_table(sheet.heads, sheet.lines)}")
    body = "\n".join(written)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>Comparison of prompt optimizers</title><style>{STYLE}</style>{body}</html>\n"
    )


def text_page(found: Sequence[Part], about: str) -> str:
    """The tables as Markdown."""
    written = [f"## {part.title}\n\n{markdown(part.sheets)}" for part in found]
    return "\n".join([f"# Comparison of prompt optimizers\n\n{about}\n", *written])


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
