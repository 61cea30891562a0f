"""What the optimizer costs beside its LM calls, and how it scales. SIMULATED: an LM of canned text.

    python benchmarks/speed.py [--only overhead others replay]

Run it on a quiet machine. Prints a table with the bars and writes `results/speed.json`.

- *overhead*: wall and CPU time per LM call of a whole compile (gate, drafts and final choice
  included), with the default settings, without demos and with, over those of bare calls of the
  program in a pool of as many threads, and over those for each of which DSPy makes a signature, as
  for each prompt with other advice. The LM answers at once. Medians of rounds in which compile and
  bare calls alternate. Beside them: bare calls with 16 demos.
- *others*: the same for GEPA, SIMBA and MIPROv2 on 5,000 examples, one round, beside one epoch of
  this optimizer.
- *replay*: a run of 10,000 rollouts is recorded, then replayed offline in another process, with
  `NoGate()` and with the default gate.
"""

import argparse
import contextvars
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import dspy
import running
from dspy import lm15
from simlm import Prompt, output_fields

import tfgrpo_dspy
from tfgrpo_dspy import Gate, NoGate, Reflection, TrainingFreeGRPO

OUT = running.RESULTS / "speed.json"
PACKAGE = Path(tfgrpo_dspy.__file__).parent
THREADS = 16
RUNS: Sequence[tuple[int, int | None, int]] = (
    *((50, None, 5), (500, 400, 5), (500, 1600, 3)),
    (500, None, 1),
)
"""Examples, `max_lm_calls` and rounds."""
N_OTHERS = 5_000
Row = dict[str, Any]


class CannedEngine:
    """Right in half of the rollouts, by the sample; canned text in every other output field."""

    supported_params = frozenset({"temperature", "max_tokens", "seed"})
    fingerprint = "canned-1"

    def __init__(self) -> None:
        self.n_calls = 0
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "CannedEngine":
        return self

    def __reduce__(self) -> Any:
        return CannedEngine, ()

    def complete(self, request: lm15.Request) -> lm15.Response:
        prompt = Prompt.of(request, "")
        asked = f"{request.config.seed}/{prompt.user}".encode()
        draw = random.Random(hashlib.sha256(asked).digest())
        fields = output_fields(prompt.system)
        note = f"Note {draw.randrange(10**9)}: look twice."
        values: dict[str, Any] = dict.fromkeys(fields.names, note)
        if "answer" in values:
            number = prompt.user.partition("What is ")[2].partition(" ")[0] or "0"
            is_right = draw.random() < 0.5
            values["answer"] = str(int(number) % 7) if is_right else "unsure"
        if "operations" in values:
            values["operations"] = [{"op": "ADD", "text": note, "lessons": [1]}]
        with self._lock:
            self.n_calls += 1
        message = lm15.Message.assistant([lm15.TextPart(fields.formatted(values))])
        usage = lm15.Usage(input_tokens=100, output_tokens=10)
        return lm15.Response(None, request.model, message, "stop", usage)


def metric(gold: Any, pred: Any, trace: Any = None, name: Any = None, steps: Any = None) -> Any:  # noqa: ARG001
    right = float(pred.answer == gold.answer)
    return dspy.Prediction(score=right, feedback="" if right else f"Expected {gold.answer}.")


def number(gold: Any, pred: Any, trace: Any = None) -> float:  # noqa: ARG001
    return float(pred.answer == gold.answer)


def student() -> dspy.Module:
    return dspy.ChainOfThought("question -> answer")


def examples(n: int, first: int = 0) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"What is {k} modulo seven?", answer=str(k % 7)).with_inputs(
            "question"
        )
        for k in range(first, first + n)
    ]


def policy(engine: CannedEngine) -> dspy.LM:
    return dspy.LM("canned/policy", engine=engine, temperature=0.7, cache=False)


