"""Further worlds in which a strategy should help, by people who wrote none of them. SIMULATED.

They are those of `ordinary_worlds.py`, which says what they share, with these changes:

**silence.** The student succeeds in half of the cases of one kind of ten, in one of fifty of the
others. A hint makes that .1 (concept), .3 (plan) or .7 (step), being told to take another way .3;
a teacher LM is right in .7.
**single cases.** Eight of ten right lessons are about the one case that they were learned from; the
LM that is asked for rules finds that of a kind behind two such lines, and a wrong one in a quarter.
**scales.** The metric gives two objectives: whether the answer is right, and its length, from 0 to
-60, which is luck. `score` is the share of right answers.
**drawn silence**, **drawn single cases.** The same needs elsewhere: the traits of each seed are
those of a hard world of `random_worlds.py`. So one to three predictors answer, in one of five
wordings, what is advised may hold for all cases or be reworded, more of it is wrong or useless,
demos may help or harm, and editors overwrite lines. There are still ten kinds, no labels and no
feedback, and scores are 0 or 1.
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import dspy
from dspy import lm15
from ordinary_worlds import IdleEngine, Ordinary, compiled, made
from random_world_engine import lms_of
from random_world_model import N_WRONG, Line, harder_traits_of
from simlm import OutputFields, Prompt, draw, pick, sections
from strategies import Setting

from tfgrpo_dspy.strategies import Objectives

HELP = {"concept": 0.1, "plan": 0.3, "step": 0.7, "another way": 0.3}
HINT = re.compile(r"A hint for this input: .*?(concept|plan|step|another way)", re.DOTALL)
TEACHER, WRONG_RULES = 0.7, 0.25
TRAITS: Mapping[str, Mapping[str, Any]] = {
    "single cases": {"leaking": 0.8},
    "scales": {"graded": True},
}
DRAWN = {"n_kinds": 10, "n_train": 80, "n_slots": 1, "wrong_labels": 0.0, "has_labels": False}
DRAWN |= {"has_feedback": False, "graded": False, "noise": 0.0, "nothing": False}


class Needy(Ordinary):
    """A world with something that a strategy could mend."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name.removeprefix("drawn ")
        drawn = vars(harder_traits_of(seed)) | DRAWN if self.name != name else {}
        super().__init__("silent", seed, **drawn | TRAITS.get(self.name, {}))

    def unaided(self, case: int, slot: int) -> float:
        """The chance without advice."""
        if self.name == "silence":
            return 0.02 if self.kinds(case)[slot] else 0.5
        return super().unaided(case, slot)

    def metric(self, gold: Any, pred: Any, trace: Any = None) -> dspy.Prediction:
        """Whether the answer is right, and its length."""
        del trace
        code, _, length = str(pred.answer).partition(" /")
        is_right = code.strip() == self.right[self.kinds(self.cases_in(gold.request)[0])[0]]
        length = -6.0 * int(length) if length.strip().isdigit() else 0.0
        return dspy.Prediction(objectives={"right": float(is_right), "length": length})


class HelpfulEngine(IdleEngine):
    """Knows something of use, where it is asked by the strategy that the world is for."""

    world: Needy
    _is_teacher = False

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The answer."""
        self._is_teacher = request.model.endswith("teacher")
        return super().complete(request)

    def _act(self, prompt: Prompt, fields: OutputFields) -> dict[str, str]:
        answer, hint = super()._act(prompt, fields), HINT.search(prompt.system)
        least = TEACHER if self._is_teacher else HELP[hint[1]] if hint else 0.0
        case = self.world.cases_in(sections(prompt.user)["request"])[0]
        if draw("helped", self.world.seed, case, prompt.sample, prompt.system) < least:
            right = self.world.right[self.world.kinds(case)[0]]
            return {**answer, "answer": right}
        return answer

    def _value(self, name: str, type_: str, prompt: Prompt) -> Any:
        key = (name, self.world.seed, prompt.sample, len(prompt.user))
        if name == "candidates" and self.world.name == "single cases":
            lines = self.world.found(sections(prompt.user)["came"])
            kinds = Counter(line.kind for line in lines if line.what == "leak")
            rules = [
                Line("wrong", kind, pick(N_WRONG, "place", kind, *key))
                if draw("misled", kind, *key) < WRONG_RULES
                else Line("right", kind)
                for kind, n in kinds.items()
                if n > 1
            ]
            return "\n".join(str(self.world.text(line, 0)) for line in rules) or "None"
        return super()._value(name, type_, prompt)


def needy(world_name: str, name: str, budget: int, arm: str, seed: int) -> Mapping[str, float]:
    """The exact score; a run without a strategy is made once."""
    return _needy(world_name, name if arm == "with" else "without", budget, seed)


@functools.cache
def _needy(world_name: str, name: str, budget: int, seed: int) -> Mapping[str, float]:
    world = Needy(world_name, seed)
    engine = HelpfulEngine(world)
    lms, teacher = lms_of(engine), dspy.LM("random/teacher", engine=engine, temperature=0.0)
    used = made(name, world, (teacher,))
    metric = world.metric if world_name == "scales" else None
    if name == "Objectives":
        used = (Objectives({"right": 1.0, "length": 1.0}),)
    program = compiled(world, lms, used, budget, seed, metric)
    return {"score": world.score(world.told(program))}


WORLDS = {
    "silence": ("TieredHints", "TeacherRollouts", "ClippedDiversity", "auto"),
    "single cases": ("Induction",),
    "scales": ("Objectives", "auto"),
    "drawn silence": ("TieredHints", "TeacherRollouts", "ClippedDiversity"),
    "drawn single cases": ("Induction",),
}
SETTINGS = tuple(
    Setting(name, f"{world}, 400 calls", functools.partial(needy, world, name, 400), ("score",))
    for world, names in WORLDS.items()
    for name in names
)
