"""The same faults against GEPA, SIMBA, MIPROv2 and TrainingFreeGRPO, on a SIMULATED task and LM.

    python benchmarks/faults.py [--only metric provider kill ...] [--optimizers GEPA ...]

Needs the `bench` extra (optuna, for MIPROv2). Prints tables, and writes them to `faults.json` and
`faults.md` in `benchmarks/results`; what is not chosen stays there as it was. Every run has a
process of its own, 8 threads, a fresh cache, and the settings that its optimizer recommends for 24
training and 24 validation examples (`fault_cells.py`).

The verdicts, fixed before any result was looked at. A run is

- **dies**, if `compile` raises (whatever it raises), or has not returned after three minutes;
- **silent** (finishes, but silently wrong), if it returns, one of the following holds, and nothing
  names the fault, neither a line of the log at WARNING or above nor the returned results:
  (a) the program that it returns is worse than the untouched one by more than .02, in exact
  expected accuracy on 60 held-out cases;
  (b) the score that it reports for that program is off by more than .10 from what the same program
  scores on the same examples when nothing goes wrong; or it reports none;
  (c) the program has gained less than half of what this optimizer gains when nothing goes wrong;
- **told**, if (a), (b) or (c) holds, and the fault is named;
- **well** otherwise.

A line names a fault if it quotes the error or the value (the regular expressions are in
`fault_rows.py`); the results name it if they count failures or refusals. Rows of which nothing can
come (a wrong API key; a metric that always gives text) are **well** if `compile` raises an error
that names the fault before it has made more calls than there are examples (48); returning is
**told** or **silent** there, raising later or unclearly is **dies**.

Killed runs: SIGKILL when half of the calls of an uninterrupted run were made, then the same again.
A call is repeated if the two runs together made it more often than the uninterrupted one.
Wall times: the ideal client sends a refused request again at once; so its time is what the
refusals alone make unavoidable.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fault_cells import HELD_OUT, OPTIMIZERS, THREADS
from fault_rows import ROWS
from fault_tables import judged, table_of_kills, table_of_verdicts, table_of_walls
from simulated import Triage, accuracy

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "faults.json"
PACKAGES = ("dspy", "gepa", "optuna", "litellm", "tfgrpo-dspy")
TOO_LONG_S = 180
SECTIONS = ("metric", "program", "reflection", "provider", "key", "hang", "walls", "kill")
LATENCIES_S = (0.0, 0.05)
KILL_LATENCY_S = 0.004
JOBS = 2
JOBS_THAT_WAIT = 6
"""Runs that mostly sleep may be so many at once."""

Given = dict[str, Any]


def run(given: Given, folder: Path, kill_after: int | None = None) -> dict[str, Any]:
    """The outcome of one cell, in a child process; `{"raised": ...}` if it had to be ended.

    With `kill_after`, SIGKILL when its call log has so many lines; then {} comes back.
    """
    out = folder / "out.json"
    out.unlink(missing_ok=True)
    given = {**given, "out": str(out)}
    environment = {**os.environ, "DSPY_CACHEDIR": str(folder / "cache")}
    child = subprocess.Popen(
        [sys.executable, str(HERE / "fault_cells.py"), json.dumps(given)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    tail: list[bytes] = []
    reader = threading.Thread(target=lambda: tail.append(child.stderr.read()[-500:]))
    reader.start()
    try:
        if kill_after is not None:
            wait_for_lines(Path(given["log_path"]), kill_after, child)
            child.kill()
        child.wait(TOO_LONG_S)
    except subprocess.TimeoutExpired:
        child.kill()
    reader.join()
    if out.exists():
        return json.loads(out.read_text(encoding="utf-8"))
    why = tail[0].decode(errors="replace").strip().rpartition("\n")[2]
    return {} if kill_after is not None else {"raised": f"no answer after {TOO_LONG_S} s {why}"}


def wait_for_lines(path: Path, n: int, child: subprocess.Popen[bytes]) -> None:
    """Return when the file has n lines, or the child has ended."""
    tick = threading.Event()
    while child.poll() is None and len(calls_of(path)) < n:
        tick.wait(0.002)


def calls_of(path: Path) -> list[str]:
    """The calls in a log, by their keys."""
    if not path.exists():
        return []
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line]


def in_parallel(cells: Sequence[Given], jobs: int, work: Callable[[Given, Path], Any]) -> list[Any]:
    """The result for each, each with a folder of its own."""

    def one(given: Given) -> Any:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return work(given, Path(folder))

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, cells))


# ---------------------------------------------------------------------- the verdicts


def verdicts(sections: Sequence[str], optimizers: Sequence[str]) -> list[dict[str, Any]]:
    """All cells of these sections, judged."""
    untouched = accuracy(Triage(), HELD_OUT)
    names = [name for name, row in ROWS.items() if row.section in sections]
    waiting = [name for name in reversed(names) if ROWS[name].section in ("provider", "hang")]
    cells = []
    for group, jobs in ((["none", *names], JOBS), (waiting, JOBS_THAT_WAIT)):
        chosen = [name for name in group if (name in waiting) == (group is waiting)]
        given = [{"optimizer": o, "fault": name} for name in chosen for o in optimizers]
        done = in_parallel(given, jobs, cell_of)
        cells += [{**g, **d} for g, d in zip(given, done, strict=True)]
    faultless = {cell["optimizer"]: cell for cell in cells if cell["fault"] == "none"}
    return [judged(cell, faultless[cell["optimizer"]], untouched) for cell in cells]


def cell_of(given: Given, folder: Path) -> dict[str, Any]:
    """One cell of the table of verdicts; our optimizer has a store, as it is meant to be used."""
    log_dir = str(folder / "store") if given["optimizer"] == "TrainingFreeGRPO" else ""
    unknown = {"is_hopeless": False, "n_policy_calls": 0, "n_reflection_calls": 0, "wall_s": 0.0}
    return unknown | run({**given, "log_dir": log_dir}, folder)


# ---------------------------------------------------------------------- wall times, kills


def walls(optimizers: Sequence[str]) -> list[dict[str, Any]]:
    """Wall times without refusals, with an ideal client, and as they are."""
    faults = ("none", "ideal client", "rate limit lm15")
    given = [
        {"optimizer": o, "fault": fault, "latency_s": latency_s}
        for latency_s in LATENCIES_S
        for o in optimizers
        for fault in faults
    ]
    waits = [g["fault"] == "rate limit lm15" for g in given]
    done: dict[int, dict[str, Any]] = {}
    for wanted, jobs in ((False, JOBS), (True, JOBS_THAT_WAIT)):
        places = [place for place, wait in enumerate(waits) if wait == wanted]
        results = in_parallel([given[place] for place in places], jobs, cell_of)
        done |= dict(zip(places, results, strict=True))
    rows = []
    for first in range(0, len(given), len(faults)):
        alone, ideal, refused = (done[first + place] for place in range(len(faults)))
        rows.append(
            {
                **{name: given[first][name] for name in ("optimizer", "latency_s")},
                "n_calls": refused["n_policy_calls"] + refused["n_reflection_calls"],
                "n_refused": refused.get("n_faults"),
                "without_s": alone["wall_s"],
                "ideal_s": ideal["wall_s"],
                "refused_s": refused["wall_s"],
                "ratio_to_without": refused["wall_s"] / alone["wall_s"],
                "ratio_to_ideal": refused["wall_s"] / ideal["wall_s"],
            }
        )
    return rows


def kills(optimizers: Sequence[str]) -> list[dict[str, Any]]:
    """For each optimizer, with DSPy's cache and without: killed at half, and started again."""
    given = [{"optimizer": o, "cache": cache} for cache in (True, False) for o in optimizers]
    return in_parallel(given, JOBS, killed_and_started_again)


