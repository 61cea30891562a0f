"""Agents on which a strategy should help, by somebody who wrote none of them. SIMULATED.

Both are a real `dspy.ReAct`; a case is of one of five kinds, and only the end is scored, without a
word. A turn uses one tool. Without advice, the one that the kind is used to after what was done
comes twice as often as each other; in nine of ten turns advice is obeyed, one line of several.

**workshop.** Each of four tools is used once. A piece is good if three of them came in the order
that its kind asks for; what was done cannot be undone. Asked before the end, the agent says "well"
with the chance that it will be.
**search.** Five tools, at most five turns. One tool finds a number, by the kind; another, used
after it, finds what the number stands for, and the agent finishes. A wrong tool costs a turn, so
errors can be mended. Who has not found it guesses right in one case of ten, whenever asked.
The order that `StepOrder` is told is that of the three tools, or of the two.

A lesson says what to use after what. Where values stand below steps, reflection takes the step of
the largest change, and advises its tool if the value rose, or one that another attempt used there
if it fell. Without values it advises what the best attempt did where the worst did something else,
or never came: one such place by chance. A quarter of the lessons name another tool. A teacher's
marks are the chances, in tenths, that it would end well from there, obeying right advice for all
places as the agent obeys advice; they are two off at most.

Sizes were chosen by runs without a strategy on seeds 0 to 2: 1,500 calls and 1,200 were tried.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import accumulate
from typing import Any

import credit_world
import dspy
from credit_world import ATTEMPT, CHANGE, KINDS, N_TRAIN, STEP, WRONG
from simlm_texts import OutputFields, Prompt, sections
from simlm_world import draw, pick
from strategies import Bar, Setting
from strategies_states import ATTEMPT as MARKED
from strategies_states import HIDDEN
from strategy_runs import compiled

from tfgrpo_dspy import strategies
from tfgrpo_dspy.rollout import Rollout

WORLDS = {
    "workshop": (("clean", "sand", "prime", "paint"), 4, 3, 0.0),
    "search": (("register", "ledger", "map", "phone", "shelf"), 5, 2, 0.1),
}
"""The tools, the turns, the tools that are needed in their order, the chance of a guess."""
TOLD, GROUP, BUDGET = 0.9, 5, 1200
LINE = re.compile(r"In cases of (\w+), after (\w+) use (\w+)\.")
USED = re.compile(r"## tool_name_\d+ ## \]\]\n(\w+)")  # in the agent's trajectory
SHOWN = re.compile(r"out next_tool_name: (\w+)")  # in steps that were recorded
Advice = Mapping[tuple[str, str], Sequence[str]]


def advice_in(text: str) -> Advice:
    """The tools that lines advise, by kind and by what was done before."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, place, tool in LINE.findall(text):
        found.setdefault((kind, place), []).append(tool)
    return found


