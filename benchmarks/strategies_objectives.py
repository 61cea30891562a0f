"""Worlds with several objectives, and with an order of steps. SIMULATED; NOTHING IS REAL.

**shop.** A reply is right, or not (by kind, as in all worlds); it greets the customer, or not; it
has so many characters. Customers of the kinds 5 to 9 are greeted in three of ten replies, the
others in all; with the line "Greet every customer alike." all are greeted in 19 of 20. Replies have
300 to 500 characters; each of two lines takes 150 away, and makes a right answer less likely by .1.
The metric says what was wrong, who was not greeted, and how long the reply is. `no gap` is minus
the difference of the chances to be greeted; `right` is the exact chance of a right answer. Without
`Objectives` the score is the plain mean of right, greets and minus characters.

**cells.** A puzzle has five cells. In the solver's order its answer is right with a chance of .9,
otherwise of .1. Without advice the order is random; each of five lessons puts one cell into its
place, so the score hardly rises before most of them are known. A third of the lessons puts a cell
into a wrong place. The metric says nothing in words; nothing is drafted from labels.

**ordinary.** The cell kinds/words/named/.25 of `worlds.py`: does the strategy harm?
"""

import functools
import random
from collections.abc import Collection, Mapping
from typing import Any

import dspy
from simlm_texts import OutputFields, Prompt, sections
from simlm_world import draw, pick
from strategies import Bar, Setting
from strategy_runs import compiled
from worlds import cells
from worlds_engine import WorldEngine
from worlds_model import FIRST_TEST, N_KINDS, N_TEST, Cell, Lesson, World

from tfgrpo_dspy import Reflection
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies import Objectives, StepOrder

BRIEF = ("Answer in one short sentence.", "Leave out greetings of the second line.")
GREET = "Greet every customer alike."
SHORTER, COST, CURT, GREETED = 150, 0.1, 0.3, 0.95
LUCKY, IN_ORDER = 0.1, 0.9
TEST = range(FIRST_TEST, FIRST_TEST + N_TEST)


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


def shop(arm: str, seed: int) -> Mapping[str, float]:
    """What the result's replies are like."""
    world = Shop(Cell("shop", "words", wrong=0.25), seed)
    objectives = Objectives({"right": 1.0, "greets": 0.5, "short": 0.2}, never_below={"right": 1.0})
    used = (objectives,) if arm == "with" else ()
    program = compiled(world, ShopEngine(world), used, 600, seed)
    (held,) = world.held(program)
    chances = [[world.greets(c, held) for c in TEST if (world.kind(c) > 4) == b] for b in (0, 1)]
    gap = sum(chances[0]) / len(chances[0]) - sum(chances[1]) / len(chances[1])
    return {"no gap": -abs(gap), "right": world.score([held, held])}


class Cells(World):
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

    def metric(self, gold: Any, pred: Any, *_: Any) -> float:
        """Whether the answer is right, without a word."""
        return float(str(pred.answer).strip() == gold.answer)

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


def solvers_order(world: Cells, rollout: Rollout) -> list[str]:
    """The reference order."""
    del rollout
    return world.order


def puzzles(arm: str, seed: int) -> Mapping[str, float]:
    """The exact chance of a right answer."""
    world = Cells(seed)
    order = StepOrder(functools.partial(solvers_order, world), moves_of, weight=1.0)
    used = (order,) if arm == "with" else ()
    engine = CellsEngine(world)
    program = compiled(world, engine, used, 600, seed, reflection=Reflection(drafts=0))
    return {"score": world.chance(0, world.held(program)[0])}


def ordinary(name: str, arm: str, seed: int) -> Mapping[str, float]:
    """The score in a world that no strategy is made for."""
    world = World(cells()["kinds/words/named/.25"], seed)
    strategy = Objectives({"score": 1.0}) if name == "Objectives" else StepOrder(_no_order)
    used = (strategy,) if arm == "with" else ()
    program = compiled(world, WorldEngine(world), used, 400, seed)
    return {"score": world.score(world.held(program))}


def _no_order(rollout: Rollout) -> list[str]:
    """No step has a place."""
    del rollout
    return []


BOTH = ("with", "without")
SHOP = (Bar("no gap", *BOTH), Bar("right", *BOTH, least=-0.01))
HARM = (Bar("score", *BOTH, least=-0.02),)
SETTINGS: tuple[Setting, ...] = (
    Setting("Objectives", "shop", BOTH, shop, SHOP),
    Setting("Objectives", "ordinary", BOTH, functools.partial(ordinary, "Objectives"), HARM),
    Setting("StepOrder", "cells", BOTH, puzzles, (Bar("score", *BOTH),)),
    Setting("StepOrder", "ordinary", BOTH, functools.partial(ordinary, "StepOrder"), HARM),
)
