"""Worlds in which most examples teach nothing, for the strategies that choose examples. SIMULATED.

**spread.** 80 cases of ten kinds. Of each kind, two cases of five are easy (.99, whatever is
known), two of five are hard (.01, whatever is known), and one of five has a chance of .35, or .97
with the right lesson of its kind. The metric says nothing in words, and lessons do not see labels:
so a lesson can only come from a group with contrast. Scores count the cases that can be learned.

**by kind.** The same, but all cases of four kinds are easy, of four kinds hard; two can be learned,
and have a chance of .1 before.

**rare.** All can be learned, but three of the ten kinds have three training cases each, and the
others eight. `worst` is the score of the worst kind.

`ordinary_worlds.py` says what they cost elsewhere.
"""

import functools
from collections.abc import Mapping
from typing import Any

from strategies import Bar, Setting
from strategy_runs import compiled
from worlds import cells
from worlds_engine import WorldEngine
from worlds_model import FIRST_TEST, N_KINDS, N_TEST, World

from tfgrpo_dspy import Reflection
from tfgrpo_dspy.strategies import (
    BayesianAllocation,
    DomainBandit,
    HardSampleWeights,
    LearningFrontier,
    Strategy,
)

EASY, HARD = 0.99, 0.01
TEST = range(FIRST_TEST, FIRST_TEST + N_TEST)
HIDDEN = Reflection(use_labels=False, drafts=0)


class Uneven(World):
    """A world of easy, hard and learnable cases, which are spread over all kinds, or go by kind."""

    def __init__(self, seed: int, by_kind: bool) -> None:
        self.by_kind = by_kind
        super().__init__(cells()["kinds/words/named/.25"], seed)

    def level(self, case: int) -> int:
        """0 and 1: easy; 2 and 3: hard; 4: can be learned."""
        kind, number = self.kind(case), case // N_KINDS
        return (kind if self.by_kind else kind + number) % 5

    def unaided(self, case: int) -> float:
        """The chance without any lesson."""
        return (EASY, EASY, HARD, HARD, 0.1 if self.by_kind else 0.35)[self.level(case)]

    def chance(self, case: int, lessons: Any) -> float:
        """The chance with these lessons; they change that of the learnable cases only."""
        return super().chance(case, lessons) if self.level(case) == 4 else self.unaided(case)

    def metric(self, gold: Any, pred: Any, trace: Any = None) -> float:  # type: ignore[override]
        """The score, without a word."""
        del trace
        return float(str(pred.answer).strip() == gold.answer)


class Rare(World):
    """A world in which two kinds are rare among the training cases."""

    def examples(self) -> list[Any]:
        """The training examples, with their kind as `domain`."""
        found = []
        for example in super().examples():
            (case,) = self.cases_in(example.request)
            if self.kind(case) > 2 or case < 3 * N_KINDS:
                named = example.copy(domain=f"kind {self.kind(case)}").with_inputs("request")
                found.append(named)
        return found

    def metric(self, gold: Any, pred: Any, trace: Any = None) -> float:  # type: ignore[override]
        """The score, without a word."""
        del trace
        return float(str(pred.answer).strip() == gold.answer)


def kind_named(world: World, example: Any) -> int:
    """The kind of an example: a domain that a user would know."""
    return world.kind(world.cases_in(example.request)[0])


def strategy_of(name: str, world: World) -> Strategy:
    """The strategy with its defaults, and the kind of a case as its domain."""
    domain = functools.partial(kind_named, world)
    return {
        "LearningFrontier": LearningFrontier(),
        "BayesianAllocation": BayesianAllocation(),
        "DomainBandit": DomainBandit(domain),
        "HardSampleWeights": HardSampleWeights(domain),
    }[name]


def uneven(name: str, by_kind: bool, budget: int, arm: str, seed: int) -> Mapping[str, float]:
    """The score on all test cases, and on those that can be learned, which are a fifth."""
    world = Uneven(seed, by_kind)
    used = () if arm == "without" else (strategy_of(name, world),)
    program = compiled(world, WorldEngine(world), used, budget, seed, reflection=HIDDEN)
    cases = [case for case in TEST if world.level(case) == 4]
    held = world.held(program)
    return {"score": world.score(held, cases), "all": world.score(held)}


def rare(name: str, budget: int, arm: str, seed: int) -> Mapping[str, float]:
    """The score on all test cases, and that of the worst kind."""
    world = Rare(cells()["kinds/words/named/.25"], seed)
    used = () if arm == "without" else (strategy_of(name, world),)
    program = compiled(world, WorldEngine(world), used, budget, seed, reflection=HIDDEN)
    held = world.held(program)
    kinds = [[case for case in TEST if world.kind(case) == kind] for kind in range(N_KINDS)]
    return {"score": world.score(held), "worst": min(world.score(held, own) for own in kinds)}


BOTH = ("with", "without")


def _uneven(name: str, about: str, budget: int) -> Setting:
    run = functools.partial(uneven, name, about == "by kind", budget)
    return Setting(name, f"{about}, {budget} calls", BOTH, run, (Bar("score", *BOTH),))


SETTINGS: tuple[Setting, ...] = (
    *(
        _uneven(n, "spread", b)
        for n in ("LearningFrontier", "BayesianAllocation")
        for b in (600, 1000)
    ),
    *(_uneven("DomainBandit", "by kind", budget) for budget in (600, 1200)),
    Setting(
        "HardSampleWeights",
        "rare",
        BOTH,
        functools.partial(rare, "HardSampleWeights", 400),
        (Bar("worst", *BOTH), Bar("score", *BOTH, least=-0.01)),
    ),
)
