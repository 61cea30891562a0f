"""The policy side of the simulated LM: answers requests, the better the more its prompt teaches."""

import functools
import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simlm_texts import OutputFields, Prompt
from simlm_world import (
    CASE,
    CLAIM,
    OPENINGS,
    USELESS,
    VAGUE,
    World,
    cases_in,
    draw,
    lessons_in,
    pick,
)

if TYPE_CHECKING:
    from simlm import Parameters


@dataclass(frozen=True)
class Taught:
    """What a prompt teaches: codes by item, from lessons and from demos; and what distracts."""

    lessons: dict[str, frozenset[str]]
    vague: frozenset[str]
    demos: dict[str, frozenset[str]]
    n_lessons: int
    n_useless: int
    n_words: int
    wording: float
    key: float


class Policy:
    """Answers requests.

    Args:
        world: the hidden truth.
        parameters: see `simlm.Parameters`.
    """

    def __init__(self, world: World, parameters: "Parameters") -> None:
        self._world = world
        self._set = parameters
        self._taught = functools.lru_cache(maxsize=1024)(self._read)

    def answers(self, prompt: Prompt, fields: OutputFields) -> dict[str, Any]:
        """The values of the output fields: an answer, and a sentence for all others."""
        taught = self._taught(prompt.system, prompt.demos)
        number, items = list(cases_in(prompt.user))[-1]
        answer = " ".join(
            f"{item}={self._code(number, item, taught, prompt.sample)}" for item in items
        )
        thought = pick(10_000, "thought", number, taught.key, prompt.sample)
        said = f"The request names {' and '.join(items)} (thought {thought})."
        return {name: answer if name == "answer" else said for name in fields.names}

    def chance(self, number: int, item: str, taught: Taught) -> float:
        """The chance of the right code for one item of an example."""
        p = self._set
        hard = draw(self._world.seed, "difficulty", number)
        unaided = p.chance_easy + hard * (p.chance_hard - p.chance_easy)
        known = p.chance_with_lesson - hard * p.lesson_lost_when_hard
        right = self._world.right(item)
        told = taught.lessons.get(item, frozenset())
        if told == {right}:
            chance = known
        elif right in told:
            chance = known * p.share_when_contradicted
        elif told:
            chance = p.chance_with_wrong_lesson
        elif right in taught.demos.get(item, frozenset()):
            chance = unaided + p.demo_strength * (known - unaided)
        elif item in taught.vague:
            chance = unaided + p.vague_strength * (known - unaided)
        else:
            chance = unaided
        return min(1.0, max(0.0, chance * self._focus(taught, bool(told))))

    def _focus(self, taught: Taught, is_told: bool) -> float:
        p = self._set
        others = taught.n_lessons - is_told
        lost = p.lost_by_other_lesson * others + p.lost_by_useless_line * taught.n_useless
        too_long = max(0, taught.n_words - p.free_words) / 1000
        return (
            1.0
            - min(p.most_lost_by_lines, lost)
            - p.lost_by_1000_words * too_long
            + p.wording * taught.wording
        )

    def _code(self, number: int, item: str, taught: Taught, sample: str) -> str:
        luck = ("luck", self._world.seed, number, item, sample)
        if draw("redrawn", *luck) < self._set.redrawn_luck:
            luck = (*luck, taught.key)
        if draw(*luck) < self.chance(number, item, taught):
            return self._world.right(item)
        told = sorted(taught.lessons.get(item, frozenset()) - {self._world.right(item)})
        if told:
            return told[0]
        _, usual, *others = self._world.codes(item)
        if draw("mistake", *luck) < self._set.usual_mistake:
            return usual
        return others[pick(len(others), "other", *luck)]

    def _read(self, system: str, demos: str) -> Taught:
        told: defaultdict[str, set[str]] = defaultdict(set)
        for item, code in lessons_in(system):
            told[item].add(code)
        opening = next((text for text in OPENINGS if text in system), None)
        vague = VAGUE.findall(system)
        return Taught(
            lessons={item: frozenset(codes) for item, codes in told.items()},
            vague=frozenset(vague),
            demos=_shown(demos),
            n_lessons=len(told),
            n_useless=len(USELESS.findall(system)) + len(vague),
            n_words=len(system.split()) + len(demos.split()),
            wording=0.0 if opening is None else 2 * draw(self._world.seed, opening) - 1,
            key=draw(system, demos),
        )


def _shown(demos: str) -> dict[str, frozenset[str]]:
    """The codes that demos give to the items that they ask about."""
    shown: defaultdict[str, set[str]] = defaultdict(set)
    places = [*(match.start() for match in CASE.finditer(demos)), len(demos)]
    for start, end in itertools.pairwise(places):
        turn = demos[start:end]
        _, items = next(cases_in(turn))
        for item, code in CLAIM.findall(turn):
            if item in items:
                shown[item].add(code)
    return {item: frozenset(codes) for item, codes in shown.items()}
