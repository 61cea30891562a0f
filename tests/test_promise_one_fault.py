"""Promise 7: one bad rollout, metric call, tool or reflection answer costs itself only.

It is recorded, counted by kind, logged once; and what good evidence is left is still learned from.
"""

import asyncio
import itertools
import threading
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy import lm15
from runs import (
    ADVICE,
    agent_lm,
    is_polite,
    learned,
    library_texts,
    optimizer_of,
    polite_answer,
    polite_rules,
    predictor,
    questions,
)
from scripted import EXTRACT, UPDATE, Prompt, lessons, operations, scripted_lm

from tfgrpo_dspy import NoGate, RunFailedError


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class Unshowable:
    def __float__(self) -> float:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise ZeroDivisionError


RAISED = (LookupError, SystemExit, GeneratorExit, asyncio.CancelledError, UnspeakableError)
NO_SCORES = (None, float("nan"), float("inf"), 1e308, "1.0", [1.0], {"a": 1}, 1j, Unshowable())
FAULTS: dict[str, tuple[Any, ...]] = {
    "program": RAISED,
    "metric": (*RAISED, *NO_SCORES),
    "parse": ("mumbling",),
    "provider": (lm15.RateLimitError("slow"), lm15.ServerError("down"), TypeError("a bug")),
}


class Faults:
    """Those of one place, in turn; `n` were met."""

    def __init__(self, place: str) -> None:
        self.place, self.n = place, 0
        self._faults, self._lock = itertools.cycle(FAULTS[place]), threading.Lock()

    def meets(self, place: str, question: str) -> bool:
        return self.place == place and is_faulty(question)

    def next(self) -> Any:
        with self._lock:
            self.n += 1
            return next(self._faults)


def is_faulty(text: str) -> bool:
    """Whether a prompt, or a question, is one of the three of ten that have the fault."""
    asked = text.partition("Respond with")[0].rstrip()
    return any(asked.endswith(f"question {n}") for n in (1, 104, 107))


class Raising(dspy.Module):
    def __init__(self, faults: Callable[[], Faults]) -> None:
        super().__init__()
        self.ask = predictor()
        self.faults = faults  # a function, which copies of the program share

    def forward(self, question: str) -> Any:
        if self.faults().meets("program", question):
            raise self.faults().next()
        return self.ask(question=question)


@pytest.mark.parametrize("place", FAULTS)
def test_a_fault_costs_its_own_rollouts_only_and_is_counted_and_logged_once(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults(place)

    def metric(example: Any, pred: Any) -> Any:
        if not faults.meets("metric", example.question):
            return is_polite(example, pred)
        fault = faults.next()
        if isinstance(fault, type):
            raise fault
        return fault

    def answer(prompt: Prompt) -> Any:
        has_fault = faults.meets("parse", prompt.user) or faults.meets("provider", prompt.user)
        return faults.next() if has_fault else polite_answer(prompt)

    extract, update, _ = polite_rules()
    lm = scripted_lm([extract, update, ("question", answer)], num_retries=0)
    optimized = learned(Raising(lambda: faults), lm, metric=metric, epochs=3)
    results = optimized.detailed_results
    assert faults.n >= len(FAULTS[place])
    assert library_texts(optimized) == [ADVICE]
    assert list(results.failures) == [place]
    lines = [r.getMessage() for r in caplog.records if "first failure of kind" in r.getMessage()]
    assert [line.startswith(f"first failure of kind {place!r}") for line in lines] == [True]
    training = [g for update in results.updates for g in update.groups if g.example == 1]
    n_own = sum(len(group.failures) for group in training)
    assert n_own > 0
    assert all(kind == place for group in training for kind in group.failures)
    has_score = place in ("program", "parse")  # else there is no contrast either
    assert all(set(group.scores) == ({0.0} if has_score else set()) for group in training)
    assert results.student.n_failed == (0 if has_score else 2)


def test_a_run_that_nothing_but_fails_is_ended_and_the_student_is_on_the_error() -> None:
    down = scripted_lm([("", lm15.ServerError("down"))], num_retries=0)
    said = r"21 of 21 rollouts .* \(21 of 21\): LMServerError: .*down"
    with pytest.raises(RunFailedError, match=said) as failed:
        learned(lm=down, num_threads=1)
    assert library_texts(failed.value.program) == []


def test_a_tool_that_fails_costs_its_own_result_only() -> None:
    def look_up(page: str) -> str:
        """Reads a page of the manual."""
        raise ConnectionError(page)

    lm = agent_lm()
    agent = dspy.ReAct("question -> answer", tools=[look_up])
    # DSPy writes the traceback; in CPython 3.11 two threads at once may raise SystemError there
    optimized = learned(agent, lm, num_threads=1)
    assert library_texts(optimized) == [ADVICE]
    assert optimized.detailed_results.failures == {}
    asked = [prompt.user for prompt in lm.engine.prompts if "`semantic_advantage`" in prompt.text]
    assert all("error: ConnectionError: 7" in prompt for prompt in asked)


# ---------------------------------------------------------------------- the reflection LM

BAD: dict[str, dict[str, str]] = {
    "op='EXPLODE': the operations are": {"op": "EXPLODE", "text": "Boom."},
    "there is no E77": {"op": "DELETE", "id": "E77"},
    "id='the first'": {"op": "MODIFY", "id": "the first", "text": "Be brief."},
    "the text is empty": {"op": "ADD", "text": "   "},
    "words; at most 80 are allowed": {"op": "ADD", "text": "When asked, be polite. " * 4_500},
    "says this already": {"op": "ADD", "text": ADVICE.upper()},
    "lone surrogates": {"op": "ADD", "text": "Be \\ud800 brief."},
}


@pytest.mark.parametrize(("reason", "bad"), BAD.items(), ids=BAD)
def test_a_bad_operation_costs_itself_only_and_its_reason_is_told(
    reason: str, bad: dict[str, str]
) -> None:
    good = {"op": "ADD", "text": ADVICE, "lessons": [1, 99, 0, -1]}
    answer = operations(good, bad).replace("\\\\ud800", "\\ud800")
    lm = scripted_lm([(EXTRACT, lessons(ADVICE)), (UPDATE, answer), ("question", polite_answer)])
    optimized = learned(lm=lm, max_staleness=0)  # update 1 knows the lesson, and is not asked
    assert library_texts(optimized) == [ADVICE]
    updates = optimized.detailed_results.updates
    ours, theirs, *later = [op.refused for update in updates for op in update.operations]
    assert ours == ""
    assert reason in theirs
    assert set(later) <= {"", theirs}


def test_what_a_program_or_a_metric_writes_into_an_example_is_seen_by_nobody() -> None:
    class Noting(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question, notes -> answer")

        def forward(self, question: str, notes: list[str]) -> Any:
            notes.append("seen")
            return self.ask(question=question, notes=notes)

    def metric(example: Any, pred: Any, _trace: Any = None) -> Any:
        assert example.notes == ["old"]
        example.notes.append("scored")
        return is_polite(example, pred)

    examples = [example.copy(notes=["old"]) for example in questions(6)]
    examples = [example.with_inputs("question", "notes") for example in examples]
    lm = scripted_lm(polite_rules())
    with dspy.context(lm=lm):
        optimizer = optimizer_of(metric=metric, group_size=2, gate=NoGate())
        optimized = optimizer.compile(Noting(), trainset=examples)
    assert optimized.detailed_results.failures == {}
    assert [example.notes for example in examples] == [["old"]] * 6
    asked = [prompt.user for prompt in lm.engine.prompts if "notes" in prompt.user]
    assert asked
    assert not [user for user in asked if user.count("seen") > 1]
