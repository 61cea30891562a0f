"""Prompt optimizers side by side: the same task, LMs, data and budget of LM calls for each.

    python benchmarks/compare.py --task sim:easy --budget 200 500 --seeds 10 --first-seed 100 \
        --jobs 2 --out DIR
    python benchmarks/compare.py --task sim:easy+wrong-labels --optimizers tfgrpo,mipro --out DIR
    python benchmarks/compare.py --from DIR
    python benchmarks/compare.py --publish DIR [DIR ...]

Needs the `bench` extra. Each optimizer is the real one, with its best documented settings for the
budget (`compare_optimizers.py` says which, and why that is fair). One account around the LMs counts
and ends them all (`compare_budget.py`): at the budget an optimizer is stopped, and its best program
until then is its result (`compare_observe.py`). Held-out scores are measured apart, and charged to
nobody. `compare_bars.py` says which bars this optimizer is held to, and whether it reaches them;
what dollars mean stands in `compare_statistics.py`.

Seeds 0 to 99 are for choosing settings; published tables are made with seeds from 100 on.

Results are JSON lines in DIR/results.jsonl, one for each optimizer, task, budget and seed, with the
score of every test example, the command and the versions; what is there is not run again.
`--publish` makes `results/compare.json` and `.md` of all that the folders hold; `--from` prints the
tables of a folder or of a published file. The tasks are SIMULATED
(`simlm.py` says what that cannot show, `tasks/simulated.py` how it can be varied); for real LMs see
`real/run.py`, for your own task `examples/optimizers_on_your_task.py`.
"""

import argparse
import importlib.metadata
import multiprocessing
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from compare_bars import bars
from compare_cells import Cell, Options, all_cells, run_cell
from compare_optimizers import OPTIMIZERS
from compare_records import about, merged, packed, unpacked
from compare_statistics import Record
from compare_tables import markdown, sheets, show
from rich.console import Console
from rich.progress import Progress
from running import append, stored

PACKAGES = ("dspy", "gepa", "optuna", "tfgrpo-dspy", "numpy", "scipy")
MIN_WIDTH = 240
RESULTS = Path(__file__).parent / "results"


def cell_of(record: Record) -> Cell:
    """The cell that a record is of."""
    return Cell(record["task"], record["optimizer"], record["budget"], record["seed"])


def run_all(
    cells: Sequence[Cell], options: Options, jobs: int, path: Path, console: Console
) -> None:
    """Run the cells and append their records, each as soon as it is there."""
    with Progress(console=console) as progress:
        bar = progress.add_task("cells", total=len(cells))
        for record in _records(cells, options, jobs):
            append(path, record)
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


def made_by() -> str:
    """The command and the versions, enough to make the figures again."""
    command = shlex.join(["python", "benchmarks/compare.py", *sys.argv[1:]])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"{command} ({versions}; Python {platform.python_version()}, {os.cpu_count()} cores)"


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description="Prompt optimizers side by side.")
    parser.add_argument("--task", nargs="+", metavar="TASK")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="separated by commas")
    parser.add_argument("--budget", type=int, nargs="+", default=[500], help="LM calls")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=4, help="of each optimizer")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--publish", type=Path, nargs="+", metavar="FROM", help="write results/")
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="print its tables")
    given = parser.parse_args()
    if not (given.publish or given.source or (given.task and given.out)):
        parser.error("pass --task and --out, or --publish, or --from")
    unknown = [name for name in given.optimizers.split(",") if name not in OPTIMIZERS]
    if unknown:
        parser.error(f"--optimizers {','.join(unknown)}: there are {', '.join(OPTIMIZERS)}")
    return given


def run(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Run what is missing; the records of all cells that the arguments name."""
    options = Options(n_threads=arguments.threads, made_by=made_by())
    path = arguments.out / "results.jsonl"
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    cells = all_cells(arguments.task, arguments.optimizers.split(","), arguments.budget, seeds)
    done = {cell_of(record) for record in stored(path)}
    run_all([c for c in cells if c not in done], options, arguments.jobs, path, console)
    named = set(cells)
    return [record for record in stored(path) if cell_of(record) in named]


def publish(records: Sequence[Record], target: Path) -> None:
    """Write `compare.json` and `compare.md`; the tables are those of the JSON."""
    (target / "compare.json").write_text(packed(records), encoding="utf-8")
    again = unpacked(target / "compare.json")
    said = "\n".join(f"- {name}: {value}" for name, value in about(again).items())
    tables = markdown([*bars(again), *sheets(again)])
    text = f"# Comparison of prompt optimizers\n\n{said}\n\n{tables}"
    (target / "compare.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Run, publish or read, and print the tables."""
    arguments = parsed()
    # the cells keep the standard output quiet
    console = Console(file=sys.__stdout__, width=max(MIN_WIDTH, Console().width))
    if arguments.publish:
        records = merged(arguments.publish)
        publish(records, RESULTS)
    elif arguments.source:
        records = merged([arguments.source])
    else:
        records = run(arguments, console)
    show([*sheets(records), *bars(records)], console)


if __name__ == "__main__":
    main()
