"""Settings of ConflictAware, by somebody who did not write it. SIMULATED tasks; NOTHING IS REAL.

**Parts.** A case is about goods of one of ten kinds, and the reasoning of an attempt has a sentence
for each of five parts, such as "I weigh the copper." Four of them stand in every attempt: two are
needed, two make no difference. The fifth is one of two ways, and decides: the good one is taken
with a chance of .15 to .55, of .97 with advice against the bad one, of .05 with advice against the
good one. Advice against a needed part is obeyed, too, and then four of five answers are wrong.
Reflection blames one of the parts that it reads in the worst attempt, each as often as any other,
but, in three of four lessons, none that the note says made no difference. So without a note one
blamed part of five is the one that decided.

**Agent.** The agent of `credit_world.py`, with the turns of `steps` in `strategies_states.py`: a
real `dspy.ReAct` of six turns, two of which decide. Reflection is that of this module, and compares
by itself: it advises what the best attempt did at a turn where the worst did something else, in a
quarter of the lessons a third thing. In seven of ten lessons it heeds the note: it passes over what
the worst attempt did if the note names it, unless that leaves no turn. Either each turn has actions
of its own (north1, south1, ...), or all turns have the same (north, ...).

Metrics say nothing in words, labels are hidden. Scores are exact.

Tried were: parts without the fourth lesson, which ignores the note (seed 0: .970 with the strategy,
.660 without), then as it stands (seeds 0 to 4: .936, .522). The agent was measured as it stands
only (seeds 0 to 3: +.128 with actions of its own; seeds 0 to 2: -.063 with the same).
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import dspy
from simlm_texts import OutputFields, Prompt, sections
from simlm_world import draw, pick
from strategies import Bar, Setting
from strategies_rewards import ATTEMPT
from strategies_states import HIDDEN, STEPS, AgentEngine, of_agent
from strategy_runs import compiled
from worlds_engine import ATTENTION, WRITES, WorldEngine
from worlds_model import KNOWN, MISLED, N_KINDS, Cell, Lesson, World

from tfgrpo_dspy.strategies import ConflictAware

# ---- parts
VERBS = ("weigh", "unpack", "measure", "wipe", "stack", "stamp")
ROLES = ("wrong", "wrong", "useless", "useless", "right", "wrong")
"""What advice against each part of a kind is: two needed ones, two others, bad and good way."""
SKIPPED = 0.2
"""The chance of success is multiplied by this for each needed part that is left out."""
PART = re.compile(r"\bI (\w+) the (\w+)")
ADVICE = "When a case is about {goods}, do not {verb} it."


class Parts(World):
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

    def metric(self, gold: Any, pred: Any, *_: Any) -> float:  # type: ignore[override]
        """The score, without a word."""
        return float(str(pred.answer).strip() == gold.answer)

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
        shown, key = sections(prompt.user), self._key(prompt)
        noted = PART.findall(shown.get("objective", ""))
        cases = self.world.cases_in(shown.get("example", ""))
        texts = re.split(r"^Example \d+$", shown.get("attempts", ""), flags=re.M)[-len(cases) :]
        chance, written = WRITES * min(1.0, ATTENTION / max(1, len(cases))), []
        for case, text in zip(cases, texts if cases else (), strict=False):
            kind, attempts = self.world.kind(case), ATTEMPT.findall(text)
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


def of_parts(budget: int, arm: str, seed: int) -> Mapping[str, float]:
    """A run where attempts share most of what they do."""
    world = Parts(Cell("parts", "words", wrong=0.25), seed)
    used = (ConflictAware(),) if arm == "with" else ()
    arguments = {"group_size": 4, "reflection": HIDDEN}
    program = compiled(world, PartsEngine(world), used, budget, seed, **arguments)
    return {"score": world.score(world.held(program))}


# ---- agent
HEEDS = 0.7
OPTION, TURN = re.compile(r'"option": "\w+"'), re.compile(r'(?<="option": ")([a-z]+)\d+')


class HeedingEngine(AgentEngine):
    """The agent, and reflection that compares two attempts and mostly heeds the note."""

    own_actions = False

    def _case(self, prompt: Prompt) -> tuple[str, list[str]]:
        kind, taken = super()._case(prompt)
        return kind, [option.rstrip("0123456789") for option in taken]

    def _turn(self, prompt: Prompt) -> dict[str, Any]:
        turn, number = super()._turn(prompt), len(self._case(prompt)[1]) + 1
        option = turn["next_tool_args"]["option"]
        own = f"{option}{number}" if self.own_actions else option
        return turn | {"next_tool_args": {"option": own}}

    def _lesson(self, kind: str, text: str, prompt: Prompt) -> Iterator[str]:
        noted, heeded = OPTION.findall(sections(prompt.user)["objective"]), text
        if draw("heeds", self.world.seed, kind, prompt.user, prompt.sample) < HEEDS:
            before, title, worst = text.rpartition("\nAttempt ")
            rest = OPTION.sub(lambda one: "" if one[0] in noted else one[0], worst)
            heeded = before + title + rest
        for shown in (heeded, text):
            if lines := [*super()._lesson(kind, TURN.sub(r"\1", shown), prompt)]:
                yield from lines
                return


class OwnActionsEngine(HeedingEngine):
    """The agent that does something else at each turn."""

    own_actions = True


ARMS = ("with", "without")
AGENT = partial(of_agent, ConflictAware, STEPS, 2000)
OWN = partial(AGENT, engine=OwnActionsEngine)
SAME = partial(AGENT, engine=HeedingEngine)
MADE, OTHER = Bar("score", *ARMS, surely=True), Bar("score", *ARMS)
SETTINGS: tuple[Setting, ...] = (
    Setting("ConflictAware", "parts", ARMS, partial(of_parts, 400), (MADE,)),
    Setting("ConflictAware", "agent, other actions at each turn", ARMS, OWN, (OTHER,)),
    Setting("ConflictAware", "agent, the same actions at each turn", ARMS, SAME, (OTHER,)),
)
