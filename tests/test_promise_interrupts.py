"""A run ends when it is told to, in seconds, whatever hangs; and what hangs costs itself only."""

import asyncio
import inspect
import itertools
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dspy import lm15
from runs import ADVICE, learned, library_texts, n_calls, polite_lm, polite_rules, predictor
from scripted import EXTRACT, UPDATE, Prompt, scripted_lm
from warm import Process

from tfgrpo_dspy import BayesianGate, NoGate, RunFailedError, best_so_far
from tfgrpo_dspy.strategies import Strategy
from tfgrpo_dspy.strategies.base import Credit, Proposed, Shown

AT_ONCE_S = 15.0
"""Far less than what hangs would take (minutes), far more than what is allowed (2 s of grace)."""


class Hanging:
    """Lets calls hang that `which` holds for (given the prompt and the number of the call)."""

    def __init__(self, which: Callable[[Prompt, int], bool]) -> None:
        self.which, self.n_awaited = which, 1
        self.released, self.has_hung = threading.Event(), threading.Event()
        self.hung: list[Prompt] = []
        self._count = itertools.count(1)
        self._older = set(threading.enumerate())

    def __call__(self, prompt: Prompt) -> None:
        if self.which(prompt, next(self._count)):
            self.hung.append(prompt)
            if len(self.hung) >= self.n_awaited:
                self.has_hung.set()
            self.released.wait(120)

    def wait_for_the_hung(self) -> None:
        """Let what hangs go on, and wait until the threads of the run have come to their end."""
        self.released.set()
        for thread in set(threading.enumerate()) - self._older:
            if thread.name == "tfgrpo" and thread.ident is not None:  # it was started
                thread.join(10)
                assert not thread.is_alive()


@pytest.fixture
def hanging() -> Iterator[Callable[..., Hanging]]:
    """Makes what hangs; all of it is released at the end."""
    made: list[Hanging] = []

    def make(which: Callable[[Prompt, int], bool]) -> Hanging:
        made.append(Hanging(which))
        return made[-1]

    yield make
    for one in made:
        one.released.set()


@pytest.fixture
def at_once() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < AT_ONCE_S


@pytest.mark.usefixtures("at_once")
def test_the_clock_ends_the_run_though_a_call_hangs_for_minutes(hanging: Any) -> None:
    before = hanging(lambda _prompt, n: n == 2)
    lm = scripted_lm(polite_rules(), before=before, max_tokens=50)
    results = learned(lm=lm, max_minutes=0.7 / 60).detailed_results
    assert results.ended_because.startswith("max_minutes")
    assert len(before.hung) == 1


ANSWERS: dict[str, Callable[..., Any]] = {
    "choose": lambda plan: plan.sizes,
    "reward": lambda scored: [rollout.score for rollout in scored.rollouts],
    "rescue": lambda *_: [],
    "show": lambda context, _: Shown(context.group.rollouts),
    "credit": lambda *_: Credit({}),
    "propose": lambda context, _: Proposed(context.lessons),
}


class Held:
    """Makes a method hang from its n-th call on, until `released`."""

    def __init__(self, n: int, how: str) -> None:
        self.n, self.how, self.released = n, how, threading.Event()
        self._count = itertools.count(1)
        self._older = set(threading.enumerate())

    def method(self, usual: Callable[..., Any], is_async: bool) -> Callable[..., Any]:
        def answered(_self: Any, *args: Any) -> Any:
            if next(self._count) >= self.n:
                self.released.wait(100)
            return usual(*args)

        async def awaited(_self: Any, *args: Any) -> Any:
            hangs = next(self._count) >= self.n
            while hangs and not self.released.is_set():
                try:
                    await asyncio.sleep(0.05)
                except asyncio.CancelledError:
                    if self.how != "is not to be cancelled":
                        raise
            return usual(*args)

        async def blocking(_self: Any, *args: Any) -> Any:
            return answered(_self, *args)

        return (blocking if self.how == "blocks" else awaited) if is_async else answered

    def release(self) -> None:
        """Let it go on; what is left of the run ends without a word."""
        self.released.set()
        for thread in set(threading.enumerate()) - self._older:
            if thread.name == "tfgrpo":
                thread.join(10)
                assert not thread.is_alive()


