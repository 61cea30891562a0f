"""What one coordinator can take in: rollouts per second from processes whose tasks take no time.

The LM is an engine that answers at once (simulated), the metric compares two strings, nothing is
learned: what is left is what a rollout costs by itself. Measured for a pool of two processes,
without a store and with one, and for a local dask cluster of two: rollouts per second, and the CPU
time that the coordinator's process takes for each (dask's scheduler runs in it too). Then what an
errand in flight holds in memory, and the sizes of what travels.

    python benchmarks/coordinator.py [--rollouts 2000] [--repeats 5] [--only KIND] [--profile]
"""

import argparse
import cProfile
import itertools
import json
import multiprocessing
import os
import platform
import pstats
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import distributed
import dspy
from replay import InstantEngine

from tfgrpo_dspy import Execution, ExperienceLibrary, NoGate, Reflection, TrainingFreeGRPO
from tfgrpo_dspy.budget import Budget, Ledger
from tfgrpo_dspy.experience import Experience
from tfgrpo_dspy.pipeline.errands import Errand, Parcel, packed_library, run_errand
from tfgrpo_dspy.pipeline.remote import RemoteWorkers
from tfgrpo_dspy.pipeline.workers import Workers

RESULTS = Path(__file__).parent / "results" / "coordinator.json"
GROUP_SIZE = 5
BAR = 500.0
N_HELD = 2000
PROGRAM = "question -> answer"


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> float:  # noqa: ARG001
    return 1.0 if pred.answer else float(pred.answer == example.answer)


def examples(n: int) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"What is {i} modulo seven?", answer=str(i % 7)).with_inputs(
            "question"
        )
        for i in range(n)
    ]


def instant_lm() -> dspy.LM:
    return dspy.LM("instant", engine=InstantEngine(), cache=False)


def compiled(executor: Executor, n_rollouts: int, log_dir: Path | None) -> None:
    with dspy.context(lm=instant_lm()):
        TrainingFreeGRPO(
            metric,
            gate=NoGate(),
            group_size=GROUP_SIZE,
            epochs=1,
            batch_size=20,
            reflection=Reflection(drafts=0),
            execution=Execution(executor=executor),
            log_dir=log_dir,
            progress=False,
        ).compile(dspy.Predict(PROGRAM), trainset=examples(n_rollouts // GROUP_SIZE))


@contextmanager
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@contextmanager
def dask() -> Iterator[Executor]:
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client:
        yield client.get_executor()


def measured(executor: Executor, n_rollouts: int, on_disk: bool) -> dict[str, float]:
    """One compile: rollouts per second, and the coordinator's CPU time for each."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        compiled(executor, n_rollouts, Path(folder) if on_disk else None)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"per_s": n_rollouts / wall, "cpu_ms": 1000 * cpu / n_rollouts}


KINDS = {"processes": processes, "dask": dask}


def throughput(kinds: list[str], n_rollouts: int, repeats: int) -> dict[str, Any]:
    """Of each kind of executor, medians over the repeats; memory and disk in turn."""
    found: dict[str, Any] = {}
    for name in kinds:
        begin = KINDS[name]
        with begin() as executor:
            compiled(executor, 200, None)  # the workers import what they need
            rows: dict[bool, list[dict[str, float]]] = {False: [], True: []}
            for _, on_disk in itertools.product(range(repeats), (False, True)):
                rows[on_disk].append(measured(executor, n_rollouts, on_disk))
        for on_disk, values in rows.items():
            label = f"{name}, {'on disk' if on_disk else 'in memory'}"
            found[label] = {
                key: round(statistics.median(v[key] for v in values), 3) for key in values[0]
            } | {"best_per_s": round(max(v["per_s"] for v in values), 1)}
    return found


def nothing(number: int) -> int:
    return number


def bare_dask(n_tasks: int) -> float:
    """CPU time in ms of client and scheduler for a task that does nothing, four at a time."""
    with dask() as executor:
        executor.submit(nothing, -1).result()
        waiting: list[Future[int]] = []
        cpu = time.process_time()
        for number in range(n_tasks):
            waiting.append(executor.submit(nothing, number))
            if len(waiting) == 4:
                waiting.pop(0).result()
        for future in waiting:
            future.result()
        return round(1000 * (time.process_time() - cpu) / n_tasks, 2)


class Held(Executor):
    """Keeps what it is given, as a cluster does whose rollouts take long."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.given.append((fn, args, kwargs))
        return Future()


def in_flight() -> dict[str, float]:
    """What an errand holds while it is away, and the sizes of what travels, in kB."""
    library = ExperienceLibrary(
        [Experience(f"E{i}", f"When it is {i}, " + "say what it is. " * 5) for i in range(1, 31)]
    )
    with dspy.context(lm=instant_lm()):
        parcel = Parcel.of(dspy.Predict(PROGRAM), metric, 0.7, {})
        held, workers = Held(), Workers(1)
        remote = RemoteWorkers(held, N_HELD, N_HELD, Ledger(), workers.finished)
        errands = [Errand(packed_library(library), e, i, i) for i, e in enumerate(examples(N_HELD))]
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for errand in errands:
            remote.start(remote.new_task(), parcel, errand, (0,))
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        packed = held.given[0][1][2]
        outcome = run_errand(parcel.key, parcel.blob, packed, Budget(), "one")
        cpu = time.process_time()
        for given in held.given[:500]:
            run_errand(parcel.key, None, given[1][2], Budget(), "one")
        cpu = time.process_time() - cpu
    return {
        "worker_cpu_ms": round(1000 * cpu / 500, 3),
        "held_per_errand_kb": round(taken / N_HELD / 1000, 2),
        "parcel_kb": round(len(parcel.blob) / 1000, 2),
        "errand_kb": round(len(packed) / 1000, 2),
        "outcome_kb": round(len(cloudpickle.dumps(outcome)) / 1000, 2),
    }


def profiled(n_rollouts: int) -> None:
    """Where the CPU time of the coordinator's own thread goes."""
    with processes() as executor, tempfile.TemporaryDirectory() as folder:
        compiled(executor, 200, None)
        for log_dir in (None, Path(folder)):
            profile = cProfile.Profile(time.thread_time)
            profile.runcall(compiled, executor, n_rollouts, log_dir)
            stats = pstats.Stats(profile)
            stats.sort_stats("cumulative").print_stats("tfgrpo_dspy|submit|get|dumps", 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    if arguments.profile:
        profiled(arguments.rollouts)
        return
    found = throughput(arguments.only, arguments.rollouts, arguments.repeats)
    sizes = in_flight()
    if "dask" in arguments.only:
        sizes["bare_dask_task_cpu_ms"] = bare_dask(arguments.rollouts)
    for label, row in found.items():
        print(f"{label:30} {row['per_s']:8.0f} rollouts/s {row['cpu_ms']:8.3f} ms CPU each")
    print(*(f"{name} {value}" for name, value in sizes.items()), sep="\n")
    if "processes" in arguments.only:
        per_s = found["processes, in memory"]["per_s"]
        print(f"bar of {BAR:.0f} per second: {'kept' if per_s >= BAR else 'NOT kept'}")
    versions = {"python": platform.python_version(), "dspy": dspy.__version__}
    versions["distributed"] = distributed.__version__
    load = os.getloadavg()[0]
    result = {"throughput": found, "costs": sizes, "versions": versions, "load": load}
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
