"""Texts cut short for a message, a page or a prompt, and tables of text."""

from hypothesis import given
from hypothesis import strategies as st

from tfgrpo_dspy.text import aligned, shortened

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


@given(text=TEXTS, most=st.integers(1, 80))
def test_a_shortened_text_is_the_whole_line_or_as_many_bytes_as_are_allowed(
    text: str, most: int
) -> None:
    line = " ".join(text.split())
    short = shortened(text, most)
    if len(line.encode()) <= most:
        assert short == line
    else:
        head = short.removesuffix(" ...")
        assert line.startswith(head)
        assert len(head.encode()) <= most


def test_the_cells_of_a_table_stand_below_each_other_and_numbers_to_the_right() -> None:
    rows = [("purpose", "calls", ""), ("rollouts", "9", "x"), ("in all", "1,200", "")]
    assert aligned(rows) == ["purpose   calls", "rollouts  9      x", "in all    1,200"]
    assert aligned(rows, {1}) == ["purpose   calls", "rollouts      9  x", "in all    1,200"]
