"""Effects by randomised presence: the design, and what is estimated from any rows."""

import itertools
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.gate.effects import Row, balanced_presence, estimate_effects


def row(block: object, present: str, score: float | None) -> Row:
    """`present` names a candidate by each letter."""
    return Row(str(block), frozenset(present), score)


# ---------------------------------------------------------------------- the design


@given(st.integers(1, 30), st.integers(0, 100), st.text(max_size=3))
@settings(max_examples=60)
def test_the_design_is_a_function_of_its_seed(k: int, n: int, seed: str) -> None:
    design = balanced_presence(k, n, seed)
    assert design == balanced_presence(k, n, seed)
    assert [len(present) for present in design] == [k] * n
    assert balanced_presence(k, n + 5, seed)[:n] == design


@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 10**6))
@settings(max_examples=40)
def test_in_whole_blocks_any_two_candidates_are_together_as_often_as_apart(
    k: int, n_blocks: int, seed: int
) -> None:
    size = 2 ** k.bit_length()
    design = balanced_presence(k, n_blocks * size, str(seed))
    for a, b in itertools.combinations(range(k), 2):
        assert sum(present[a] == present[b] for present in design) == n_blocks * size // 2
    assert len(set(design)) <= size


def test_another_seed_is_another_design() -> None:
    assert balanced_presence(10, 40, "a") != balanced_presence(10, 40, "b")


@pytest.mark.parametrize(("k", "n"), [(0, 4), (3, -1)])
def test_a_design_of_nothing_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"n_candidates={k}, n_pairs={n}"):
        balanced_presence(k, n, "")


# ---------------------------------------------------------------------- worked by hand


def test_with_one_candidate_the_effect_is_the_mean_difference_within_examples() -> None:
    """Differences 0.5, 0.5, 0.2 and 0.0, mean 0.3; an example's level does not matter."""
    rows = [row(i, "", level) for i, level in enumerate((0.1, 0.5, 0.2, 0.9))]
    rows += [row(i, "a", level) for i, level in enumerate((0.6, 1.0, 0.4, 0.9))]
    found = estimate_effects(rows)["a"]
    assert found.measured.estimate == pytest.approx(0.3)
    assert found.measured.n_rollouts == 8
    jackknifed = math.sqrt((0.04 + 0.04 + 0.01 + 0.09) / 3 / 4)  # standard error of the mean
    stretch = 2.3534 / 1.6449  # Student's t with 3 degrees of freedom over normal, at 95 %
    assert found.measured.standard_error == pytest.approx(jackknifed * stretch, rel=0.01)
    assert 0 < found.effect.estimate < 0.3
    assert 0.5 < found.p_positive < 1


def test_two_candidates_are_told_apart_though_they_often_come_together() -> None:
    """`a` adds 0.4 and `b` takes 0.2 away, on top of what an example has of its own."""
    rows = [
        row(i, present, 0.1 * i + 0.4 * ("a" in present) - 0.2 * ("b" in present) + noise)
        for i, noise in enumerate((0.01, -0.01, 0.02, -0.02, 0.0, 0.01))
        for present in ("ab", "a", "b", "", "ab")
    ]
    found = estimate_effects(rows)
    assert found["a"].measured.estimate == pytest.approx(0.4, abs=1e-9)
    assert found["b"].measured.estimate == pytest.approx(-0.2, abs=1e-9)
    assert found["a"].p_positive > 0.99
    assert found["b"].p_positive < 0.05
    harmless = {m: estimate_effects(rows, margin=m)["b"].p_harmless for m in (0.0, 0.2, 0.4)}
    assert harmless[0.0] == found["b"].p_positive
    assert 0.2 < harmless[0.2] < 0.8
    assert harmless[0.4] > 0.95


