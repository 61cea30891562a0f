"""Worlds for strategies that change what a rollout counts with. SIMULATED; NOTHING IS REAL.

**shop** (`Objectives`). A reply is right, or not (by kind, as in all worlds); it greets the
customer, or not; it has so many characters. Customers of the kinds 5 to 9 are greeted in three of
ten replies, the others in all; with the line "Greet every customer alike." all are greeted in 19 of
20. Replies have 300 to 500 characters; each of two lines takes 150 away, and makes a right answer
less likely by .1. The metric says what was wrong, who was not greeted, and how long the reply is.
`no gap` is minus the difference of the chances to be greeted; `right` is the exact chance of a
right answer. Without `Objectives` the score is the plain mean of right, greets and minus
characters.

**cells** (`StepOrder`). A puzzle has five cells. In the solver's order its answer is right with a
chance of .9, otherwise of .1. Without advice the order is random; each of five lessons puts one
cell into its place, so the score hardly rises before most of them are known. A third of the lessons
puts a cell into a wrong place. The metric says nothing in words; nothing is drafted from labels.

**commons** (`GlobalConstraint`). A case is a decision of an agent in a public goods game: it shares
(cost 1) or keeps, and gets a fifth of 4.5 times what it and its four neighbours share. So sharing
costs it .1 of its own payoff, which is the score, and would give all of them 3.5 more. The prompt
tells how many neighbours share. Without advice an agent shares with a chance of .15 to .55, by its
kind and case; with advice of its kind to share .97, to keep .05. Reflection compares the mean
scores of those that shared and those that kept in a group, and advises what scored better; a
quarter of its lessons say the opposite. The figure is the exact mean chance that an agent shares.
"""

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import dspy
from simlm import OutputFields, Prompt, draw, pick, sections
from strategies import Setting, attempts_of
from worlds import compiled
from worlds_engine import ATTENTION, WRITES, WorldEngine
from worlds_model import FIRST_TEST, N_KINDS, N_TEST, N_WRONG, Cell, Lesson, Silent, World

from tfgrpo_dspy import Reflection
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies import GlobalConstraint, Objectives, StepOrder, Strategy

BRIEF = ("Answer in one short sentence.", "Leave out greetings of the second line.")
GREET = "Greet every customer alike."
SHORTER, COST, CURT, GREETED = 150, 0.1, 0.3, 0.95
LUCKY, IN_ORDER = 0.1, 0.9
RETURN, N_NEIGHBOURS = 4.5, 4
TEST = range(FIRST_TEST, FIRST_TEST + N_TEST)


# ---- shop
class Shop(World):
    """Replies that are right, greet, and are short."""

    def _all_lessons(self) -> Any:
        yield from super()._all_lessons()
        yield Lesson("greet")
        yield from (Lesson("brief", place=place) for place in range(len(BRIEF)))

    def text(self, lesson: Lesson) -> str:
        """The line for a lesson."""
        if lesson.what == "greet":
            return GREET
        return BRIEF[lesson.place] if lesson.what == "brief" else super().text(lesson)

    def chance(self, case: int, lessons: Collection[Lesson]) -> float:
        """The chance of a right answer."""
        n_brief = sum(lesson.what == "brief" for lesson in lessons)
        return max(0.02, super().chance(case, lessons) - COST * n_brief)

    def greets(self, case: int, lessons: Collection[Lesson]) -> float:
        """The chance that the customer is greeted."""
        if any(lesson.what == "greet" for lesson in lessons):
            return GREETED
        return CURT if self.kind(case) >= N_KINDS // 2 else 1.0

    def metric(self, gold: Any, pred: Any, *_: Any) -> dspy.Prediction:
        """Three objectives, and what is wrong with the reply."""
        code, greets, length = [*str(pred.answer).split(" /"), "0", "0"][:3]
        is_right, n = code.strip() == gold.answer, int(length)
        said = [self.wording.right if is_right else self.wording.wrong.format(code=gold.answer)]
        said += ["The customer was not greeted."] * (greets != "1") + [f"{n} characters."]
        values = {"right": float(is_right), "greets": float(greets == "1"), "short": -float(n)}
        return dspy.Prediction(objectives=values, feedback=" ".join(said))


class ShopEngine(WorldEngine):
    """Writes replies; its lessons are about what the metric says."""

    world: Shop

    def _act(self, prompt: Prompt, fields: OutputFields) -> dict[str, str]:
        world = self.world
        case = world.cases_in(sections(prompt.user)["request"])[0]
        lessons, key = world.found(prompt.system), ("reply", world.seed, case, prompt.sample)
        is_greeted = draw("greets", *key) < world.greets(case, lessons)
        n_brief = sum(lesson.what == "brief" for lesson in lessons)
        length = 300 + pick(200, "length", *key) - SHORTER * n_brief
        answer = super()._act(prompt, fields)
        return {name: f"{code} /{int(is_greeted)} /{length}" for name, code in answer.items()}

    def _written(self, prompt: Prompt) -> list[Lesson]:
        key = self._key(prompt)
        written = super()._written(prompt)
        if "not greeted" in prompt.user and draw("greet", *key) < 0.4:
            written.append(Lesson("greet"))
        if "characters" in prompt.user and draw("brief", *key) < 0.4:
            written.append(Lesson("brief", place=pick(len(BRIEF), "which", *key)))
        return written