def compiled(engine: CannedEngine, cases: Sequence[dspy.Example], **settings: Any) -> Any:
    """Our whole compile; what is not in `settings` is at its default."""
    reflection = dspy.LM("canned/reflection", engine=engine, temperature=1.0, cache=False)
    usual = {"num_threads": THREADS, "progress": False}
    optimizer = TrainingFreeGRPO(metric, reflection_lm=reflection, **usual, **settings)
    with dspy.context(lm=policy(engine), adapter=dspy.ChatAdapter()):
        return optimizer.compile(student(), trainset=list(cases))


def bare(
    cases: Sequence[dspy.Example],
    n_calls: int,
    has_own_instructions: bool = False,
    demos: Sequence[dspy.Example] = (),
) -> None:
    """So many calls of the program, each scored, in a pool of threads.

    With `has_own_instructions`, DSPy makes a signature with instructions of its own for each call.
    """
    program = student()
    program.predict.demos = list(demos)
    signature = program.predict.signature
    count = itertools.count()

    def call(case: dspy.Example) -> None:
        if has_own_instructions:
            signature.with_instructions(f"Answer question {next(count)}.")
        metric(case, program(**case.inputs()))

    lm = policy(CannedEngine())
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()), ThreadPoolExecutor(THREADS) as pool:
        done = [
            pool.submit(contextvars.copy_context().run, call, cases[k % len(cases)])
            for k in range(n_calls)
        ]
        for future in done:
            future.result()


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def over_bare(cases: Sequence[dspy.Example], work: Callable[[CannedEngine], Any]) -> Row:
    """What an LM call costs within `work`, over a bare call."""
    engine = CannedEngine()
    wall, cpu = clocked(lambda: work(engine))
    n_bare = min(engine.n_calls, 10_000)
    bare_wall, bare_cpu = clocked(lambda: bare(cases, n_bare))
    _, own_cpu = clocked(lambda: bare(cases, n_bare, has_own_instructions=True))
    factor = n_bare / engine.n_calls
    return {
        "LM calls": engine.n_calls,
        "wall s": wall,
        "wall ratio": wall * factor / bare_wall,
        "CPU ratio": cpu * factor / bare_cpu,
        "over new signatures": cpu * factor / own_cpu,
    }


# ---------------------------------------------------------------- the rows


def overhead() -> list[Row]:
    rows = []
    bare(examples(50), 200)  # what a first use loads is not counted
    compiled(CannedEngine(), examples(20), max_lm_calls=200)
    for n, most, rounds in RUNS:
        cases, what = examples(n), f"{n} examples, {f'{most:,} calls' if most else 'no budget'}"
        for settings in ({"max_demos": 0}, dict[str, int]()):

            def work(engine: CannedEngine, given: Any = {**settings, "max_lm_calls": most}) -> None:  # noqa: B006
                compiled(engine, cases, **given)  # noqa: B023

            found = [over_bare(cases, work) for _ in range(rounds)]
            middle = {name: median(row[name] for row in found) for name in found[0]}
            rows.append({"what": f"{what}, with demos", **middle})
            if settings:
                rows[-1] |= {"what": what, "bar": "at most 4.0"}
    bounds = {
        "bare calls, 16 demos": {"demos": examples(16)},
        "bare calls, both": {"has_own_instructions": True, "demos": examples(16)},
    }
    return [*rows, *(_bound(what, examples(500), more) for what, more in bounds.items())]


def _bound(what: str, cases: Sequence[dspy.Example], more: Mapping[str, Any]) -> Row:
    """Bare calls with what rollouts have and bare calls have not, over those without."""
    n, rounds = 5_000, []
    for _ in range(3):
        with_more = clocked(lambda: bare(cases, n, **more))
        without = clocked(lambda: bare(cases, n))
        rounds.append([a / b for a, b in zip(with_more, without, strict=True)])
    wall, cpu = map(median, zip(*rounds, strict=True))
    return {"what": what, "LM calls": n, "wall ratio": wall, "CPU ratio": cpu}


