"""The worlds of `worlds.py`: cases, lessons, all wording, and exact scores. NOTHING IS REAL.

A world is drawn from a seed and a `Cell`. It knows its cases, its lessons, and the exact chance of
a right answer to a case when a predictor holds given lessons; and it finds in any text what it has
planted there: cases, answers and lessons, and nothing else.
"""

# ruff: noqa: RUF001 - Chinese has its own punctuation

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from simlm import draw, pick

N_KINDS, N_TRAIN, N_TEST, FIRST_TEST = 10, 80, 200, 1000
KNOWN, MISLED = 0.97, 0.05
"""The chance of success with the right lesson of the kind, and with a wrong one."""
BROAD_RIGHT, BROAD_HARM, LEAK_HARM = 0.07, -0.10, -0.02
"""What a line for every example adds; and a leaking lesson, elsewhere than on its own case."""
CROWDED_RIGHT = 0.25
"""What a line adds alone, where lines crowd each other: their effects are averaged."""
LETTERS = "QRSTVWXZ"
"""The first of a code."""
N_WRONG = 4
"""How many wrong codes a kind has."""
STAGES = ("sort", "reply")
"""Of the program with two predictors: the first decides on kinds 0 to 4, the second on the rest."""
TOWNS = ("Leeds", "Porto", "Turin", "Bergen", "Lyon", "Graz", "Cork", "Malmo")
MATERIALS = (
    *("copper", "linen", "cedar", "marble", "amber"),
    *("wool", "paper", "salt", "glass", "rubber"),
)
ALIASES = (
    *("Reddish metal", "Flax cloth", "Scented timber", "Polished stone", "Fossil resin"),
    *("Sheep fleece", "Pressed pulp", "White seasoning", "Clear panes", "Elastic latex"),
)
BROAD_LINES = (
    *("Read the whole text twice.", "Give one result and nothing else.", "Check the units first."),
    *("Begin with what is asked.", "Compare with the register.", "Leave out all comments."),
    *("Use the newest list.", "Trust the label over the sender.", "Work from left to right."),
    "Note down each step before the last one.",
)
USELESS_LINES = (
    *("Be careful and precise.", "Stay consistent.", "Do not rush.", "Keep the goal in mind."),
    "Take nothing for granted.",
)


@dataclass(frozen=True)
class Wording:
    """How all is worded; kinds are called by `kinds` in requests, by `lesson_kinds` in lessons."""

    request: str
    lesson: str
    kinds: Sequence[str]
    lesson_kinds: Sequence[str]
    case: str = r"Case (\d+)[,:]"
    leak: str = "Case {case} is answered {code}."
    right: str = "Right."
    wrong: str = "Wrong: {code} was expected."


_CODES = tuple(f"K{kind}" for kind in range(1, N_KINDS + 1))
_CODED = "Case {case}, of kind {kind}: {units} units for {town}."
_NAMED = "Case {case}: a delivery of {kind} for {town}, {units} units."
_CHINESE = ("铜", "亚麻", "雪松", "大理石", "琥珀", "羊毛", "纸张", "食盐", "玻璃", "橡胶")
WORDINGS = {
    "words": Wording(_NAMED, "When a case is about {kind}, answer {code}.", MATERIALS, MATERIALS),
    "codes": Wording(_CODED, "When a case is of kind {kind}, answer {code}.", _CODES, _CODES),
    "chinese": Wording(
        *("第{case}件：一批{kind}，发往{town}，共{units}箱。", "遇到{kind}的案件，回答{code}。"),
        *(_CHINESE, _CHINESE, r"第(\d+)件：", "第{case}件的答案是{code}。"),
        *("正确。", "错误：应为{code}。"),
    ),
    "no when": Wording(_CODED, "Cases of kind {kind}: answer {code}.", _CODES, _CODES),
    "unlike": Wording(_NAMED, "{kind} always gets {code}.", MATERIALS, ALIASES),
}


@dataclass(frozen=True)
class Cell:
    """One kind of world.

    `wrong` and `leaking` are shares of the lessons that reflection writes about kinds. In a broad
    world (`n_right` is not None) it writes instead one of ten lines for every example, of which
    `n_right` help and `n_harmful` harm.
    """

    name: str
    wording: str = "codes"
    named: bool = True
    wrong: float = 0.0
    agree: bool = False
    leaking: float = 0.0
    n_right: int | None = None
    n_harmful: int = 0
    ignores: bool = False
    perfect: bool = False
    graded: bool = False
    two: bool = False
    crowded: bool = False

    @property
    def points(self) -> float:
        """What a right answer adds to the score."""
        return 30.0 if self.graded else 1.0


