"""A run's records are found again although its rollouts change what tools and metrics hold."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import agent_lm, polite_lm
from test_promise_resume import compiled, facts, offline


def agent_with(tool: Callable[..., Any]) -> dspy.ReAct:
    return dspy.ReAct("question -> answer", tools=[dspy.Tool(tool, name="look_up")], max_iters=3)


def closing_over_a_cache() -> Any:
    pages: dict[str, int] = {}

    def look_up(page: str) -> str:
        """Reads a page of the manual."""
        pages[page] = pages.get(page, 0) + 1
        return f"page {page}"

    return agent_with(look_up)


class Manual:
    """Cannot be copied, so all rollouts share it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.read: list[str] = []

    def look_up(self, page: str) -> str:
        """Reads a page of the manual."""
        with self.lock:
            self.read.append(page)
        return f"page {page}"

    __call__ = look_up


def with_a_shared_manual() -> Any:
    return agent_with(Manual().look_up)


def with_a_class_that_closes_over_a_list() -> Any:
    asked: list[str] = []

    class Listing(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask, self.manual = dspy.Predict("question -> answer"), Manual()

        def forward(self, question: str) -> Any:
            asked.append(question)
            self.manual(question)
            return self.ask(question=question)

    return Listing()


PROGRAMS = [closing_over_a_cache, with_a_shared_manual, with_a_class_that_closes_over_a_list]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_whose_rollouts_share_state_is_replayed_whole(
    program: Callable[[], Any], tmp_path: Path
) -> None:
    first = compiled(tmp_path, agent_lm(), student=program())
    assert len(first.detailed_results.updates) > 1
    lm = agent_lm()
    assert facts(compiled(tmp_path, lm, student=program())) == facts(first)
    assert lm.engine.n_calls() == 0
    assert facts(offline(tmp_path, student=program())) == facts(first)


class AsyncOnly(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> Any:
        return self.ask(question=question)


def test_a_program_made_synchronous_is_looked_at_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dspy"), "propagate", True)
    compiled(tmp_path, polite_lm(), student=dspy.syncify(AsyncOnly()))
    assert "forward" not in caplog.text


class Diary(dspy.Module):
    pages: Any = []  # noqa: RUF012 - one for all rollouts: the fault that is told

    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.ask, self.kept = dspy.Predict("question -> answer"), kept

    def forward(self, question: str) -> Any:
        if self.kept:
            self.pages.append(question)
        return self.ask(question=question)


@pytest.mark.parametrize(("kept", "kind"), [(True, list), (True, deque), (False, list)])
def test_a_class_attribute_that_collects_what_rollouts_put_there_is_told_once(
    kept: bool,
    kind: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Diary, "pages", kind())
    compiled(tmp_path, polite_lm(), student=Diary(kept))
    assert caplog.text.count("Diary.pages is one for all rollouts") == kept
