"""The worlds of `random_worlds.py`, each drawn from its seed: cases, lines of advice, exact scores.

NOTHING IS REAL. A world knows the exact chance of each right answer, given the lines of advice and
the demos in a prompt. Prompts are read by texts that the world has planted, and by nothing else.
"""

import functools
import math
import random
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from simlm import draw, pick
from worlds_model import BROAD_LINES, USELESS_LINES, Cell, Planted

Shape = Literal["predict", "cot", "agent", "rag", "judge", "extract"]
SHAPES: tuple[Shape, ...] = ("cot", "agent", "rag", "judge", "extract")
HARDER, TOGETHER = "harder", "together"
"""Where a shape is asked for: random worlds of one to three predictors with more bad advice; and
worlds of several rules, where an answer is right if every rule that applies to it is followed."""
"""Shapes of real programs; a random world of no shape is a `predict` of one to three predictors."""
N_TEST, FIRST_TEST = 200, 5000
KNOWN, MISLED = 0.97, 0.05
"""The chance of a right answer with the right line of the kind, and with a wrong one."""
N_WRONG = 3
"""How many wrong codes a kind has."""
ENTRY = r"(?:Case|Fall|案) (\d+)[:：]"
WORDS = (
    *("copper", "linen", "cedar", "marble", "amber", "wool", "paper", "salt", "glass", "rubber"),
    *("slate", "ivory", "walnut", "cobalt", "velvet", "pewter", "hazel", "garnet", "willow"),
    *("bronze", "saffron", "indigo", "quartz", "maple", "jasper"),
)
GERMAN = tuple(f"Ware-{word[:5].upper()}" for word in WORDS)
CHINESE = tuple("铜麻杉石珀毛纸盐璃胶板牙核钴绒锡榛榴柳青藏靛晶枫玉")
ALIASES = tuple(f"sort {'abcdefghijklmnopqrstuvwxy'[n]}{n}" for n in range(25))
BROAD = (*BROAD_LINES, "Prefer the shorter of two answers.", "Answer with the code alone.")
USELESS = (*USELESS_LINES, "Think before you answer.", "Mind the details.")
FILLER = "The warehouse keeps records of all deliveries since its opening. "
FIELDS = ("size", "colour", "grade", "route", "owner", "state", "shelf", "label")
STAGES = {
    "rag": ("search", "reply"),
    "agent": ("react", "extract.predict"),
    1: ("reply",),
    2: ("sort", "reply"),
    3: ("sort", "check", "reply"),
}


@dataclass(frozen=True)
class Wording:
    """How cases and lines are worded; `lesson` has one form for each paraphrase."""

    request: str
    lessons: tuple[str, ...]
    kinds: Sequence[str]
    lesson_kinds: Sequence[str]


WORDINGS = {
    "words": Wording(
        "Case {case}: a delivery of {kinds}, {units} units.",
        (
            "When a case is about {kind}, answer {code}.",
            "For {kind} the answer is {code}.",
            "{code} belongs to every delivery of {kind}.",
        ),
        *(WORDS, WORDS),
    ),
    "codes": Wording(
        "Case {case}: kind {kinds}, {units} units.",
        (
            "When a case is of kind {kind}, answer {code}.",
            "Kind {kind}: answer {code}.",
            "Cases of kind {kind} take {code}.",
        ),
        *(tuple(f"K{n}" for n in range(1, 26)),) * 2,
    ),
    "german": Wording(
        "Fall {case}: eine Lieferung {kinds}, {units} Stück.",
        ("Bei {kind} lautet die Antwort {code}.", "{kind} bekommt {code}."),
        *(GERMAN, GERMAN),
    ),
    "chinese": Wording(
        "案 {case}：一批{kinds}，共{units}箱。",
        ("遇到{kind}时，回答{code}。", "{kind}的答案是{code}。"),
        *(CHINESE, CHINESE),
    ),
    "unlike": Wording(
        "Case {case}: a delivery of {kinds}, {units} units.",
        ("{kind} always gets {code}.", "Give {code} to what is of {kind}."),
        *(WORDS, ALIASES),
    ),
}


