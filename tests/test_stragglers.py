"""Rollouts that take far longer than their siblings: left behind (quorum), or asked again (hedge).

A straggler waits for an Event that is set when the run is over, so that a run which waits for it
never ends. The others take some 30 ms, so that none of them is a straggler by chance.
"""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from scripted import EXTRACT, UPDATE, HigherMean, Prompt, scripted_lm
from test_dspy_contract import optimizer_of, polite_rules, questions
from test_executors import Hanging, Log, facts_of_end, pipe, processes, release, rows, warm
from test_promise_deterministic import chaotic_rules, facts

from tfgrpo_dspy import NoGate, SettingsError, TrainingFreeGRPO
from tfgrpo_dspy.budget import CURRENT_TASK, Budget, Ledger
from tfgrpo_dspy.pipeline.schedule import LeftBehindError, Schedule
from tfgrpo_dspy.pipeline.stragglers import FEWEST, Stragglers, Verdict, Watch
from tfgrpo_dspy.pipeline.workers import Done, Workers
from tfgrpo_dspy.rollout import rollout_id_for
from tfgrpo_dspy.store import Store

__all__ = ["pipe"]  # a fixture

SEED = 3
STRAGGLER = rollout_id_for(SEED, 0, 2, 1, "training") % 2**31
"""The second of the group's rollouts on example 2."""
WAIT_S = 30.0


class Slow:
    """Holds the calls with the straggler's seed; others take their time.

    Args:
        held: how many of the straggler's calls are held.
        then: done by those that come after them.
    """

    def __init__(self, held: int = 1, then: Callable[[], None] | None = None) -> None:
        self.n_held, self.then = held, then
        self.released, self.never, self.lock = (
            threading.Event(),
            threading.Event(),
            threading.Lock(),
        )
        self.n_seen = 0

    def __call__(self, prompt: Prompt) -> None:
        self.never.wait(0.03)
        if prompt.seed != STRAGGLER:
            return
        with self.lock:
            self.n_seen += 1
            is_held = self.n_seen <= self.n_held
        if is_held:
            self.released.wait(WAIT_S)
        elif self.then is not None:
            self.then()


@pytest.fixture
def slow() -> Iterator[Callable[..., Slow]]:
    made: list[Slow] = []

    def new(*args: Any, **kwargs: Any) -> Slow:
        made.append(Slow(*args, **kwargs))
        return made[-1]

    yield new
    for slow in made:
        slow.released.set()


def run(before: Any = None, n_done: list[int] | None = None, **changes: Any) -> Any:
    """One epoch over four examples in two batches, three rollouts each."""
    lm = scripted_lm(changes.pop("rules", None) or polite_rules(), before=before)
    chosen = {"group_size": 3, "batch_size": 2, "seed": SEED, "gate": NoGate(), **changes}
    try:
        with dspy.context(lm=lm):
            return optimizer_of(num_threads=8, **chosen).compile(
                dspy.Predict("question -> answer"),
                trainset=questions(4),
                valset=questions(4, start=100),
            )
    finally:
        if n_done is not None:
            n_done.append(sum(p.temperature == 0.7 for p in lm.engine.prompts))


# ---------------------------------------------------------------------- quorum


def test_a_group_goes_on_without_its_straggler_which_is_recorded_so(
    slow: Callable[..., Slow], tmp_path: Path
) -> None:
    held = slow()
    results = run(held, quorum=0.6, log_dir=tmp_path).detailed_results
    assert not held.released.is_set()
    assert results.failures == {"straggler": 1}
    (group,) = [g for update in results.updates for g in update.groups if g.example == 2]
    assert group.failures == ("straggler",)
    assert len(group.scores) == 2
    store = Store.existing(tmp_path)
    assert store is not None
    (left,) = store.keys("left")
    record = store.get(left)
    store.close()
    assert record is not None
    assert record["failure"]["message"].startswith("the rollout was left behind after 0.")


