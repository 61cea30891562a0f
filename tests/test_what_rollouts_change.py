"""A run's records are found again although its rollouts change what tools and metrics hold."""

import logging
import re
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


TOLD = re.compile(r"(\S+) is one for all rollouts")
PROGRAMS: dict[Callable[[], Any], list[str]] = {
    closing_over_a_cache: ["pages"],
    with_a_shared_manual: ["Manual.read"],
    with_a_class_that_closes_over_a_list: ["Manual.read", "asked"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_whose_rollouts_share_state_is_replayed_whole(
    program: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = compiled(tmp_path, agent_lm(), student=program())
    assert sorted(TOLD.findall(caplog.text)) == PROGRAMS[program]
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


NOTES: list[Any] = []
NOTES += [NOTES, {"again": NOTES}]  # it holds itself


class Diary(dspy.Module):
    pages: Any = []  # noqa: RUF012 - one for all rollouts: the fault that is told

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.ask, self.kept, self.own = dspy.Predict("question -> answer"), kept, list[str]()

    def forward(self, question: str) -> Any:
        {"own": self.own, "Diary.pages": self.pages, "NOTES": NOTES}[self.kept].append(question)
        return self.ask(question=question)


@pytest.mark.parametrize("kind", [list, deque])
@pytest.mark.parametrize("kept", ["own", "Diary.pages", "NOTES"])
def test_a_collection_of_all_rollouts_that_grows_is_told_once(
    kept: str, kind: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Diary, "pages", kind())
    compiled(tmp_path, polite_lm(), student=Diary(kept))
    assert TOLD.findall(caplog.text) == [kept] * (kept != "own")
