"""Settings of GlobalConstraint and ClippedDiversity. SIMULATED tasks; NOTHING IS REAL.

**Commons.** A case is a decision of an agent in a public goods game: it shares (cost 1) or keeps,
and gets a fifth of 4.5 times what it and its four neighbours share. So sharing costs it .1 of its
own payoff, which is the score, and would give all of them 3.5 more. The prompt tells how many
neighbours share. Without advice an agent shares with a chance of .15 to .55, by its kind and case;
with advice of its kind to share .97, to keep .05. Reflection compares the mean scores of those that
shared and those that kept in a group, and advises what scored better; a quarter of its lessons say
the opposite. The figure is the exact mean chance that an agent shares, over 200 other cases.

**Ways.** A case is answered in one of two ways, which the reasoning tells. The usual one is right
with a chance of .15 to .55; the rare one of each kind with .9, but without advice it is taken in 15
of 100 rollouts. With advice to take it, 95; with advice to take the usual one, 5, and that one gets
better by .15; with both, 50. Reflection reads the attempt that is shown first, and if that scored,
advises its way, in one lesson of ten a wrong answer. The figure is the exact mean chance of a right
answer over 200 other cases. Groups have five rollouts: in smaller ones few scores are equal.

**Ordinary world**: `kinds/words/named/.25` of `worlds.py`. The quantity there is whether an answer
begins with one of the letters Q to T, which has nothing to do with what is right.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import dspy
from simlm_texts import OutputFields, Prompt, sections
from simlm_world import draw, pick
from strategies import Bar, Setting
from strategy_runs import compiled
from worlds import cells
from worlds_engine import ATTENTION, WRITES, WorldEngine
from worlds_model import KNOWN, MISLED, N_KINDS, N_WRONG, Cell, Lesson, World

from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies.base import Strategy
from tfgrpo_dspy.strategies.clipped_diversity import ClippedDiversity
from tfgrpo_dspy.strategies.global_constraint import GlobalConstraint

BUDGET = 400
RETURN, N_NEIGHBOURS = 4.5, 4
RARE, RARE_TOLD, RARE_UNTOLD = 0.15, 0.95, 0.05
"""The chance of the rare way without advice, with advice for it, with advice for the usual one."""
RARE_RIGHT, PRACTICE = 0.9, 0.15
ATTEMPT = re.compile(r"^Attempt \d+ \(score (-?[\d.e-]+)[^\n]*\n(.*?)(?=^Attempt |\Z)", re.M | re.S)


class EvidenceEngine(WorldEngine):
    """Writes lessons by the attempts that it is shown; `advice` reads those of one example."""

    def _written(self, prompt: Prompt) -> list[Lesson]:
        shown, key = sections(prompt.user), self._key(prompt)
        cases = self.world.cases_in(shown.get("example", ""))
        parts = re.split(r"^Example \d+$", shown.get("attempts", ""), flags=re.M)[-len(cases) :]
        chance = WRITES * min(1.0, ATTENTION / max(1, len(cases)))
        written = []
        for case, part in zip(cases, parts if cases else (), strict=False):
            attempts = [(float(score), text) for score, text in ATTEMPT.findall(part)]
            kind = self.world.kind(case)
            if draw("lesson", kind, *key) < chance and (what := self.advice(attempts)):
                if draw("which", kind, *key) < self.world.cell.wrong:
                    what = {"right": "wrong", "wrong": "right"}.get(what, "wrong")
                written.append(Lesson(what, kind, 0 if what == "wrong" else -1))
        return list(dict.fromkeys(written))

    def advice(self, attempts: list[tuple[float, str]]) -> str:
        """What the lesson says: "right", "wrong", ...; "" for none."""
        raise NotImplementedError


class Commons(World):
    """Agents share or keep; "right" lessons are those to share."""

    def _all_lessons(self) -> Iterator[Lesson]:
        self.right, self.wrong = ["share"] * N_KINDS, [["keep"] * N_WRONG] * N_KINDS
        for lesson in super()._all_lessons():
            if lesson.what != "leak" and lesson.place <= 0:
                yield lesson

    def neighbours(self, case: int) -> int:
        """How many neighbours share."""
        return pick(N_NEIGHBOURS + 1, self.seed, "neighbours", case)

    def request(self, case: int) -> str:
        return f"{super().request(case)} {self.neighbours(case)} of {N_NEIGHBOURS} others share."

    def examples(self) -> list[dspy.Example]:
        return [example.without("answer") for example in super().examples()]

    def metric(self, gold: Any, pred: Any, *_: Any) -> dspy.Prediction:
        shares = pred.answer == "share"
        all_shared = self.neighbours(self.cases_in(gold.request)[0]) + shares
        payoff = RETURN * all_shared / (N_NEIGHBOURS + 1) - shares
        return dspy.Prediction(score=payoff, feedback=f"The payoff was {payoff:.1f}.")


class CommonsEngine(EvidenceEngine):
    """The agents, and reflection that compares those who share with those who keep."""

    def advice(self, attempts: list[tuple[float, str]]) -> str:
        scores: dict[bool, list[float]] = {True: [], False: []}
        for score, text in attempts:
            scores["answer: share" in text].append(score)
        if not all(scores.values()):
            return ""
        shared, kept = (sum(each) / len(each) for each in (scores[True], scores[False]))
        return "right" if shared > kept else "wrong" if kept > shared else ""


def shares(rollout: Rollout) -> float:
    """The quantity of the commons."""
    return float(rollout.outputs.get("answer") == "share")


class Ways(World):
    """Two ways to an answer; "right" lessons are those to take the rare one."""

    def _all_lessons(self) -> Iterator[Lesson]:
        yield from super()._all_lessons()
        yield from (Lesson("usual", kind) for kind in range(N_KINDS))

    def text(self, lesson: Lesson) -> str:
        kind = self.wording.lesson_kinds[lesson.kind]
        if lesson.what not in ("right", "usual"):
            return super().text(lesson)
        way = f"look up {kind} in the tariff" if lesson.what == "right" else "read the label of it"
        return f"When a case is about {kind}, {way}."

    def reasoning(self, case: int, is_rare: bool) -> str:
        """What is said of the way; it ends in words of the case."""
        own = self.request(case)
        if is_rare:
            return f"I look the goods up in the tariff, as their code depends on duty. {own}"
        return f"I read the code off the label of the parcel. {own}"

    def ways(self, case: int, lessons: Collection[Lesson]) -> tuple[float, float, float]:
        """The chance of the rare way; of a right answer by it, and by the usual way."""
        what = Counter(own.what for own in lessons if own.kind == self.kind(case))
        told = [RARE_TOLD] * what["right"] + [RARE_UNTOLD] * what["usual"]
        usual = self.unaided(case) + PRACTICE * bool(what["usual"])
        n = 1 + what["wrong"]
        rights = [(chance + MISLED * (n - 1)) / n for chance in (RARE_RIGHT, min(usual, KNOWN))]
        return sum(told) / len(told) if told else RARE, rights[0], rights[1]

    def chance(self, case: int, lessons: Collection[Lesson]) -> float:
        rare, by_rare, by_usual = self.ways(case, lessons)
        return rare * by_rare + (1 - rare) * by_usual

    def student(self) -> dspy.Module:
        return dspy.ChainOfThought("request -> answer")


class WaysEngine(EvidenceEngine):
    """A policy that takes one of two ways, and reflection that reads the attempt shown first."""

    world: Ways

    def _act(self, prompt: Prompt, fields: OutputFields) -> dict[str, str]:
        world = self.world
        case = world.cases_in(sections(prompt.user)["request"])[0]
        lessons, key = world.found(prompt.system), ("luck", world.seed, case, prompt.sample)
        rare, *rights = world.ways(case, lessons)
        is_rare = draw("way", *key) < rare
        is_right = draw(*key) < rights[not is_rare]
        kind = world.kind(case)
        code = world.right[kind] if is_right else world.wrong[kind][pick(N_WRONG, "mistake", *key)]
        said = {"reasoning": world.reasoning(case, is_rare), "answer": code}
        return {name: said.get(name, "") for name in fields.names}

    def advice(self, attempts: list[tuple[float, str]]) -> str:
        score, text = attempts[0]
        if score < 0.5:
            return ""
        return "right" if "tariff" in text else "usual"


def of_commons(arm: str, seed: int, cell: Cell) -> Mapping[str, float]:
    """A run among agents who share a library."""
    world = Commons(cell, seed)
    strategies = [GlobalConstraint(shares)] if arm == "with" else []
    return measured(world, CommonsEngine(world), strategies, seed, "cooperation")


def of_ways(arm: str, seed: int, cell: Cell, budget: int = BUDGET) -> Mapping[str, float]:
    """A run where several ways are right."""
    world = Ways(cell, seed)
    strategies = [ClippedDiversity()] if arm == "with" else []
    return measured(world, WaysEngine(world), strategies, seed, "score", budget, group_size=5)


def begins_early(rollout: Rollout) -> float:
    """A quantity that has nothing to do with what is right."""
    return float(rollout.outputs.get("answer", "")[:1] in set("QRST"))


def of_ordinary(arm: str, seed: int, make: Callable[[], Strategy]) -> Mapping[str, float]:
    """A run in an ordinary world."""
    world = World(cells()["kinds/words/named/.25"], seed)
    return measured(world, WorldEngine(world), [make()] if arm == "with" else [], seed, "score")


def measured(
    world: World,
    engine: WorldEngine,
    strategies: Iterable[Strategy],
    seed: int,
    figure: str,
    budget: int = BUDGET,
    **arguments: Any,
) -> Mapping[str, float]:
    """The exact figure of the program that comes back, and the LM calls that were made."""
    program = compiled(world, engine, tuple(strategies), budget, seed, **arguments)
    return {figure: world.score(world.held(program)), "calls": float(engine.calls.total())}


ARMS = ("with", "without")
HARM = "harm: ordinary world"
COMMONS = {name: Cell("commons", name, wrong=0.25) for name in ("words", "codes")}
WAYS = {name: Cell("ways", name, wrong=0.1) for name in ("words", "codes")}
SETTINGS = (
    Setting(
        "GlobalConstraint",
        "a public goods game",
        ARMS,
        partial(of_commons, cell=COMMONS["words"]),
        (Bar("cooperation", *ARMS, least=0.1),),
    ),
    Setting(
        "GlobalConstraint",
        HARM,
        ARMS,
        partial(of_ordinary, make=partial(GlobalConstraint, begins_early)),
        (Bar("score", *ARMS, least=-0.02),),
    ),
    Setting(
        "ClippedDiversity",
        "two ways to a right answer",
        ARMS,
        partial(of_ways, cell=WAYS["words"]),
        (Bar("score", *ARMS, least=0.03),),
    ),
    Setting(
        "ClippedDiversity",
        HARM,
        ARMS,
        partial(of_ordinary, make=ClippedDiversity),
        (Bar("score", *ARMS, least=-0.02),),
    ),
)