# ---- cells
class Cells(Silent):
    """Puzzles whose five cells are best filled in a solver's order, the same for all of them."""

    def __init__(self, seed: int) -> None:
        self.order = random.Random(f"{seed}/cells").sample("ABCDE", 5)
        super().__init__(Cell("cells", "words"), seed)

    def _all_lessons(self) -> Any:
        yield from (Lesson(what, place=place) for what in ("cell", "miscell") for place in range(5))

    def text(self, lesson: Lesson) -> str:
        """The line for a lesson."""
        number = lesson.place if lesson.what == "cell" else (lesson.place + 1) % 5
        return f"Fill cell {self.order[lesson.place]} as number {number + 1}."

    def chance(self, case: int, lessons: Collection[Lesson]) -> float:
        """The chance of a right answer, over 400 random orders."""
        del case
        known = tuple(lessons)
        orders = (self.filled(known, random.Random(n)) for n in range(400))
        return LUCKY + (IN_ORDER - LUCKY) * sum(o == self.order for o in orders) / 400

    def filled(self, lessons: Collection[Lesson], luck: random.Random) -> list[str]:
        """An order that follows the lessons, and is random where they say nothing."""
        ranks = {cell: luck.uniform(-0.5, 4.5) for cell in sorted(self.order)}
        for own in lessons:
            wrong = (own.place + 1) % 5 + (0.5 if own.place < 4 else -0.5)
            ranks[self.order[own.place]] = own.place if own.what == "cell" else wrong
        return sorted(ranks, key=lambda cell: ranks[cell])

    def student(self) -> dspy.Module:
        """The program."""
        return dspy.Predict("request -> moves, answer")


class CellsEngine(WorldEngine):
    """Fills the cells; in two of three lessons it says rightly where a cell belongs."""

    world: Cells

    def _act(self, prompt: Prompt, fields: OutputFields) -> dict[str, str]:
        world = self.world
        case = world.cases_in(sections(prompt.user)["request"])[0]
        key = ("cells", world.seed, case, prompt.sample)
        lessons = world.found(prompt.system)
        moves = world.filled(lessons, random.Random(f"{key} {lessons}"))
        is_right = draw(*key) < (IN_ORDER if moves == world.order else LUCKY)
        kind = world.kind(case)
        code = world.right[kind] if is_right else world.wrong[kind][0]
        said = {"moves": " ".join(moves), "answer": code}
        return {name: said[name] for name in fields.names}

    def _written(self, prompt: Prompt) -> list[Lesson]:
        key = self._key(prompt)
        if not self.world.cases_in(prompt.user) or draw("writes", *key) > 0.6:
            return []
        what = "cell" if draw("right", *key) < 2 / 3 else "miscell"
        return [Lesson(what, place=pick(5, "place", *key))]


def moves_of(rollout: Rollout) -> list[str]:
    """The order in which a rollout filled the cells."""
    return rollout.outputs.get("moves", "").split()


# ---- commons
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


class CommonsEngine(WorldEngine):
    """The agents, and reflection that compares those who share with those who keep."""

    def _written(self, prompt: Prompt) -> list[Lesson]:
        shown, key = attempts_of(self.world, prompt), self._key(prompt)
        chance = WRITES * min(1.0, ATTENTION / max(1, len(shown)))
        written = []
        for case, attempts in shown:
            kind = self.world.kind(case)
            if draw("lesson", kind, *key) < chance and (what := self._advice(attempts)):
                if draw("which", kind, *key) < self.world.cell.wrong:
                    what = {"right": "wrong", "wrong": "right"}[what]
                written.append(Lesson(what, kind, 0 if what == "wrong" else -1))
        return list(dict.fromkeys(written))

    @staticmethod
    def _advice(attempts: Iterable[tuple[float, str]]) -> str:
        """To share ("right") or to keep ("wrong"), by what scored better; "" for none."""
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


# ---- settings
def made(name: str, seed: int) -> Strategy:
    """The strategy of a setting."""
    if name == "Objectives":
        weights = {"right": 1.0, "greets": 0.5, "short": 0.2}
        return Objectives(weights, never_below={"right": 1.0})
    if name == "GlobalConstraint":
        return GlobalConstraint(shares)
    order = Cells(seed).order
    return StepOrder(lambda _: order, moves_of, weight=1.0)


def run(name: str, arm: str, seed: int) -> Mapping[str, float]:
    """The exact figures of the program that comes back."""
    used: Sequence[Strategy] = (made(name, seed),) if arm == "with" else ()
    if name == "Objectives":
        shop = Shop(Cell("shop", "words", wrong=0.25), seed)
        (held,) = shop.held(compiled(shop, ShopEngine(shop), used, 600, seed))
        halves = [[c for c in TEST if (shop.kind(c) > 4) == is_curt] for is_curt in (False, True)]
        greeted = [sum(shop.greets(c, held) for c in half) / len(half) for half in halves]
        return {"no gap": -abs(greeted[0] - greeted[1]), "right": shop.score([held, held])}
    if name == "StepOrder":
        cells, hidden = Cells(seed), Reflection(drafts=0)
        program = compiled(cells, CellsEngine(cells), used, 600, seed, reflection=hidden)
        return {"score": cells.chance(0, cells.held(program)[0])}
    commons = Commons(Cell("commons", "words", wrong=0.25), seed)
    program = compiled(commons, CommonsEngine(commons), used, 400, seed)
    return {"cooperation": commons.score(commons.held(program))}


SETTINGS = (
    Setting("Objectives", "shop", partial(run, "Objectives"), ("no gap", "right")),
    Setting("StepOrder", "cells", partial(run, "StepOrder"), ("score",)),
    Setting(
        "GlobalConstraint",
        "a public goods game",
        partial(run, "GlobalConstraint"),
        ("cooperation",),
    ),
)
