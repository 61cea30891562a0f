"""Settings of Extrapolate, TeacherMarks and StateTasks. SIMULATED tasks; NOTHING IS REAL.

**Degrees.** Two lines hold for all cases, such as "Use at most 96 words." and "Check for at least 6
minutes."; both are at degree 6 of 24. Between 12 and 20, drawn for both, lies the best degree. A
case is answered right with a chance of .2 without a line, of .95 with both at their best; half way
to the best, or half as much past it, a line gives half of its gain. Of several lines on one scale
the highest degree counts. Reflection takes small steps: its lessons say a degree two higher than
that in the library, in a quarter of them two lower. UpdateLibrary rewords the line of that scale.
Only if it is asked to go on from two states it writes what lies further, by the factor asked for.

**Doors.** The agent of `credit_world.py`, a real `dspy.ReAct`, goes through three doors. At each
one of three options is right, by the kind of the case; without advice it is taken with a chance of
.4, with right advice of .97. After a wrong option the agent gives up; who has passed all doors
scores 1, all others 0. So 6 attempts of 100 succeed from the start, and 40 of 100 from the last
door; and the attempt that got furthest is the longest one.

**Steps.** The same agent makes six turns, whatever happens. Two are critical: there the right
option has a chance of .3, so 9 attempts of 100 succeed. *Marks* begin at 5. An option that is right
at a critical turn raises them by 1 to 3, a wrong one lowers them as much, others leave them; in one
step of five the teacher takes an option for another sort.

As everywhere with that agent, reflection writes one lesson for a group, from the largest change of
the values or, without values, from where the best and the worst attempt differ; a quarter of its
lessons name another option. Metrics say nothing in words, labels are hidden. Scores are exact.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import credit_world
from simlm_texts import OutputFields, Prompt, sections
from simlm_world import draw, pick
from strategies import Bar, Setting
from strategy_runs import compiled
from worlds_engine import WRITES, WorldEngine
from worlds_model import Cell, Lesson, World

from tfgrpo_dspy import Reflection
from tfgrpo_dspy.strategies import Extrapolate, StateTasks, Strategy, TeacherMarks

HIDDEN = Reflection(use_labels=False, drafts=0)

# ---- degrees
SCALES, HIGHEST, STEP = 2, 24, 2
BEST = range(12, 21)
LEAST, MOST, WRONG = 0.2, 0.95, 0.25


class Degrees(World):
    """Lines that state a degree; `kind` of a lesson is its scale, `place` its degree."""

    def __init__(self, seed: int) -> None:
        super().__init__(Cell("degrees", "words"), seed)
        self.best_degrees = [BEST[pick(len(BEST), seed, "best", n)] for n in range(SCALES)]

    def _all_lessons(self) -> Iterable[Lesson]:
        scales, degrees = range(SCALES), range(1, HIGHEST + 1)
        return (Lesson("degree", scale, degree) for scale in scales for degree in degrees)

    def text(self, lesson: Lesson) -> str:
        """The line for a lesson."""
        if lesson.kind:
            return f"Check for at least {lesson.place} minutes."
        return f"Use at most {120 - 4 * lesson.place} words."

    def degrees(self, lessons: Iterable[Lesson]) -> list[int]:
        """The highest degree of each scale; 0: there is no line."""
        stated = [(own.kind, own.place) for own in lessons]
        return [max((n for kind, n in stated if kind == k), default=0) for k in range(SCALES)]

    def chance(self, case: int, lessons: Collection[Lesson]) -> float:
        """The exact chance of a right answer, which is the same for all cases."""
        del case
        pairs = zip(self.degrees(lessons), self.best_degrees, strict=True)
        near = (max(0.0, 1 - abs(degree - best) / best) for degree, best in pairs)
        return LEAST + (MOST - LEAST) * sum(near) / SCALES

    def metric(self, gold: Any, pred: Any, *_: Any) -> float:  # type: ignore[override]
        """The score, without a word."""
        return float(str(pred.answer).strip() == gold.answer)


class DegreesEngine(WorldEngine):
    """Takes small steps, unless it is asked to go on from two states."""

    world: Degrees

    def _written(self, prompt: Prompt) -> list[Lesson]:
        key, library = self._key(prompt), sections(prompt.user).get("experiences", "")
        if not self.world.cases_in(prompt.user) or draw("writes", *key) >= WRITES:
            return []
        scale = pick(SCALES, "scale", *key)
        step = -STEP if draw("wrong", *key) < WRONG else STEP
        degree = self.world.degrees(self.world.found(library))[scale] + step
        return [Lesson("degree", scale, degree)] if 1 <= degree <= HIGHEST else []

    def _operation(
        self, own: Lesson, scope: str, known: Mapping[Lesson, str], prompt: Prompt
    ) -> list[dict[str, Any]]:
        of_scale = [other for other in known if other.kind == own.kind]
        if of_scale and own not in known:
            id_ = known[max(of_scale, key=lambda other: other.place)]
            return [{"op": "MODIFY", "id": id_, "text": self.world.text(own)}]
        return super()._operation(own, scope, known, prompt)

    def _value(self, name: str, type_: str, prompt: Prompt) -> Any:
        if name != "further":
            return super()._value(name, type_, prompt)
        shown = sections(prompt.user)
        return self.further(shown["worse"], shown["better"], float(shown["factor"].split()[0]))

    def further(self, worse: str, better: str, factor: float) -> str:
        """The lines that lie past the better of two texts, on scales that both have."""
        world, lines = self.world, []
        degrees = (world.degrees(world.found(text)) for text in (worse, better))
        for scale, (low, high) in enumerate(zip(*degrees, strict=True)):
            degree = high + round(factor * (high - low))
            if low and high and degree != high and 1 <= degree <= HIGHEST:
                lines.append(world.text(Lesson("degree", scale, degree)))
        return "\n".join(lines) or "None"


def of_degrees(arm: str, seed: int, budget: int) -> Mapping[str, float]:
    """A run where lines state degrees."""
    world = Degrees(seed)
    used = {"with": (Extrapolate(factor=1.0),), "default factor": (Extrapolate(),)}.get(arm, ())
    program = compiled(world, DegreesEngine(world), used, budget, seed, reflection=HIDDEN)
    return {"score": world.score(world.held(program))}


# ---- doors and steps
DOORS, STEPS = (3, 3, 0.4), (6, 2, 0.3)
"""Turns, critical ones, the chance of the right option there."""
GROUP, MARKS_RIGHT = 5, 0.8
ATTEMPT = re.compile(r"^Attempt (\d+)$\n(.*?)(?=^Attempt |\Z)", re.M | re.S)


class AgentEngine(credit_world.Engine):
    """The agent, reflection on it, and marks of its steps."""

    def __init__(self, world: credit_world.World, gives_up: bool) -> None:
        super().__init__(world)
        self.gives_up = gives_up

    def _values(self, prompt: Prompt, fields: OutputFields) -> dict[str, Any]:
        if "marks" in fields.names:
            return {"marks": self._marks(prompt)}
        return super()._values(prompt, fields)

    def _turn(self, prompt: Prompt) -> dict[str, Any]:
        kind, taken = self._case(prompt)
        if self.gives_up and taken and taken[-1] != self.world.right[kind, len(taken) - 1]:
            return {"next_thought": "so", "next_tool_name": "finish", "next_tool_args": {}}
        return super()._turn(prompt)

    def _lesson(self, kind: str, text: str, prompt: Prompt) -> Iterator[str]:
        attempts = [credit_world.Attempt(*found) for found in credit_world.ATTEMPT.findall(text)]
        if not attempts:
            return
        key = (self.world.seed, prompt.user, prompt.sample)
        best = sorted(attempts, key=lambda one: -one.score)
        valued = max(attempts, key=lambda one: one.change)
        turn, option = valued.turn, valued.taken.get(valued.turn, "")
        if valued.change == 0 and best[0].score > best[-1].score:
            good, bad = best[0].taken, best[-1].taken
            differ = [turn for turn in good if bad.get(turn, good[turn]) != good[turn]]
            turn = differ[pick(len(differ), "differ", *key)] if differ else 0
            option = good[turn] if differ else ""
        elif valued.fell:
            others = (one.taken.get(turn, option) for one in best)
            option = next((other for other in others if other != option), "")
        if option and draw("wrong", kind, *key) < credit_world.WRONG:
            rest = [each for each in credit_world.OPTIONS if each != option]
            option = rest[pick(2, "other", kind, *key)]
        if option:
            yield f"In cases of {kind}, take {option} at turn {turn + 1}."

    def _marks(self, prompt: Prompt) -> str:
        shown = sections(prompt.user)
        kind = next(kind for kind in credit_world.KINDS if f"about {kind}" in shown["example"])
        lines = []
        for number, text in ATTEMPT.findall(shown["attempts"]):
            taken = credit_world.Attempt("0", text).taken
            n_turns = len(re.findall(r"^Step \d+, predictor", text, re.M))
            marks = self.marks(kind, taken, n_turns, prompt.user, number)
            lines.append(f"{number}: {', '.join(map(str, marks))}")
        return "\n".join(lines)

    def marks(self, kind: str, taken: Mapping[int, str], n: int, *key: Any) -> list[int]:
        """A mark after each turn of an attempt."""
        mark, marks = 5, []
        for turn in range(n):
            if turn in taken:
                at, right = (self.world.seed, *key, turn), self.world.right.get((kind, turn))
                move = (moves := [-1, 0, 1]).pop(1 if right is None else 2 * (taken[turn] == right))
                if draw("mark", *at) >= MARKS_RIGHT:
                    move = moves[pick(2, "move", *at)]
                mark = min(max(0, mark + move * (1 + pick(3, "size", *at))), 10)
            marks.append(mark)
        return marks


def of_agent(
    make: type[Strategy],
    turns: tuple[int, int, float],
    budget: int,
    arm: str,
    seed: int,
    engine: type[AgentEngine] = AgentEngine,
) -> Mapping[str, float]:
    """A run with an agent of so many turns and critical ones; where all are, it gives up."""
    n_turns, n_critical, usual = turns
    world: Any = credit_world.World(n_turns, n_critical, seed, usual=usual)
    lm: Any = engine(world, gives_up=n_turns == n_critical)
    data, n = world.examples(), credit_world.N_TRAIN
    data = {"trainset": data[:n], "valset": data[n:], "metric": credit_world.metric}
    used = (make(),) if arm == "with" else ()
    settings = {"group_size": GROUP, "max_demos": 0, "reflection": HIDDEN}
    program = compiled(world, lm, used, budget, seed, **data, **settings)
    return {"score": world.mean_value(program.react.signature.instructions)}


ARMS = ("with", "without")
SURE = Bar("score", *ARMS, surely=True)
BARS = (SURE, replace(SURE, one="default factor"))
MARKS = partial(of_agent, TeacherMarks, STEPS, 2000)
TASKS = partial(of_agent, StateTasks, DOORS, 1500)
SETTINGS: tuple[Setting, ...] = (
    Setting("Extrapolate", "degrees", (*ARMS, BARS[1].one), partial(of_degrees, budget=800), BARS),
    Setting("TeacherMarks", "steps", ARMS, MARKS, (SURE,)),
    Setting("StateTasks", "doors", ARMS, TASKS, (SURE,)),
)
