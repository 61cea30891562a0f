"""LM calls that no callback of the run sees begin: the code around them sets its own callbacks."""

import asyncio
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from runs import (
    ADVICE,
    is_polite,
    library_texts,
    n_calls,
    optimizer_of,
    polite_lm,
    predictor,
    questions,
)
from scripted import AsyncEngine, ScriptedEngine, chat

SIDE: dict[str, dspy.LM] = {}
"""An LM that programs and metrics know as a global, so that it is not metered."""
N_THREADS = 4


class Quiet(dspy.Module):
    """Asks the side LM within callbacks of its own, then answers."""

    def __init__(self, ask: Callable[[str], Any], n_calls: int = 1) -> None:
        super().__init__()
        self.reply, self.ask, self.n_calls = dspy.Predict("question -> answer"), ask, n_calls

    def forward(self, question: str) -> Any:
        for _ in range(self.n_calls):
            self.ask(question)
        return self.reply(question=question)


NOTE = dspy.Signature("question -> note")  # made once: ast of Python 3.11 may fail in threads


def without_callbacks(question: str) -> None:
    with dspy.context(callbacks=[]):
        SIDE["lm"](f"side {question}")


def with_callbacks_of_ones_own(question: str) -> None:
    with dspy.context(callbacks=[BaseCallback()], lm=SIDE["lm"]):
        dspy.Predict(NOTE)(question=f"side {question}")


async def _two(question: str) -> None:
    await asyncio.gather(*(SIDE["lm"].acall(f"side {question} {k}") for k in range(2)))


def several_at_once(question: str) -> None:
    with dspy.context(callbacks=[]):
        asyncio.run(_two(question))


def swallowing(question: str) -> None:
    with dspy.context(callbacks=[]):
        try:
            SIDE["lm"](f"side {question}")
        except BaseException:  # noqa: BLE001 - as a careless program does
            return


WAYS = {
    "no callbacks": without_callbacks,
    "callbacks of one's own": with_callbacks_of_ones_own,
    "several at once": several_at_once,
    "swallowing all": swallowing,
}


class Compile:
    """A compile, with the engines of both LMs."""

    def __init__(self, student: Any, metric: Any = is_polite, **settings: Any) -> None:
        engine = ScriptedEngine([("", chat(note="x"))])
        of_side = {"engine": engine, "async_engine": AsyncEngine(engine), "max_tokens": 9}
        self.side = dspy.LM("side", cache=False, **of_side)
        SIDE["lm"], lm = self.side, polite_lm(max_tokens=100)
        optimizer = optimizer_of(metric=metric, num_threads=N_THREADS, **settings)
        data = {"trainset": questions(6), "valset": questions(12, start=100)}
        with dspy.context(lm=lm):
            self.optimized = optimizer.compile(student, **data)
        self.results = self.optimized.detailed_results
        self.n_side = self.side.engine.n_calls()
        self.n_made = self.n_side + lm.engine.n_calls()

    @property
    def n_stated(self) -> int:
        return n_calls(self.optimized)


@pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)
def test_calls_within_other_callbacks_are_counted_and_stated(ask: Any) -> None:
    run = Compile(Quiet(ask))
    assert ADVICE in library_texts(run.optimized)
    assert run.n_stated == run.n_made


@pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)
def test_the_first_call_within_other_callbacks_that_is_too_many_ends_the_run(ask: Any) -> None:
    student = Quiet(ask, n_calls=10)
    run = Compile(student, max_lm_calls=300)
    n_at_once = 10 if ask is swallowing else 2  # of each thread; what swallows all goes on
    assert run.n_made <= 300 + n_at_once * N_THREADS
    # of each rollout that is cut, the call beside the one that raised is cancelled, and not seen
    n_cancelled = 10 * N_THREADS if ask is several_at_once else 0
    assert run.n_stated <= run.n_made <= run.n_stated + n_cancelled


def test_their_dollars_count_towards_max_cost() -> None:
    prices = {"scripted": (1.0, 1.0), "side": (1000.0, 1000.0)}
    run = Compile(Quiet(without_callbacks, n_calls=5), max_cost=1.0, prices=prices)
    dollars = sum(usage.cost_usd for usage in run.results.usage.values())
    side = sum(len(prompt.text.split()) + 10 for prompt in run.side.engine.prompts) / 1000
    assert dollars >= side > 0.3
    assert dollars <= 1.0 + N_THREADS * 0.02


def test_calls_of_a_judge_within_other_callbacks_are_counted() -> None:
    def judge(example: Any, pred: Any, _trace: Any = None) -> Any:
        without_callbacks(example.question)
        return is_polite(example, pred)

    run = Compile(predictor(), judge)
    assert run.n_stated == run.n_made
    assert run.results.usage["metric"].n_lm_calls == run.n_side > 0
