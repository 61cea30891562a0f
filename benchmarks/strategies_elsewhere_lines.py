"""Worlds for GlobalConstraint and Objectives, by somebody who wrote neither. SIMULATED.

They are ordinary worlds of `ordinary_worlds.py` (80 cases of ten kinds, one predictor, no labels,
no word of the metric), where an answer has one of nine degrees, from "hardly" to "utterly". Lines
state a degree for a part of the cases, and of several the mean counts; an answer is up to two
degrees off, by luck. Reflection compares the best attempt with the worst, and says one degree more
than the library if the best had the higher one, one less if it had the lower one, the opposite in a
quarter of the lessons (two degrees in the last two worlds); UpdateLibrary rewords the line that is
there.

**litres.** Each kind has a degree, 4 without advice, and any may be best; an answer passes with a
chance of .95, less .25 for each degree that it is away. A second objective is minus the litres that
are drawn, 10 for each degree and 0 to 19 by luck. Without `Objectives` the score is the plain mean
of the two.
**well.** Each kind has a degree, 4 without advice; the higher, the more is drawn from a well that
all share. An answer passes by luck (.5), and each degree adds .1 to its score. **queue.** One
degree for all cases, 3 without advice; an answer passes with a chance of .4, and .05 more for each
degree. In both `cooperation` is what is left: 1 less an eighth of the mean degree.

Sizes were chosen by runs without a strategy on seeds 0 to 2: 400 and 800 calls, what a degree of
well and queue adds (.04 to .1), and by how much their lessons move it (1 or 2).
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache, partial
from typing import Any

import dspy
from ordinary_worlds import Ordinary, compiled
from random_world_engine import RandomEngine, lms_of
from random_world_model import FIRST_TEST, N_TEST, Line
from simlm import OutputFields, Prompt, draw, pick, sections
from strategies import Setting, attempts_of

from tfgrpo_dspy import strategies
from tfgrpo_dspy.rollout import Rollout

DEGREES = ("hardly", "slightly", "barely", "fairly", "rather", "quite", "very", "highly", "utterly")
HIGHEST, LUCK, WRITES, WRONG = len(DEGREES) - 1, (-2, -1, 0, 1, 2), 0.6, 0.25
TEST = range(FIRST_TEST, FIRST_TEST + N_TEST)


class Dials(Ordinary):
    """Lines that state a degree."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.n_dials, self.usual = (1, 3) if name == "queue" else (10, 4)
        self.best = [pick(9, seed, "best", dial) for dial in range(self.n_dials)]
        super().__init__("silent", seed)

    def dial(self, case: int) -> int:
        """The dial of a case."""
        return self.kinds(case)[0] % self.n_dials

    def _all_lines(self) -> Iterator[Line]:
        yield from (Line("dial", dial, n) for dial in range(self.n_dials) for n in range(9))

    def text(self, line: Line, paraphrase: int = 0) -> str:
        del paraphrase
        names = ("delivery",) if self.n_dials == 1 else self.wording.kinds
        return f"When a case is about {names[line.kind]}, be {DEGREES[line.place]} free."

    def degree(self, dial: int, lines: Collection[Line]) -> float:
        """The mean degree that lines state."""
        told = [line.place for line in lines if line.kind == dial]
        return sum(told) / len(told) if told else self.usual

    def gain(self, case: int, degree: float) -> float:
        """The chance that an answer of this degree passes."""
        if self.name in ("well", "queue"):
            return 0.5 if self.name == "well" else 0.4 + 0.05 * degree
        off = abs(degree - self.best[self.dial(case)])
        return max(0.02, 0.95 - 0.25 * off)

    def metric(self, gold: Any, pred: Any, trace: Any = None) -> dspy.Prediction:
        """The score, or two objectives."""
        del trace
        case, answer = self.cases_in(gold.request)[0], str(pred.answer).split()
        if len(answer) != 2:
            return dspy.Prediction(score=0.0)
        degree, passed = float(answer[0]), float(answer[1] == "passed")
        if self.name == "litres":
            litres = 10 * degree + pick(20, "litres", self.seed, case, pred.answer)
            return dspy.Prediction(objectives={"right": passed, "left": -litres})
        return dspy.Prediction(score=passed + 0.1 * degree * (self.name == "well"))

    def figures(self, lines: Collection[Line]) -> Mapping[str, float]:
        """The exact score, and what is left of what is shared."""
        degrees = {
            (case, luck): min(max(0, self.degree(self.dial(case), lines) + luck), HIGHEST)
            for case in TEST
            for luck in LUCK
        }
        passed = sum(self.gain(case, own) for (case, _), own in degrees.items()) / len(degrees)
        mean = sum(degrees.values()) / len(degrees)
        return {
            "score": passed + 0.1 * mean * (self.name == "well"),
            "cooperation": 1 - mean / HIGHEST,
        }