def test_a_lucky_one_among_thirty_is_believed_less_than_the_same_one_alone() -> None:
    rng = random.Random(5)
    names = [chr(ord("A") + k) for k in range(30)]
    halves = balanced_presence(30, 64, "pool")
    rows = []
    for pair, half in enumerate(halves):
        for present in (half, [not p for p in half]):
            some = "".join(name for name, p in zip(names, present, strict=True) if p)
            rows.append(row(pair % 16, some, float(rng.random() < 0.5)))
    found = estimate_effects(rows)
    lucky = max(found, key=lambda name: found[name].measured.estimate)
    alone = estimate_effects([row(r.block, lucky * (lucky in r.present), r.score) for r in rows])
    assert found[lucky].measured.estimate > 1.5 * found[lucky].measured.standard_error / 1.3
    assert found[lucky].effect.estimate < 0.5 * alone[lucky].effect.estimate


def test_a_few_good_ones_among_many_useless_are_not_shrunk_like_these() -> None:
    rng = random.Random(7)
    names = [chr(ord("A") + k) for k in range(40)]
    rows = []
    for pair, half in enumerate(balanced_presence(40, 192, "few")):
        for present in (half, [not p for p in half]):
            some = "".join(name for name, p in zip(names, present, strict=True) if p)
            chance = 0.2 + 0.3 * sum(name in some for name in "AB")
            rows.append(row(pair % 24, some, float(rng.random() < chance)))
    found = estimate_effects(rows)
    useless = [abs(found[name].effect.estimate) for name in names[2:]]
    for name in "AB":
        assert abs(found[name].effect.estimate - 0.3) < 2 * found[name].effect.standard_error
        assert found[name].effect.estimate > 0.8 * found[name].measured.estimate
        assert found[name].p_positive > 0.99
    assert max(useless) < 0.06
    assert sum(useless) / len(useless) < 0.01


def test_the_score_of_a_repeated_example_counts_as_one_piece_of_evidence() -> None:
    """Thirty rollouts of two examples that disagree say less than thirty examples."""
    one = [row(i % 2, "a" * (n % 2), float(n % 2 == i % 2)) for i in range(2) for n in range(30)]
    many = [row(i, "a" * n, float(n == (i < 20))) for i in range(30) for n in range(2)]
    few, lots = (estimate_effects(rows)["a"].measured for rows in (one, many))
    assert few.n_rollouts == lots.n_rollouts == 60
    assert few.standard_error > 4 * lots.standard_error


# ---------------------------------------------------------------------- nothing can be said

CONSTANT = [row(i, present, 1.0) for i in range(5) for present in ("a", "")]
ONE_BLOCK = [row(0, present, score) for present, score in (("a", 1.0), ("", 0.0), ("a", 0.5))]
NEVER_VARIES = [row(i, "a", i / 5) for i in range(5) for _ in range(2)]
TOGETHER = [row(i, present, i / 9 + 0.3 * len(present)) for i in range(5) for present in ("ab", "")]
SATURATED = [row(0, "a", 1.0), row(0, "", 0.0)]
NO_SCORE = [row(i, present, None) for i in range(5) for present in ("a", "")]
RESTS_ON_ONE = [row(0, "a", 1.0), row(0, "", 0.0), *(row(i, "", i / 7) for i in range(1, 6))] * 2


@pytest.mark.parametrize(
    "rows",
    [CONSTANT, ONE_BLOCK, NEVER_VARIES, TOGETHER, SATURATED, RESTS_ON_ONE],
    ids=["constant", "one block", "never varies", "collinear", "saturated", "one example"],
)
def test_where_nothing_can_be_said_the_error_is_infinite(rows: list[Row]) -> None:
    found = estimate_effects(rows)["a"]
    assert found.measured.standard_error == found.effect.standard_error == math.inf
    assert (found.p_positive, found.p_harmless) == (0.5, 0.5)
    assert not found.is_known


def test_rows_without_a_score_are_left_out() -> None:
    assert estimate_effects(NO_SCORE) == {}
    assert estimate_effects([]) == {}
    rows = [
        row(i, present, i * 0.1 + 0.3 * len(present)) for i in range(6) for present in ("a", "")
    ]
    with_lost = [*rows, row(0, "a", None), row(9, "a", math.nan)]
    assert estimate_effects(with_lost) == estimate_effects(rows)


