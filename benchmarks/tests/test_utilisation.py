"""The benchmark of busy threads: what it counts as used, and what it compares."""

import pytest

pytest.importorskip("rich")

from utilisation import rows, run, used

CASE = ("kinds/words/named/.25", 60, 0)


def test_the_time_after_the_end_is_not_used() -> None:
    assert used([(0.0, 1.0), (0.5, 3.0), (2.5, 4.0)], 0.0, 2.0, 2) == (1.0 + 1.5) / 4


def test_a_timed_run_stands_beside_one_thread_and_beside_no_overlap() -> None:
    alone, strict = (run(*CASE, 1, staleness, 0.0) for staleness in (None, 0))
    other = run(*CASE, 16, None, 0.0)
    timed = [run(*CASE, n, None, 0.0) | {"median_s": 1.0, "training": 0.25} for n in (4, 16)]
    first, four, _, sixteen = rows([alone, strict, other, *timed])
    assert first["no overlap"][0] == alone["score"] - strict["score"]
    assert (four["same"], four["training"], four["batch"]) == ("1 of 1", 0.25, alone["batch"])
    assert sixteen["one thread"][0] == other["score"] - alone["score"]
