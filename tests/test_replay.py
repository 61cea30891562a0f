"""A rollout is replayed up to any step, call by call, and goes on from there with fresh samples."""

import itertools
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Prompt, chat, scripted_lm

from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, Start, checks, run_rollout
from tfgrpo_dspy.strategies import replay_only

EXAMPLE = dspy.Example(question="Who wrote it?", answer="0.5").with_inputs("question")


@dataclass
class Bench:
    """A program on a scripted LM: whole rollouts, and those that go on from them."""

    program: Any
    lm: dspy.LM

    def task(self, rollout_id: int) -> RolloutTask:
        score = adapt_metric(lambda _example, pred, _trace=None: float(pred.answer))
        return RolloutTask(self.program, EXAMPLE, 0, rollout_id, 1.0, score)

    def whole(self) -> Rollout:
        with dspy.context(lm=self.lm):
            return run_rollout(self.task(1))

    def on(self, source: Rollout, n_steps: int, rollout_id: int = 2, **how: Any) -> Rollout:
        with dspy.context(lm=self.lm):
            start = Start(source, n_steps, **how)
            return run_rollout(replace(self.task(rollout_id), start=start))

    def check(self, source: Rollout) -> str:
        """Why the rollout cannot be replayed; "" if it can."""
        for start in checks(source):
            failure = self.on(source, start.n_steps, called=start.called).failure
            if failure and failure.kind in ("replay", "stopped"):
                return failure.message
        return ""


def acting(tool: str, *arguments: dict[str, Any]) -> Callable[[Prompt], str]:
    """An agent that calls the tool with these arguments, one after the other, then finishes."""

    def turn(prompt: Prompt) -> str:
        n = prompt.user.count("[[ ## observation_")
        is_done = n == len(arguments)
        name, given_ = ("finish", {}) if is_done else (tool, arguments[n])
        thought = f"thought {prompt.random().random()}"
        return chat(next_thought=thought, next_tool_name=name, next_tool_args=given_)

    return turn


def answer(prompt: Prompt) -> str:
    text = str(round(prompt.random().random(), 6))
    return chat(reasoning="so", answer=text) if "`reasoning`" in prompt.text else chat(answer=text)


def agent(tool: Any, *arguments: dict[str, Any], max_iters: int = 300) -> Bench:
    name = tool.name if isinstance(tool, dspy.Tool) else tool.__name__
    rules = [("`next_tool_name`", acting(name, *arguments)), ("question", answer)]
    program = dspy.ReAct("question -> answer", tools=[tool], max_iters=max_iters)
    return Bench(program, scripted_lm(rules))


