"""Prompt optimizers on real language models that can follow advice: runs what is missing, for days.

    nice -n 19 python benchmarks/real/run.py                    # the whole queue
    python benchmarks/real/run.py --tasks sql --rows none labelled advice    # headroom
    python benchmarks/real/run.py --label v3 --rows tfgrpo    # after a change of ours
    python benchmarks/real/run.py --tasks coin    # false commits: no advice can help there
    python benchmarks/real/run.py --tasks stock --models 1.5B --rows none tfgrpo   # an agent
    python benchmarks/real/run.py --writer http://127.0.0.1:9100/v1 \\
        --policy http://127.0.0.1:8080/v1 --models 1.5B    # a reflection LM that can write
    python benchmarks/real/run.py --show
    python benchmarks/real/run.py --publish    # results/real.md of results/real.jsonl

One thread, or `--threads`. Each run is a process of its own (so no run profits from another's
cache) and, when it is done, a JSON line in `results/real.jsonl`; what has its line is not run
again. A run of this optimizer that was stopped goes on where it was, from its log in the cache of
the models (`minutes` and `spent` are those of its last start, `replayed` says what came from the
log). The queue goes through all tasks and rows with one seed before it takes the next seed, and
through the small model before the large one. Rows of this optimizer are run again for another
`--label`; others are not.

Rows: `none` is the student; `labelled` 16 labelled demos; `advice` the hand-written advice of the
task in the student's instructions (the last two say whether there is anything to gain);
`tfgrpo-no-demos` is ours with `max_demos=0`; the others are those of `compare_optimizers.py`. All
have the same number of LM calls, counted and ended by one account, and the same LM as policy and
as reflection LM; with `--writer`, the reflection LM is the one at that address (a large LM, whose
answers are recorded there), and the results are those of `results/real_writer.jsonl`. `--policy`
is the address of llama.cpp's server with the model, which is faster than the LM in the process.
Scores are those of 60 held-out examples, at temperature 0.
"""

import argparse
import datetime
import multiprocessing
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import dspy  # noqa: E402 - the folders come first
from compare_cells import Cell, Options, run_cell  # noqa: E402
from compare_optimizers import OPTIMIZERS  # noqa: E402
from models import MODELS, default_cache  # noqa: E402
from real_tasks import TASKS, advised, load  # noqa: E402
from running import append, command, commit, stored  # noqa: E402
from tables import page, table  # noqa: E402

RESULTS = HERE.parent / "results" / "real.jsonl"
WRITER_RESULTS = RESULTS.with_name("real_writer.jsonl")
WRITER = "a large LM, answers recorded"
FREE = ("none", "labelled", "advice")
ROWS = (*FREE, "gepa", "bootstrap", "mipro", "gepa-mb8", "tfgrpo", "tfgrpo-no-demos")
TAKEN = ("sql", "routing", "extraction", "functions", "gcd")
LARGE = ("sql", "functions")  # the tasks on which the large model is run, too
ADAPTERS = {"0.5B": dspy.JSONAdapter, "1.5B": dspy.ChatAdapter}
"""The small model hardly ever answers in the form of ChatAdapter, which would double its calls."""
NAMED = ("task", "optimizer", "budget", "seed", "made_by")
Key = tuple[str, str, str, int, int, str]
"""Task, model, row, budget, seed; and the label of rows of ours."""


def queue(asked: argparse.Namespace) -> Iterator[Key]:
    """What is to be run, in this order."""
    for model in asked.models:
        names = [n for n in asked.tasks if asked.writer or model == asked.models[0] or n in LARGE]
        for seed in asked.seeds:
            for row in asked.rows:
                for task in names:
                    for budget in [0] if row in FREE else asked.budgets:
                        yield task, model, row, budget, seed, label_of(row, asked.label)


def label_of(row: str, label: str) -> str:
    """The label of a row of ours; "" for others, which no change of ours changes."""
    return label if row.startswith("tfgrpo") else ""


def run(key: Key, asked: argparse.Namespace) -> dict[str, Any]:
    """One run, in this process, on the servers and threads that were asked for."""
    task, model, row, budget, seed, label = key
    OPTIMIZERS["advice"] = lambda setup: advised(setup.task)
    dspy.configure(adapter=getattr(TASKS[task], "adapter", ADAPTERS[model])())
    began = time.monotonic()
    cell = Cell(f"{task}@{model}", row, budget, seed)
    options = Options(asked.threads, log_dir=log_of(key, asked.writer) if label else None)
    record = run_cell(cell, options, load(task, model, seed, asked.policy, asked.writer))
    return {
        "task": task,
        "model": model,
        "sha256": MODELS[model].sha256,
        "row": row,
        "budget": budget,
        "seed": seed,
        "label": label,
        "threads": asked.threads,
        "reflection_lm": WRITER if asked.writer else model,
        "minutes": round((time.monotonic() - began) / 60, 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "versions": {name: version(name) for name in ("dspy", "gepa", "xllamacpp")},
        **{name: value for name, value in record.items() if name not in NAMED},
    }


def log_of(key: Key, writer: str | None = None) -> Path:
    """Where a run of this optimizer is recorded; with a writer it is kept, to be replayed."""
    return default_cache() / ("written" if writer else "runs") / "-".join(map(str, key))


def _in_child(key: Key, asked: argparse.Namespace) -> None:
    append(asked.out, run(key, asked))
    if not asked.writer:
        shutil.rmtree(log_of(key), ignore_errors=True)


def run_all(keys: Sequence[Key], asked: argparse.Namespace) -> None:
    """Run one after the other, each in a process of its own; one that fails is left out."""
    spawn = multiprocessing.get_context("spawn")
    for n, key in enumerate(keys, 1):
        print(f"{datetime.datetime.now():%H:%M} run {n} of {len(keys)}: {key}", flush=True)
        child = spawn.Process(target=_in_child, args=(key, asked))
        child.start()
        child.join()
        if child.exitcode:
            print(f"failed with exit code {child.exitcode}: {key}", flush=True)


def key_of(record: dict[str, Any]) -> Key:
    """What names a record."""
    names = ("task", "model", "row", "budget", "seed", "label")
    return tuple(record[name] for name in names)  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the queue, or show its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TAKEN))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", choices=(*ROWS, "tfgrpo-paper"), default=list(ROWS))
    parser.add_argument("--budgets", nargs="+", type=int, default=[200])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--label", default="v2", help="of the rows of this optimizer")
    parser.add_argument("--policy", metavar="URL", help="llama.cpp's server with the model")
    parser.add_argument("--writer", metavar="URL", help="a reflection LM that can write")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    parser.add_argument("--out", type=Path, help="default: results/real.jsonl, real_writer.jsonl")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--publish", action="store_true", help="write the tables beside --out")
    asked = parser.parse_args(arguments)
    asked.out = asked.out or (WRITER_RESULTS if asked.writer else RESULTS)
    if not (asked.show or asked.publish):
        done = {key_of(record) for record in stored(asked.out)}
        keys = [key for key in queue(asked) if key not in done]
        run_all(keys, asked)
    records = stored(asked.out)
    if asked.publish:
        text = page(records, command("real/run.py", arguments))
        asked.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    main()
