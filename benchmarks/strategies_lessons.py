"""Worlds for strategies that change which lessons are learned. SIMULATED; NOTHING IS REAL.

**families** (`Induction`). Ten families (copper, linen, ...) of four kinds (copper rods, copper
rings, ...); all kinds of a family have one code. Reflection writes lessons as in all worlds (a
quarter of them are wrong), but nine in ten are about one kind only. Asked for rules, it writes the
lesson of a family where two lines that it is shown give kinds of it one code; in a quarter of its
answers it gives each family the code of another one.

**parts** (`ConflictAware`; by somebody who did not write it). A case is about goods of one of ten
kinds, and the reasoning of an attempt has a sentence for each of five parts, such as "I weigh the
copper." Four of them stand in every attempt: two are needed, two make no difference. The fifth is
one of two ways, and decides: the good one is taken with a chance of .15 to .55, of .97 with advice
against the bad one, of .05 with advice against the good one. Advice against a needed part is
obeyed, too, and then four of five answers are wrong. Reflection blames one of the parts that it
reads in the worst attempt, each as often as any other, but, in three of four lessons, none that the
note says made no difference. Tried were: parts without the fourth lesson, which ignores the note
(seed 0: .970 with the strategy, .660 without), then as it stands (seeds 0 to 4: .936, .522).
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from simlm import OutputFields, Prompt, draw, pick, sections
from strategies import Setting, attempts_of
from worlds import compiled
from worlds_engine import ATTENTION, WRITES, WorldEngine
from worlds_model import KNOWN, MATERIALS, MISLED, N_KINDS, N_WRONG, Cell, Lesson, Silent, World

from tfgrpo_dspy import Reflection
from tfgrpo_dspy.strategies import ConflictAware, Induction, Strategy

# ---- families
KINDS = ("rods", "rings", "sheets", "blocks")
ABOUT_KIND, WRONG_ANSWERS = 0.9, 0.25


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


# ---- parts
VERBS = ("weigh", "unpack", "measure", "wipe", "stack", "stamp")
ROLES = ("wrong", "wrong", "useless", "useless", "right", "wrong")
"""What advice against each part of a kind is: two needed ones, two others, bad and good way."""
SKIPPED = 0.2
"""The chance of success is multiplied by this for each needed part that is left out."""
PART = re.compile(r"\bI (\w+) the (\w+)")
ADVICE = "When a case is about {goods}, do not {verb} it."


class Parts(Silent):
    """Attempts that are the same but for one part; `place` of a lesson is the verb it forbids."""

    def parts(self, kind: int) -> list[int]:
        """The verbs of a kind, in the order of `ROLES`."""
        return sorted(range(len(VERBS)), key=lambda verb: draw(self.seed, "part", kind, verb))

    def _all_lessons(self) -> Iterable[Lesson]:
        for kind in range(N_KINDS):
            pairs = zip(ROLES, self.parts(kind), strict=True)
            yield from (Lesson(what, kind, verb) for what, verb in pairs)

    def text(self, lesson: Lesson) -> str:
        goods = self.wording.lesson_kinds[lesson.kind]
        return ADVICE.format(goods=goods, verb=VERBS[lesson.place])

    def chances(self, case: int, lessons: Collection[Lesson]) -> tuple[float, float]:
        """The chance of the good way, and of a right answer by it."""
        told = {own.place for own in lessons if own.kind == self.kind(case)}
        *needed, _, _, bad, good = self.parts(self.kind(case))
        ways = [chance for verb, chance in ((bad, KNOWN), (good, MISLED)) if verb in told]
        way = sum(ways) / len(ways) if ways else self.unaided(case)
        return way, SKIPPED ** sum(verb in told for verb in needed)

    def chance(self, case: int, lessons: Collection[Lesson]) -> float:
        way, success = self.chances(case, lessons)
        return way * success

    def student(self) -> dspy.Module:
        return dspy.ChainOfThought("request -> answer")


class PartsEngine(WorldEngine):
    """A policy that says what it does, and reflection that blames what it reads."""

    world: Parts

    def _act(self, prompt: Prompt, fields: OutputFields) -> dict[str, str]:
        world = self.world
        case = world.cases_in(sections(prompt.user)["request"])[0]
        kind, lessons = world.kind(case), world.found(prompt.system)
        key = ("luck", world.seed, case, prompt.sample)
        way, success = world.chances(case, lessons)
        *shared, bad, good = world.parts(kind)
        is_good = draw("way", *key) < way
        is_right = is_good and draw("success", *key) < success
        told = {own.place for own in lessons if own.kind == kind}
        done = [verb for verb in shared if verb not in told] + [good if is_good else bad]
        goods = world.wording.kinds[kind]
        said = " ".join(f"I {VERBS[verb]} the {goods}." for verb in sorted(done))
        code = world.right[kind] if is_right else world.wrong[kind][0]
        return {name: code if name == "answer" else said for name in fields.names}

    def _written(self, prompt: Prompt) -> list[Lesson]:
        shown, key = attempts_of(self.world, prompt), self._key(prompt)
        noted = PART.findall(sections(prompt.user).get("objective", ""))
        chance, written = WRITES * min(1.0, ATTENTION / max(1, len(shown))), []
        for case, attempts in shown:
            kind = self.world.kind(case)
            read = PART.findall(attempts[-1][1]) if attempts else []
            heeds = draw("heeds", kind, *key) >= self.world.cell.wrong
            blamed = [part for part in read if not (heeds and part in noted)]
            if blamed and draw("lesson", kind, *key) < chance:
                verb, goods = blamed[pick(len(blamed), "blamed", kind, *key)]
                written.append(self.world.lessons[ADVICE.format(goods=goods, verb=verb)])
        return list(dict.fromkeys(written))

    @staticmethod
    def _rival(own: Lesson, others: Iterable[Lesson]) -> None:
        """No two lines contradict each other."""


# ---- settings
def families(arm: str, seed: int) -> Mapping[str, float]:
    """A run in the world of families."""
    world = FamilyWorld(seed)
    used = (Induction(),) if arm == "with" else ()
    return scored(world, FamilyEngine(world), used, seed)


def parts(arm: str, seed: int) -> Mapping[str, float]:
    """A run where attempts share most of what they do."""
    world = Parts(Cell("parts", "words", wrong=0.25), seed)
    used = (ConflictAware(),) if arm == "with" else ()
    hidden = Reflection(use_labels=False, drafts=0)
    return scored(world, PartsEngine(world), used, seed, group_size=4, reflection=hidden)


def scored(
    world: World, engine: WorldEngine, used: Sequence[Strategy], seed: int, **arguments: Any
) -> Mapping[str, float]:
    """The exact score of what a run returns."""
    return {"score": world.score(world.held(compiled(world, engine, used, 400, seed, **arguments)))}


SETTINGS = (
    Setting("Induction", "rules behind single lessons", families, ("score",)),
    Setting("ConflictAware", "parts", parts, ("score",)),
)
