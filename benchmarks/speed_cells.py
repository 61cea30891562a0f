"""The single measurements of `speed.py`, each run in a process of its own; JSON comes back.

    python benchmarks/speed_cells.py '{"kind": "timed", ...}'

Memory is the process's own peak resident size as Linux counts it, set back before what is measured.
"""

import contextvars
import gc
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import simulated
import speed_lm
from flat_settings import grouped
from simulated import SimulatedEngine, Triage, examples
from speed_graph import (
    VALIDATION_START,
    Shape,
    Task,
    compile_graph,
    critical_path_s,
    makespan,
    reference_graph,
    rollouts_graph,
    work_s,
)
from speed_lm import Latency, SpeedEngine, lms
from speed_others import OTHERS, Given, number, ours
from speed_reference import Reference

from tfgrpo_dspy import Gate, NoGate, TrainingFreeGRPO
from tfgrpo_dspy.rollout import SEED_RANGE

Cell = dict[str, Any]
VALIDATION_OF_OTHERS = 100_000
"""The number of the first validation case that the other optimizers are given."""
MOST_WITH_GATE = 500
"""Examples for which ours with its gate stands beside the other optimizers."""
MOST_HELD_OUT = 100
"""Its validation set then, which it would hold out by itself."""


AS_MEASURED = {
    **{"group_size": 5, "epochs": 3, "drafts": 0, "max_demos": 0, "max_staleness": 1},
    "failure_analysis": False,
}


def compiled(
    engine: Any, trainset: Sequence[dspy.Example], valset: Any = None, **given: Any
) -> Any:
    """Our whole compile, failure analysis off, so that only groups with contrast teach."""
    policy, reflection = lms(engine)
    settings = {"gate": NoGate(), "num_threads": 16, "progress": False} | AS_MEASURED
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        optimizer = TrainingFreeGRPO(number, reflection_lm=reflection, **grouped(settings | given))
        return optimizer.compile(Triage(), trainset=list(trainset), valset=valset)


def bare(policy: Any, cases: Sequence[dspy.Example], n_calls: int, threads: int = 16) -> None:
    """So many calls of the program in a thread pool, over the cases again and again."""
    program = Triage()

    def call(case: dspy.Example) -> None:
        program(**case.inputs())

    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()), ThreadPoolExecutor(threads) as pool:
        done = [
            pool.submit(contextvars.copy_context().run, call, cases[n % len(cases)])
            for n in range(n_calls)
        ]
        for future in done:
            future.result()


