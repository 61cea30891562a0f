"""Runs one compile after another, each in a process of its own that may be killed at any moment.

Started as a script with the folder, the number of threads and a seed. For each line on its standard
input it forks (DSPy is imported once), and kills the child with SIGKILL when it has begun so many
LM calls as the line says ("inf": never), and so many seconds later; it answers with how the child
ended. The child's LM appends a line to `calls.jsonl` for every call, before it answers, and gives
the number of the call as the prompt's tokens: so every record tells by its usage which call it came
from, and no text depends on it.
"""

import fcntl
import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import dspy
from dspy import lm15
from scripted import Prompt, ScriptedEngine
from test_promise_deterministic import chaotic_rules
from test_promise_resume import compiled, facts

LATENCY_S = (0.004, 0.03)


class LoggedEngine(ScriptedEngine):
    """Logs each call on disk before it answers; slow by a time drawn from the prompt."""

    fingerprint = "logged"

    def __init__(self, log: Path) -> None:
        super().__init__(chaotic_rules())
        self.log = log

    def complete(self, request: lm15.Request) -> lm15.Response:
        response = super().complete(request)
        asked = f"{request.config.seed}/{request.system}/{[m.text for m in request.messages]}"
        number = self._logged(hashlib.sha256(asked.encode()).hexdigest())
        shortest, longest = LATENCY_S
        wait_s = shortest + (longest - shortest) * Prompt("", asked, 0, None).random().random()
        threading.Event().wait(wait_s)
        usage = lm15.Usage(input_tokens=number, output_tokens=1)
        return lm15.Response(None, response.model, response.message, "stop", usage)

    def _logged(self, call: str) -> int:
        """The number of the call, from 1, over all processes that have the log open."""
        with self.log.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            number = 1 + sum(1 for _ in file)
            line = json.dumps({"call": call, "number": number})
            os.write(file.fileno(), f"{line}\n".encode())
            return number


def run(folder: Path, num_threads: int, seed: int) -> None:
    lm = dspy.LM("logged", engine=LoggedEngine(folder / "calls.jsonl"), cache=False)
    optimized = compiled(folder / "log", lm, num_threads=num_threads, seed=seed)
    results, instructions = json.loads(facts(optimized))
    del results["usage"]
    (folder / "result.json").write_text(json.dumps([results, instructions]))


def n_begun(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def ended(child: int) -> int | None:
    """How the child ended; None: it has not."""
    done, status = os.waitpid(child, os.WNOHANG)
    return status if done else None


def main() -> None:
    folder, num_threads, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    log = folder / "calls.jsonl"
    for line in sys.stdin:
        n_more, seconds = map(float, line.split())
        n_calls, status = n_begun(log) + n_more, None
        child = os.fork()
        if child == 0:
            run(folder, num_threads, seed)
            os._exit(0)
        while status is None and n_begun(log) < n_calls:
            status = ended(child)
            threading.Event().wait(0.001)
        threading.Event().wait(seconds)
        status = ended(child) if status is None else status
        if status is None:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
