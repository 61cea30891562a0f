"""The worlds of contradicting lines: what is counted, and what the program makes of two lines."""

import pytest

pytest.importorskip("gepa")

import contradictions
from random_world_engine import student_of
from random_world_model import Line, World

from tfgrpo_dspy import ExperienceLibrary

RIGHT, WRONG = Line("right", 2), Line("wrong", 2, 1)


@pytest.mark.parametrize("seed", range(5))  # one for each wording
def test_lines_that_differ_or_say_the_same_are_counted_in_every_wording(seed: int) -> None:
    world = World(contradictions.traits(seed, 0.4), seed)
    lines = [
        (RIGHT, 0),
        (RIGHT, 1),
        (WRONG, 0),
        (Line("right", 3), 0),
        (Line("useless", place=0), 0),
    ]
    library = ExperienceLibrary.from_texts(world.text(*line) for line in lines)
    (first, *_) = library.bake(student_of(world)).predictors()
    assert [*contradictions._counted(world, first)] == [1, 1, 1, 5]  # noqa: SLF001


def test_a_program_that_picks_follows_the_right_one_of_two_lines() -> None:
    case = next(case for case in range(99) if World(TRAITS, 0).kinds(case) == (2,))
    mean, picks = (kind(TRAITS, 0) for kind in (World, contradictions.Picking))
    assert mean.chance(case, 0, [RIGHT, WRONG]) == pytest.approx((0.97 + 0.05) / 2)
    assert picks.chance(case, 0, [RIGHT, WRONG]) == picks.chance(case, 0, [RIGHT])
    assert picks.chance(case, 0, [WRONG]) == mean.chance(case, 0, [WRONG])


TRAITS = contradictions.traits(0, 0.1)