def _gepa(lm: dspy.LM, cases: list[dspy.Example]) -> Any:
    optimizer = dspy.GEPA(
        metric, reflection_lm=lm, num_threads=THREADS, max_metric_calls=4 * len(cases)
    )
    return optimizer.compile(student(), trainset=cases, valset=examples(len(cases), 10**6))


def _simba(lm: dspy.LM, cases: list[dspy.Example]) -> Any:
    optimizer = dspy.SIMBA(metric=metric, prompt_model=lm, num_threads=THREADS, max_steps=2)
    return optimizer.compile(student(), trainset=cases)


def _mipro(lm: dspy.LM, cases: list[dspy.Example]) -> Any:
    optimizer = dspy.MIPROv2(number, prompt_model=lm, num_threads=THREADS, auto="light")
    return optimizer.compile(student(), trainset=cases, valset=examples(len(cases), 10**6))


def others() -> list[Row]:
    cases = examples(N_OTHERS)
    ours = over_bare(cases, lambda engine: compiled(engine, cases, epochs=1))
    rows: list[Row] = [{"what": f"TrainingFreeGRPO, {len(cases):,} examples, one epoch", **ours}]
    for name, optimize in (("GEPA", _gepa), ("SIMBA", _simba), ("MIPROv2", _mipro)):

        def work(engine: CannedEngine, optimize: Any = optimize) -> None:
            lm = dspy.LM("canned/reflection", engine=engine, temperature=1.0, cache=False)
            with dspy.context(lm=policy(engine), adapter=dspy.ChatAdapter()):
                optimize(lm, cases)

        rows.append({"what": f"{name}, {len(cases):,} examples", **over_bare(cases, work)})
    return rows


def _recorded(folder: str, offline: bool, gate: Gate | None) -> Row:
    engine = CannedEngine()
    settings: Row = {"group_size": 5, "batch_size": 20, "epochs": 2}
    began = time.perf_counter()
    settings |= {"reflection": Reflection(drafts=0), "gate": gate, "log_dir": folder}
    program = compiled(engine, examples(1_000), offline=offline, **settings)
    seconds, results = time.perf_counter() - began, program.detailed_results
    return {"seconds": seconds, "rollouts": results.metric_calls, "LM calls": engine.n_calls}


def replay() -> list[Row]:
    rows = []
    modes = (("recorded", ""), ("replayed offline", "at most 20 s"))
    for gate in ("NoGate()", "the default gate"):
        with tempfile.TemporaryDirectory() as folder:
            for mode, bar in modes:
                command = [sys.executable, __file__, "--replay", folder, mode, gate]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row = json.loads(done.stdout.splitlines()[-1])
                rows.append({"what": f"{mode}, {gate}", **row, "bar": bar})
    return rows


ROWS: dict[str, Callable[[], list[Row]]] = {
    "overhead": overhead,
    "others": others,
    "replay": replay,
}


def show(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    heads = list(dict.fromkeys(head for row in rows for head in row))
    lines = [
        [f"{row[h]:.3g}" if isinstance(row.get(h), float) else row.get(h, "") for h in heads]
        for row in rows
    ]
    running.show(heads, lines, f"{name} (simulated)")


def main() -> None:
    """Measure the rows, print them, write them; rows that are not chosen stay as they were."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--replay", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    if asked.replay:
        folder, mode, named = asked.replay
        gate = NoGate() if named == "NoGate()" else None
        print(json.dumps(_recorded(folder, mode != "recorded", gate)))
        return
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in asked.only:
        load = os.getloadavg()[0]
        rows = ROWS[name]()
        show(name, rows)
        results[name] = {"rows": rows, "load before": load, "date": time.strftime("%Y-%m-%d")}
        results["versions"] = running.versions("gepa", "optuna")
        results["python"], results["cores"] = sys.version.split()[0], os.cpu_count()
        OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