HANGS = [
    ("choose", "blocks", 1),
    ("reward", "blocks", 3),
    ("show", "blocks", 3),
    ("credit", "blocks", 1),
    ("propose", "awaits", 2),
    ("rescue", "is not to be cancelled", 2),
]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("method", "how", "n"), HANGS)
def test_a_strategy_that_hangs_leaves_the_time_that_is_kept_for_the_end(
    method: str, how: str, n: int
) -> None:
    held = Held(n, how)
    is_async = inspect.iscoroutinefunction(getattr(Strategy, method))
    chooses = {"choose": lambda _, plan: plan.sizes}  # who chooses is asked for credit, too
    methods = {**chooses, method: held.method(ANSWERS[method], is_async)}
    hangs = type("Hangs", (Strategy,), methods)()
    lm = polite_lm(before=lambda _prompt: threading.Event().wait(0.01))
    given = {"gate": NoGate(), "epochs": 50, "max_minutes": 3 / 60}
    program = learned(lm=lm, strategies=[hangs], **given)
    results, texts, n_made = program.detailed_results, library_texts(program), lm.engine.n_calls()
    assert results.ended_because == "max_minutes=0.05 are over"
    assert results.best.n >= 1  # of 12; how many the rest of the time pays for hangs on the machine
    assert results.wall_time_s < 4.5
    held.release()
    assert (library_texts(program), lm.engine.n_calls()) == (texts, n_made)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("method", "n"), [("decide", 3), ("assign", 8), ("finalists", 1)])
def test_a_gate_that_hangs_leaves_the_time_that_is_kept_for_the_end(method: str, n: int) -> None:
    held, usual = Held(n, "blocks"), BayesianGate()
    hangs = type("Hangs", (BayesianGate,), {method: held.method(getattr(usual, method), False)})()
    lm = polite_lm(before=lambda _prompt: threading.Event().wait(0.01))
    results = learned(lm=lm, gate=hangs, epochs=50, max_minutes=3 / 60).detailed_results
    assert results.wall_time_s < 8
    if method == "finalists":
        assert results.best.mean > results.student.mean
    else:
        assert results.ended_because == "max_minutes=0.05 are over"
    held.release()


@pytest.mark.usefixtures("at_once")
def test_a_refused_key_ends_the_run_though_a_call_hangs_for_minutes(hanging: Any) -> None:
    before = hanging(lambda _prompt, n: n == 2)
    lm = scripted_lm([("question 3", lm15.AuthError("no")), *polite_rules()], before=before)
    with pytest.raises(RunFailedError, match=r"LMAuthError.*[^ ]\. What was") as caught:
        learned(lm=lm)
    assert "\n" not in vars(caught.value)["program"].detailed_results.nothing_learned


def interrupt_when_hung(before: Hanging) -> None:
    """What Ctrl-C does."""

    def watch() -> None:
        before.has_hung.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.usefixtures("at_once")
def test_ctrl_c_drops_what_is_in_flight_keeps_what_is_done_and_the_next_compile_goes_on(
    hanging: Any, tmp_path: Path
) -> None:
    before = hanging(lambda prompt, _n: "question 3" in prompt.user and "[[" in prompt.user)
    interrupted, resumed = polite_lm(before=before), polite_lm()
    handler = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupt_when_hung(before)
    with pytest.raises(KeyboardInterrupt):
        learned(lm=interrupted, log_dir=tmp_path, num_threads=2)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handler
    n_before = interrupted.engine.n_calls()
    before.wait_for_the_hung()  # answers that come now find nobody, and lead to nothing more
    assert interrupted.engine.n_calls() == n_before
    assert library_texts(best_so_far(tmp_path, predictor())) == []
    program = learned(lm=resumed, log_dir=tmp_path, num_threads=2)
    assert library_texts(program) == library_texts(learned()) == [ADVICE]
    done = Counter(map(repr, interrupted.engine.prompts)) - Counter(map(repr, before.hung))
    again = done & Counter(map(repr, resumed.engine.prompts))
    assert again.total() <= 2  # one for each worker
    assert program.detailed_results.replayed["rollout"] > 0
    assert library_texts(best_so_far(tmp_path, predictor())) == [ADVICE]


