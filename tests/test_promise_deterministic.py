"""Promise 3: same seed, same answers, the same library, whatever threads, latencies and hashes.

The LM is a pure function of prompt and seed; what it says of a trajectory depends on every word
of it, so that a result used in the order of its arrival would change the lessons.
"""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import Pair, agent, agent_turn, is_polite, polite_answer, predictor, questions, untimed
from scripted import EXTRACT, UPDATE, Latency, Prompt, lessons, operations, scripted_lm
from small import grpo
from test_identity import CODE, api_lm, digest_of, loaded

from tfgrpo_dspy import NoGate

__all__ = ["loaded"]  # a fixture

WORDS = ("greet", "thank", "explain", "apologise", "offer help", "confirm", "repeat", "wait")


def chaotic_rules() -> list[Any]:
    """Answers that depend on every word of the prompt: lessons, operations, final answers."""

    def extract(prompt: Prompt) -> str:
        draw = prompt.random("lesson")
        words = draw.sample(WORDS, 2)
        return lessons(*(f"When you {draw.choice(WORDS)}, {word}." for word in words))

    def update(prompt: Prompt) -> str:
        draw = prompt.random("update")
        known = [f"E{i}" for i in range(1, 30) if f"[E{i}*]" in prompt.user]
        add = {"op": "ADD", "text": f"Always {draw.choice(WORDS)}.", "lessons": [1]}
        delete = [{"op": "DELETE", "id": draw.choice(known)}] if known else []
        return operations(add, *delete)

    return [
        (EXTRACT, extract),
        (UPDATE, update),
        ("`next_tool_name`", agent_turn),
        ("question", polite_answer),
    ]


class LastFirst:
    """Holds calls until `width` of them wait, then lets the last one go first."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.changed = threading.Condition()
        self.waiting: list[int] = []
        self.n_calls = 0

    def __call__(self, _prompt: Prompt) -> None:
        with self.changed:
            ticket = self.n_calls
            self.n_calls += 1
            self.waiting.append(ticket)
            self.changed.notify_all()
            # A short time limit: at the end of a stage fewer than `width` calls are left.
            self.changed.wait_for(lambda: self.is_my_turn(ticket), timeout=0.02)
            self.waiting.remove(ticket)
            self.changed.notify_all()

    def is_my_turn(self, ticket: int) -> bool:
        return len(self.waiting) >= self.width and ticket == max(self.waiting)


def run(num_threads: int, before: Any = None, student: Any = None, **changes: Any) -> Any:
    chosen = {"group_size": 3, "epochs": 2, "batch_size": 3, "progress": False, "gate": NoGate()}
    chosen |= {"groups_per_call": 2}
    optimizer = grpo(is_polite, num_threads=num_threads, **(chosen | changes))
    with dspy.context(lm=scripted_lm(chaotic_rules(), before=before)):
        return optimizer.compile(
            student or predictor(), trainset=questions(6), valset=questions(6, start=100)
        )


def facts(optimized: Any) -> str:
    """All that a run says of itself, as text, but for the wall time, threads and executor."""
    results = untimed(optimized.detailed_results)
    results["settings"].pop("num_threads")
    results["settings"].pop("executor", None)
    instructions = [p.signature.instructions for p in optimized.predictors()]
    return json.dumps([results, instructions], sort_keys=True)


@pytest.mark.parametrize("width", [2, 8])
def test_answers_that_come_last_first_give_the_same(width: int) -> None:
    assert facts(run(8, LastFirst(width))) == facts(run(1))


@pytest.mark.parametrize("student", [Pair, agent], ids=["two predictors", "agent"])
def test_so_do_programs_of_several_calls_with_a_gate(student: Any) -> None:
    changes: dict[str, Any] = {"epochs": 1, "group_size": 2, "gate": None}
    alone = facts(run(1, student=student(), **changes))
    assert facts(run(16, Latency(1), student=student(), **changes)) == alone


def test_another_seed_is_another_run() -> None:
    assert facts(run(4, seed=1)) != facts(run(4, seed=2))


def test_the_generator_that_all_python_code_shares_plays_no_part() -> None:
    found = []
    for shared_seed in (1, 2):
        random.seed(shared_seed)
        found.append(facts(run(2)))
    assert found[0] == found[1]


ELSEWHERE = """
import sys
sys.path[:0] = sys.argv[1:]
import user_code
from test_identity import api_lm, digest_of
from test_promise_deterministic import facts, run
print(hash("a text"))
print(*map(digest_of, [api_lm(), *user_code.THINGS.values()]))
print(facts(run(4, gate=None)))
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_another_process_with_another_hash_seed_and_folder_gives_the_same_run_and_digests(
    tmp_path: Path, loaded: Callable[[str], dict[str, Any]]
) -> None:
    (tmp_path / "user_code.py").write_text(CODE)
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "DSPY_CACHEDIR": str(tmp_path)}
    environment["OPENAI_API_KEY"] = "sk-of-the-other-process"
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), str(Path(__file__).parent)]
    printed = subprocess.check_output(command, text=True, env=environment)
    hashed, digests, told = printed.splitlines()[-3:]
    assert int(hashed) != hash("a text"), "else this shows nothing"
    here = [digest_of(each) for each in (api_lm(), *loaded(CODE).values())]
    assert digests.split() == here
    assert len(set(here)) == len(here) == 15, "things that differ have other digests"
    assert told == facts(run(4, gate=None))
