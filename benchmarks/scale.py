"""What grows with what: trainsets of 50 to 50,000 examples, libraries of 10 to 1,000 experiences,
trajectories of 1 to 200 steps, each at a fixed number of rollouts.

    python benchmarks/scale.py [--repeats 3] [--only examples experiences steps]

The LM is an engine that answers at once (simulated: it follows no prompt). Each cell is a compile
in a fresh process, `--repeats` times, in turn; the table shows medians. *Start*: processor time of
the compile until its first request to the LM. *CPU*, *wall*: of the whole compile. *Memory*: peak
resident size above what it was before, of which *history* is what DSPy's own call history holds of
prompts and answers (characters; 1 character is about 1 byte). *Bare*: processor time of the bare
`program(...)` on the same number of rollouts, right after, on the program that came back; *ratio*:
CPU over bare: where a prompt or a trajectory is long, so is the work. Writes `results/scale.json`.
"""

import argparse
import hashlib
import json
import logging
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15
from dspy.clients.base_lm import GLOBAL_HISTORY

from tfgrpo_dspy import Experience, ExperienceLibrary, NoGate, Reflection, TrainingFreeGRPO

RESULTS = Path(__file__).parent / "results" / "scale.json"
THREADS = 4
GROUP_SIZE = 5
N_VALIDATION = 20
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty")
EXAMPLES = (50, 500, 5_000, 50_000)
EXPERIENCES = (10, 100, 1_000)
STEPS = (1, 10, 50, 200)


def words(salt: str, n: int) -> str:
    drawn = random.Random(salt)
    return " ".join(drawn.choice(WORDS) for _ in range(n))


class InstantEngine:
    """Answers at once: a pure function of the request. Knows when it was asked first."""

    fingerprint = "instant"
    supported_params = frozenset({"temperature", "max_tokens", "seed"})

    def __init__(self) -> None:
        self.first_request_s: float | None = None
        self.n_calls = 0
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "InstantEngine":
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        with self._lock:
            self.n_calls += 1
            if self.first_request_s is None:
                self.first_request_s = time.process_time()
        system = str(request.system)
        user = "".join(message.text or "" for message in request.messages)
        fields = self._fields(system, user, str(request.config.seed))
        texts = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
        text = "\n\n".join([*texts, "[[ ## completed ## ]]"])
        usage = lm15.Usage(input_tokens=300, output_tokens=20)
        message = lm15.Message.assistant([lm15.TextPart(text)])
        return lm15.Response(None, request.model, message, "stop", usage)

    def _fields(self, system: str, user: str, seed: str) -> dict[str, str]:
        salt = hashlib.sha256(f"{user[-600:]}{seed}".encode()).hexdigest()
        if "`lessons` (list[str])" in system:
            lesson = f"When {words(salt, 3)}, {words(salt[1:], 8)}."
            return {"semantic_advantage": "It says so.", "lessons": json.dumps([lesson])}
        if "`operations`" in system:
            added = f"When {words(salt, 3)}, {words(salt[1:], 8)}."
            return {"operations": json.dumps([{"op": "ADD", "text": added, "lessons": [1]}])}
        if "`query`" in system:
            return {"thought": words(salt, 12), "query": words(salt, 5)}
        return {"reasoning": words(salt, 20), "answer": str(int(salt, 16) % 3)}


def look_up(query: str) -> str:
    """What is known of it."""
    return words(query, 15)