@dataclass(frozen=True)
class Lesson:
    """What a planted line is: right, wrong, leak, broad right, broad harmful or useless."""

    what: str
    kind: int = -1
    place: int = -1
    """Of the code among the wrong ones, of the case, or of the line."""

    @property
    def verdict(self) -> str:
        """Whether the line is "right", "harmful" or "useless"."""
        known = {"wrong": "harmful", "leak": "harmful", "broad right": "right"}
        return known.get(self.what, self.what.removeprefix("broad "))


class Planted:
    """What all worlds share: lines of advice and cases are found again in any text."""

    seed: int
    right: list[str]

    def _plant(self, lines: Mapping[str, Any], case: str) -> None:
        self.lessons = lines
        texts = sorted(map(re.escape, lines), key=len, reverse=True)
        self.planted = re.compile("|".join(texts))
        self.found = functools.lru_cache(maxsize=4096)(self._found)
        self._cases = re.compile(case)
        self._code = re.compile(rf"(?<![A-Za-z0-9])[{LETTERS}]\d\d(?!\d)")

    def _codes(self) -> list[str]:
        """All codes, in the order of this world."""
        pool = (f"{letter}{n}" for letter in LETTERS for n in range(10, 100))
        return sorted(pool, key=lambda code: draw(self.seed, "code", code))

    def _found(self, text: str) -> tuple[Any, ...]:
        """The lines that stand in a text, once each, in their order."""
        return tuple(dict.fromkeys(self.lessons[line] for line in self.planted.findall(text)))

    def kinds(self, case: int) -> tuple[int, ...]:
        """The kinds of a case."""
        raise NotImplementedError

    def cases_in(self, text: str) -> list[int]:
        """The numbers of the cases that stand in a text, once each, in their order."""
        return list(dict.fromkeys(map(int, self._cases.findall(text))))

    def evidence(self, text: str) -> tuple[dict[int, list[int]], list[str]]:
        """The cases of each kind whose right code stands in the text too, and all codes there."""
        rest = self.planted.sub(" ", text)
        codes = self._code.findall(rest)
        known = set(codes)
        cases: dict[int, list[int]] = {}
        for case in self.cases_in(rest):
            for kind in self.kinds(case):
                if self.right[kind] in known:
                    cases.setdefault(kind, []).append(case)
        return cases, codes


