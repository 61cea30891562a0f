"""What functions of the user raise is counted or ends the run with its best program."""

import asyncio
import logging
from typing import Any

import pytest
from runs import learned, library_texts

from tfgrpo_dspy import RunFailedError
from tfgrpo_dspy.strategies.base import Strategy


def test_a_listener_may_raise_and_the_run_counts_it(caplog: pytest.LogCaptureFixture) -> None:
    def listener(_event: Any) -> None:
        raise ValueError(3)

    with caplog.at_level(logging.WARNING, "tfgrpo_dspy"):
        disturbed = learned(on_event=listener)
    assert disturbed.detailed_results.failures["listener"] >= 3
    assert library_texts(disturbed) == library_texts(learned())
    assert len([m for m in caplog.messages if "on_event raised ValueError: 3" in m]) == 1


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
        def show(self, _context: Any, _ask: Any) -> Any:
            raise error

    results = learned(strategies=(Raising(),)).detailed_results
    assert results.failures["strategy"] >= 1
    assert results.ended_because == "all epochs are done"