def is_right(example: Any, pred: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    score = float(pred.answer == example.answer)
    return dspy.Prediction(score=score, feedback="Right." if score else f"Not {pred.answer}.")


def examples(n: int, salt: str = "train") -> list[dspy.Example]:
    """Each of about 300 characters."""
    return [
        dspy.Example(
            question=f"{salt} {i}: {words(f'{salt}{i}', 50)}?", answer=str(i % 3)
        ).with_inputs("question")
        for i in range(n)
    ]


class Agent(dspy.Module):
    """Asks and looks up so many times, with the whole history in each prompt, as ReAct does.

    (`dspy.ReAct` itself makes a new signature of all steps at every step: seconds a rollout.)
    """

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps
        self.ask = dspy.Predict("question, history -> thought, query")
        self.conclude = dspy.Predict("question, history -> answer")
        self.look_up = dspy.Tool(look_up)

    def forward(self, question: str) -> dspy.Prediction:
        history = "Nothing is known yet."
        for _ in range(self.n_steps - 1):
            step = self.ask(question=question, history=history)
            found = self.look_up(query=step.query)
            history += f"\nThought: {step.thought}\nQuery: {step.query}\nFound: {found}"
        return self.conclude(question=question, history=history)


def student(cell: dict[str, Any]) -> Any:
    if cell["what"] == "steps":
        return Agent(cell["size"])
    program = dspy.ChainOfThought("question -> answer")
    if cell["what"] != "experiences":
        return program
    texts = [
        f"When {words(f'if {i}', 4)} {i}, {words(f'then {i}', 8)}." for i in range(cell["size"])
    ]
    return ExperienceLibrary(
        [Experience(id=f"E{i}", text=text) for i, text in enumerate(texts, start=1)]
    ).bake(program)


def optimizer(cell: dict[str, Any], log_dir: str | None) -> TrainingFreeGRPO:
    settings: dict[str, Any] = {"max_experiences": 30, "batch_size": 10, "epochs": 100}
    if cell["valset"]:
        settings["gate"] = NoGate()
    if cell["what"] == "experiences":
        settings["max_experiences"] = cell["size"] + 1_000
    if cell["what"] == "steps":
        settings["batch_size"] = 2
    return TrainingFreeGRPO(
        is_right,
        group_size=GROUP_SIZE,
        max_metric_calls=cell["n_rollouts"],
        num_threads=THREADS,
        log_dir=log_dir,
        progress=False,
        max_demos=0,
        reflection=Reflection(drafts=0),
        **settings,
    )


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def history_mb() -> float:
    texts = (
        len(str(message["content"])) for entry in GLOBAL_HISTORY for message in entry["messages"]
    )
    return sum(texts) / 2**20


def measured(cell: dict[str, Any]) -> dict[str, float]:
    """One compile in this process, then as many bare calls of the program."""
    n_examples = cell["size"] if cell["what"] == "examples" else 50
    trainset = examples(n_examples)
    valset = examples(N_VALIDATION, "val")[: cell["valset"]] or None
    program, engine = student(cell), InstantEngine()
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    logging.disable(logging.CRITICAL)
    with (
        tempfile.TemporaryDirectory() as folder,
        dspy.context(lm=dspy.LM("instant", engine=engine, cache=False)),
    ):
        program(**trainset[0].inputs())  # what the first use of DSPy loads is not ours
        engine.first_request_s, engine.n_calls = None, 0
        run = optimizer(cell, folder if cell["log_dir"] else None)
        before_mb, cpu, wall = peak_mb(), time.process_time(), time.perf_counter()
        optimized = run.compile(program, trainset=trainset, valset=valset)
        done = {
            "start_ms": 1000 * ((engine.first_request_s or cpu) - cpu),
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            "memory_mb": peak_mb() - before_mb,
            "history_mb": history_mb(),
            "n_rollouts": float(optimized.detailed_results.metric_calls),
            "n_lm_calls": float(engine.n_calls),
        }
        cpu = time.process_time()
        for i in range(optimized.detailed_results.metric_calls):
            optimized(**trainset[i % len(trainset)].inputs())
        done["bare_s"] = time.process_time() - cpu
    done["ratio"] = done["cpu_s"] / done["bare_s"]
    return done


def cells(only: list[str]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for log_dir in (False, True):
        for n_val in (N_VALIDATION, 0):
            made += [
                {"what": "examples", "size": n, "valset": n_val, "n_rollouts": 350}
                | {"log_dir": log_dir}
                for n in EXAMPLES
            ]
        made += [
            {"what": "experiences", "size": n, "valset": N_VALIDATION, "n_rollouts": 350}
            | {"log_dir": log_dir}
            for n in EXPERIENCES
        ]
        made += [
            {"what": "steps", "size": n, "valset": 4, "n_rollouts": 18} | {"log_dir": log_dir}
            for n in STEPS
        ]
    return [cell for cell in made if cell["what"] in only]


def in_own_process(cell: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


COLUMNS = {
    "start_ms": "start ms",
    "cpu_s": "CPU s",
    "wall_s": "wall s",
    "memory_mb": "memory MB",
    "history_mb": "history MB",
    "n_rollouts": "rollouts",
    "n_lm_calls": "LM calls",
    "bare_s": "bare s",
    "ratio": "ratio",
}


def show(rows: list[dict[str, Any]]) -> None:
    for what in dict.fromkeys(row["what"] for row in rows):
        print(f"\n{what:>12} {'valset':>7} {'log_dir':>8}", end="")
        print("".join(f"{title:>11}" for title in COLUMNS.values()))
        for row in rows:
            if row["what"] == what:
                print(f"{row['size']:>12,} {row['valset']:>7} {row['log_dir']!s:>8}", end="")
                print("".join(f"{row[name]:>11.2f}" for name in COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["examples", "experiences", "steps"])
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(json.dumps(measured(given.cell)))
        return
    planned = cells(given.only)
    runs: list[list[dict[str, float]]] = [[] for _ in planned]
    for _ in range(given.repeats):
        for cell, done in zip(planned, runs, strict=True):
            done.append(in_own_process(cell))
    rows = [
        {
            **cell,
            **{name: statistics.median(run[name] for run in done) for name in COLUMNS},
            "repeats": given.repeats,
        }
        for cell, done in zip(planned, runs, strict=True)
    ]
    if given.json.exists():  # of what was not measured now
        known = json.loads(given.json.read_text(encoding="utf-8"))["rows"]
        rows = [*rows, *(row for row in known if row["what"] not in given.only)]
    show(rows)
    record = {
        "rows": rows,
        "threads": THREADS,
        "lm": "simulated (instant)",
        "dspy": dspy.__version__,
        "python": platform.python_version(),
    }
    given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
