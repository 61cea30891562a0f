"""The paired test of two libraries that may be looked at while it runs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.gate.sequential import Account, Plan, Verdict, look_levels, sign_flip_p, slots


@pytest.mark.parametrize(
    ("sums", "p"),
    [
        ((1.0, 1.0, 1.0), 1 / 8),
        ((1.0, -1.0), 3 / 4),
        ((2.0, 1.0, -1.0), 3 / 8),  # totals of 8 flips: 4, 2, 2, 0, 0, -2, -2, -4
        ((0.0, 0.0, 5.0), 1 / 2),
        ((0.0, 0.0), 1.0),
        ((), 1.0),
        ((-1.0, -1.0), 1.0),
    ],
)
def test_the_p_value_is_the_share_of_sign_flips_that_do_at_least_as_well(
    sums: tuple[float, ...], p: float
) -> None:
    assert sign_flip_p(sums) == pytest.approx(p)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
@settings(max_examples=100)
def test_the_p_value_is_that_of_counting_all_flips_up_to_rounding(sums: list[float]) -> None:
    step = sum(map(abs, sums)) / 1000
    totals = [
        sum(s * abs(value) for s, value in zip(signs, sums, strict=True))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    slack = step * len(sums) + 1e-9
    least = sum(total >= sum(sums) + slack for total in totals) / len(totals)
    most = sum(total >= sum(sums) - slack for total in totals) / len(totals)
    assert least - 1e-9 <= sign_flip_p(sums) <= most + 1e-9


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.sampled_from([0.125, 64.0]))
@settings(max_examples=100)
def test_the_p_value_knows_neither_the_scale_nor_the_order(sums: list[float], scale: float) -> None:
    small = [value / 128 for value in sums]
    p = sign_flip_p(small)
    assert sign_flip_p(small[::-1]) == pytest.approx(p)
    assert sign_flip_p([scale * value for value in small]) == pytest.approx(p)


def test_one_look_may_reject_at_the_whole_error() -> None:
    assert look_levels((1.0,), 0.05) == pytest.approx((0.05,), rel=0.01)


@pytest.mark.parametrize("error", [0.005, 0.05, 0.3])
def test_all_looks_together_err_as_often_as_they_may(error: float) -> None:
    """Counted on 400,000 random walks without a trend."""
    fractions = (0.25, 0.5, 0.75, 1.0)
    levels = look_levels(fractions, error)
    steps = np.random.default_rng(0).normal(0, 0.5, (400_000, 4))
    z = steps.cumsum(axis=1) / np.sqrt(fractions)
    bounds = [np.quantile(np.random.default_rng(1).normal(size=4_000_000), 1 - p) for p in levels]
    rejected = (z >= bounds).any(axis=1).mean()
    assert rejected == pytest.approx(error, rel=0.06)
    first = (z[:, 0] >= bounds[0]).mean()
    assert first == pytest.approx(error / 16, rel=0.25)


def test_every_example_is_used_once_before_one_is_used_again() -> None:
    first, second = slots(range(5), 5), slots(range(5), 10)[5:]
    assert sorted(example for example, _ in first) == list(range(5))
    assert [example for example, _ in second] == [example for example, _ in first]
    assert [{index for _, index in part} for part in (first, second)] == [{0}, {2}]
    assert {index for _, index in slots(range(5), 10, first=1)} == {1, 3}


@given(st.integers(1, 300), st.integers(1, 6))
def test_looks_grow_up_to_all_pairs_and_none_is_smaller_than_eight(n: int, n_looks: int) -> None:
    looks = Plan(n, 0.05, n_looks).looks
    assert list(looks) == sorted(set(looks))
    assert looks[-1] == n
    assert looks[0] >= min(n, 8)


def test_seven_examples_can_never_reach_an_error_of_one_in_two_hundred() -> None:
    assert Plan(100, 0.005).is_hopeless(7)
    assert not Plan(100, 0.005).is_hopeless(9)
    assert Plan(100, 0.0).is_hopeless(1000)


def test_rollouts_make_more_pairs_where_the_incumbents_are_known() -> None:
    assert [Account(0.0, known).n_pairs(100) for known in (0, 40, 100, 500)] == [50, 70, 100, 100]


@pytest.mark.parametrize(
    ("is_better", "keeps_known", "n_known"), [(False, True, 50), (True, True, 20), (True, False, 0)]
)
def test_of_a_new_incumbent_nothing_is_known_but_what_itself_was_tried_on(
    is_better: bool, keeps_known: bool, n_known: int
) -> None:
    verdict = Verdict(is_better, 0.1, 0.1, 20, 20, error_spent=0.01, n_slots=20)
    after = Account(0.02, 50).after(verdict, keeps_known)
    assert after == Account(pytest.approx(0.03), n_known)
