"""A rollout is replayed up to any step, call by call, and goes on from there with fresh samples.

What goes on calls nothing that was marked, and costs no call of an LM before that step.
"""

import functools
import itertools
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import dspy
import pytest
from scripted import Prompt, chat, scripted_lm
from test_credit import Route, learned

from tfgrpo_dspy.rollout import Rollout, adapt_metric
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, Start, run_rollout
from tfgrpo_dspy.strategies import MonteCarloCredit, replay_only

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


def test_from_every_step_of_an_agent_only_what_follows_is_asked_for() -> None:
    look = counting(lambda page: f"page {page}")[0]
    bench = agent(look, *PAGES)
    source = bench.whole()
    assert [step.name for step in source.steps] == [
        "react", "look", "react", "look", "react", "look", "react", "finish", "extract.predict"
    ]  # fmt: skip
    for n_steps in range(len(source.steps)):
        n_asked = len(bench.lm.engine.prompts)
        made = bench.on(source, n_steps)
        left = source.steps[n_steps:]
        assert made.failure is None
        assert made.steps[:n_steps] == source.steps[:n_steps]
        assert len(bench.lm.engine.prompts) - n_asked == sum(s.kind == "predictor" for s in left)
        assert made.usage.n_lm_calls == sum(s.kind == "predictor" for s in left)
        assert made.n_replayed == n_steps


@pytest.mark.parametrize(
    "result",
    ["7", 7, 2.5, None, True, "", {"rows": [1, "a"], "of": None}, [[1, 2], []], "line\n[[ ## x"],
)
def test_results_of_tools_of_any_plain_type_come_back_as_they_were(result: Any) -> None:
    look, calls = counting(lambda _: result)
    bench = agent(replay_only(look), *PAGES)
    source = bench.whole()
    assert [bench.on(source, n_steps).failure for n_steps in (0, 6)] == [None, None]
    assert len(calls) == 3


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
def test_tools_may_raise_the_same_again(error: Exception) -> None:
    bench = agent(counting(raising(error))[0], *PAGES)
    source = bench.whole()
    assert type(error).__name__ in source.steps[3].error
    made = bench.on(source, 6)
    assert made.failure is None
    assert made.score is not None


def test_a_tool_that_gives_another_result_than_before_is_recognised() -> None:
    places = itertools.count()
    bench = agent(counting(lambda _: f"place {next(places)}")[0], *PAGES)
    failure = bench.on(bench.whole(), 6).failure
    assert failure is not None
    assert "gives another result for the same arguments" in failure.message


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
    bench.lm.engine.rules[1] = ("question", answer)
    made = bench.on(source, 8)
    assert (made.failure, made.usage.n_lm_calls) == (None, 1)


# ------------------------------------------------------------------------------ safety


class Sending(dspy.Module):
    """Decides to whom to write, sends a mail by a tool that is built then, and answers."""

    def __init__(self, tool: Callable[[], Any]) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> to")
        self.last = dspy.Predict("question, sent -> answer")
        self.tool = tool


class Mailing(Sending):
    def forward(self, question: str) -> Any:
        to = self.plan(question=question).to
        return self.last(question=question, sent=self.tool()(to=to))


class Awaiting(Sending):
    async def aforward(self, question: str) -> Any:
        to = self.plan(question=question).to
        return self.last(question=question, sent=await self.tool().acall(to=to))


class Mailbox:
    def __init__(self, sent: list[str]) -> None:
        self.sent = sent

    @replay_only
    def own(self, to: str) -> str:
        self.sent.append(to)
        return f"sent to {to}"

    def plain(self, to: str) -> str:
        self.sent.append(to)
        return f"sent to {to}"

    def with_subject(self, subject: str, to: str) -> str:
        return f"{subject} {self.plain(to)}"

    async def later(self, to: str) -> str:
        return self.plain(to)


class Sender:
    """An object that can be called; DSPy names its tool by the class."""

    def __init__(self, box: Mailbox) -> None:
        self.box = box

    def __call__(self, to: str) -> str:
        return self.box.plain(to)


def in_a_lambda(box: Mailbox) -> dspy.Tool:
    send = replay_only(box.plain)
    return dspy.Tool(lambda to: send(to), name="send")


WAYS: dict[str, Callable[[Mailbox], dspy.Tool]] = {
    "marked tool": lambda box: replay_only(dspy.Tool(box.plain)),
    "marked in the class": lambda box: dspy.Tool(box.own),
    "partial of a marked function": lambda box: dspy.Tool(
        functools.partial(replay_only(box.with_subject), "hello"), name="send"),
    "marked object": lambda box: dspy.Tool(replay_only(Sender(box))),
    "coroutine": lambda box: dspy.Tool(replay_only(box.later)),
    "in a lambda": in_a_lambda,
}  # fmt: skip


def to_someone(prompt: Prompt) -> str:
    return chat(to=f"person {prompt.random().randrange(10**6)}")


def mailing(build: Callable[[Mailbox], Any], kind: type[Sending] = Mailing) -> tuple[Bench, Any]:
    box = Mailbox([])
    rules = [("`to`", to_someone), ("question", answer)]
    return Bench(kind(lambda: build(box)), scripted_lm(rules)), box.sent


@pytest.mark.parametrize("kind", [Mailing, Awaiting])
@pytest.mark.parametrize("way", WAYS)
def test_a_marked_tool_that_forward_builds_is_not_called_again(
    way: str, kind: type[Sending]
) -> None:
    bench, sent = mailing(WAYS[way], kind)
    source = bench.whole()
    assert [step.name for step in source.steps][::2] == ["plan", "last"]
    assert len(sent) == 1
    for n_steps in (0, 1, 2):
        made = bench.on(source, n_steps)
        if n_steps == 2 and way.endswith("in a lambda"):
            assert made.failure is not None and made.failure.kind == "stopped"
        elif n_steps == 2:
            assert (made.failure, made.usage.n_lm_calls) == (None, 1)
        if n_steps == 0:  # to someone else: nobody knows what that gives
            assert made.failure is not None and made.failure.kind == "stopped"
            assert made.score is None
    assert len(sent) == 1


def test_a_marked_function_works_outside_a_replay_as_before() -> None:
    box = Mailbox([])
    marked = replay_only(box.plain)
    tool = dspy.Tool(marked)
    assert (tool.name, list(tool.args)) == ("plain", ["to"])
    named = dspy.Tool(replay_only(Sender(box)))
    assert (named.name, list(named.args)) == ("Sender", ["to"])
    assert [marked("Ada"), box.own("Ben"), tool(to="Cleo")] == [
        "sent to Ada", "sent to Ben", "sent to Cleo"
    ]  # fmt: skip


class Elsewhere(Route):
    """Asks its predictors through an adapter of its own."""

    def forward(self, question: str) -> Any:
        with dspy.context(adapter=dspy.ChatAdapter()):
            return super().forward(question)


class Asking(Route):
    """Asks an LM without a predictor, too."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = None

    def forward(self, question: str) -> Any:
        dspy.settings.lm(f"question: {question} `way`")
        return super().forward(question)


@pytest.mark.parametrize("kind", [Elsewhere, Asking])
def test_a_program_that_cannot_be_replayed_costs_no_call_of_an_lm(kind: Any) -> None:
    plain, run = learned(student=kind()), learned(MonteCarloCredit(calls=4), student=kind())
    assert run.results.usage["rollout"] == plain.results.usage["rollout"]
    assert run.results.failures["replay"] >= 1
    assert run.attempts == plain.attempts
