"""Whatever a listener does, the run, its result and its time are those of a run without it."""

import asyncio
import functools
import logging
import threading
import time
from typing import Any

import dspy
import pytest
from runs import learned, library_texts, optimizer_of, polite_lm, questions

from tfgrpo_dspy import Reflection, RunFailedError, UpdateLibrary
from tfgrpo_dspy.dspy_seam import BaseCallback
from tfgrpo_dspy.events import RunEnded
from tfgrpo_dspy.listeners import listening
from tfgrpo_dspy.strategies.base import Strategy

NEVER = threading.Event()


@functools.cache
def usual() -> Any:
    """The program of a run that nobody listens to."""
    return learned()


@pytest.mark.parametrize(
    "error", [SystemExit, asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, StopIteration]
)
def test_a_listener_may_raise_anything_and_the_run_counts_it(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def listener(_event: Any) -> None:
        raise error

    with caplog.at_level(logging.WARNING, "tfgrpo_dspy"):
        disturbed = learned(on_event=listener)
    assert disturbed.detailed_results.failures["listener"] >= 3
    assert library_texts(disturbed) == library_texts(usual())
    assert len([m for m in caplog.messages if "on_event raised" in m]) == 1


def test_a_listener_that_hangs_holds_up_only_the_end_for_a_bounded_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "PATIENCE_S", 0.1)
    with caplog.at_level(logging.WARNING, "tfgrpo_dspy"):
        held = learned(on_event=lambda _event: NEVER.wait(60))
    assert held.detailed_results.wall_time_s < 30
    assert library_texts(held) == library_texts(usual())
    (line,) = [m for m in caplog.messages if "on_event has not taken the last" in m]
    assert "the run does not wait for it" in line


def test_what_a_listener_does_to_results_and_examples_changes_nothing_of_the_run() -> None:
    trainset = questions(6)

    def listener(event: Any) -> None:
        trainset.clear()
        if isinstance(event, RunEnded):
            event.results.usage.clear()
            event.results.library.clear()

    with dspy.context(lm=polite_lm()):
        disturbed = optimizer_of(on_event=listener).compile(
            dspy.Predict("question -> answer"), trainset=trainset, valset=questions(12, start=100)
        )
    expected = usual().detailed_results
    assert disturbed.detailed_results.usage == expected.usage
    assert disturbed.detailed_results.library == expected.library


def test_the_run_goes_on_while_a_listener_is_slow_and_waits_for_it_at_the_end() -> None:
    may_go_on, events = threading.Event(), []

    def listener(event: Any) -> None:
        may_go_on.wait(20)
        events.append(event)

    def metric(_example: Any, pred: Any, _trace: Any = None) -> float:
        n_scored.append(1)
        if len(n_scored) > 40:  # the run has gone on though the first event is not taken
            may_go_on.set()
        return float(pred.answer == "please")

    n_scored: list[int] = []
    learned(on_event=listener, metric=metric)
    assert isinstance(events[-1], RunEnded)


def test_a_listener_is_told_in_a_thread_that_is_not_the_compiles() -> None:
    threads: set[Any] = set()
    learned(on_event=lambda _event: threads.add(threading.current_thread()))
    (thread,) = threads
    assert thread is not threading.main_thread()
    assert thread.daemon
    end = time.monotonic() + 10
    thread.join(end - time.monotonic())
    assert not thread.is_alive()


@pytest.mark.parametrize("what", ["hangs", "raises"])
@pytest.mark.parametrize("method", ["on_evaluate_start", "on_evaluate_end"])
def test_a_callback_of_dspy_changes_neither_the_run_nor_what_other_callbacks_are_told(
    what: str, method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "PATIENCE_S", 0.5)
    told: list[Any] = []

    def disturbs(*_: Any, **_named: Any) -> None:
        if what == "raises":
            raise SystemExit
        NEVER.wait(60)

    bad = type("Bad", (BaseCallback,), {method: disturbs})()
    hears = {"on_evaluate_end": lambda _, **named: told.append(named["outputs"].score)}
    good = type("Good", (BaseCallback,), hears)()
    begun = time.monotonic()
    with dspy.context(callbacks=[bad, good]), caplog.at_level(logging.WARNING, "tfgrpo_dspy"):
        disturbed = learned()
    assert time.monotonic() - begun < 30
    assert library_texts(disturbed) == library_texts(usual())
    results = disturbed.detailed_results
    assert told == [round(100 * score.mean, 2) for score in (results.student, results.best)]
    line = {"hangs": "Bad has not taken the last 2 events yet", "raises": "Bad raised SystemExit"}
    assert len([m for m in caplog.messages if line[what] in m]) == 1


ENDS = [SystemExit, asyncio.CancelledError, GeneratorExit, StopIteration]


@pytest.mark.parametrize("error", ENDS)
def test_an_approve_that_raises_anything_ends_the_run_with_its_best_program(
    error: type[BaseException],
) -> None:
    def approve(_proposal: Any) -> bool:
        raise error

    with pytest.raises(RunFailedError, match=rf"approve raised {error.__name__}\b") as raised:
        learned(approve=approve)
    assert raised.value.program is not None


@pytest.mark.parametrize("error", ENDS[:3])
def test_a_strategy_that_raises_anything_is_counted_and_the_run_goes_on(
    error: type[BaseException],
) -> None:
    class Raising(Strategy):
        async def show(self, _context: Any, _ask: Any) -> Any:
            raise error

    results = learned(strategies=(Raising(),)).detailed_results
    assert results.failures["strategy"] >= 1
    assert results.ended_because == "all epochs are done"


@pytest.mark.parametrize("error", ENDS[:3])
def test_a_guard_and_a_reflection_module_that_raise_anything_are_named_and_counted(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def raising(*_: Any, **_named: Any) -> Any:
        raise error

    module = type("Own", (UpdateLibrary,), {"forward": raising})()
    label = polite_lm("please")
    guarded = learned(lm=label, reflection=Reflection(guard=raising)).detailed_results
    own = learned(reflection=Reflection(update=module)).detailed_results
    assert guarded.failures["guard"] >= 1
    assert own.failures["reflection error"] >= 1
    assert f"guard raised {error.__name__}" in caplog.text
    assert f"Own raised {error.__name__}" in caplog.text
