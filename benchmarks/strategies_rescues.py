"""Worlds in which nine of ten groups fail throughout, for hints and teachers. SIMULATED.

**failing.** 80 cases of ten kinds. A case is answered right with a chance of .35 if it is of the
first kind, of .005 otherwise, and of .97 with the right lesson of its kind. The metric says nothing
in words, and no lesson is drafted from labels: a lesson about a kind can only come from a group
with a right answer in it. A quarter of the lessons is wrong.

**Hints.** The simulated reflection LM writes them for the case that it is shown, if it is shown the
label, too. With a hint the chance is .15 (concept), .4 (plan) or .8 (step). One in ten hints gives
the label away; such a hint may not be given.

**The teacher** answers right with a chance of .8; with the right lesson of .97. It is another LM.
Where it is another program, `teacher` is its score with what it shares of the library.

`share` is (score - student) / (score with all right lessons - student); its value for the arm
`attainable` is 1.0.
"""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

import dspy
from dspy import lm15
from simlm_texts import OutputFields, Prompt
from simlm_world import draw
from strategies import Bar, Setting
from strategy_runs import compiled
from worlds import cells
from worlds_engine import WorldEngine
from worlds_model import Lesson, World

from tfgrpo_dspy import ExperienceLibrary, Reflection
from tfgrpo_dspy.strategies import Strategy, TeacherRollouts, TieredHints

UNAIDED, FAILING, TEACHER = 0.35, 0.005, 0.8
TIERS = {"concept": 0.15, "plan": 0.4, "step": 0.8}
HINT = re.compile(r"The (concept|plan|step) that case (\d+) needs")
NO_DRAFTS = Reflection(drafts=0)


class Failing(World):
    """A world in which the student fails on nine kinds of ten."""

    def unaided(self, case: int) -> float:
        """The chance without any lesson."""
        return UNAIDED if self.kind(case) == 0 else FAILING

    def chance_for(self, case: int, lessons: Collection[Lesson], least: float) -> float:
        """The chance with these lessons; a hint or a teacher makes it at least `least`."""
        return max(self.chance(case, lessons), least)

    def metric(self, gold: Any, pred: Any, trace: Any = None) -> float:  # type: ignore[override]
        """The score, without a word."""
        del trace
        return float(str(pred.answer).strip() == gold.answer)


class HintingEngine(WorldEngine):
    """Plays the teacher, too, which is told apart by its name, and writes hints."""

    world: Failing

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The answer."""
        self._is_teacher = request.model.endswith("teacher")
        return super().complete(request)

    def _act(self, prompt: Prompt, fields: OutputFields) -> dict[str, str]:
        """The teacher's answer, or the student's with the hint in its prompt."""
        world = self.world
        hint = HINT.search(prompt.system)
        least = TEACHER if self._is_teacher else TIERS[hint[1]] if hint else 0.0
        plain = super()._act(prompt, fields)
        case = world.cases_in(prompt.user)[0]
        lessons = world.found(prompt.system)
        key = ("aided", world.seed, case, prompt.sample, prompt.system)
        if least and draw(*key) < world.chance_for(case, lessons, least):
            return {name: world.right[world.kind(case)] for name in plain}
        return plain

    def _value(self, name: str, type_: str, prompt: Prompt) -> Any:
        if name not in TIERS:
            return super()._value(name, type_, prompt)
        cases, _ = self.world.evidence(prompt.user)
        told = [case for of_kind in cases.values() for case in of_kind]
        if not told:
            return "Think again."
        leak = draw("leak", self.world.seed, told[0], name) < 0.1
        answer = f", which is {self.world.right[self.world.kind(told[0])]}" if leak else ""
        return f"The {name} that case {told[0]} needs{answer}."


class OtherProgram(dspy.Module):
    """A teacher of another make, on an LM of its own."""

    def __init__(self, lm: dspy.LM) -> None:
        super().__init__()
        self.solve = dspy.Predict("request -> answer")
        self.solve.lm = lm

    def forward(self, request: str) -> dspy.Prediction:
        """The answer."""
        return self.solve(request=request)


def _strategies(name: str, arm: str, teacher: dspy.LM) -> tuple[Strategy, ...]:
    if arm == "without":
        return ()
    if name == "TieredHints":
        return (TieredHints(),)
    if arm in ("program", "sharing"):
        return (TeacherRollouts(OtherProgram(teacher), shares_library=arm == "sharing"),)
    return (TeacherRollouts(teacher),)


def failing(name: str, budget: int, arm: str, seed: int) -> Mapping[str, float]:
    """The share of the attainable gain, and the exact score of the teacher at the end."""
    if arm == "attainable":
        return {"share": 1.0, "teacher": 0.97}
    world = Failing(cells()["kinds/words/named/.25"], seed)
    engine = HintingEngine(world)
    teacher = dspy.LM("simulated/teacher", engine=engine, temperature=0.0, max_tokens=4000)
    used = _strategies(name, arm, teacher)
    program = compiled(world, engine, used, budget, seed, reflection=NO_DRAFTS)
    held = world.held(program)
    student, score = world.score(world.held(world.student())), world.score(held)
    shared = world.found(ExperienceLibrary.from_program(program).render())
    known = {lesson.kind for lesson in shared if lesson.verdict == "right"}
    taught = TEACHER + (0.97 - TEACHER) * len(known) / 10 if arm == "sharing" else TEACHER
    return {"share": (score - student) / (world.best() - student), "teacher": taught}


def ordinary(name: str, budget: int, arm: str, seed: int) -> Mapping[str, float]:
    """The score in a world that no strategy is made for; its metric has feedback in words."""
    world = World(cells()["kinds/words/named/.25"], seed)
    teacher = dspy.LM("simulated/policy", engine=WorldEngine(world), temperature=0.0)
    used = _strategies(name, arm, teacher)
    program = compiled(world, WorldEngine(world), used, budget, seed)
    return {"score": world.score(world.held(program))}


ARMS = ("with", "without", "attainable")
BARS = (Bar("share", "with", "attainable", share=0.6), Bar("share", "with", "without", least=0.3))


def _harm(name: str) -> Setting:
    bar = Bar("score", "with", "without", least=-0.02)
    return Setting(
        name, "ordinary", ("with", "without"), functools.partial(ordinary, name, 400), (bar,)
    )


SETTINGS: tuple[Setting, ...] = (
    Setting("TieredHints", "failing", ARMS, functools.partial(failing, "TieredHints", 600), BARS),
    _harm("TieredHints"),
    Setting(
        "TeacherRollouts",
        "failing",
        (*ARMS, "program", "sharing"),
        functools.partial(failing, "TeacherRollouts", 600),
        (
            *BARS,
            Bar("share", "sharing", "program", least=-0.05),
            Bar("teacher", "sharing", "program"),
        ),
    ),
    _harm("TeacherRollouts"),
)