def clocked(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of it."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


# ---------------------------------------------------------------------- overhead


def overhead(given: Cell) -> Cell:
    """Rounds of bare calls, a compile in memory, one on disk, the reference's loop, in turn."""
    cases, epochs = examples(given["n_examples"]), given["epochs"]
    n_calls: dict[str, int] = {}

    def compile_into(name: str, **where: Any) -> None:
        engine = SpeedEngine()
        compiled(engine, cases, epochs=epochs, batch_size=20, **where)
        n_calls[name] = engine.n_calls.total()

    def on_disk() -> None:
        compile_into("disk", log_dir=folders.pop())

    def loop() -> None:
        engine = SpeedEngine()
        policy, reflection = lms(engine)
        shape = Shape(len(cases), epochs, 20)
        with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
            Reference(shape, Triage(), reflection, 16).run(cases, number)
        n_calls["reference"] = engine.n_calls.total()

    def bare_calls() -> None:
        bare(lms(SpeedEngine())[0].copy(temperature=0.7, seed=1), cases, n_calls["memory"])

    arms = {
        "memory": lambda: compile_into("memory"),
        "bare": bare_calls,
        "disk": on_disk,
        "reference": loop,
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        folders = [Path(folder) / str(n) for n in range(given["rounds"] + 1)]
        bare(lms(SpeedEngine())[0], cases, 200)
        rounds = []
        for n in range(given["rounds"]):
            names = list(arms) if n % 2 == 0 else ["memory", "disk", "bare", "reference"]
            rounds.append({name: clocked(arms[name]) for name in names})
    return {"rounds": rounds, "n_calls": n_calls | {"bare": n_calls["memory"]}}


def overhead_of_others(given: Cell) -> Cell:
    """The same for DSPy's optimizers, and ours with its gate, on the task that can be learned."""
    cases, n_calls = examples(given["n_examples"]), {}
    validation = examples(given["n_examples"], VALIDATION_OF_OTHERS)
    optimizers = dict(OTHERS)
    if len(cases) <= MOST_WITH_GATE:
        optimizers["TrainingFreeGRPO, its gate"] = ours
    rounds: list[Cell] = []
    for _ in range(given["rounds"]):
        done: Cell = {}
        for name, optimize in optimizers.items():
            engine = SimulatedEngine()
            policy, reflection = simulated.lms(engine, cache=False)
            own = validation[:MOST_HELD_OUT] if optimize is ours else validation
            task = Given(reflection, cases, own, 16)
            with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
                done[name] = clocked(lambda run=optimize, task=task: run(task))
            n_calls[name] = sum(engine.n_calls.values())
        n_calls["bare"] = min(5_000, max(n_calls.values()))
        policy = simulated.lms(SimulatedEngine(), cache=False)[0].copy(temperature=0.7)
        done["bare"] = clocked(lambda p=policy: bare(p, cases, n_calls["bare"]))
        rounds.append(done)
    return {"rounds": rounds, "n_calls": n_calls}


# ---------------------------------------------------------------------- latency


def timed(given: Cell) -> Cell:
    """One compile, the reference's loop, or bare calls, under latency; beside its ideal."""
    shape, latency = Shape(**given["shape"]), Latency(**given["latency"])
    engine, threads = SpeedEngine(latency), given["threads"]
    cases = examples(shape.n_examples)
    graph_of, run = SCHEDULES[given["schedule"]]
    graph = graph_of(shape, latency)
    ideal_s = makespan(graph, threads)
    bare(lms(SpeedEngine())[0], cases, 50)  # what a first use loads is not the schedule's
    clock = clocked(lambda: run(shape, engine, threads, cases))
    return {
        **clock,
        "n_calls": dict(engine.n_calls),
        "busy_s": engine.busy_s,
        "utilisation": engine.busy_s / (threads * clock["wall_s"]),
        "ideal_s": ideal_s,
        "ideal_utilisation": work_s(graph) / (threads * ideal_s),
        "share_of_ideal": ideal_s / clock["wall_s"],
        "critical_path_s": critical_path_s(graph),
        "is_same_graph": _samples(graph) == sorted((c.stage, str(c.sample)) for c in engine.calls),
        "late_s": sum(c.ended_s - c.began_s for c in engine.calls) - engine.busy_s,
    }


def _ours(shape: Shape, engine: SpeedEngine, threads: int, cases: Sequence[dspy.Example]) -> None:
    compiled(
        engine,
        cases,
        examples(shape.n_trials, VALIDATION_START) if shape.n_trials else None,
        gate=Gate() if shape.n_trials else NoGate(),
        epochs=shape.epochs,
        batch_size=shape.batch_size,
        max_staleness=shape.staleness,
        summarize_always=shape.all_calls,
        update_per_group=shape.all_calls,
        seed=shape.seed,
        num_threads=threads,
    )


def _reference(
    shape: Shape, engine: SpeedEngine, threads: int, cases: Sequence[dspy.Example]
) -> None:
    policy, reflection = lms(engine)
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        Reference(shape, Triage(), reflection, threads).run(cases, number)


def _bare_calls(
    shape: Shape, engine: SpeedEngine, threads: int, cases: Sequence[dspy.Example]
) -> None:
    """The rollouts alone, in no order: what this machine can do at the moment."""
    policy, program = lms(engine)[0].copy(temperature=0.7), Triage()

    def call(task: Task) -> None:
        with dspy.context(lm=policy.copy(seed=task.sample % SEED_RANGE)):
            program(**cases[task.sample % len(cases)].inputs())

    graph = rollouts_graph(shape, engine.latency)
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()), ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(contextvars.copy_context().run, call, task) for task in graph]
        for future in done:
            future.result()


SCHEDULES = {
    "ours": (compile_graph, _ours),
    "reference": (reference_graph, _reference),
    "bare calls": (rollouts_graph, _bare_calls),
}


def _samples(graph: Sequence[Task]) -> list[tuple[str, str]]:
    """Stage and sample of each call in a graph, as the engine notes them."""
    calls = [(t.stage, t.sample) for t in graph if not t.is_join]
    return sorted((s, str(x % SEED_RANGE if isinstance(x, int) else x)) for s, x in calls)


class _Slow:
    """Makes a request of `simulated.py`'s LM wait; the time belongs to the request."""

    def __init__(self, latency: Latency) -> None:
        self.engine = SpeedEngine(latency)

    def __call__(self, asked: Any) -> None:
        self.engine._wait(self.engine.latency, "request", asked.key)  # noqa: SLF001