class World:
    """Tools of which some are needed in an order, by the kind of the case."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.tools, self.n_turns, n_needed, self.guess = WORLDS[name]
        order = {kind: sorted(self.tools, key=lambda t: draw(seed, kind, t)) for kind in KINDS}
        self.order = {kind: tools[:n_needed] for kind, tools in order.items()}

    def found(self, kind: str, used: Sequence[str]) -> int:
        """How many of the tools in question came, one after the other."""
        n = 0
        for tool in used:
            n += n < len(self.order[kind]) and tool == self.order[kind][n]
        return n

    def place(self, kind: str, used: Sequence[str]) -> str:
        """What a line calls what was done so far."""
        if self.name == "search":
            return "number" if self.found(kind, used) else "nothing"
        return used[-1] if used else "nothing"

    def end(self, kind: str, used: Sequence[str]) -> float | None:
        """The chance of a right answer; None: the agent goes on."""
        if self.name == "search" and self.found(kind, used) == len(self.order[kind]):
            return 1.0
        is_good = self.found(kind, used) == len(self.order[kind])
        return (1.0 if is_good else self.guess) if len(used) == self.n_turns else None

    def chances(self, kind: str, used: Sequence[str], advice: Advice) -> dict[str, float]:
        """The chance of each tool."""
        options = [tool for tool in self.tools if self.name == "search" or tool not in used]
        place = self.place(kind, used)
        habit = self.tools[pick(len(self.tools), self.seed, "habit", kind, place)]
        told = [tool for tool in advice.get((kind, place), ()) if tool in options]
        rest = (1 - TOLD if told else 1.0) / (len(options) + (habit in options))
        own = TOLD / max(1, len(told))
        return {t: rest * (1 + (t == habit)) + own * told.count(t) for t in options}

    def value(self, kind: str, used: Sequence[str], advice: Advice) -> float:
        """The exact chance that a case ends well after this."""
        if (end := self.end(kind, used)) is not None:
            return end
        chances = self.chances(kind, used, advice).items()
        return sum(chance * self.value(kind, [*used, tool], advice) for tool, chance in chances)

    def right(self, kind: str) -> Advice:
        """Right advice for all places."""
        first, *rest = order = self.order[kind]
        places = ["number"] if self.name == "search" else order
        after = {place: [tool] for place, tool in zip(places, rest, strict=False)}
        return {
            (kind, place): after.get(place, [first]) for place in (*self.tools, "nothing", *after)
        }

    def score(self, text: str) -> float:
        """The exact mean score with this text in the prompt."""
        return sum(self.value(kind, (), advice_in(text)) for kind in KINDS) / len(KINDS)

    def student(self) -> dspy.ReAct:
        """The agent."""

        def tool_named(name: str) -> dspy.Tool:
            return dspy.Tool(lambda of: f"{name} of {of} is done", name=name, desc="A tool.",
                             args={"of": {"type": "string"}}, arg_types={"of": str})  # fmt: skip

        tools = [tool_named(name) for name in self.tools]
        return dspy.ReAct("case -> answer", tools=tools, max_iters=self.n_turns)

    def solvers(self, rollout: Rollout) -> list[str]:
        """The right order, for a rollout."""
        case = str(rollout.steps[0].inputs)
        return self.order[next(kind for kind in KINDS if f"about {kind}" in case)]


class Engine(credit_world.Engine):
    """Plays the agent, and reflects on it."""

    world: Any

    def _case(self, prompt: Prompt) -> tuple[str, list[str]]:
        shown = sections(prompt.user)
        kind = next(kind for kind in KINDS if f"about {kind}" in shown["case"])
        used = (SHOWN if "steps_so_far" in shown else USED).findall(prompt.user)
        return kind, [tool for tool in used if tool != "finish"]

    def _values(self, prompt: Prompt, fields: OutputFields) -> dict[str, Any]:
        if "marks" in fields.names:
            return {"marks": self._marks(prompt)}
        return super()._values(prompt, fields)

    def _turn(self, prompt: Prompt) -> dict[str, Any]:
        kind, used = self._case(prompt)
        if self.world.end(kind, used) is not None:
            return {"next_thought": "so", "next_tool_name": "finish", "next_tool_args": {}}
        chances = self.world.chances(kind, used, advice_in(prompt.system))
        luck = draw("turn", self.world.seed, prompt.user, prompt.sample)
        upto = zip(chances, accumulate(chances.values()), strict=True)
        tool = next((tool for tool, most in upto if luck < most), self.world.tools[0])
        of = "number" if self.world.place(kind, used) == "number" else kind
        return {"next_thought": "so", "next_tool_name": tool, "next_tool_args": {"of": of}}

    def _answer(self, prompt: Prompt) -> str:
        kind, used = self._case(prompt)
        chance, world = self.world.end(kind, used), self.world
        if chance is None:
            chance = world.guess or world.value(kind, used, advice_in(prompt.system))
        return "well" if draw("end", world.seed, prompt.user, prompt.sample) < chance else "badly"

    def _lesson(self, kind: str, text: str, prompt: Prompt) -> Iterator[str]:
        found = [(float(score), self._steps(kind, body)) for score, body in ATTEMPT.findall(text)]
        attempts = sorted(found, key=lambda one: -one[0])
        steps = [step for _, own in attempts for step in own]
        key = (self.world.seed, prompt.user, prompt.sample)
        place, tool, change = max(steps, key=lambda one: abs(one[2]), default=("", "", 0.0))
        if change < 0:
            tool = next((t for p, t, _ in steps if p == place and t != tool), "")
        elif change == 0:
            bad = {step[:2] for step in attempts[-1][1]} if attempts else set()
            good = [step for step in attempts[0][1] if step[:2] not in bad] if bad else []
            is_better = bool(good) and attempts[0][0] > attempts[-1][0]
            place, tool, _ = good[pick(len(good), "differ", *key)] if is_better else ("", "", 0)
        if tool and draw("wrong", kind, *key) < WRONG:
            rest = [each for each in self.world.tools if each != tool]
            tool = rest[pick(len(rest), "other", kind, *key)]
        if tool:
            yield f"In cases of {kind}, after {place} use {tool}."

    def _steps(self, kind: str, text: str) -> list[tuple[str, str, float]]:
        """The turns of an attempt: what was done before, the tool, the change of the value."""
        steps, used = list[tuple[str, str, float]](), list[str]()
        for _, body in STEP.findall(text):
            change = CHANGE.search(body)
            size = float(change[3]) - float(change[2]) if change else 0.0
            if (tool := SHOWN.search(body)) and tool[1] != "finish":
                steps.append((self.world.place(kind, used), tool[1], size))
                used.append(tool[1])
            elif steps and abs(size) > abs(steps[-1][2]):
                steps[-1] = (*steps[-1][:2], size)
        return steps

    def _operations(self, prompt: Prompt) -> list[dict[str, Any]]:
        shown = sections(prompt.user)
        known = set(LINE.findall(shown.get("experiences", "")))
        lessons = enumerate(LINE.finditer(shown.get("lessons", "")), start=1)
        return [{"op": "ADD", "text": one[0], "lessons": [number]}
                for number, one in lessons if one.groups() not in known]  # fmt: skip

    def _marks(self, prompt: Prompt) -> str:
        shown, lines = sections(prompt.user), []
        kind = next(kind for kind in KINDS if f"about {kind}" in shown["example"])
        for number, text in MARKED.findall(shown["attempts"]):
            used, marks = list[str](), list[int]()
            for n, tool in enumerate(SHOWN.findall(text)):
                used += [tool] * (tool != "finish")
                off = pick(5, "mark", self.world.seed, prompt.user, number, n) - 2
                chance = 10 * self.world.value(kind, used, self.world.right(kind))
                marks.append(min(max(0, round(chance) + off), 10))
            lines.append(f"{number}: {', '.join(map(str, [*marks, *marks[-1:]]))}")
        return "\n".join(lines)


def agent(world_name: str, name: str, arm: str, seed: int) -> Mapping[str, float]:
    """What a run comes to; without a strategy it is made once."""
    return _agent(world_name, name if arm == "with" else arm, seed)


@cache
def _agent(world_name: str, name: str, seed: int) -> Mapping[str, float]:
    world: Any = World(world_name, seed)
    lm: Any = Engine(world)
    used = () if name == "without" else (
        getattr(strategies, name)(*((world.solvers,) if name == "StepOrder" else ())),)  # fmt: skip
    data = credit_world.World(1, 1, seed).examples()
    data = {"trainset": data[:N_TRAIN], "valset": data[N_TRAIN:], "metric": credit_world.metric}
    settings = {"group_size": GROUP, "max_demos": 0, "reflection": HIDDEN}
    program = compiled(world, lm, used, BUDGET, seed, **data, **settings)  # type: ignore[arg-type]
    return {"score": world.score(program.react.signature.instructions)}


ARMS = ("with", "without")
NAMES = ("StepOrder", "TeacherMarks", "StateTasks", "MonteCarloCredit", "BranchingRollouts",
         "InformationGain", "ImplicitStepRewards")  # fmt: skip
SETTINGS: tuple[Setting, ...] = tuple(
    Setting(
        name, f"{world}, {BUDGET} calls", ARMS, partial(agent, world, name), (Bar("score", *ARMS),)
    )
    for world in WORLDS
    for name in NAMES
)
