"""The tables of the evidence, from the records of `run.py`. Reads nothing, calls no LM.

Intervals (90 %) are bootstrapped: seeds are drawn, then the test examples of each. `below` is the
share of runs that score less than the student with the same seed, `changed` the share that
returned something else than the student. On the task `coin`, where no advice can help, each run
that changed is a false commit. Calls, tokens (of both roles) and minutes are means of the runs; a
run that was stopped has those of its last start only, so its calls may be far below the budget.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]
WORSE = 0.005  # a score so much lower than the student's is below it
RESAMPLES, OF_90_PERCENT = 1000, (5, 95)
PAGE = """\
# Runs on real language models

`{}` made this page of all {} lines of the file beside it.
A row is run by `python benchmarks/real/run.py --models ... --tasks ... --rows ... --seeds ...`.
Rows of this optimizer (`tfgrpo`) have a `--label`; the commits say which state of it that is.
What the figures say stands in [measurements](../../docs/measurements.md). The models are
Qwen2.5-Coder-Instruct, Q4_K_M:

{}

{}

```text
{}
```
"""
COLUMNS = ("score", "low", "high", "seeds", "below", "changed", "calls", "tokens", "minutes")


def table(records: Sequence[Record]) -> str:
    """A line for each model, task, budget and row; then the means over tasks."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record[n] for n in ("model", "task", "budget", "row", "label"))].append(record)
    students = {(r["task"], r["model"], r["seed"]): r for r in records if r["row"] == "none"}
    heading = "".join(f"{name:>9}" for name in COLUMNS)
    heading += f"  {'first run':<12}{'last run':<12}commits"
    lines = [f"{'model':<6}{'task':<12}{'budget':>7}  {'row':<20}{heading}"]
    for (model, task, budget, row, label), runs in sorted(groups.items()):
        paired = [(run, students.get((task, model, run["seed"]))) for run in runs]
        known = [(run, student) for run, student in paired if student is not None]
        low, high = interval([run["scores"] for run in runs])
        figures = f"{statistics.fmean(r['mean'] for r in runs):9.3f}{low:9.3f}{high:9.3f}"
        figures += f"{len(runs):9}"
        figures += _share(r["mean"] < s["mean"] - WORSE for r, s in known)
        figures += _share(_returned(r) != _returned(s) for r, s in known)
        spent = [spent for run in runs for spent in run["spent"].values()]
        tokens = sum(each["prompt_tokens"] + each["completion_tokens"] for each in spent)
        figures += f"{sum(each['calls'] for each in spent) / len(runs):9.0f}"
        figures += f"{tokens / len(runs):9.0f}{statistics.fmean(r['minutes'] for r in runs):9.1f}"
        dates, commits = ([*dict.fromkeys(r[name] for r in runs)] for name in ("date", "commit"))
        figures += f"  {min(dates):<12}{max(dates):<12}{', '.join(commits)}"
        lines.append(f"{model:<6}{task:<12}{budget:>7}  {f'{row} {label}'.strip():<20}{figures}")
    return "\n".join([*lines, "", *_below(records, students), "", *_means(records)])


def page(records: Sequence[Record], command: str) -> str:
    """The published page: what was run, the tables, and what their columns are."""
    hashes = {record["model"]: record["sha256"] for record in records}
    models = "\n".join(f"- {name}: SHA-256 {sha256}" for name, sha256 in sorted(hashes.items()))
    columns = (__doc__ or "").partition("\n\n")[2].strip()
    return PAGE.format(command, len(records), models, columns, table(records))


def _below(records: Sequence[Record], students: Mapping[Any, Record]) -> list[str]:
    """How many runs of each row, of all tasks and labels, are below the student of their seed."""
    found: dict[str, list[bool]] = defaultdict(list)
    for record in records:
        student = students.get((record["task"], record["model"], record["seed"]))
        if record["row"] != "none" and student is not None:
            found[record["row"]].append(record["mean"] < student["mean"] - WORSE)
    lines = [f"  {row:<20}{sum(flags)} of {len(flags)}" for row, flags in sorted(found.items())]
    return ["runs below the student of their seed, over all tasks and labels:", *lines]


def _share(of: Any) -> str:
    flags = list(of)
    return f"{statistics.fmean(flags):9.2f}" if flags else f"{'?':>9}"


def _returned(record: Record) -> tuple[Any, Any]:
    """Instructions and numbers of demos, which tell whether it is the student."""
    return record["instructions"], record["n_demos"]


def interval(scores: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The 90 % interval of the mean of runs, each with the scores of its test examples."""
    draw = np.random.default_rng(0)
    runs = [np.asarray(own, dtype=float) for own in scores]
    means = []
    for _ in range(RESAMPLES):
        drawn = [runs[i] for i in draw.integers(len(runs), size=len(runs))]
        means.append(
            np.mean([np.mean(own[draw.integers(len(own), size=len(own))]) for own in drawn])
        )
    low, high = np.percentile(means, OF_90_PERCENT)
    return float(low), float(high)


def _means(records: Sequence[Record]) -> list[str]:
    """The mean over the tasks that have all rows of a model and budget, without the coin."""
    lines = []
    real = [record for record in records if record["task"] != "coin"]
    for model, budget in sorted({(r["model"], r["budget"]) for r in real if r["budget"]}):
        own = [r for r in real if r["model"] == model and r["budget"] in (0, budget)]
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for record in own:
            found[f"{record['row']} {record['label']}".strip()][record["task"]].append(
                record["mean"]
            )
        tasks = sorted(set.intersection(*(set(by_task) for by_task in found.values())))
        if tasks:
            lines.append(f"{model}, {budget} calls, mean over {', '.join(tasks)}:")
            by_row = {
                row: statistics.fmean(statistics.fmean(by_task[task]) for task in tasks)
                for row, by_task in found.items()
            }
            best_first = sorted(by_row.items(), key=lambda item: -item[1])
            lines += [f"  {row:<20}{score:.3f}" for row, score in best_first]
    return lines
