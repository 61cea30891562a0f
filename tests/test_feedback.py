"""Lessons that the metric itself says: what recurs, and is no praise."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tfgrpo_dspy.reflection.feedback import recurring_feedback
from tfgrpo_dspy.rollout import Group, Rollout

SENTENCES = ("Be brief.", "Say sorry!", "Why so long?", "Good: polite.", "Expected 42.")


def rollout(score: float | None, feedback: str) -> Rollout:
    return Rollout(0, 1, score=score, feedback=feedback)


def group(example: int, *told: tuple[float | None, str]) -> Group:
    rollouts = [rollout(score, feedback) for score, feedback in told]
    return Group(example, tuple(rollouts), tuple(rollouts))


def texts(*groups: Group) -> list[str]:
    return list(recurring_feedback(groups))


def test_a_sentence_that_two_examples_were_told_is_found_with_both() -> None:
    one = group(0, (0.0, "Be brief. Say sorry!"), (1.0, ""))
    two = group(1, (0.0, "Be brief.\nExpected 42."), (1.0, ""))
    assert recurring_feedback([one, two]) == {"Be brief.": (one, two)}


def test_a_sentence_of_one_example_is_none_however_often_it_is_said_there() -> None:
    assert texts(group(0, (0.0, "Expected 42."), (0.1, "Expected 42.")), group(1, (0.0, ""))) == []


def test_praise_is_what_better_rollouts_hear() -> None:
    groups = [group(i, (0.4, "Good: polite. Be brief."), (0.0, "Be brief.")) for i in range(2)]
    assert texts(*groups) == ["Be brief."]


@given(st.floats(0, 1), st.integers(2, 40), st.integers(0, 40))
def test_where_scores_are_equal_nothing_is_praise_however_their_means_are_rounded(
    score: float, n_told: int, n_others: int
) -> None:
    told = [group(i, (score, "Be brief.")) for i in range(n_told)]
    others = [group(i, (score, "")) for i in range(n_others)]
    assert texts(*told, *others) == ["Be brief."]


TOLD = st.tuples(st.floats(0, 1), st.lists(st.sampled_from(SENTENCES), max_size=4).map(" ".join))
GROUPS = st.lists(st.lists(TOLD, min_size=1, max_size=3), max_size=4)


@given(GROUPS)
def test_what_is_found_was_said_word_for_word_in_each_of_its_groups(
    told: Sequence[Sequence[tuple[float, str]]],
) -> None:
    groups = [group(i, *of_one) for i, of_one in enumerate(told)]
    for sentence, where in recurring_feedback(groups).items():
        assert len(where) >= 2
        assert all(any(sentence in r.feedback for r in g.rollouts) for g in where)