class World(Planted):
    """The hidden truth.

    Args:
        cell: the kind of world.
        seed: of all that is drawn.
    """

    policy_fields = frozenset({"answer", "group"})
    stages = STAGES

    def __init__(self, cell: Cell, seed: int) -> None:
        self.cell, self.seed, self.wording = cell, seed, WORDINGS[cell.wording]
        pool = self._codes()[: N_KINDS * (N_WRONG + 1)]
        self.right = pool[:N_KINDS]
        self.wrong = [pool[N_KINDS + kind :: N_KINDS] for kind in range(N_KINDS)]
        order = sorted(range(10), key=lambda line: draw(seed, "broad", line))
        n_right, n_harmful = cell.n_right or 0, cell.n_harmful
        effects = ["right"] * n_right + ["harmful"] * n_harmful + ["useless"] * 10
        self.broad = dict(zip(order, effects, strict=False))
        lines = {self.text(lesson): lesson for lesson in self._all_lessons()}
        self._plant(lines, self.wording.case)

    def _all_lessons(self) -> Iterable[Lesson]:
        if self.cell.n_right is None:
            for kind in range(N_KINDS):
                yield Lesson("right", kind)
                yield from (Lesson("wrong", kind, place) for place in range(N_WRONG))
            for case in range(N_TRAIN):
                yield Lesson("leak", self.kind(case), case)
        else:
            for line, effect in self.broad.items():
                yield Lesson(f"broad {effect}", place=line)
        for line in range(len(USELESS_LINES)):
            yield Lesson("useless", place=line)

    def text(self, lesson: Lesson) -> str:
        """The line for a lesson."""
        if lesson.what == "leak":
            code = self.right[lesson.kind]
            return self.wording.leak.format(case=lesson.place, code=code)
        if lesson.kind < 0:
            lines = USELESS_LINES if lesson.what == "useless" else BROAD_LINES
            return lines[lesson.place]
        right, wrong = self.right[lesson.kind], self.wrong[lesson.kind]
        code = right if lesson.what == "right" else wrong[lesson.place]
        kind = self.wording.lesson_kinds[lesson.kind]
        return self.wording.lesson.format(kind=kind, code=code)

    @staticmethod
    def kind(case: int) -> int:
        """The kind of a case."""
        return case % N_KINDS

    def kinds(self, case: int) -> tuple[int, ...]:
        """The kind of a case, alone."""
        return (self.kind(case),)

    def request(self, case: int) -> str:
        """The text of a case."""
        town, units = TOWNS[pick(len(TOWNS), self.seed, "town", case)], 20 + case * 7 % 60
        kind = self.wording.kinds[self.kind(case)]
        return self.wording.request.format(case=case, kind=kind, town=town, units=units)

    def examples(self) -> list[dspy.Example]:
        """The training examples, shuffled."""
        cases = sorted(range(N_TRAIN), key=lambda case: draw(self.seed, "order", case))
        return [
            dspy.Example(request=self.request(case), answer=answer).with_inputs("request")
            for case in cases
            for answer in [self.right[self.kind(case)]]
        ]

    def unaided(self, case: int) -> float:
        """The chance without any lesson: .15 to .55 over the cases of a kind."""
        if self.cell.perfect:
            return 1.0
        start = draw(self.seed, "unaided", self.kind(case))
        return 0.15 + 0.4 * ((start + case // N_KINDS * 0.6180339887) % 1)

    def chance(self, case: int, lessons: Collection[Lesson]) -> float:
        """The exact chance of a right answer, with these lessons in the prompt."""
        kind, unaided = self.kind(case), self.unaided(case)
        if self.cell.ignores:
            return unaided
        what = Counter(own.what for own in lessons if own.kind in (-1, kind))
        n_leaks = sum(own.what == "leak" for own in lessons)
        is_told = any(own.what == "leak" and own.place == case for own in lessons)
        best = max(KNOWN, unaided)
        chance = unaided
        if what["right"] or what["wrong"]:
            chance = best * what["right"] + MISLED * what["wrong"]
            chance /= what["right"] + what["wrong"]
        right, harm, n = BROAD_RIGHT, BROAD_HARM, 1
        if self.cell.crowded:
            right, n = CROWDED_RIGHT, max(1, len(lessons))
        chance += (right * what["broad right"] + harm * what["broad harmful"]) / n
        chance = best if is_told else chance + LEAK_HARM * n_leaks
        return min(max(0.02, chance), max(unaided, 0.98))

    def score(self, held: Sequence[Collection[Lesson]], cases: Iterable[int] = ()) -> float:
        """The exact mean chance over cases (default: the test set); lessons by predictor."""
        cases = cases or range(FIRST_TEST, FIRST_TEST + N_TEST)
        chances = [self.chance(case, held[self.stage(case)]) for case in cases]
        return sum(chances) / len(chances)

    def stage(self, case: int) -> int:
        """The predictor that decides about the case."""
        return int(self.cell.two and self.kind(case) >= N_KINDS // 2)

    def held(self, program: Any) -> list[tuple[Lesson, ...]]:
        """The lessons in the instructions of each predictor."""
        return [self.found(own.signature.instructions) for _, own in program.named_predictors()]

    def best(self) -> float:
        """The exact score with all right lessons."""
        return self.score([[own for own in self.lessons.values() if own.verdict == "right"]] * 2)

    def metric(
        self,
        gold: Any,
        pred: Any,
        trace: Any = None,  # noqa: ARG002 - GEPA's form
        pred_name: Any = None,  # noqa: ARG002
        pred_trace: Any = None,  # noqa: ARG002
    ) -> dspy.Prediction:
        """The score (0 or 1; graded: 0 to 40 points) and feedback that names the right code."""
        code, _, neatness = str(getattr(pred, "answer", "")).partition(" /")
        is_right = code.strip() == gold.answer
        points = int(neatness) if neatness.isdigit() else 0
        score = 30.0 * is_right + points if self.cell.graded else float(is_right)
        said = self.wording.right if is_right else self.wording.wrong.format(code=gold.answer)
        return dspy.Prediction(score=score, feedback=said)

    def student(self) -> dspy.Module:
        """The program."""
        return TwoSteps() if self.cell.two else dspy.Predict("request -> answer")


class Silent(World):
    """A world whose metric says nothing in words."""

    def metric(self, gold: Any, pred: Any, *_: Any) -> float:  # type: ignore[override]
        """Whether the answer is right."""
        return float(str(pred.answer).strip() == gold.answer)


class TwoSteps(dspy.Module):
    """The program with two predictors."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = dspy.Predict("request -> group")
        self.reply = dspy.Predict("request, group -> answer")

    def forward(self, request: str) -> dspy.Prediction:
        return self.reply(request=request, group=self.sort(request=request).group)
