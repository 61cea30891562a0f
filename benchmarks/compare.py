"""Prompt optimizers side by side: the same task, LMs, data and budget of LM calls for each.

    python benchmarks/compare.py --task sim:easy --budget 200 500 --seeds 10 --out DIR [--report]
    python benchmarks/compare.py --task gsm8k --lm openai/gpt-4.1-mini --data DATA --out DIR
    python benchmarks/compare.py --task sim:easy --ablations --out DIR
    python benchmarks/compare.py --task sim:easy --sensitivity --out DIR
    python benchmarks/compare.py --publish benchmarks/results/compare.json DIR [DIR ...]
    python benchmarks/compare.py --from benchmarks/results/compare.json

Needs the `bench` extra. Each optimizer is the real one, with its best documented settings for the
budget (`compare_optimizers.py` says which, and why that is fair). One account around the LMs counts
and ends them all (`compare_budget.py`): at the budget an optimizer is stopped, and the best program
that it told of until then is its result (`compare_observe.py`); SIMBA tells of none, so its
settings are such that it ends before. Held-out scores and learning curves are measured apart, and
charged to nobody. `compare_bars.py` says which bars this optimizer is held to, and whether it
reaches them.

Results are JSON lines in DIR/results.jsonl, one for each optimizer, task, budget and seed, with the
score of every test example; cells that are there are not run again. `--publish` makes
`results/compare.json`, `.md` and `.html` of all that the folders hold, and of what was published
where that file is named, too (later ones count where cells are equal); `--from` prints the tables
of such a JSON file again. Figures of tasks that begin with `sim:` come from a SIMULATED LM
(`simlm.py` says what it cannot show).
"""

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compare_ablations import ABLATIONS
from compare_cells import RUNNERS, Cell, Options, all_cells, run_cell
from compare_optimizers import OPTIMIZERS
from compare_publish import merged, packed, unpacked
from compare_report import Part, page, parts, text_page
from compare_sensitivity import variations
from compare_tables import show
from rich.console import Console
from rich.progress import Progress

PACKAGES = ("dspy", "gepa", "optuna", "tfgrpo-dspy", "numpy", "scipy")
REFERENCE = "tfgrpo"
MIN_WIDTH = 190
RESULTS = Path(__file__).parent / "results"


def stored(path: Path) -> list[dict[str, Any]]:
    """The records of a results file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def cell_of(record: dict[str, Any]) -> Cell:
    """The cell that a record is of."""
    return Cell(record["task"], record["optimizer"], record["budget"], record["seed"])


def run_all(
    cells: Sequence[Cell], options: Options, jobs: int, path: Path, console: Console
) -> None:
    """Run the cells and append their records, each as soon as it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as target, Progress(console=console) as progress:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            target.write("\n")  # behind what a kill cut short
        bar = progress.add_task("cells", total=len(cells))
        for record in _records(cells, options, jobs):
            target.write(json.dumps(record) + "\n")
            target.flush()
            progress.advance(bar)


