"""What overlapping batches costs in learning and brings in time: `max_staleness` 0, 1 and 2.

    python benchmarks/staleness.py

Simulated task and LM (`simulated.py`); latencies are lognormal (sigma 1.0, median below), drawn
from the prompt, so they are the same for each staleness. Two tables. *Learning*: 24 training, 24
validation and 60 held-out cases, one epoch in batches of 6 (with three, all learn everything), else
defaults, seeds 0 to 9, median latency 10 ms: held-out accuracy (exact, without luck), LM calls
and wall time, beside staleness 0 of the same seed. *Utilisation*: 100 cases, groups of 5, 3 epochs,
batches of 25, no gate, median latency 50 ms: the sum of all latencies over threads x wall time. 16
threads. Writes `results/staleness.json`.
"""

import json
import logging
import math
import platform
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import dspy
from flat_settings import grouped
from simulated import SimulatedEngine, Triage, accuracy, examples, lms, with_feedback

from tfgrpo_dspy import NoGate, TrainingFreeGRPO

RESULTS = Path(__file__).parent / "results" / "staleness.json"
STALENESS = (0, 1, 2)
SEEDS = range(10)
THREADS = 16
SIGMA = 1.0


class Slow:
    """Makes each request wait for a time drawn from it, and adds the times up."""

    def __init__(self, median_s: float) -> None:
        self.busy_s = 0.0
        self._median_s = median_s
        self._lock = threading.Lock()
        self._never = threading.Event()

    def __call__(self, asked: Any) -> None:
        drawn = random.Random(f"latency/{asked.key}")
        seconds = self._median_s * math.exp(drawn.gauss(0.0, SIGMA))
        with self._lock:
            self.busy_s += seconds
        self._never.wait(seconds)


def is_answer(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> Any:  # noqa: ARG001
    return with_feedback(example, float(pred.answer == example.answer))


def run(median_s: float, trainset: Any, valset: Any, **settings: Any) -> dict[str, float]:
    slow = Slow(median_s)
    engine = SimulatedEngine(slow)
    policy, reflection = lms(engine, cache=False)
    optimizer = TrainingFreeGRPO(
        is_answer,
        reflection_lm=reflection,
        num_threads=THREADS,
        progress=False,
        **grouped({"group_size": 5, "epochs": 3, "drafts": 0, "max_demos": 0} | settings),
    )
    started = time.perf_counter()
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        program = optimizer.compile(Triage(), trainset=trainset, valset=valset)
    wall = time.perf_counter() - started
    return {
        "accuracy": accuracy(program, examples(60, start=1000)),
        "calls": float(sum(engine.n_calls.values())),
        "wall_s": wall,
        "utilisation": slow.busy_s / (THREADS * wall),
    }


def learning() -> list[dict[str, Any]]:
    rows: dict[int, list[dict[str, float]]] = {staleness: [] for staleness in STALENESS}
    for seed in SEEDS:
        for staleness in STALENESS:
            done = run(
                0.01,
                examples(24),
                examples(24, start=500),
                epochs=1,
                batch_size=6,
                seed=seed,
                max_staleness=staleness,
            )
            rows[staleness].append(done)
    table = []
    for staleness in STALENESS:
        pairs = list(zip(rows[staleness], rows[0], strict=True))
        gains = [own["accuracy"] - base["accuracy"] for own, base in pairs]
        table.append(
            {
                "staleness": staleness,
                "accuracy": statistics.fmean(own["accuracy"] for own, _ in pairs),
                "accuracy_minus_0": statistics.fmean(gains),
                "standard_error": statistics.stdev(gains) / math.sqrt(len(gains)),
                "calls_over_0": statistics.median(own["calls"] / b["calls"] for own, b in pairs),
                "wall_over_0": statistics.median(own["wall_s"] / b["wall_s"] for own, b in pairs),
            }
        )
    return table


def utilisation() -> list[dict[str, Any]]:
    table = []
    for staleness in STALENESS:
        done = run(
            0.05,
            examples(100),
            None,
            gate=NoGate(),
            batch_size=25,
            max_staleness=staleness,
            failure_analysis=False,
        )
        table.append({"staleness": staleness, **done})
    return table


def show(title: str, table: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    print("  ".join(f"{name:>16}" for name in table[0]))
    for row in table:
        print("  ".join(f"{value:>16.3f}" for value in row.values()))


def main() -> None:
    logging.getLogger("tfgrpo_dspy").setLevel(logging.ERROR)
    tables = {"learning": learning(), "utilisation": utilisation()}
    for title, table in tables.items():
        show(f"{title} (simulated LM)", table)
    record = {
        **tables,
        "seeds": list(SEEDS),
        "threads": THREADS,
        "lm": "simulated",
        "dspy": dspy.__version__,
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