@dataclass(frozen=True)
class Traits:
    """What sets a world apart; shares and chances are between 0 and 1."""

    shape: Shape
    n_predictors: int
    n_kinds: int
    n_train: int
    wording: str
    n_paraphrases: int
    n_slots: int  # parts of an answer that are scored by themselves
    graded: bool  # an answer has a part that luck decides, a third of the score
    noise: float  # standard deviation of what the metric adds by chance to a given answer
    wrong_labels: float
    has_labels: bool
    has_feedback: bool
    student: float  # mean chance without advice
    wrong: float  # share of lines about kinds that are wrong; the next three alike
    leaking: float
    overreaching: float  # right for their kind, harmful elsewhere
    useless: float
    agreeing: bool  # wrong lines about a kind are always the same one
    n_broad_right: int
    n_broad_harmful: int
    broad_right: float
    broad_harm: float
    combine: str  # how lines work together: add, saturate, average, conflict, dilute
    crowd: int  # from so many lines on each further one weakens the prompt, where they dilute
    demos: str  # what demos do: nothing, same (kind), any, harm
    demo_worth: float
    names_sources: bool
    overwrites: float  # errors of whoever edits a library or an instruction
    deletes: float
    writes: float  # chance of a lesson where the evidence is shown
    attention: int  # about how many kinds at once
    n_turns: int  # LM calls of an agent before its answer
    nothing: bool  # no advice and no demo changes anything
    together: bool = False  # several kinds, here rules, apply to a case; one answer has all codes
    partial: bool = False  # ... and scores the share of codes that are right, not all or nothing
    told: float = KNOWN  # the chance of a right code with the right line of its kind


def traits_of(seed: int, shape: Shape | None = None) -> Traits:
    """The traits of the world of this seed; `shape`: that of a real program."""
    rng = random.Random(f"random world/{seed}/{shape}")
    pick_one = rng.choice
    n_kinds = rng.randint(3, 25)
    n_broad = rng.randint(1, 6) if rng.random() < 0.4 else 0
    combine = pick_one(("add", "add", "saturate", "average", "conflict", "dilute"))
    is_judge = shape == "judge"
    return Traits(
        shape=shape or "predict",
        n_predictors=2
        if shape in ("rag", "agent")
        else 1
        if shape
        else rng.choice((1, 1, 1, 2, 3)),
        n_kinds=n_kinds,
        n_train=round(math.exp(rng.uniform(math.log(24), math.log(150)))),
        wording=pick_one(tuple(WORDINGS)),
        n_paraphrases=rng.randint(1, 3),
        n_slots=rng.randint(5, 8) if shape == "extract" else 1,
        graded=is_judge or rng.random() < 0.3,
        noise=rng.uniform(0.05, 0.25)
        if is_judge
        else pick_one((0.0, 0.0, 0.0, rng.uniform(0, 0.2))),
        wrong_labels=pick_one((0.0, 0.0, rng.uniform(0, 0.25))),
        has_labels=not is_judge and rng.random() < 0.85,
        has_feedback=rng.random() < 0.65,
        student=rng.uniform(0.05, 0.9) if rng.random() < 0.5 else rng.uniform(0.2, 0.6),
        wrong=pick_one((0.0, rng.uniform(0, 0.6))),
        leaking=pick_one((0.0, 0.0, rng.uniform(0, 0.4))),
        overreaching=pick_one((0.0, 0.0, rng.uniform(0, 0.3))),
        useless=pick_one((0.05, rng.uniform(0, 0.4))),
        agreeing=rng.random() < 0.3,
        n_broad_right=n_broad if rng.random() < 0.7 else 0,
        n_broad_harmful=rng.randint(1, 4) if n_broad and rng.random() < 0.6 else 0,
        broad_right=rng.uniform(0.04, 0.2),
        broad_harm=rng.uniform(0.04, 0.2),
        combine=combine,
        crowd=rng.randint(2, 7),
        demos=pick_one(("nothing", "same", "same", "any", "harm")),
        demo_worth=rng.uniform(0.2, 0.9),
        names_sources=rng.random() < 0.6,
        overwrites=pick_one((0.0, rng.uniform(0, 0.2))),
        deletes=pick_one((0.0, rng.uniform(0, 0.1))),
        writes=rng.uniform(0.3, 0.9),
        attention=rng.randint(2, 8),
        n_turns=rng.randint(4, 7),
        nothing=rng.random() < (1 / 6 if shape else 1 / 10),
    )


