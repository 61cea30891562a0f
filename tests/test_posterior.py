"""What contrasts make a gate believe of an experience."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.gate.posterior import MARGIN, Beliefs, Contrast

SURE = Beliefs(helps=0.25, harms=0.25, leak=0.0, precision=1.0)
"""Prior and doubts treat both sides alike."""


@st.composite
def contrasts(draw: st.DrawFn, n_examples: int = 4) -> Contrast:
    """Rollouts with scores in tenths, on one of a few examples."""
    n_with, n_without = draw(st.integers(0, 8)), draw(st.integers(0, 8))
    sum_with = draw(st.integers(0, 10 * n_with)) / 10
    sum_without = draw(st.integers(0, 10 * n_without)) / 10
    example = draw(st.integers(0, n_examples - 1))
    return Contrast(example, n_with, sum_with, n_without, sum_without, draw(st.booleans()))


BELIEFS = st.builds(
    Beliefs,
    helps=st.floats(0.05, 0.45),
    harms=st.floats(0.05, 0.45),
    leak=st.floats(0, 1),
    precision=st.floats(0, 1),
)


def swapped(contrast: Contrast) -> Contrast:
    """With and without exchanged."""
    return Contrast(
        contrast.example,
        contrast.n_without,
        contrast.sum_without,
        contrast.n_with,
        contrast.sum_with,
    )


def test_one_success_on_a_source_solved_once_in_five_speaks_for_a_lesson() -> None:
    """The two cases that the study of this gate worked out: 0.73 and 0.11 on its grid."""
    source = Contrast(0, 1, 1.0, 5, 1.0, is_selected=True)
    assert Beliefs().posterior([source], {0}).helps == pytest.approx(0.75, abs=0.03)
    source = Contrast(0, 2, 0.0, 5, 3.0, is_selected=True)
    assert Beliefs().posterior([source], {0}).helps == pytest.approx(0.13, abs=0.03)


def test_likelihoods_are_means_over_the_grid_as_worked_out_by_hand() -> None:
    """One success with, one failure without: p(1 - p) on the diagonal has the mean 1/6."""
    helps, nothing, harms = Contrast(0, 1, 1.0, 1, 0.0).likelihoods
    assert helps > nothing > harms
    ratio = nothing / Contrast(0, 1, 1.0, 1, 1.0).likelihoods[1]
    assert ratio == pytest.approx((1 / 6) / (1 / 3), rel=0.04)  # the grid's ends are cut off


def test_without_contrasts_the_prior_stands() -> None:
    posterior = Beliefs(helps=0.5, harms=0.2).posterior([])
    found = (posterior.helps, posterior.nothing, posterior.harms)
    assert found == pytest.approx((0.5, 0.3, 0.2))


@given(st.lists(contrasts(), max_size=8), BELIEFS, st.sets(st.integers(0, 3)))
def test_probabilities_sum_to_one_and_the_gain_is_a_difference_of_chances(
    given_: list[Contrast], beliefs: Beliefs, sources: set[int]
) -> None:
    posterior = beliefs.posterior(given_, sources)
    assert posterior.helps + posterior.nothing + posterior.harms == pytest.approx(1)
    assert min(posterior.helps, posterior.nothing, posterior.harms) >= 0
    assert -1 <= posterior.gain <= 1
    assert 0 <= posterior.error <= 1


@given(st.lists(contrasts(), max_size=6))
def test_nothing_depends_on_which_side_is_called_with(given_: list[Contrast]) -> None:
    given_ = [replace(contrast, is_selected=False) for contrast in given_]
    one = SURE.posterior(given_)
    other = SURE.posterior([swapped(contrast) for contrast in given_])
    assert one.helps == pytest.approx(other.harms)
    assert one.nothing == pytest.approx(other.nothing)
    assert one.gain == pytest.approx(-other.gain, abs=1e-9)


@given(st.lists(contrasts(), max_size=6), st.randoms(use_true_random=False), BELIEFS)
def test_the_order_of_contrasts_does_not_matter(
    given_: list[Contrast], random: object, beliefs: Beliefs
) -> None:
    shuffled = sorted(given_, key=lambda _: random.random())  # type: ignore[attr-defined]
    one, other = beliefs.posterior(given_, {0}), beliefs.posterior(shuffled, {0})
    assert one.helps == pytest.approx(other.helps)
    assert one.gain == pytest.approx(other.gain)


@given(contrasts(), st.integers(1, 10))
def test_a_higher_score_with_it_never_speaks_against_an_experience(
    contrast: Contrast, tenths: int
) -> None:
    if contrast.sum_with + tenths / 10 > contrast.n_with:
        return
    better = replace(contrast, sum_with=contrast.sum_with + tenths / 10)
    one, other = SURE.posterior([contrast]), SURE.posterior([better])
    assert other.helps >= one.helps - 1e-9
    assert other.harms <= one.harms + 1e-9


@given(st.integers(0, 8), st.integers(0, 8), st.booleans())
def test_a_contrast_with_an_empty_side_says_nothing(n: int, total: int, is_with: bool) -> None:
    n = max(n, total)
    one_sided = Contrast(0, n, total, 0, 0) if is_with else Contrast(0, 0, 0, n, total)
    assert Beliefs().posterior([one_sided]).helps == pytest.approx(0.5)


@given(st.lists(contrasts(n_examples=1), max_size=20), st.floats(0.05, 1))
def test_sources_cannot_raise_the_odds_by_more_than_one_over_leak(
    given_: list[Contrast], leak: float
) -> None:
    posterior = Beliefs(leak=leak).posterior(given_, {0})
    assert posterior.helps / (1 - posterior.helps) <= 1 / leak * (1 + 1e-9)


def test_a_leaking_source_however_clear_leaves_it_below_the_mark_that_settles() -> None:
    clear = [Contrast(0, 20, 20.0, 5, 1.0, is_selected=True)] * 5
    assert Beliefs().posterior(clear, {0}).helps == pytest.approx(5 / 6, abs=1e-3)
    assert Beliefs(leak=0.0).posterior(clear, {0}).helps > 0.999


def test_what_may_concern_another_example_counts_less() -> None:
    contrast = Contrast(1, 4, 4.0, 4, 0.0)
    doubts = [Beliefs(precision=p).posterior([contrast]).helps for p in (0.0, 0.3, 0.7, 1.0)]
    assert doubts == sorted(doubts)
    assert doubts[0] == pytest.approx(0.5)  # nothing is believed of what concerns something else


def test_a_group_taken_for_being_mixed_is_corrected_for() -> None:
    """A group of 4 with one success was taken for its success: its true chance is likely lower."""
    plain = SURE.posterior([Contrast(0, 2, 1.0, 4, 1.0)])
    selected = SURE.posterior([Contrast(0, 2, 1.0, 4, 1.0, is_selected=True)])
    assert selected.helps > plain.helps


def test_many_equal_scores_make_no_false_confidence() -> None:
    same = [Contrast(i, 50, 50.0, 50, 50.0) for i in range(20)]
    posterior = SURE.posterior(same)
    assert posterior.nothing > 0.9
    assert abs(posterior.gain) < 0.05


def test_huge_counts_do_not_overflow() -> None:
    posterior = SURE.posterior([Contrast(0, 10**6, 9e5, 10**6, 1e5)])
    assert posterior.helps == pytest.approx(1)
    assert posterior.gain == pytest.approx(0.8, abs=0.03)  # the grid's step
    assert all(math.isfinite(value) for value in (posterior.gain, posterior.error))


def test_an_experience_explains_a_contrast_the_better_it_is_known_and_the_clearer_it_is() -> None:
    beliefs = Beliefs()
    unknown = beliefs.posterior([])
    known = beliefs.posterior([Contrast(1, 4, 4.0, 4, 0.0)] * 3)
    clear, none = Contrast(2, 2, 2.0, 2, 0.0), Contrast(2, 2, 1.0, 2, 1.0)
    assert beliefs.explains(known, clear, False) > beliefs.explains(unknown, clear, False)
    assert beliefs.explains(known, clear, False) > 0.8 > beliefs.explains(known, none, False)
    assert beliefs.explains(unknown, clear, True) > beliefs.explains(unknown, clear, False)


@given(contrasts(), st.lists(contrasts(), max_size=3), BELIEFS, st.booleans())
@settings(max_examples=50)
def test_explaining_is_a_probability(
    contrast: Contrast, before: list[Contrast], beliefs: Beliefs, is_source: bool
) -> None:
    assert 0 <= beliefs.explains(beliefs.posterior(before), contrast, is_source) <= 1


def test_sums_that_are_none_of_scores_between_0_and_1_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3.0 is no sum of 2 scores"):
        _ = Contrast(0, 2, 3.0, 2, 1.0).likelihoods
    with pytest.raises(ValueError, match=r"-0.1 is no sum of 2 scores"):
        _ = Contrast(0, 2, 1.0, 2, -0.1).likelihoods


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"leak": 1.1}, "leak=1.1: give a probability"),
        ({"precision": -0.1}, "precision=-0.1: give a probability"),
        ({"helps": 0.7, "harms": 0.3}, "less than 1 together"),
        ({"helps": 0.0}, "give both more than 0"),
    ],
)
def test_beliefs_that_are_none_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Beliefs(**arguments)


def test_the_margin_is_the_least_effect() -> None:
    assert MARGIN == 0.1
    assert Beliefs(leak=0, precision=1).posterior([]).gain > 0  # helps is likelier than harms