class Engine(RandomEngine):
    """Both LMs of these worlds."""

    world: Any

    def _act(self, prompt: Prompt, fields: OutputFields) -> dict[str, str]:
        world, case = self.world, self.world.cases_in(sections(prompt.user)["request"])[0]
        key = ("answer", world.seed, case, prompt.sample)
        told = world.degree(world.dial(case), world.found(prompt.system))
        degree = min(max(0, told + LUCK[pick(5, "luck", *key)]), HIGHEST)
        passed = "passed" if draw(*key) < world.gain(case, degree) else "failed"
        return dict.fromkeys(fields.names, f"{degree:.1f} {passed}")

    def _written(self, prompt: Prompt) -> list[Line]:
        world, key, made = self.world, self._key(prompt), []
        library = world.found(sections(prompt.user).get("experiences", ""))
        for case, shown in attempts_of(world, prompt):
            read = ((score, re.search(r"answer: ([\d.]+)", text)) for score, text in shown)
            attempts = sorted((score, float(own[1])) for score, own in read if own)
            if not attempts or draw("writes", case, *key) >= WRITES:
                continue
            (low, worst), (high, best) = attempts[0], attempts[-1]
            step = ((best > worst) - (best < worst)) * (low < high)
            step *= 2 if world.name in ("well", "queue") else 1
            step = -step if draw("wrong", case, *key) < WRONG else step
            degree = round(world.degree(world.dial(case), library)) + step
            if step and 0 <= degree <= HIGHEST:
                made.append(Line("dial", world.dial(case), degree))
        return list(dict.fromkeys(made))

    def _operation(
        self, own: Any, scope: str, known: Mapping[Any, str], prompt: Prompt
    ) -> list[dict[str, Any]]:
        ids = [] if own in known else [id_ for line, id_ in known.items() if line.kind == own.kind]
        if ids:
            return [{"op": "MODIFY", "id": ids[0], "text": self.world.text(own)}]
        return super()._operation(own, scope, known, prompt)


def left(rollout: Rollout) -> float:
    """The quantity of the whole: what an answer leaves for the others."""
    return 1 - float(rollout.outputs["answer"].split()[0]) / HIGHEST


def dials(world_name: str, name: str, budget: int, arm: str, seed: int) -> Mapping[str, float]:
    """What a run comes to; without a strategy it is made once."""
    return _dials(world_name, name if arm == "with" else arm, budget, seed)


@cache
def _dials(world_name: str, name: str, budget: int, seed: int) -> Mapping[str, float]:
    world = Dials(world_name, seed)
    wants = {"GlobalConstraint": (left,), "Objectives": ({"right": 1.0, "left": 1.0},)}
    arguments: tuple[Any, ...] = wants.get(name, ())
    used = () if name == "without" else (getattr(strategies, name)(*arguments),)
    program = compiled(world, lms_of(Engine(world)), used, budget, seed, world.metric)
    ((lines, _),) = world.told(program)
    return world.figures(lines)


SETTINGS = tuple(
    Setting(name, f"{world}, 800 calls", partial(dials, world, name, 800), figures)
    for world, name, figures in (
        ("well", "GlobalConstraint", ("cooperation", "score")),
        ("queue", "GlobalConstraint", ("cooperation", "score")),
        ("litres", "Objectives", ("score",)),
    )
)