def _records(cells: Sequence[Cell], options: Options, jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        for cell in cells:
            yield run_cell(cell, options)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for future in as_completed([pool.submit(run_cell, cell, options) for cell in cells]):
            yield future.result()


def about(arguments: argparse.Namespace) -> str:
    """How the figures of this run were made."""
    command = " ".join(["python", "benchmarks/compare.py", *sys.argv[1:]])
    lms = f"LM {arguments.lm or 'of the task'}"
    lms += f", reflection LM {arguments.reflection_lm}" if arguments.reflection_lm else ""
    return f"{command}. {lms}. {_versions()}."


def _versions() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"{versions}; Python {platform.python_version()}, {os.cpu_count()} cores"


def about_all(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the figures of published records were made: enough to make them again."""
    found: dict[str, Any] = {
        "made by": "python benchmarks/compare.py --task TASK --budget BUDGET --seeds K --out DIR",
        "published": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": _versions(),
    }
    tasks = sorted({record["task"] for record in records})
    for task in [task for task in tasks if "@" not in task]:
        of_task = [record for record in records if record["task"] == task]
        budgets = sorted({record["budget"] for record in of_task} - {0})
        seeds = 1 + max(record["seed"] for record in of_task)
        found[task] = f"budgets {', '.join(map(str, budgets))}; up to {seeds} seeds"
    found["varied tasks"] = sum("@" in task for task in tasks)
    return found


def _sentence(found: dict[str, Any]) -> str:
    simulated = "Figures of tasks that begin with sim: come from a SIMULATED LM."
    return f"{simulated} {'. '.join(f'{name}: {value}' for name, value in found.items())}."


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description="Prompt optimizers side by side.")
    parser.add_argument("--task", nargs="+", metavar="TASK")
    parser.add_argument("--lm", help="policy LM, such as openai/gpt-4.1-mini; default: the task's")
    parser.add_argument("--reflection-lm", help="default: the task's, or the policy LM")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="separated by commas")
    parser.add_argument("--budget", type=int, nargs="+", default=[500], help="LM calls")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--data", type=Path, help="where tasks find their data")
    parser.add_argument("--threads", type=int, default=4, help="of each optimizer")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--no-curves", action="store_true", help="score results only")
    parser.add_argument("--ablations", action="store_true", help="our ablations as optimizers")
    parser.add_argument("--sensitivity", action="store_true", help="vary the simulated LM")
    parser.add_argument("--report", action="store_true", help="write DIR/report.html and .md")
    parser.add_argument("--publish", type=Path, nargs="+", metavar="FROM", help="write results/")
    parser.add_argument("--from", type=Path, dest="source", metavar="JSON", help="print its tables")
    for role in ("policy", "reflection"):
        parser.add_argument(f"--{role}-prices", type=float, nargs=2, metavar=("PROMPT", "OUTPUT"))
    given = parser.parse_args()
    if not (given.publish or given.source or (given.task and given.out)):
        parser.error("pass --task and --out, or --publish, or --from")
    return given


def wanted(arguments: argparse.Namespace) -> list[Cell]:
    """The cells that the arguments name."""
    names = arguments.optimizers.split(",")
    if arguments.ablations:
        names = ["none", REFERENCE, *ABLATIONS]
    elif any(task.startswith("sim:") for task in arguments.task) and "oracle" not in names:
        names = [*names, "oracle"]
    unknown = [name for name in names if name not in RUNNERS]
    if unknown:
        sys.exit(f"--optimizers {','.join(unknown)}: there are {', '.join(RUNNERS)}.")
    tasks = arguments.task
    if arguments.sensitivity:
        tasks = [varied for task in tasks for varied in variations(task)]
    cells = all_cells(tasks, names, arguments.budget, range(arguments.seeds))
    return [c for c in cells if c.optimizer != "oracle" or c.task.startswith("sim:")]


def publish(records: Sequence[dict[str, Any]], target: Path) -> list[Part]:
    """Write `compare.json`, `.md` and `.html`; the tables are those of the JSON."""
    text = packed(records, about_all(records))
    again, about = unpacked(text)
    made, said = parts(again, REFERENCE), _sentence(about)
    written = {"json": text, "md": text_page(made, said), "html": page(made, said)}
    for ending, content in written.items():
        (target / f"compare.{ending}").write_text(content, encoding="utf-8")
    return made


def run(arguments: argparse.Namespace, console: Console) -> list[Part]:
    """Run what is missing, write the report."""
    prices = None
    if arguments.policy_prices:
        second = arguments.reflection_prices or arguments.policy_prices
        prices = {"policy": tuple(arguments.policy_prices), "reflection": tuple(second)}
    options = Options(
        arguments.lm,
        arguments.reflection_lm,
        arguments.data,
        arguments.threads,
        not arguments.no_curves,
        prices,
    )
    path = arguments.out / "results.jsonl"
    cells = wanted(arguments)
    done = {cell_of(record) for record in stored(path)}
    run_all([c for c in cells if c not in done], options, arguments.jobs, path, console)
    named = set(cells)
    made = parts([record for record in stored(path) if cell_of(record) in named], REFERENCE)
    if arguments.report:
        write_report(made, arguments, cells)
    return made


def write_report(made: Sequence[Part], arguments: argparse.Namespace, cells: list[Cell]) -> None:
    """DIR/report.html and .md, and the settings."""
    said, out = about(arguments), arguments.out
    (out / "report.html").write_text(page(made, said), encoding="utf-8")
    (out / "report.md").write_text(text_page(made, said), encoding="utf-8")
    settings = {**vars(arguments), "cells": [asdict(cell) for cell in cells]}
    text = json.dumps(settings, indent=1, default=str) + "\n"
    (out / "settings.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Run, publish or read, and print the tables."""
    arguments = parsed()
    # the cells keep the standard output quiet
    console = Console(file=sys.__stdout__, width=max(MIN_WIDTH, Console().width))
    if arguments.publish:
        made = publish(merged(arguments.publish, stored), RESULTS)
    elif arguments.source:
        records, _ = unpacked(arguments.source.read_text(encoding="utf-8"))
        made = parts(records, REFERENCE)
    else:
        made = run(arguments, console)
    for part in made:
        show(part.sheets, console)


if __name__ == "__main__":
    main()
