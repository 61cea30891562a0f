"""What stragglers cost, and what staleness, a quorum and hedged rollouts do about them.

    python benchmarks/stragglers.py

Simulated task and LM (`simulated.py`), 16 threads, 60 cases, groups of 5, batches of 10, one epoch,
no gate. Two kinds of latency: *tail*, lognormal (median 20 ms, sigma 1.0), drawn from the prompt;
and *stuck*, 20 ms, but every hundredth call takes 2 s (whichever it is, so a second attempt is
mostly quick). Wall time, median of three runs, the LM calls that came to nothing, and the rollouts
that were left behind. Writes `results/stragglers.json`.
"""

import json
import math
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dspy
from simulated import SimulatedEngine, Triage, examples, lms
from staleness import is_answer

from tfgrpo_dspy import NoGate, TrainingFreeGRPO

RESULTS = Path(__file__).parent / "results" / "stragglers.json"
MEDIAN_S, STUCK_S, STUCK_EVERY = 0.02, 2.0, 100
WAYS: dict[str, dict[str, Any]] = {
    "all are waited for": {},
    "quorum=0.8": {"quorum": 0.8},
    "hedge=True": {"hedge": True},
}
_never = threading.Event()


def tail() -> Callable[[Any], None]:
    """Waits for a time that the prompt decides."""

    def wait(asked: Any) -> None:
        drawn = random.Random(f"latency/{asked.key}").gauss(0.0, 1.0)
        _never.wait(MEDIAN_S * math.exp(drawn))

    return wait


def stuck() -> Callable[[Any], None]:
    """Waits long at every hundredth call."""
    lock, count = threading.Lock(), [0]

    def wait(_asked: Any) -> None:
        with lock:
            count[0] += 1
            is_stuck = count[0] % STUCK_EVERY == 0
        _never.wait(STUCK_S if is_stuck else MEDIAN_S)

    return wait


def run(before: Callable[[Any], None], **settings: Any) -> tuple[float, int, int]:
    """Wall seconds, LM calls that came to nothing, rollouts left behind."""
    lm, reflection_lm = lms(SimulatedEngine(before))
    optimizer = TrainingFreeGRPO(
        is_answer,
        reflection_lm=reflection_lm,
        gate=NoGate(),
        num_threads=16,
        epochs=1,
        batch_size=10,
        progress=False,
        **settings,
    )
    with dspy.context(lm=lm):
        started = time.perf_counter()
        results = optimizer.compile(Triage(), trainset=examples(60)).detailed_results
        seconds = time.perf_counter() - started
    return seconds, results.usage["unfinished"].n_lm_calls, results.failures.get("straggler", 0)


def main() -> None:
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    rows = []
    for kind, latency in {"tail": tail, "stuck": stuck}.items():
        for staleness in (0, 1, 2):
            for way, settings in WAYS.items():
                runs = [run(latency(), max_staleness=staleness, **settings) for _ in range(3)]
                seconds, lost, left = (
                    statistics.median(column) for column in zip(*runs, strict=True)
                )
                rows.append(
                    {
                        "latency": kind,
                        "max_staleness": staleness,
                        "way": way,
                        "wall_s": round(seconds, 2),
                        "calls_for_nothing": lost,
                        "left_behind": left,
                    }
                )
                print(f"{kind:6} {staleness}  {way:20} {seconds:5.2f} s  {lost:3} {left:3}")
    record = {
        "lm": "simulated",
        "versions": {name: version(name) for name in ("dspy", "tfgrpo-dspy")},
        "python": platform.python_version(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
