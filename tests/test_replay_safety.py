"""What goes on from a step calls nothing that was marked, trusts no hidden state, costs little."""

import functools
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from scripted import Prompt, chat, scripted_lm
from test_credit import Route, learned
from test_replay import Bench, answer

from tfgrpo_dspy.errors import NotReplayedError
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies import MonteCarloCredit, replay_only


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


SHARED: dict[int, dspy.Tool] = {}


def shared(box: Mailbox) -> dspy.Tool:
    return SHARED.setdefault(id(box), replay_only(dspy.Tool(box.plain, name="send")))


class Sender:
    """An object that can be called; DSPy names its tool by the class."""

    def __init__(self, box: Mailbox) -> None:
        self.box = box

    def __call__(self, to: str) -> str:
        return self.box.plain(to)


def in_a_lambda(box: Mailbox) -> dspy.Tool:
    send = replay_only(box.plain)
    return dspy.Tool(lambda to: send(to), name="send")


def object_in_a_lambda(box: Mailbox) -> dspy.Tool:
    send = replay_only(Sender(box))
    return dspy.Tool(lambda to: send(to), name="send")


def static(box: Mailbox) -> dspy.Tool:
    class Mail:
        @replay_only
        @staticmethod
        def send(to: str) -> str:
            return box.plain(to)

    return dspy.Tool(Mail.send)


WAYS: dict[str, Callable[[Mailbox], dspy.Tool]] = {
    "marked tool": lambda box: replay_only(dspy.Tool(box.plain)),
    "marked method": lambda box: dspy.Tool(replay_only(box.plain)),
    "marked in the class": lambda box: dspy.Tool(box.own),
    "partial of a marked function": lambda box: dspy.Tool(
        functools.partial(replay_only(box.with_subject), "hello"), name="send"),
    "marked partial": lambda box: dspy.Tool(
        replay_only(functools.partial(lambda _, to: box.plain(to), "hello")), name="send"),
    "marked object": lambda box: dspy.Tool(replay_only(Sender(box))),
    "marked static method": static,
    "one tool of all rollouts": shared,
    "coroutine": lambda box: dspy.Tool(replay_only(box.later)),
    "in a lambda": in_a_lambda,
    "object in a lambda": object_in_a_lambda,
    "no tool at all": lambda box: replay_only(box.plain),
}  # fmt: skip


def to_someone(prompt: Prompt) -> str:
    return chat(to=f"person {prompt.random().randrange(10**6)}")


def mailing(build: Callable[[Mailbox], Any], kind: type[Sending] = Mailing) -> tuple[Bench, Any]:
    box = Mailbox([])
    rules = [("`to`", to_someone), ("question", answer)]
    return Bench(kind(lambda: build(box)), scripted_lm(rules)), box.sent


def refusal(bench: Bench, source: Rollout) -> str:
    """Why the rollout is not gone on with; "" if it is."""
    try:
        return bench.check(source)
    except NotReplayedError as error:
        return str(error)


@pytest.mark.parametrize("kind", [Mailing, Awaiting])
@pytest.mark.parametrize("way", [name for name in WAYS if name != "no tool at all"])
def test_a_marked_tool_that_forward_builds_is_not_called_again(
    way: str, kind: type[Sending]
) -> None:
    bench, sent = mailing(WAYS[way], kind)
    source = bench.whole()
    assert [step.name for step in source.steps][::2] == ["plan", "last"]
    assert len(sent) == 1
    refused = refusal(bench, source)
    assert refused == "" or way.endswith("in a lambda")
    for n_steps in (0, 1, 2):
        made = bench.on(source, n_steps)
        if n_steps == 2:
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


class Shopping(dspy.Module):
    """Calls tools that share a basket, as they are named; the last one looks at a page."""

    def __init__(self, *calls: tuple[str, dict[str, Any]], counts: bool = False) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.calls, self.counts = calls, counts

    def forward(self, question: str) -> Any:
        basket: list[int] = []

        def add(price: int) -> str:
            basket.append(price)
            return "ok"

        def clear() -> str:
            basket.clear()
            return "ok"

        def total() -> int:
            return sum(basket)

        def look(page: int) -> str:
            return f"page {page}" if page else f"sum {sum(basket)}"

        made = self.first(question=question)
        tools = {function.__name__: dspy.Tool(function) for function in (add, clear, total, look)}
        for name, arguments in self.calls:
            tools[name](**arguments)
        return dspy.Prediction(answer=len(basket) if self.counts else made.answer)


LOOK = ("look", {"page": 1})
ADD, TOTAL, CLEAR = ("add", {"price": 30}), ("total", {}), ("clear", {})


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (Shopping(ADD, TOTAL, LOOK), "'total' gives another result"),
        (Shopping(ADD, TOTAL, CLEAR, TOTAL, LOOK), "'total' gives another result"),
        (Shopping(ADD, ("look", {"page": 0}), LOOK), "'look' gives another result"),
        (Shopping(ADD, LOOK, counts=True), "returns something else"),
        (Shopping(ADD, counts=True), "returns something else"),
        (Shopping(LOOK, ("look", {"page": 2})), ""),
        (Shopping(ADD, LOOK), ""),
    ],
    ids=[
        *("total", "total before and after", "an earlier call of the last tool"),
        *("counted", "one tool", "no basket", "never read"),
    ],
)
def test_what_tools_share_is_noticed_wherever_it_shows(program: Shopping, why: str) -> None:
    bench = Bench(program, scripted_lm([("question", chat(answer="0.5"))]))
    found = refusal(bench, bench.whole())
    assert why in found and bool(why) == bool(found)


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
