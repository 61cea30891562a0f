"""Promise 4: killed at any moment and started again, a run repeats nothing that was recorded."""

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from runs import records
from warm import Process

CHILD = Path(__file__).with_name("killed_child.py")
KILLS = 9
"""For each number of threads; 18 in all."""
LATEST_KILL = 0.25
"""As a share of the LM calls of a whole run, which is so killed several times."""
LONGEST_CALL_S = 0.03
NEVER = (float("inf"), 0.0)


@contextmanager
def launched(folder: Path, num_threads: int, seed: int) -> Iterator[Callable[[float, float], int]]:
    """A function that runs a compile, kills it so many seconds after that many LM calls have begun,
    and gives its exit code.
    """
    folder.mkdir()
    (read_by_child, write), (read, written_by_child) = os.pipe(), os.pipe()
    streams = {"stdin": read_by_child, "stdout": written_by_child, "stderr": 2}
    process = Process([CHILD, folder, num_threads, seed], **streams)
    os.close(read_by_child)
    os.close(written_by_child)
    with os.fdopen(write, "w") as to_child, os.fdopen(read) as from_child:

        def run(n_calls: float, seconds: float) -> int:
            to_child.write(f"{n_calls} {seconds}\n")
            to_child.flush()
            return int(from_child.readline())

        yield run
    process.wait(60)


def calls_of(folder: Path) -> list[dict[str, Any]]:
    log = folder / "calls.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def recorded_calls(folder: Path) -> set[int]:
    """The numbers of the calls whose rollout or answer is in the store."""
    found = records(folder / "log", "rollout", "lesson", "update").values()
    return {record["usage"]["prompt_tokens"] for record in found}


class Uninterrupted:
    """One whole run, to compare with: its calls, its result."""

    def __init__(self, folder: Path, num_threads: int, seed: int) -> None:
        with launched(folder, num_threads, seed) as run:
            assert run(*NEVER) == 0
        self.calls = {call["call"] for call in calls_of(folder)}
        self.result = json.loads((folder / "result.json").read_text())

    def moment(self, generator: random.Random) -> tuple[int, float]:
        """So many calls, and seconds later; soon enough for several kills in one run."""
        n_calls = generator.randint(0, int(LATEST_KILL * len(self.calls)))
        return n_calls, generator.uniform(0.0, LONGEST_CALL_S)


def killed_until_done(
    folder: Path, num_threads: int, seed: int, whole: Uninterrupted, moments: random.Random
) -> int:
    """Kill a run at most `KILLS` times, then let it end; gives how often it was killed."""
    n_kills, ended = 0, -signal.SIGKILL
    with launched(folder, num_threads, seed) as run:
        while ended != 0:
            recorded, n_before = recorded_calls(folder), len(calls_of(folder))
            ended = run(*(whole.moment(moments) if n_kills < KILLS else NEVER))
            assert ended in (0, -signal.SIGKILL)
            n_kills += ended != 0
            calls = calls_of(folder)
            done = {call["call"] for call in calls if call["number"] in recorded}
            again = [call for call in calls[n_before:] if call["call"] in done]
            assert not again, f"after kill {n_kills} recorded calls were made again"
    times = Counter(call["call"] for call in calls)
    assert sum(times.values()) - len(times) <= num_threads * n_kills
    assert times.keys() == whole.calls
    assert json.loads((folder / "result.json").read_text()) == whole.result
    assert len(recorded_calls(folder)) == len(whole.calls)
    return n_kills


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("num_threads", "seed"), [(1, 11), (8, 13)])
def test_a_run_that_is_killed_again_and_again_repeats_nothing_recorded_and_ends_the_same(
    num_threads: int, seed: int, tmp_path: Path
) -> None:
    moments = random.Random(f"{seed}/{os.environ.get('KILL_SEED', '0')}")
    whole = Uninterrupted(tmp_path / "whole", num_threads, seed)
    n_kills, n_runs = 0, 0
    while n_kills < KILLS:
        folder = tmp_path / f"killed{n_runs}"
        n_kills += killed_until_done(folder, num_threads, seed, whole, moments)
        n_runs += 1