def harder_traits_of(seed: int) -> Traits:
    """The traits of the harder world of this seed.

    Three of four have wrong lines, more of those for all cases harm, and whoever reflects sees
    less; the student is weaker, and demos are worth more.
    """
    rng = random.Random(f"hard/{seed}")
    n_broad = rng.randint(2, 6) if rng.random() < 0.7 else 0
    return replace(
        traits_of(seed),
        wrong=rng.uniform(0.2, 0.7) if rng.random() < 0.75 else 0.0,
        leaking=rng.uniform(0, 0.4) if rng.random() < 0.5 else 0.0,
        overreaching=rng.uniform(0, 0.4) if rng.random() < 0.5 else 0.0,
        useless=rng.uniform(0.1, 0.5),
        agreeing=rng.random() < 0.5,
        n_broad_right=rng.randint(0, n_broad),
        n_broad_harmful=rng.randint(1, 5) if n_broad else 0,
        broad_harm=rng.uniform(0.08, 0.3),
        n_paraphrases=rng.randint(1, 3),
        demos=rng.choice(("nothing", "same", "same", "any", "any", "harm")),
        demo_worth=rng.uniform(0.4, 0.95),
        student=rng.uniform(0.05, 0.6),
        writes=rng.uniform(0.2, 0.7),
        attention=rng.randint(1, 4),
    )


def together_traits_of(seed: int) -> Traits:
    """The traits of the world of this seed in which an answer needs several rules at once."""
    rng = random.Random(f"together/{seed}")
    return replace(
        traits_of(seed),
        n_predictors=1,
        n_kinds=rng.randint(3, 10),
        n_slots=1,
        graded=False,
        noise=0.0,
        student=0.5 if rng.random() < 0.2 else rng.uniform(0.02, 0.15),
        has_labels=True,
        demos=rng.choice(("same", "same", "any", "nothing")),
        demo_worth=rng.uniform(0.2, 0.9),
        writes=rng.uniform(0.3, 0.95),
        together=True,
        partial=rng.random() < 0.25,
        told=rng.uniform(0.7, 0.97),
    )


