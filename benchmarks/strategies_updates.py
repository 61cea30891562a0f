"""Worlds for Induction and AttributionPrior. NOTHING IS REAL.

*Families.* Ten families (copper, linen, ...) of four kinds (copper rods, copper rings, ...); all
kinds of a family have one code. Reflection writes lessons as in all worlds (a quarter of them are
wrong), but nine in ten are about one kind only. Asked for rules, it writes the lesson of a
family where two lines that it is shown give kinds of it one code; in a quarter of its answers it
gives each family the code of another one.

*Fields.* Eight training examples. The goods of a case decide its code; with so few examples the
town seems to decide as well. Half of the lessons are about a town: they give it the code of the
case that was seen, which is seldom that of the next case of the town. Where the prompt says that
the goods decide, 15 % are about towns; where it says that towns do, 85 %. Such a line in the
program's prompt adds or costs .05. Asked what matters, reflection says the goods, but in a fifth of
the worlds the town.

*Harm.* The cell kinds/words/named/.25 of `worlds.py` at 200 LM calls, where each question of the
strategy gets wrong lessons for an answer.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from simlm_texts import Prompt, sections
from simlm_world import draw, pick
from strategies import Bar, Setting
from strategy_runs import compiled
from worlds import cells
from worlds_engine import WorldEngine
from worlds_model import (
    FIRST_TEST,
    MATERIALS,
    N_KINDS,
    N_TEST,
    N_WRONG,
    TOWNS,
    Cell,
    Lesson,
    World,
)

from tfgrpo_dspy.strategies.attribution_prior import AttributionPrior
from tfgrpo_dspy.strategies.base import Strategy
from tfgrpo_dspy.strategies.induction import Induction

ARMS = ("with", "without")
BUDGET = 400
WRONG_ANSWERS = 0.25

# ---- families
KINDS = ("rods", "rings", "sheets", "blocks")
ABOUT_KIND = 0.9


@dataclass(frozen=True)
class OfKind(Lesson):
    """A lesson about one kind of a family; `kind` is the family."""

    own: int = -1


class FamilyWorld(World):
    """Kinds that have their code from their family."""

    def __init__(self, seed: int) -> None:
        super().__init__(Cell("families", "words", wrong=0.25), seed)

    def _all_lessons(self) -> Iterable[Lesson]:
        for lesson in super()._all_lessons():
            yield lesson
            if lesson.kind >= 0:
                for own in range(len(KINDS)):
                    yield OfKind(lesson.what, lesson.kind, lesson.place, own)

    @staticmethod
    def own(case: int) -> int:
        """The kind of the case within its family."""
        return case // N_KINDS % len(KINDS)

    def text(self, lesson: Lesson) -> str:
        line = super().text(lesson)
        if not isinstance(lesson, OfKind):
            return line
        family = MATERIALS[lesson.kind]
        return line.replace(family, f"{family} {KINDS[lesson.own]}")

    def request(self, case: int) -> str:
        family = MATERIALS[self.kind(case)]
        return super().request(case).replace(family, f"{family} {KINDS[self.own(case)]}")

    def chance(self, case: int, lessons: Collection[Lesson]) -> float:
        own = self.own(case)
        return super().chance(case, [one for one in lessons if getattr(one, "own", own) == own])


class FamilyEngine(WorldEngine):
    """Finds the rule behind lines about kinds."""

    def _about(self, kind: int, cases: Sequence[int], key: tuple[Any, ...]) -> Lesson:
        lesson = super()._about(kind, cases, key)
        if draw("about kind", kind, *key) >= ABOUT_KIND:
            return lesson
        own = FamilyWorld.own(cases[pick(len(cases), "own", kind, *key)])
        return OfKind(lesson.what, lesson.kind, lesson.place, own)

    def _value(self, name: str, type_: str, prompt: Prompt) -> Any:
        if name != "candidates":
            return super()._value(name, type_, prompt)
        world = self.world
        shown = Counter(
            Lesson(own.what, own.kind, own.place)
            for own in world.found(sections(prompt.user)["came"])
            if isinstance(own, OfKind)
        )
        found = [own for own, n in shown.items() if n > 1]
        if draw("misled", *self._key(prompt)) < WRONG_ANSWERS:
            found = [Lesson("wrong", own.kind, (own.place + 1) % N_WRONG) for own in found]
        return "\n".join(map(world.text, found)) or "None"


def families(arm: str, seed: int) -> dict[str, float]:
    """One arm in the world of families."""
    world = FamilyWorld(seed)
    strategies = (Induction(),) if arm == "with" else ()
    return scored(world, FamilyEngine(world), strategies, seed)


# ---- fields
FOCUS = ("Go by the goods, not by the town.", "Go by the town, not by the goods.")
ABOUT_TOWN = {(): 0.67, (0,): 0.15, (1,): 0.85, (0, 1): 0.67}
"""The share of lessons that are about a town, by the lines of `FOCUS` in the prompt."""
FOCUS_GAIN, WRONG_FOCUS, N_FEW, N_GOODS = 0.05, 0.2, 8, 4


@dataclass(frozen=True)
class OfTown(Lesson):
    """Gives the cases of a town the code of a kind."""

    town: int = -1


class FieldsWorld(World):
    """Two properties of cases, of which one decides."""

    def __init__(self, seed: int) -> None:
        super().__init__(Cell("fields", "words", wrong=0.1), seed)
        tested = range(FIRST_TEST, FIRST_TEST + N_TEST)
        self.tested = [case for case in tested if self.kind(case) < N_GOODS]

    def _all_lessons(self) -> Iterable[Lesson]:
        yield from super()._all_lessons()
        yield from (Lesson("focus", place=place) for place in range(len(FOCUS)))
        for kind, town in itertools.product(range(N_KINDS), range(len(TOWNS))):
            yield OfTown("town", kind, town=town)

    def text(self, lesson: Lesson) -> str:
        if isinstance(lesson, OfTown):
            return f"When a case goes to {TOWNS[lesson.town]}, answer {self.right[lesson.kind]}."
        return FOCUS[lesson.place] if lesson.what == "focus" else super().text(lesson)

    def town(self, case: int) -> int:
        """Where the case goes."""
        return pick(len(TOWNS), self.seed, "town", case)

    def chance(self, case: int, lessons: Collection[Lesson]) -> float:
        kind, town, told = self.kind(case), self.town(case), list[Lesson]()
        for own in lessons:
            if not isinstance(own, OfTown):
                told.append(own)
            elif own.town == town:
                told.append(Lesson("right" if own.kind == kind else "wrong", kind))
        signs = [1 - 2 * own.place for own in lessons if own.what == "focus"]
        return min(max(0.02, super().chance(case, told) + FOCUS_GAIN * sum(signs)), 0.98)


class FieldsEngine(WorldEngine):
    """Looks where it is told to look."""

    world: FieldsWorld

    def _written(self, prompt: Prompt) -> list[Lesson]:
        world, key, made = self.world, self._key(prompt), list[Lesson]()
        said = sorted({own.place for own in world.found(prompt.user) if own.what == "focus"})
        evident, _ = world.evidence(prompt.user)
        for own in super()._written(prompt):
            if own.kind >= 0 and draw("town", own, *key) < ABOUT_TOWN[tuple(said)]:
                case = evident[own.kind][0]
                own = OfTown("town", own.kind, town=world.town(case))
            made.append(own)
        return made

    def _value(self, name: str, type_: str, prompt: Prompt) -> Any:
        if name == "others":  # lines about what is said not to matter
            shown = sections(prompt.user)
            goes_by_town = FOCUS[1] in shown["matters"]
            found = re.findall(r"(\d+)\. (.+)", shown["lines"])
            towns = {n: any(isinstance(o, OfTown) for o in self.world.found(t)) for n, t in found}
            return ", ".join(n for n, is_town in towns.items() if is_town != goes_by_town) or "None"
        if name != "matters":
            return super()._value(name, type_, prompt)
        return FOCUS[draw("focus", *self._key(prompt)) < WRONG_FOCUS]


def fields(arm: str, seed: int) -> dict[str, float]:
    """One arm in the world of fields, with eight examples."""
    world = FieldsWorld(seed)
    strategies = (AttributionPrior(),) if arm == "with" else ()
    examples = [one for one in world.examples() if one.answer in world.right[:N_GOODS]]
    sets = {"trainset": examples[:N_FEW], "valset": examples[N_FEW:]}
    return scored(world, FieldsEngine(world), strategies, seed, budget=200, **sets)


# ---- all
def scored(
    world: World, engine: WorldEngine, strategies: tuple[Strategy, ...], seed: int, **arguments: Any
) -> dict[str, float]:
    """The exact held-out score of what a run returns."""
    program = compiled(
        world, engine, strategies, arguments.pop("budget", BUDGET), seed, **arguments
    )
    if failed := program.detailed_results.failures:
        raise RuntimeError(f"{failed}: in a simulation nothing fails.")
    return {"score": world.score(world.held(program), getattr(world, "tested", ()))}


class MisledEngine(WorldEngine):
    """Answers each question of a strategy with two wrong lessons."""

    def _value(self, name: str, type_: str, prompt: Prompt) -> Any:
        if name == "others":
            return "1"
        if name not in ("candidates", "matters"):
            return super()._value(name, type_, prompt)
        kinds = (pick(N_KINDS, "misled", place, *self._key(prompt)) for place in range(2))
        lines = [self.world.text(Lesson("wrong", kind, 0)) for kind in kinds]
        return lines[0] if name == "matters" else "\n".join(lines)


def ordinary(strategy: type[Strategy], arm: str, seed: int) -> dict[str, float]:
    """A world of right and wrong lessons, a budget that binds, and misleading answers."""
    world = World(cells()["kinds/words/named/.25"], seed)
    used = (strategy(),) if arm == "with" else ()
    return scored(world, MisledEngine(world), used, seed, budget=200)


def settings(strategy: type[Strategy], about: str, run: Any) -> tuple[Setting, ...]:
    """The strategy in its own world, and in an ordinary one with wrong answers."""
    name, harm = strategy.__name__, functools.partial(ordinary, strategy)
    bars = (Bar("score", *ARMS),)
    if strategy is AttributionPrior:
        bars = (Bar("score", *ARMS, wins=0.7),)
    return (
        Setting(name, about, ARMS, run, bars),
        Setting(name, "harm: misled, 200 calls", ARMS, harm, (Bar("score", *ARMS, least=-0.02),)),
    )


SETTINGS: tuple[Setting, ...] = (
    *settings(Induction, "rules behind single lessons", families),
    *settings(AttributionPrior, "eight examples", fields),
)
