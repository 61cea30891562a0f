"""The final choice: a race of libraries on validation examples, the student among them."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.gate.model import Race


def race_of(*parts: str, n_examples: int = 40, mean: float = 0.05, sd: float = 0.05) -> Race:
    """The student, then a candidate for each string: a part for each of its letters; D costs."""
    believed = {letter: (mean, sd) for letter in "".join(parts)}
    candidates = (frozenset(), *map(frozenset, parts))
    return Race(candidates, believed, {"D": 0.025}, 0.5, n_examples)


def run(
    race: Race, score: Callable[[int, int], float | None], budget: int | None = None
) -> tuple[int, dict[tuple[int, int], float | None]]:
    """The winner, and all scores that were asked for."""
    scores: dict[tuple[int, int], float | None] = {}
    while pairs := race.next(scores, None if budget is None else budget - len(scores)):
        assert not scores.keys() & set(pairs), "what is measured is not asked for again"
        scores |= {(c, i): score(c, i) for c, i in pairs}
    return race.winner(scores), scores


def luck(candidate: int, example: int, seed: int = 0) -> float:
    return random.Random(f"{seed}/{candidate}/{example}").random()


def with_chances(*chances: float, seed: int = 0) -> Callable[[int, int], float]:
    return lambda c, i: float(luck(c, i, seed) < chances[c])


@pytest.mark.parametrize("names", [("a", "aD"), ("aD", "a")])
def test_of_two_that_score_alike_the_one_without_the_dear_part_wins(names: tuple[str, ...]) -> None:
    winner, _ = run(race_of(*names), lambda c, i: float(luck(0, i) < (0.9 if c else 0.3)))
    assert names[winner - 1] == "a"
    better, _ = run(race_of(*names), lambda c, i: 0.2 + 0.2 * (c and names[c - 1] == "aD") + i / 99)
    assert names[better - 1] == "aD"


@pytest.mark.parametrize(
    ("longer", "n_tokens", "name"), [(0.6, 30, "a"), (0.9, 30, "ab"), (0.6, 11, "ab")]
)
def test_the_shorter_wins_where_it_saves_much_unless_the_longer_is_surely_better(
    longer: float, n_tokens: int, name: str
) -> None:
    race = replace(race_of("a", "ab"), n_tokens=(0, 10, n_tokens))
    winner, _ = run(race, lambda c, i: float(luck(0, i) < (0.3, 0.6, longer)[c]))
    assert ("student", "a", "ab")[winner] == name


@pytest.mark.parametrize(("budget", "measured"), [(25, {0, 1}), (39, {0, 1, 3})])
def test_the_first_round_measures_what_training_chose_if_it_measures_three(
    budget: int, measured: set[int]
) -> None:
    race = replace(race_of("abc", "ab", "a", "b"), first=3)
    assert {candidate for candidate, _ in race.next({}, budget)} == measured


@pytest.mark.parametrize("budget", [None, 20, 60])
@pytest.mark.parametrize(("doubted", "name"), [(0.3, "a"), (0.7, "a"), (0.9, "ab")])
def test_a_doubtful_part_is_in_a_result_only_if_the_same_without_it_was_measured_and_lost(
    doubted: float, name: str, budget: int | None
) -> None:
    race = replace(race_of("ab", "a", sd=0.2), n_tokens=(0, 30, 10), doubtful=frozenset("b"))
    winner, scores = run(race, lambda c, i: float(luck(0, i) < (0.2, doubted, 0.7)[c]), budget)
    assert (2, 0) in scores
    taken = "a" if budget == 20 else name  # 20: ten examples of the student and of one more
    assert ("student", "ab", "a")[winner] == taken


@pytest.mark.parametrize(("mean", "winner"), [(0.6, 1), (0.05, 0)], ids=["much", "little"])
def test_what_training_promised_decides_where_validation_gains_little(
    mean: float, winner: int
) -> None:
    race = race_of("a", n_examples=10, mean=mean, sd=0.2)
    gains = {0: 1.0, 1: 1.0, 2: -1.0}
    scores = {(c, i): 0.5 * (c == 1) * gains.get(i, 0.0) for c in (0, 1) for i in range(10)}
    assert 0.5 < race.chance(1, 0, scores) < 0.98
    assert race.winner(scores) == winner


def test_chances_are_those_of_a_normal_prior_and_the_differences_on_each_example() -> None:
    race = race_of("a", "aD", n_examples=8, mean=0.04, sd=0.2)
    scores = {(c, i): 0.2 * c * (i % 3 - 0.9) for c in range(3) for i in range(8)}
    found = [race.chance(c, other, scores) for c, other in ((1, 0), (2, 0), (2, 1))]
    assert found == pytest.approx([0.49477, 0.39905, 0.34513], abs=2e-5)


def test_the_better_library_wins_and_bad_ones_end_early() -> None:
    winner, scores = run(race_of("ab", "c"), with_chances(0.3, 0.9, 0.2))
    assert winner == 1
    measured = [sum(c == candidate for c, _ in scores) for candidate in range(3)]
    assert measured[0] == measured[1] == 40
    assert measured[2] < 20


def test_a_small_gain_that_training_shows_too_is_believed() -> None:
    race = race_of("a", mean=0.1, sd=0.02)
    assert run(race, lambda c, i: 0.5 + 0.1 * c + 0.2 * luck(c, i))[0] == 1


@pytest.mark.parametrize(
    ("race", "score", "budget"),
    [
        (race_of("a", "b"), lambda _c, i: float(i % 2), None),
        (race_of("a", mean=0.5, sd=0.01, n_examples=10), lambda _c, i: float(i % 2), None),
        (race_of("a", sd=0.01), lambda c, i: float(i % 2 or (c == 1 and i == 3)), None),
        (race_of("a", mean=0.4, sd=0.01), with_chances(0.8, 0.7), 20),
        (race_of("a"), lambda c, i: None if c == 0 and i % 2 else 0.5, None),
    ],
    ids=[
        "a draw",
        "a draw, however sure training was",
        "a gain that may be luck",
        "worse on validation, however good it was in training",
        "examples where only the student has no score do not count",
    ],
)
def test_the_student_is_returned_where_nothing_beats_it(
    race: Race, score: Callable[[int, int], float | None], budget: int | None
) -> None:
    assert run(race, score, budget)[0] == 0


def test_a_budget_for_no_pair_measures_nothing_and_returns_the_student() -> None:
    assert run(race_of("a"), with_chances(0.1, 0.9), budget=1) == (0, {})


@pytest.mark.parametrize("n_candidates", [1, 4, 7])
def test_of_many_useless_libraries_hardly_any_is_returned(n_candidates: int) -> None:
    names = "abcdefg"[:n_candidates]
    chances = [0.5] * (n_candidates + 1)
    race = race_of(*names, n_examples=25, mean=0.0, sd=0.03)
    returned = sum(run(race, with_chances(*chances, seed=s))[0] != 0 for s in range(60))
    assert returned <= 5


@given(
    chances=st.lists(st.floats(0, 1), min_size=2, max_size=5),
    seed=st.integers(0, 99),
    budget=st.one_of(st.none(), st.integers(0, 120)),
    n_examples=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_the_winner_scored_more_than_the_student_within_the_budget(
    chances: list[float], seed: int, budget: int | None, n_examples: int
) -> None:
    race = race_of(*"abcd"[: len(chances) - 1], n_examples=n_examples)
    winner, scores = run(race, with_chances(*chances, seed=seed), budget)
    assert budget is None or len(scores) <= budget
    if winner:
        both = [i for c, i in scores if c == winner]
        ours, theirs = (sum(scores[c, i] or 0 for i in both) for c in (winner, 0))
        assert ours > theirs
