"""The benchmark of the recipe: what its arms do."""

from collections.abc import Sequence

import pytest

pytest.importorskip("rich")

from recipe import Phased
from worlds import cells
from worlds_model import World

from tfgrpo_dspy.strategies import BatchPlan


def test_the_phased_arm_trains_on_one_half_of_the_kinds_and_then_on_the_other() -> None:
    world = World(cells()["kinds/words/named/.25"], 100)
    trainset = world.examples()
    everyone = tuple(range(len(trainset)))

    def halves(begun: Sequence[int]) -> set[int]:
        plan = BatchPlan(dict.fromkeys(range(4), 2), (), tuple(begun), everyone, trainset, 2, 0, 0)
        chosen = (trainset[i].request for i in Phased(world).choose(plan))
        return {world.kind(world.cases_in(request)[0]) % 2 for request in chosen}

    assert [halves(everyone * n) for n in range(3)] == [{0}, {1}, {0}]
