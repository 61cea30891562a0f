"""How fast a recorded run is replayed: a run of 10,000 rollouts, made once, then replayed offline.

The LM is an engine that answers at once (simulated: it follows no prompt), with answers of about a
thousand characters. Measured: the time of the live run, the time of the offline replay (the whole
compile, in a process of its own), rollouts and reflections replayed for each second, the growth of
memory during the replay (peak resident set, less what it was before), and the size on disk.

    python benchmarks/replay.py [--rollouts 10000] [--json FILE]
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

from tfgrpo_dspy import NoGate, Reflection, TrainingFreeGRPO

RESULTS = Path(__file__).parent / "results" / "replay.json"
BAR_S = 20.0
BAR_MB = 300.0
GROUP_SIZE = 5
EPOCHS = 2
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")


class InstantEngine:
    """Answers at once: a pure function of the request."""

    fingerprint = "instant"
    supported_params = frozenset({"temperature", "seed"})

    def complete(self, request: lm15.Request) -> lm15.Response:
        """An answer of about a thousand characters, or one lesson, or one operation."""
        asked = str(request.system) + "".join(message.text or "" for message in request.messages)
        seed = request.config.seed or 0
        if "`lessons`" in asked:
            text = "[[ ## semantic_advantage ## ]]\nIt says so.\n\n[[ ## lessons ## ]]\n[]"
        elif "`operations`" in asked:
            text = "[[ ## operations ## ]]\n[]"
        else:
            words = " ".join(WORDS[(seed >> shift) % 10] for shift in range(30)) * 6
            text = f"[[ ## reasoning ## ]]\n{words}\n\n[[ ## answer ## ]]\n{seed % 7}"
        message = lm15.Message.assistant([lm15.TextPart(text + "\n\n[[ ## completed ## ]]")])
        usage = lm15.Usage(input_tokens=300, output_tokens=250)
        return lm15.Response(None, request.model, message, "stop", usage)


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> float:  # noqa: ARG001
    return float(pred.answer == example.answer)


def compiled(log_dir: Path, n_rollouts: int, *, offline: bool) -> dspy.Module:
    n_examples = n_rollouts // (GROUP_SIZE * EPOCHS)
    examples = [
        dspy.Example(question=f"What is {n} modulo seven?", answer=str(n % 7)).with_inputs(
            "question"
        )
        for n in range(n_examples)
    ]
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    with dspy.context(lm=dspy.LM("instant", engine=InstantEngine(), cache=False)):
        optimizer = TrainingFreeGRPO(
            metric,
            gate=NoGate(),
            group_size=GROUP_SIZE,
            epochs=EPOCHS,
            batch_size=20,
            num_threads=2,
            log_dir=log_dir,
            offline=offline,
            progress=False,
            reflection=Reflection(drafts=0),
        )
        return optimizer.compile(dspy.ChainOfThought("question -> answer"), trainset=examples)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(log_dir: Path, n_rollouts: int, *, offline: bool) -> dict[str, Any]:
    """One compile, in this process."""
    dspy.Predict("question -> answer")  # what the first use of DSPy loads is not ours
    before = peak_mb()
    started = time.perf_counter()
    results = compiled(log_dir, n_rollouts, offline=offline).detailed_results
    return {
        "seconds": time.perf_counter() - started,
        "growth_mb": peak_mb() - before,
        "rollouts": results.metric_calls,
        "replayed": sum(results.replayed.values()),
    }


def in_own_process(log_dir: Path, n_rollouts: int, mode: str) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--rollouts",
        str(n_rollouts),
        "--only",
        mode,
        str(log_dir),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs=2, metavar=("MODE", "LOG_DIR"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        mode, log_dir = given.only
        print(json.dumps(measured(Path(log_dir), given.rollouts, offline=mode == "offline")))
        return
    with tempfile.TemporaryDirectory() as folder:
        live = in_own_process(Path(folder), given.rollouts, "live")
        offline = in_own_process(Path(folder), given.rollouts, "offline")
        size_mb = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 2**20
    per_second = offline["replayed"] / offline["seconds"]
    print(
        f"live:    {live['rollouts']} rollouts in {live['seconds']:.1f} s, {size_mb:.0f} MB on disk"
    )
    print(
        f"offline: {offline['seconds']:.2f} s (bar: {BAR_S:g} s), {per_second:,.0f} records "
        f"for each second, memory growth {offline['growth_mb']:.0f} MB (bar: {BAR_MB:g})"
    )
    record = {
        "live": live,
        "offline": offline,
        "replayed_per_second": per_second,
        "disk_mb": size_mb,
        "dspy": dspy.__version__,
        "python": platform.python_version(),
        "seed": 0,
        "lm": "simulated (instant)",
    }
    given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
