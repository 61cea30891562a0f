"""Which training examples an experience is thought to concern."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tfgrpo_dspy.experience import Evidence, Experience
from tfgrpo_dspy.gate.concern import WordConcern, condition_of

INPUTS = [
    "A shirt of 20 dollars is sold at 15% off. What does it cost?",
    "A class of 30 has 40% boys. How many girls are there?",
    "A train goes 60 miles an hour. How far does it get in 3 hours?",
    "A car drives 50 miles in an hour. When does it arrive?",
    "Ann has 3 apples and buys 4. How many apples has she?",
    "A baker makes 12 loaves a day. How many does he make in May?",
    "Tom is twice as old as Ann, who is 7. How old is Tom?",
    "A pool of 300 litres loses 10% of its water. How much is left?",
]


def lesson(text: str, *sources: int) -> Experience:
    evidence = tuple(Evidence(0, source, (), ()) for source in sources)
    return Experience("E1", text, evidence=evidence)


def concerned(text: str, *sources: int, domains: tuple[str, ...] = ()) -> set[int] | None:
    found = WordConcern()([lesson(text, *sources)], INPUTS, domains)
    return set(found["E1"]) if "E1" in found else None


def test_examples_with_the_words_that_condition_and_source_share_are_concerned() -> None:
    assert concerned("When miles and hours are given, multiply.", 2) == {2, 3}


def test_a_sign_counts_as_its_name() -> None:
    assert concerned("When a percentage is asked for, write it as a decimal.", 0) == {0, 1, 7}


def test_words_of_the_advice_do_not_count() -> None:
    assert concerned("When a zebra appears, count the apples.", 4) is None


def test_without_a_condition_nothing_is_said() -> None:
    assert concerned("Show all your work.", 2) is None
    assert concerned("Show all your work.") is None


def test_without_a_source_the_words_of_the_condition_tell_unless_too_many_have_them() -> None:
    assert concerned("When miles and hours are given, multiply.") == {2, 3}
    assert concerned("When a zebra appears, count it.") is None
    assert concerned("When it is a question, answer it.") is None


def test_a_source_that_is_not_in_the_training_set_says_nothing() -> None:
    assert concerned("When miles and hours are given, multiply.", 99) is None


def test_a_condition_that_nearly_all_inputs_fit_or_only_the_source_says_nothing() -> None:
    assert concerned("When it is a question, answer it.", 0) is None
    assert concerned("When a baker makes loaves, count them.", 5) is None


def test_where_the_words_say_nothing_inputs_like_the_source_are_concerned() -> None:
    inputs = [*INPUTS, "A train goes 90 miles an hour. How far does it get in 5 hours?"]
    found = WordConcern()([lesson("Always draw a picture.", 2)], inputs)
    assert found == {"E1": frozenset({2, 8})}


def test_only_examples_of_the_sources_domains_are_concerned() -> None:
    domains = ("shop", "school", "road", "road", "food", "food", "age", "pool")
    assert concerned("When a percentage is asked for, use decimals.", 0, domains=domains) is None
    assert concerned("Draw a picture.", 2, domains=domains) == {2, 3}
    assert concerned("When miles and hours are given, multiply.", 2, domains=domains) == {2, 3}


def test_a_domain_that_is_nearly_everything_says_nothing() -> None:
    assert concerned("Draw a picture.", 2, domains=("road",) * len(INPUTS)) is None


def test_domains_that_do_not_fit_the_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="1 domains for 8 inputs"):
        WordConcern()([lesson("Draw.", 2)], INPUTS, ["road"])


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("When the total is asked, add all.", "the total is asked"),
        (
            "If there are hours, minutes, or days, convert first.",
            "there are hours, minutes, or days",
        ),
        ("Convert units when minutes and hours are mixed.", "minutes and hours are mixed"),
        ("For refunds, call get_order first.", "refunds"),
        ("Whenever a date is asked, count days.", "a date is asked"),
        ("Show your work.", ""),
        ("When in doubt", ""),
    ],
)
def test_the_condition_is_read_from_the_text(text: str, condition: str) -> None:
    assert condition_of(text) == condition


@given(
    st.lists(st.text(max_size=40), min_size=1, max_size=8),
    st.text(min_size=1, max_size=60).filter(lambda text: text.strip()),
    st.lists(st.integers(0, 9), max_size=3),
)
@example(["\u24ebA"], "0", [])  # a number that is no digit, before a letter
def test_what_is_found_holds_the_sources_and_something_else_whatever_the_texts(
    inputs: list[str], text: str, sources: list[int]
) -> None:
    found = WordConcern()([lesson(text, *sources)], inputs).get("E1")
    if found is not None:
        assert set(sources) < found <= set(range(len(inputs)))
        assert len(found) <= 0.6 * len(inputs)


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="least=0: give more than 0, at most 1"):
        WordConcern(least=0)
