"""How fast a compile is, and what it costs beside the LM calls: on a SIMULATED LM.

    python benchmarks/speed.py [--only overhead utilisation wall memory scale coordinator]

Needs the `bench` extra. Prints a table for each row with its bars, writes `results/speed.json` and
`results/speed.png`; rows that are not chosen stay as they were. Run it on a quiet machine: the
load is noted beside each row. Linux only (memory). Every measurement has a process of its own
(`speed_cells.py`); which belong to a row says `speed_rows.py`.

- *overhead*: an LM that answers at once, 16 threads. Wall and CPU time per LM call of a whole
  compile (no gate, groups of 5, batches of 20), over as many bare calls of the program in a
  ThreadPoolExecutor(16); medians of pairs that alternate in one process. 50 examples are three
  epochs, 500 and 5,000 one; 5,000 are three pairs, each in a process of its own. Beside it the
  reference's schedule as a bare loop; and DSPy's optimizers (`speed_others.py`), on a task that
  can be learned, over bare calls on that one (1 to 3 rounds).
- *utilisation*: lognormal latency (median 50 ms, sigma 1.0), 100 examples x groups of 5 x 3
  epochs, batches of 25: the sum of all latencies over threads x wall time of the compile. *Ideal*
  is the same for the task graph of the very calls, run by a list scheduler without overhead
  (`speed_graph.py`; `same_graph` says that the calls were these). How well any scheduler can do
  depends on when the long calls come, so what is measured are, of 40 draws of latencies, those
  whose ideal is nearest to the median (3 draws for the plain rows, 1 for the others). Beside it,
  for one epoch: the reference's schedule, and its rollouts alone as bare calls in a pool, whose
  share of their ideal is what the machine allowed at that moment.
- *wall*: the reference's schedule (five stages a batch, its calls) over ours, on the same
  questions, answers and latencies; and over ours made to make the reference's calls.
- *memory*: peak resident size above what the process had with program and data loaded and a few
  calls made (`growth`, which the bar is about), and above what 5,000 bare calls add to that;
  5,000 examples, one epoch. DSPy keeps its last 10,000 calls: what that takes is stated apart.
- *scale*: a thousand rollouts of 50 to 50,000 examples, 20 for validation (measured before and
  after, no gate): time and peak memory of the compile, the least of three runs; reading the data
  is stated apart.
- *coordinator*: rollouts a second taken in from a process executor, with an LM that answers at
  once.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from speed_rows import N_DRAWS, ROWS, Line
from speed_tables import plot, table

RESULTS = Path(__file__).parent / "results" / "speed.json"
PACKAGES = ("dspy", "gepa", "optuna", "tfgrpo-dspy")


def provenance() -> dict[str, Any]:
    return {
        "lm": "simulated",
        "seeds": f"seed and latencies: the draws of 0 to {N_DRAWS - 1} nearest to the median ideal",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def write(rows: dict[str, list[Line]], conditions: dict[str, Any]) -> None:
    in_order = {name: rows[name] for name in ROWS if name in rows}
    result = {"rows": in_order, "conditions": conditions, **provenance()}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what is chosen, print it, and write all results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[*ROWS], default=[*ROWS])
    chosen = parser.parse_args().only
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    rows: dict[str, list[Line]] = known.get("rows", {})
    conditions: dict[str, Any] = known.get("conditions", {})
    console = Console(width=max(160, Console().width))
    for name in chosen:
        started = time.perf_counter()
        load = os.getloadavg()[0]
        rows[name] = ROWS[name]()
        seconds = time.perf_counter() - started
        conditions[name] = {
            "date": time.strftime("%Y-%m-%d"),
            "seconds": round(seconds),
            "load_before": load,
            "load_after": os.getloadavg()[0],
        }
        console.print(table(f"{name} (simulated LM)", rows[name]))
        console.print(f"{seconds:.0f} s, load {load:.1f} to {os.getloadavg()[0]:.1f}")
        write(rows, conditions)
    plot(rows, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