def counting(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """A tool `look` that does the same, and the arguments of its calls."""
    calls: list[Any] = []

    def look(page: int) -> Any:
        calls.append(page)
        return function(page)

    return look, calls


PAGES = [{"page": page} for page in (3, 1, 2)]


def test_from_every_step_of_an_agent_only_what_follows_is_called() -> None:
    look, calls = counting(lambda page: f"page {page}")
    bench = agent(look, *PAGES)
    source = bench.whole()
    assert [step.name for step in source.steps] == [
        "react", "look", "react", "look", "react", "look", "react", "finish", "extract.predict"
    ]  # fmt: skip
    for n_steps in range(len(source.steps)):
        n_asked, n_called = len(bench.lm.engine.prompts), len(calls)
        made = bench.on(source, n_steps)
        left = source.steps[n_steps:]
        assert made.failure is None
        assert made.steps[:n_steps] == source.steps[:n_steps]
        assert len(bench.lm.engine.prompts) - n_asked == sum(s.kind == "predictor" for s in left)
        assert len(calls) - n_called == sum(s.name == "look" for s in left)
        assert made.usage.n_lm_calls == sum(s.kind == "predictor" for s in left)
        assert made.n_replayed == n_steps


@pytest.mark.parametrize(
    "result",
    ["7", 7, 2.5, None, True, "", {"rows": [1, "a"], "of": None}, [[1, 2], []], "line\n[[ ## x"],
)
def test_results_of_tools_of_any_plain_type_come_back_as_they_were(result: Any) -> None:
    bench = agent(counting(lambda _: result)[0], *PAGES)
    source = bench.whole()
    assert bench.check(source) == ""
    assert bench.on(source, 6).failure is None


def raising(error: Exception) -> Callable[[int], str]:
    def look(page: int) -> str:
        if page == 1:
            raise error
        return "fine"

    return look


@pytest.mark.parametrize(
    "error", [ValueError("no page"), KeyError("page"), OSError(2, "gone"),
              sqlite3.OperationalError("no such column")], ids=repr,
)  # fmt: skip
def test_errors_of_tools_are_fed_back(error: Exception) -> None:
    look, calls = counting(raising(error))
    bench = agent(look, *PAGES)
    source = bench.whole()
    assert type(error).__name__ in source.steps[3].error
    assert bench.check(source) == ""
    n_called = len(calls)
    made = bench.on(source, 6)
    assert made.failure is None
    assert made.score is not None
    assert len(calls) == n_called


def test_a_tool_with_side_effects_is_not_called_again() -> None:
    sent = []

    @replay_only
    def send(to: str) -> str:
        """Sends a mail."""
        sent.append(to)
        return f"sent to {to}"

    bench = agent(send, {"to": "Ada"}, {"to": "Ben"})
    source = bench.whole()
    assert sent == ["Ada", "Ben"]
    assert bench.check(source) == ""
    made = bench.on(source, 0)  # the same calls again: the record knows their results
    assert made.failure is None
    assert sent == ["Ada", "Ben"]


def test_a_new_call_of_a_tool_with_side_effects_ends_the_rollout_without_a_score() -> None:
    sent = []

    def send(to: int) -> str:
        """Sends a mail."""
        sent.append(to)
        return "sent"

    def turn(prompt: Prompt) -> str:
        if "observation_0" in prompt.user:
            return chat(next_thought="ok", next_tool_name="finish", next_tool_args={})
        arguments = {"to": prompt.random().randrange(10**9)}
        return chat(next_thought="go", next_tool_name="send", next_tool_args=arguments)

    tool = replay_only(dspy.Tool(send))
    program = dspy.ReAct("question -> answer", tools=[tool])
    bench = Bench(program, scripted_lm([("`next_tool_name`", turn), ("question", answer)]))
    source = bench.whole()
    made = bench.on(source, 0)
    assert made.failure is not None
    assert (made.failure.kind, made.score) == ("stopped", None)
    assert "'send' is replay_only" in made.failure.message
    assert len(sent) == 1


def test_a_tool_whose_results_depend_on_earlier_calls_is_recognised() -> None:
    places = itertools.accumulate(itertools.repeat(1))
    bench = agent(counting(lambda _: f"place {next(places)}")[0], *PAGES)
    source = bench.whole()
    assert "gives another result for the same arguments" in bench.check(source)


class Chain(dspy.Module):
    """Predictors one after the other, with typed outputs."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.parts = [dspy.Predict("question, so_far: list[int] -> number: int")] * length
        self.last = dspy.ChainOfThought("question, so_far: list[int] -> answer")

    def forward(self, question: str) -> Any:
        so_far: list[int] = []
        for part in self.parts:
            so_far.append(part(question=question, so_far=so_far).number)
        return self.last(question=question, so_far=so_far)


@settings(deadline=None, max_examples=25)
@given(length=st.integers(0, 6), data=st.data())
def test_programs_of_predictors_go_on_from_any_step(length: int, data: st.DataObject) -> None:
    numbers = ("`number`", lambda p: chat(number=str(p.random().randrange(1000))))
    bench = Bench(Chain(length), scripted_lm([numbers, ("question", answer)]))
    source = bench.whole()
    n_steps = data.draw(st.integers(0, length))
    made = bench.on(source, n_steps)
    assert (made.failure, made.usage.n_lm_calls) == (None, length + 1 - n_steps)
    assert made.steps[:n_steps] == source.steps[:n_steps]
    assert bench.check(source) == ""


def test_an_answer_is_asked_for_after_any_step_without_the_program() -> None:
    bench = agent(counting(lambda page: f"page {page}")[0], *PAGES)
    source = bench.whole()
    made = bench.on(source, 4, answers_now=True)
    assert (made.failure, made.usage.n_lm_calls) == (None, 1)
    asked = bench.lm.engine.prompts[-1].user
    assert "page 1" in asked and "page 2" not in asked
    assert made.score == float(made.outputs["answer"])


def test_a_rollout_that_ended_in_an_answer_that_cannot_be_read_is_replayed_to_it() -> None:
    bench = agent(counting(str)[0], *PAGES)
    bench.lm.engine.rules[1] = ("question", "I had rather not say.")
    source = bench.whole()
    assert source.failure is not None
    assert source.failure.kind == "parse"
    assert bench.check(source) == ""
    bench.lm.engine.rules[1] = ("question", answer)
    made = bench.on(source, 8)
    assert (made.failure, made.usage.n_lm_calls) == (None, 1)