def timed_other(given: Cell) -> Cell:
    """One of DSPy's optimizers under latency; which calls it makes may depend on timing."""
    slow = _Slow(Latency(**given["latency"]))
    engine = SimulatedEngine(slow)
    policy, reflection = simulated.lms(engine, cache=False)
    n_examples = 100 if given["optimizer"] == "SIMBA" else 50  # it has no validation set
    validation = examples(50, VALIDATION_OF_OTHERS)
    task = Given(reflection, examples(n_examples), validation, given["threads"], True)
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        clock = clocked(lambda: OTHERS[given["optimizer"]](task))
    busy_s = slow.engine.busy_s
    return {
        **clock,
        "n_calls": dict(engine.n_calls),
        "busy_s": busy_s,
        "utilisation": busy_s / (given["threads"] * clock["wall_s"]),
    }


# ---------------------------------------------------------------------- memory, scale, coordinator


def resident_mb(name: str) -> float:
    """`VmRSS`, the resident size now, or `VmHWM`, its peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def watched(work: Callable[[], Any]) -> dict[str, float]:
    """Time of it, and by how much the resident size rose above what it was."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is what is now
    before = resident_mb("VmRSS")
    clock = clocked(work)
    return {**clock, "before_mb": before, "growth_mb": resident_mb("VmHWM") - before}


def memory(given: Cell) -> Cell:
    """Peak above what the process has with program, LM and data loaded and a few calls made."""
    cases, name = examples(given["n_examples"]), given["optimizer"]
    validation = examples(given["n_examples"], VALIDATION_OF_OTHERS) if name in OTHERS else []
    engine: Any = SimulatedEngine() if name in OTHERS else SpeedEngine()
    policy, reflection = (simulated if name in OTHERS else speed_lm).lms(engine)

    def work() -> None:
        if name == "bare":
            bare(policy, cases, len(cases))
        elif name in OTHERS:
            OTHERS[name](Given(reflection, cases, validation, 16))
        else:
            where = {"log_dir": Path(folder) / "run"} if name.endswith("disk") else {}
            compiled(engine, cases, epochs=given["epochs"], batch_size=20, **where)

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        dspy.context(lm=policy, adapter=dspy.ChatAdapter(), disable_history=not given["history"]),
    ):
        bare(policy, cases, 200)
        done = watched(work)
    return {**done, "n_calls": sum(engine.n_calls.values())}


def scale(given: Cell) -> Cell:
    """A run of a fixed number of rollouts over so many examples, the first of a process."""
    cases: list[dspy.Example] = []
    reading = watched(lambda: cases.extend(examples(given["n_examples"])))
    engine = SpeedEngine()
    bare(lms(SpeedEngine())[0], cases, 200)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        where = {"log_dir": Path(folder) / "run"} if given["disk"] else {}
        valset = examples(given["n_validation"], VALIDATION_OF_OTHERS)
        limit = given["n_rollouts"] + 2 * len(valset)
        done = watched(
            lambda: compiled(
                engine, cases, valset, epochs=40, batch_size=20, max_metric_calls=limit, **where
            )
        )
    return {**done, "reading": reading, "n_calls": dict(engine.n_calls)}


def coordinator(given: Cell) -> Cell:
    """Rollouts per second taken in from processes, with instant tasks."""
    cases = examples(given["n_examples"])
    with ProcessPoolExecutor(given["processes"]) as executor:
        for epochs in (1, given["epochs"]):  # the first starts the processes
            engine = SpeedEngine()
            clock = clocked(
                lambda engine=engine, epochs=epochs: compiled(
                    engine, cases, executor=executor, epochs=epochs, batch_size=100
                )
            )
    n_rollouts = len(cases) * 5 * given["epochs"]
    return {**clock, "n_rollouts": n_rollouts, "per_second": n_rollouts / clock["wall_s"]}


KINDS: dict[str, Callable[[Cell], Cell]] = {
    kind.__name__: kind
    for kind in (
        overhead,
        overhead_of_others,
        timed,
        timed_other,
        memory,
        scale,
        coordinator,
    )
}


def main() -> None:
    """Measure what the first argument describes; what came of it is the last line."""
    given = json.loads(sys.argv[1])
    logging.disable(logging.WARNING)
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    result = KINDS[given["kind"]](given)
    print(json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