def killed_and_started_again(given: Given, folder: Path) -> dict[str, Any]:
    """Three runs: uninterrupted; killed at half of its calls; the same again."""
    common = {**given, "fault": "none", "latency_s": KILL_LATENCY_S, "disk": given["cache"]}
    has_log_dir = given["optimizer"] != "SIMBA"

    def described(name: str, where: str) -> tuple[Given, Path]:
        place = folder / where
        place.mkdir(exist_ok=True)
        log_dir = str(place / "store") if has_log_dir else ""
        return {**common, "log_dir": log_dir, "log_path": str(folder / f"{name}.log")}, place

    whole = run(*described("whole", "a"))
    n_whole = len(calls_of(folder / "whole.log"))
    run(*described("killed", "b"), kill_after=n_whole // 2)
    again = run(*described("again", "b"))
    logs = [Counter(calls_of(folder / f"{name}.log")) for name in ("whole", "killed", "again")]
    uninterrupted, before, after = logs
    repeated = sum(
        max(0, before[key] + after[key] - max(uninterrupted[key], before[key], after[key]))
        for key in before | after
    )
    same = [(r.get("instructions"), r.get("n_demos"), r.get("reported")) for r in (whole, again)]
    return {
        **given,
        "log_dir": has_log_dir,
        "n_uninterrupted": n_whole,
        "n_before_kill": before.total(),
        "n_after": after.total(),
        "n_repeated": repeated,
        "same_result": same[0] == same[1] and same[0][0] is not None,
        "raised": again.get("raised", ""),
        "wall_s": whole.get("wall_s"),
        "wall_after_s": again.get("wall_s"),
    }


def merged(old: Sequence[Given], new: Sequence[Given], names: Sequence[str]) -> list[Given]:
    """The new rows, and the old ones that they do not replace, in the order of the optimizers."""

    def key(row: Given) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    rows = {key(row): row for row in [*old, *new]}
    return list(rows.values())


def main() -> None:
    """Run what is chosen, print it, and write all results."""
    parser = argparse.ArgumentParser(description="Faults against four optimizers, simulated.")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--optimizers", nargs="+", choices=[*OPTIMIZERS], default=list(OPTIMIZERS))
    chosen = parser.parse_args()
    started = time.monotonic()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    cells, wall_rows, kill_rows = (known.get(name, []) for name in ("cells", "walls", "kills"))
    if set(chosen.only) - {"walls", "kill"}:
        new = verdicts(chosen.only, chosen.optimizers)
        cells = merged(cells, new, ("fault", "optimizer"))
    if "walls" in chosen.only:
        wall_rows = merged(wall_rows, walls(chosen.optimizers), ("latency_s", "optimizer"))
    if "kill" in chosen.only:
        kill_rows = merged(kill_rows, kills(chosen.optimizers), ("cache", "optimizer"))
    result = {
        "simulated": True,
        "seeds": {"luck, faults": "fixed, see simulated.py", "optimizers": "their defaults"},
        "threads": THREADS,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "untouched": accuracy(Triage(), HELD_OUT),
        "cells": cells,
        "walls": wall_rows,
        "kills": kill_rows,
    }
    text = "\n\n".join(
        ["# Faults (simulated task and LM; rules in benchmarks/faults.py)"]
        + ([table_of_verdicts(cells)] if cells else [])
        + (
            ["## Wall time, 20 % of first attempts refused", table_of_walls(wall_rows)]
            if wall_rows
            else []
        )
        + (
            ["## SIGKILL at half, then started again", table_of_kills(kill_rows)]
            if kill_rows
            else []
        )
    )
    print(text)
    print(f"\n{time.monotonic() - started:.0f} s")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