def test_resume_repeats_that_decision_without_a_call_and_without_quorum_makes_that_rollout(
    slow: Callable[..., Slow], tmp_path: Path
) -> None:
    first = run(slow(), quorum=0.6, log_dir=tmp_path)
    calls: list[int] = []
    again = run(None, calls, quorum=0.6, log_dir=tmp_path)
    offline = run(None, calls, quorum=0.6, log_dir=tmp_path, offline=True)
    assert calls == [0, 0]
    assert facts_of_end(again.detailed_results) == facts_of_end(first.detailed_results)
    assert again.detailed_results.failures == {"straggler": 1}
    assert facts(offline) == facts(again)
    whole = run(None, calls, log_dir=tmp_path)
    assert calls == [0, 0, 1]
    assert not whole.detailed_results.failures
    assert facts_of_end(whole.detailed_results) == facts_of_end(run().detailed_results)


def test_trials_of_a_gate_are_waited_for(slow: Callable[..., Slow]) -> None:
    """Else the pairs that an update is judged by would depend on the clock."""
    never = slow().never

    def before(prompt: Prompt) -> None:
        is_trial = prompt.temperature is None and "question 103" in prompt.user
        never.wait(0.5 if is_trial else 0.01)

    results = run(before, quorum=0.5, gate=HigherMean()).detailed_results
    assert "straggler" not in results.failures
    assert (results.student.n, results.student.n_failed) == (4, 0)


# ---------------------------------------------------------------------- hedge


def test_of_two_attempts_the_first_that_is_there_counts_and_both_are_paid(
    slow: Callable[..., Slow], tmp_path: Path
) -> None:
    held, calls = slow(), list[int]()
    hedged = run(held, calls, hedge=True, log_dir=tmp_path / "a", max_lm_calls=500)
    plain = run(log_dir=tmp_path / "b", max_lm_calls=500)
    assert not held.released.is_set()
    assert calls == [13]
    assert held.n_seen == 2
    results = hedged.detailed_results
    assert facts_of_end(results) == facts_of_end(plain.detailed_results)
    assert not results.failures
    assert results.usage["rollout"] == plain.detailed_results.usage["rollout"]
    assert results.usage["unfinished"].n_lm_calls == 1
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


@pytest.mark.parametrize("pattern", [EXTRACT, UPDATE], ids=["lesson", "update"])
def test_a_reflection_that_takes_long_is_asked_again_too(pattern: str) -> None:
    released, never, lock = threading.Event(), threading.Event(), threading.Lock()
    seen: list[str] = []

    def before(prompt: Prompt) -> None:
        never.wait(0.02)
        if re.search(pattern, prompt.text):
            with lock:
                seen.append(prompt.text)
                is_held = len(seen) == 8
            if is_held:
                released.wait(WAIT_S)

    chosen: dict[str, Any] = {"rules": chaotic_rules(), "epochs": 4}
    results = run(before, hedge=True, **chosen).detailed_results
    assert not released.is_set()
    released.set()
    assert seen.count(seen[7]) == 2
    assert facts_of_end(results) == facts_of_end(run(**chosen).detailed_results)


def test_an_attempt_in_another_process_that_hangs_is_made_in_a_second_one(pipe: Path) -> None:
    with processes(2) as executor:
        lm = scripted_lm(polite_rules())
        with dspy.context(lm=lm):
            results = (
                optimizer_of(executor=warm(executor), hedge=True, seed=SEED, gate=NoGate())
                .compile(
                    Hanging(pipe, "question 2"),
                    trainset=questions(4),
                    valset=questions(4, start=100),
                )
                .detailed_results
            )
        release(pipe)
    assert Log(pipe.with_name("hung")).lines == ["'question 2'"]
    assert not results.failures
    assert results.updates


