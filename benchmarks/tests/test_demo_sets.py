"""The scripted LM of `demo_sets.py`: what demos change, and that the command runs."""

import statistics

import pytest

pytest.importorskip("gepa")

import demo_sets
from real import draws


def test_sets_of_demos_differ_by_the_spread_and_none_is_the_student() -> None:
    engine = demo_sets.Engine(world=0, student=0.1, shown=0.5)
    chances = [engine.chance(range(first, first + 16)) for first in range(0, 1600, 16)]
    assert engine.chance([]) == 0.1
    assert statistics.fmean(chances) == pytest.approx(0.5, abs=0.05)
    assert statistics.stdev(chances) == pytest.approx(demo_sets.SPREAD, abs=0.03)
    assert engine.chance([1, 2, 3]) != engine.chance([3, 2, 1]), "the order counts"


def test_a_line_is_printed_for_each_number_of_sets(capsys: pytest.CaptureFixture[str]) -> None:
    demo_sets.main(["--sets", "1", "2", "--seeds", "2", "--budget", "60"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1 sets, 60 calls, student 0.05, demos 0.5")
    assert second.startswith("2 sets")


def test_the_drawn_sets_of_a_real_task_have_their_sizes() -> None:
    sizes = {name: len(demos) for name, demos in draws.sets_of(range(40))}
    assert sizes["first 16"] == sizes["first 16, reversed"] == sizes["16, draw 3"] == 16
    assert (sizes["8, draw 2"], sizes["4, draw 0"], sizes["all"]) == (8, 4, 40)
