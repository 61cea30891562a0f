"""Does a probe of at most 40 LM calls say whether a run gains? Random worlds. NOTHING IS REAL.

    python benchmarks/probe.py --runs FILE [--show-half]      # FILE: of random_worlds.py, 400 calls

A probe is made in each world of the file; then its chance is compared with what the run gained.
`--fit` prints the constants of `results/probe.py`, of seeds below 1000.
"""

import argparse
import json
import statistics
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dspy
import numpy as np
from random_world_engine import RandomEngine, lms_of
from random_world_model import World, traits_of
from random_worlds import FIRST_SHOWN, RESULTS, task_of
from running import silence, stored, versions
from scipy.stats import mannwhitneyu

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.results.probe import features
from tfgrpo_dspy.results.records import Gain

BUDGET, GAIN = 400, 0.05


def probed(record: dict[str, Any]) -> dict[str, Any]:
    """The probe of a world, and what the run gained there."""
    seed = record["seed"]
    world = World(traits_of(seed), seed)
    task, (policy, reflection) = task_of(world), lms_of(RandomEngine(world))
    with silence(), dspy.context(lm=policy.copy(cache=False)):
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
        optimizer = TrainingFreeGRPO(
            task.metric, reflection_lm=reflection, max_lm_calls=BUDGET, seed=seed,
            num_threads=1, progress=False,
        )  # fmt: skip
        probe = optimizer.probe(task.student(), trainset=[*task.train], valset=[*task.val])
    gain = record["score"] - record["student"]
    return {"seed": seed, "run": gain, "nothing": record["traits"]["nothing"], **asdict(probe)}


def auc(rows: list[dict[str, Any]]) -> float:
    """The probability that a world that gains has the higher chance."""
    good = [row["chance"] or 0.5 for row in rows if row["run"] > GAIN]
    bad = [row["chance"] or 0.5 for row in rows if row["run"] <= GAIN]
    return float(mannwhitneyu(good, bad).statistic) / (len(good) * len(bad))


def fit(rows: list[dict[str, Any]]) -> None:
    """Print the constants: a logistic and a linear ridge regression."""

    def gain(row: dict[str, Any], name: str) -> Gain | None:
        return Gain(**row[name]) if row[name] else None

    x = np.array([features(1 - r["student"]["mean"], gain(r, "demos"), gain(r, "advice"))
                  for r in rows])  # fmt: skip
    run = np.array([row["run"] for row in rows])
    y, w = (run > GAIN).astype(float), np.zeros(x.shape[1])
    ridge = np.diag([0.01, *[0.3] * (x.shape[1] - 1)])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        w -= np.linalg.solve((x.T * (p * (1 - p))) @ x + ridge, x.T @ (p - y) + ridge @ w)
    refitted = [row | {"chance": float(c)} for row, c in zip(rows, x @ w, strict=True)]
    print(f"AUC of the fit, on the same worlds: {auc(refitted):.3f}")
    print("CHANCE", w.round(2).tolist())
    print("GAIN", np.linalg.solve(x.T @ x + ridge, x.T @ run).round(2).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--show-half", action="store_true", help="seeds from 1000 on")
    parser.add_argument("--fit", action="store_true")
    asked = parser.parse_args()
    records = {r["seed"]: r for path in asked.runs for r in stored(path)
               if (r["row"], r["budget"], r["shape"]) == ("tfgrpo", BUDGET, "")
               and (r["seed"] >= FIRST_SHOWN) == asked.show_half}  # fmt: skip
    rows = [probed(record) for _, record in sorted(records.items())]
    if asked.fit:
        fit(rows)
    error = statistics.fmean(abs((row["gain"] or 0) - row["run"]) for row in rows)
    print(f"{len(rows)} worlds, {sum(r['run'] > GAIN for r in rows)} gain: AUC {auc(rows):.3f}, "
          f"most calls {max(r['n_lm_calls'] for r in rows)}, mean error {error:.3f}")  # fmt: skip
    for low in (0.0, 0.4, 0.7, 0.9):
        high = {0.0: 0.4, 0.4: 0.7, 0.7: 0.9, 0.9: 1.01}[low]
        part = [row["run"] > GAIN for row in rows if low <= (row["chance"] or 0.5) < high]
        if part:
            print(f"  chance {low} to {high}: {sum(part)} of {len(part)} gain")
    if asked.show_half:
        made_by = {"runs_of_commit": next(iter(records.values())).get("commit")}
        found = {
            "versions": versions("numpy"),
            "date": datetime.now(UTC).date().isoformat(),
            **made_by,
        }
        found |= {"seeds": [r["seed"] for r in rows], "auc": auc(rows)}
        (RESULTS / "probe.json").write_text(json.dumps(found | {"rows": rows}, default=str) + "\n")


if __name__ == "__main__":
    main()