def test_both_attempts_are_dropped_when_the_run_ends(slow: Callable[..., Slow]) -> None:
    older = set(threading.enumerate())

    def interrupt() -> None:
        raise KeyboardInterrupt

    held = slow(1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(held, hedge=True)
    held.released.set()
    for thread in set(threading.enumerate()) - older:
        thread.join(WAIT_S)
        assert not thread.is_alive()


# ---------------------------------------------------------------------- what is a straggler


def known(quorum: float | None = None, hedge: bool = False, seconds: float = 1.0) -> Stragglers:
    stragglers = Stragglers(quorum, hedge)
    for _ in range(FEWEST):
        stragglers.note(seconds)
    return stragglers


def test_a_straggler_takes_over_three_times_what_most_take_and_some_must_be_known() -> None:
    assert not known().is_straggler(3.0)
    assert known().is_straggler(3.1)
    fresh = Stragglers(0.5, True)
    for _ in range(FEWEST - 1):
        fresh.note(1.0)
    assert not fresh.is_straggler(1000.0)


@pytest.mark.parametrize(
    ("quorum", "n_done", "verdict"),
    [
        (0.6, 2, Verdict.WAIT),
        (0.6, 3, Verdict.LEAVE),
        (0.5, 3, Verdict.LEAVE),
        (1.0, 4, Verdict.WAIT),
        (None, 4, Verdict.WAIT),
    ],
)
def test_a_quorum_is_a_share_of_the_group_rounded_up(
    quorum: float | None, n_done: int, verdict: Verdict
) -> None:
    watch = Watch(known(quorum), 5, n_done)
    assert watch.verdict(10.0, is_hedged=False) is verdict
    assert watch.verdict(1.0, is_hedged=False) is Verdict.WAIT


def test_what_is_no_quorum_yet_is_asked_again_once() -> None:
    watch = Watch(known(0.6, hedge=True), 5, 2)
    assert watch.verdict(10.0, is_hedged=False) is Verdict.ASK_AGAIN
    assert watch.verdict(10.0, is_hedged=True) is Verdict.WAIT


def test_by_default_nobody_looks_at_the_clock() -> None:
    assert Stragglers(None, hedge=False).watch(5) is None


@pytest.mark.parametrize("quorum", [0, -0.5, 1.5, True, "0.5", float("nan")], ids=repr)
def test_a_quorum_that_is_no_share_is_refused(quorum: Any) -> None:
    with pytest.raises(SettingsError, match=f"quorum={quorum!r}: pass a share of a group"):
        TrainingFreeGRPO(max, quorum=quorum)


# ---------------------------------------------------------------------- with a time limit


def results_of(schedule: Schedule, work: Callable[[int], Any], n: int, watch: Watch) -> list[Done]:
    async def main() -> list[Done]:
        handles = [schedule.submit(work, i, (0,), lambda d: d, watch=watch) for i in range(n)]
        return [await handle for handle in handles]

    try:
        return schedule.run(main())
    finally:
        schedule.close()


def test_what_took_too_long_is_no_part_of_a_quorum() -> None:
    released = threading.Event()
    watch = known(0.5, seconds=60.0).watch(3)
    assert watch is not None
    schedule = Schedule(Workers(3), Ledger(), 0.2)
    done = results_of(schedule, lambda i: i and released.wait(WAIT_S), 3, watch)
    released.set()
    assert [type(d.error).__name__ for d in done] == ["NoneType", "TimedOutError", "TimedOutError"]
    assert watch.n_done == 1


def test_an_attempt_that_took_too_long_leaves_the_other_its_time() -> None:
    released, never, attempts = threading.Event(), threading.Event(), list[Any]()

    def work(_: int) -> str:
        attempts.append(CURRENT_TASK.get())
        if len(attempts) == 1:
            released.wait(WAIT_S)
        while not attempts[0].is_abandoned:
            never.wait(0.005)
        return f"attempt {len(attempts)}"

    watch = known(hedge=True, seconds=0.2).watch(1)
    assert watch is not None
    (done,) = results_of(Schedule(Workers(2), Ledger(Budget()), 1.0), work, 1, watch)
    released.set()
    assert (done.result, done.error) == ("attempt 2", None)


def test_stragglers_are_looked_for_also_where_something_is_done_all_the_time() -> None:
    released, n_done = threading.Event(), list[int]()
    schedule = Schedule(Workers(2), Ledger(), None)
    watch = known(0.1, seconds=0.001).watch(10)
    assert watch is not None
    watch.n_done = 1

    async def busy() -> None:
        while not released.is_set():
            await schedule.submit(n_done.append, 1, (0,), lambda d: d)

    async def main() -> Done:
        schedule.spawn(busy())
        left = await schedule.submit(
            lambda _: released.wait(WAIT_S), 0, (0,), lambda d: d, watch=watch
        )
        released.set()
        return left

    left = schedule.run(main())
    schedule.close()
    assert isinstance(left.error, LeftBehindError)