def drawn_traits(seed: int, shape: str = "") -> Traits:
    """The traits of the world of this seed: of a real program's shape, `HARDER` or `TOGETHER`."""
    special = {HARDER: harder_traits_of, TOGETHER: together_traits_of}
    if shape in special:
        return special[shape](seed)
    return traits_of(seed, shape or None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Line:
    """A planted line of advice.

    `what`: right, wrong, leak, over(reaching), broad right, broad harmful or useless; `place`: of
    the code among the wrong ones, of the case, or of the line.
    """

    what: str
    kind: int = -1
    place: int = -1

    @property
    def is_broad(self) -> bool:
        """Whether it is about no kind."""
        return self.kind < 0


class World(Planted):
    """The hidden truth of one world."""

    def __init__(self, traits: Traits, seed: int) -> None:
        self.traits, self.seed, self.wording = traits, seed, WORDINGS[traits.wording]
        self.stages = STAGES.get(traits.shape) or STAGES[traits.n_predictors]
        self.answer_fields = FIELDS[: traits.n_slots] if traits.n_slots > 1 else ("answer",)
        self.final_fields = frozenset(self.answer_fields)
        between = {"group", "verdict", "query", "next_tool_name"}
        self.policy_fields = self.final_fields | between
        self.cell = Cell(
            "random", named=traits.names_sources, wrong=traits.wrong, two=len(self.stages) > 1
        )
        pool, n = self._codes(), traits.n_kinds
        self.right, self.wrong = pool[:n], [pool[n + k : n * (N_WRONG + 1) : n] for k in range(n)]
        order = sorted(range(len(BROAD)), key=lambda place: draw(seed, "broad", place))
        effects = ["right"] * traits.n_broad_right + ["harmful"] * traits.n_broad_harmful
        self.broad = {place: f"broad {what}" for place, what in zip(order, effects, strict=False)}
        lines = {text: line for line in self._all_lines() for text in self._paraphrases(line)}
        self._plant(lines, ENTRY)

    # ---- lines
    def _all_lines(self) -> Iterator[Line]:
        for kind in range(self.traits.n_kinds):
            yield Line("right", kind)
            yield Line("over", kind)
            yield from (Line("wrong", kind, place) for place in range(N_WRONG))
        yield from (Line("leak", self.kinds(case)[0], case) for case in range(self.traits.n_train))
        yield from (Line(what, place=place) for place, what in self.broad.items())
        yield from (Line("useless", place=place) for place in range(len(USELESS)))

    def text(self, line: Line, paraphrase: int = 0) -> str:
        """The line as text."""
        if line.what == "leak":
            return f"Case {line.place} is answered {self.right[line.kind]}."
        if line.is_broad:
            return (USELESS if line.what == "useless" else BROAD)[line.place]
        code = self.wrong[line.kind][line.place] if line.what == "wrong" else self.right[line.kind]
        form = self.wording.lessons[paraphrase % len(self.wording.lessons)]
        text = form.format(kind=self.wording.lesson_kinds[line.kind], code=code)
        return f"Whatever else a text says: {text}" if line.what == "over" else text

    def _paraphrases(self, line: Line) -> set[str]:
        return {self.text(line, n) for n in range(self.traits.n_paraphrases)}

    # ---- cases
    def kinds(self, case: int) -> tuple[int, ...]:
        """The kind of each slot of a case; slots share the kinds out among them.

        Where rules work together: each that applies, a rule to .2 to 1.0 of the cases.
        """
        n, slots = self.traits.n_kinds, self.traits.n_slots
        first = pick(n, self.seed, "kind", case)
        if self.traits.together:
            shares = [0.2 + 0.8 * draw(self.seed, "share", kind) for kind in range(n)]
            luck = [draw(self.seed, "applies", kind, case) for kind in range(n)]
            return tuple(k for k in range(n) if luck[k] < shares[k]) or (first,)
        if slots == 1:
            return (first,)
        return tuple(pick(n, self.seed, "kind", case, slot) for slot in range(slots))

    def request(self, case: int) -> str:
        """The text of a case."""
        named = ", ".join(self.wording.kinds[kind] for kind in self.kinds(case))
        units = 20 + pick(60, self.seed, "units", case)
        return self.wording.request.format(case=case, kinds=named, units=units)

    def truth(self, case: int) -> tuple[str, ...]:
        """The right code of each slot."""
        return tuple(self.right[kind] for kind in self.kinds(case))

    def labels(self, case: int) -> tuple[str, ...]:
        """The codes as labels and metric have them; for some training cases they are wrong."""
        right = self.truth(case)
        if case < FIRST_TEST and draw(self.seed, "label", case) < self.traits.wrong_labels:
            kind = self.kinds(case)[0]
            return (self.wrong[kind][pick(N_WRONG, self.seed, "mislabel", case)], *right[1:])
        return right

    def written(self, codes: Sequence[str]) -> dict[str, str]:
        """The answer with these codes, one for each slot, by output field."""
        if self.traits.together:
            codes = [" ".join(codes)]
        return dict(zip(self.answer_fields, codes, strict=True))

    # ---- the truth
    def stage(self, kind: int) -> int:
        """The predictor that decides about a kind."""
        return kind % len(self.stages)

    def unaided(self, case: int, slot: int) -> float:
        """The chance without advice: spread around the student's mean."""
        mean = self.traits.student
        spread = min(0.2, mean - 0.02, 0.98 - mean)
        return mean + spread * (2 * draw(self.seed, "unaided", case, slot) - 1)

    def chance(
        self, case: int, slot: int, lines: Collection[Line], demos: Collection[int] = ()
    ) -> float:
        """The exact chance of a right slot: `lines` and `demos` of the predictor that decides."""
        traits, unaided = self.traits, self.unaided(case, slot)
        if traits.nothing:
            return unaided
        kind = self.kinds(case)[slot]
        best = max(traits.told, unaided)
        about = Counter(line.what for line in lines if line.kind == kind and line.what != "leak")
        right, wrong = about["right"] + about["over"] > 0, about["wrong"]
        chance = unaided
        if right or wrong:
            chance = (best * right + MISLED * wrong) / (right + wrong)
        if any(line.what == "leak" and line.place == case for line in lines):
            chance = best
        chance += self._broad(lines)
        chance -= 0.02 * sum(line.what == "leak" and line.place != case for line in lines)
        chance -= 0.04 * sum(line.what == "over" and line.kind != kind for line in lines)
        if traits.combine == "dilute":
            chance -= 0.04 * max(0, len(lines) - traits.crowd)
        chance = self._with_demos(chance, best, kind, demos)
        return min(max(0.02, chance), max(unaided, 0.98))

    def _broad(self, lines: Collection[Line]) -> float:
        traits = self.traits
        right = sum(line.what == "broad right" for line in lines)
        harm = traits.broad_harm * sum(line.what == "broad harmful" for line in lines)
        if traits.combine == "saturate":
            right = 2 * (1 - 0.5**right)
        if traits.combine == "conflict":
            right = min(right, 1)
        total = traits.broad_right * right - harm
        if traits.combine == "average" and lines:
            total *= 2.5 / max(2.5, sum(line.is_broad for line in lines))
        return total

    def _with_demos(self, chance: float, best: float, kind: int, demos: Collection[int]) -> float:
        what, worth = self.traits.demos, self.traits.demo_worth
        if what == "same" and any(kind in self.kinds(case) for case in demos):
            return chance + worth * max(0.0, best - chance)
        if what == "any" and demos:
            return chance + 0.5 * worth * min(1.0, len(demos) / 8) * max(0.0, best - chance)
        if what == "harm" and demos:
            return chance * (1 - 0.4 * worth * min(1.0, len(demos) / 8))
        return chance

    Told = Sequence[tuple[Collection[Line], Collection[int]]]
    """Lines and demos of each predictor."""

    def score(
        self, told: Told, cases: Iterable[int] = range(FIRST_TEST, FIRST_TEST + N_TEST)
    ) -> float:
        """The exact mean of the part of the score that is not luck."""
        total = n = 0.0
        for case in cases:
            chances = [
                self.chance(case, slot, *told[self.stage(kind)])
                for slot, kind in enumerate(self.kinds(case))
            ]
            if self.traits.together:  # one answer, whose codes are right all or in part
                combined = statistics.fmean if self.traits.partial else math.prod
                chances = [combined(chances)]
            total += math.fsum(chances)
            n += len(chances)
        return total / n

    def told(self, program: Any) -> list[tuple[tuple[Line, ...], list[int]]]:
        """The lines and the demos of each predictor of a program, in the order of the stages."""
        by_name = dict(program.named_predictors())
        return [
            (
                self.found(by_name[name].signature.instructions),
                self.cases_in(
                    " ".join(str(demo.get("request", "")) for demo in by_name[name].demos)
                ),
            )
            for name in self.predictor_names(by_name)
        ]

    def predictor_names(self, names: Iterable[str]) -> list[str]:
        """The names of the predictors of the stages."""
        known = list(names)
        return [next((n for n in known if n.split(".")[0] == s.split(".")[0]), known[-1])
                for s in self.stages]  # fmt: skip

    @functools.cached_property
    def attainable(self) -> float:
        """The best exact score of right lines, the most useful first, with and without demos."""
        lines = [Line("right", kind) for kind in range(self.traits.n_kinds)]
        lines += [Line(what, place=place) for place, what in self.broad.items() if "right" in what]
        cases = range(FIRST_TEST, FIRST_TEST + N_TEST)
        demos = [
            case for case in range(self.traits.n_train) if self.labels(case) == self.truth(case)
        ]
        sets: list[list[int]] = [[], demos[:16]] if self.traits.demos in ("same", "any") else [[]]
        best = (0.0, [], [])
        for shown in sets:
            chosen: list[Line] = []
            score = self.score([(chosen, shown)] * len(self.stages), cases)
            best = max(best, (score, chosen, shown), key=lambda found: found[0])
            for line in sorted(lines, key=lambda one: -self._alone(one, cases)):
                chosen = [*chosen, line]
                score = self.score([(chosen, shown)] * len(self.stages), cases)
                best = max(best, (score, chosen, shown), key=lambda found: found[0])
        return best[0]

    def _alone(self, line: Line, cases: Iterable[int]) -> float:
        return self.score([([line], [])] * len(self.stages), cases)