def test_calls_lost_to_ctrl_c_are_not_charged_to_the_next_start(
    hanging: Any, tmp_path: Path
) -> None:
    before = hanging(lambda _prompt, n: n > 30)
    before.n_awaited = 5
    interrupted, resumed, replaying = polite_lm(before=before), polite_lm(), polite_lm()
    interrupt_when_hung(before)
    given = {"max_lm_calls": 110, "num_threads": 16, "batch_size": 6, "epochs": 4}
    given["log_dir"] = tmp_path
    with pytest.raises(KeyboardInterrupt):
        learned(lm=interrupted, **given)
    program = learned(lm=resumed, **given)
    n_lost = interrupted.engine.n_calls() + resumed.engine.n_calls() - n_calls(program)
    assert n_lost >= len(before.hung) > 4 and n_calls(program) <= 110
    assert library_texts(learned(lm=replaying, **given)) == library_texts(program) == [ADVICE]
    assert replaying.engine.n_calls() == 0


CHILD = """
import os, sys, threading
from runs import learned, polite_lm

def before(prompt):
    if "question 3" in prompt.user:
        os.write(1, b"hangs\\n")
        threading.Event().wait(300)

try:
    learned(lm=polite_lm(before=before), log_dir=sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
"""

ENDS = {"Ctrl-C": (signal.SIGINT, "interrupted\n"), "SIGTERM": (signal.SIGTERM, "")}


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("number", "says"), ENDS.values(), ids=ENDS)
def test_a_process_whose_calls_hang_ends_at_once(number: int, says: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    child = Process(["-c", CHILD, tmp_path], stdout=write)
    os.close(write)
    with os.fdopen(read) as said:
        said.readline()  # that a call hangs
        started = time.monotonic()
        child.send_signal(number)
        assert child.wait(60) == -number
        assert time.monotonic() - started < AT_ONCE_S
        assert said.read().replace("hangs\n", "") == says
    program = learned(lm=polite_lm(), log_dir=tmp_path)  # the store is whole
    assert program.detailed_results.replayed["rollout"] > 0
    assert library_texts(program) == [ADVICE]


@pytest.mark.usefixtures("at_once")
def test_a_rollout_that_hangs_costs_itself_only_and_is_not_started_again(hanging: Any) -> None:
    def some_of_question_1(prompt: Prompt, _n: int) -> bool:
        return "question 1" in prompt.user.splitlines() and prompt.random().random() < 0.5

    before = hanging(some_of_question_1)
    lm = polite_lm(before=before)
    optimized = learned(lm=lm, rollout_timeout_s=1.0)
    results = optimized.detailed_results
    assert results.failures.keys() == {"timeout"}
    # a loaded machine may let others run out of time
    assert results.failures["timeout"] >= len(before.hung) >= 1
    started = Counter((prompt.text, prompt.seed) for prompt in lm.engine.prompts)
    assert set(started.values()) == {1}
    assert library_texts(optimized) == [ADVICE]
    hit = [group for update in results.updates for group in update.groups if group.failures]
    assert all(len(group.failures) + len(group.scores) == 4 for group in hit)
    n_in_groups = sum(len(group.failures) for group in hit)
    assert len(before.hung) <= n_in_groups <= results.failures["timeout"]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("stage", [EXTRACT, UPDATE], ids=["lesson", "update"])
def test_a_reflection_that_hangs_costs_its_answer_only(stage: str, hanging: Any) -> None:
    before = hanging(lambda prompt, _n: not before.hung and bool(re.search(stage, prompt.text)))
    lm = polite_lm(before=before)
    optimized = learned(lm=lm, rollout_timeout_s=2.0)
    assert len(before.hung) == 1
    assert optimized.detailed_results.failures == {"reflection error": 1}
    assert library_texts(optimized) == [ADVICE]  # other groups gave it, or the lesson itself did
    assert lm.engine.n_calls(re.escape(before.hung[0].user)) == 1