def test_a_perfect_fit_is_not_believed_without_reserve() -> None:
    """Always 1 with it, always 0 without it, on 4 examples: still one rollout might differ."""
    rows = [row(i, present, float(len(present))) for i in range(4) for present in ("a", "")]
    found = estimate_effects(rows)["a"].measured
    assert found.estimate == pytest.approx(1.0)
    assert 0.1 < found.standard_error < 1.0


def test_three_examples_widen_the_error_by_students_t() -> None:
    rows = [
        row(i, p, 0.1 * i + (0.5 + 0.01 * i) * len(p)) for i in range(3) for p in ("a", "", "a")
    ]
    found = estimate_effects(rows)["a"].measured
    assert found.estimate == pytest.approx(0.51)
    assert found.standard_error > 2.92 / 1.65 * 0.01 / math.sqrt(3)


# ---------------------------------------------------------------------- for all rows


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    scores = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 1.0, -40.0, 1e6]))
    return draw(
        st.lists(
            st.builds(row, st.integers(0, 4), st.sampled_from(["", "a", "b", "ab", "abc"]), scores),
            max_size=30,
        )
    )


@given(tables(), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_the_order_of_rows_does_not_matter(rows: list[Row], rng: random.Random) -> None:
    shuffled = rng.sample(rows, len(rows))
    agree(estimate_effects(rows), estimate_effects(shuffled))


@given(tables(), st.lists(st.sampled_from([-2.0, 0.0, 0.5, 3.0]), min_size=5, max_size=5))
@settings(max_examples=100)
def test_what_an_example_adds_to_all_of_its_scores_does_not_matter(
    rows: list[Row], added: Sequence[float]
) -> None:
    moderate = [r for r in rows if r.score is None or abs(r.score) <= 1]
    moved = [
        Row(r.block, r.present, None if r.score is None else r.score + added[int(str(r.block))])
        for r in moderate
    ]
    agree(estimate_effects(moderate), estimate_effects(moved))


@given(tables())
def test_what_is_believed_lies_between_nothing_and_what_was_measured(rows: list[Row]) -> None:
    for estimate in estimate_effects(rows).values():
        measured, believed = estimate.measured.estimate, estimate.effect.estimate
        assert min(0.0, measured) - 1e-9 <= believed <= max(0.0, measured) + 1e-9
        assert (estimate.p_positive - 0.5) * measured >= -1e-9


@given(tables())
@settings(max_examples=100)
def test_every_estimate_is_a_number_and_every_error_above_0(rows: list[Row]) -> None:
    for found in estimate_effects(rows).values():
        assert math.isfinite(found.measured.estimate)
        assert math.isfinite(found.effect.estimate)
        assert found.measured.standard_error > 0
        assert found.effect.standard_error > 0
        assert 0 <= found.p_positive <= 1


@given(tables(), st.floats(0.0, 0.5))
def test_scores_turned_round_turn_what_is_believed_round(rows: list[Row], margin: float) -> None:
    turned = [Row(r.block, r.present, None if r.score is None else -r.score) for r in rows]
    found, mirrored = estimate_effects(rows, margin), estimate_effects(turned, margin)
    for name, estimate in found.items():
        if not estimate.is_known:
            continue
        assert mirrored[name].effect.estimate == pytest.approx(-estimate.effect.estimate, abs=1e-9)
        assert mirrored[name].p_positive == pytest.approx(1 - estimate.p_positive, abs=1e-9)
        assert estimate.p_harmless >= estimate.p_positive - 1e-12


def agree(one: dict, other: dict) -> None:
    """Up to rounding."""
    assert one.keys() == other.keys()
    for name, found in one.items():
        assert found.is_known == other[name].is_known
        for a, b in ((found.measured, other[name].measured), (found.effect, other[name].effect)):
            assert a.estimate == pytest.approx(b.estimate, rel=1e-4, abs=1e-6)
            assert a.standard_error == pytest.approx(b.standard_error, rel=1e-4, abs=1e-6)
