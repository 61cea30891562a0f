"""Libraries as JSON, Markdown and SKILL.md: what people may write, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfgrpo_dspy import Effect, Evidence, Experience, ExperienceLibrary, LibraryFormatError
from tfgrpo_dspy.interchange import parse, read_library, render, write_library
from tfgrpo_dspy.text import meaning

SEEN = Evidence(update=0, example=4, rollout_ids=(11, 12), scores=(0.0, None))
LIBRARY = ExperienceLibrary(
    [
        Experience("E1", "Ask: for the order number.", evidence=(SEEN,)),
        Experience("E3", "Say sorry first,\nthen help.", "solve", effect=Effect(0.12, 0.04, 80)),
    ],
    next_number=6,  # E2, E4 and E5 are retired
)
MARKDOWN = """\
# Experiences

- **E1** Ask: for the order number.
- **E3** (for "solve") Say sorry first,
  then help.

(next id: E6)
"""
HOSTILE = [
    "- a", "-", "* b", "# d", "---", "[E1] f", "**E1** h", '(for "solve") j', "(next id: E9)",
    "\\- k", "  l", "'", "=1+1", "\x00\x07", "\u2028\x85\x0b", "世界",
]  # fmt: skip
pieces = st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8"), max_size=8)
breaks = st.sampled_from(["\n", "\n\n", "\n \n", "\r\n", "\r", "\n  ", "\n\t", " "])
texts = st.builds(str.join, breaks, st.lists(pieces, min_size=1, max_size=3)).filter(str.strip)
scopes = st.sampled_from(["*", "solve", "d['k']", ' "', "a)\n"]) | pieces.filter(bool)


@given(
    st.lists(
        st.tuples(st.integers(1, 2000), texts, scopes),
        max_size=4,
        unique_by=(lambda line: line[0], lambda line: meaning(line[1])),
    )
)
def test_a_round_trip_keeps_what_the_format_can_hold(values: list[tuple[int, str, str]]) -> None:
    experiences = [Experience(f"E{number}", text, scope) for number, text, scope in values]
    library = ExperienceLibrary(experiences, next_number=2002)
    assert parse(render(library, "json"), "json").to_dict() == library.to_dict()
    for format in ("md", "skill"):
        assert parse(render(library, format), format) == library


def test_each_format_looks_as_documented() -> None:
    assert render(LIBRARY, "md") == MARKDOWN
    skill = render(LIBRARY, "skill")
    assert skill.startswith("---\nname: learned-experiences\ndescription: ")
    assert skill.endswith(f"\n---\n\n{MARKDOWN}")
    assert parse(render(LIBRARY, "json"), "json")["E3"].effect == Effect(0.12, 0.04, 80)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("# Advice\n\n* Ask.\n\n## More\n+ Say.\n---\n", "E1 E2"),
        ("- [E2*] Ask.\n- **E5** Say.", "E2 E5"),
        ("[E2] Ask.\r\n**E5** Say.\r\n(next id: E9)\r\n", "E2 E5"),
        ("- Ask.\n- **E7** Say.\n", "E8 E7"),
        ("---\nname: mine\n---\n- Ask.\n- Say.\n", "E1 E2"),
        ("", ""),
    ],
)
def test_what_people_write_by_hand_is_read(text: str, ids: str) -> None:
    library = parse("\ufeff" + text, "md")
    assert [library[id_].text for id_ in ids.split()] == ["Ask.", "Say."][: len(library)]
    assert {each.scope for each in library} <= {"*"}


@pytest.mark.parametrize(
    ("format", "text", "fault"),
    [
        ("json", "[" * 100_000, "cannot be read: maximum recursion"),
        ("json", '{"experiences": [],}', "not JSON: line 1, column "),
        ("json", '["Ask."]', "Write version 1 of the form"),
        ("md", "- Ask.\nnow\n", r"line 2: 'now' is no item of a list: write '- ' in front, or two"),
        ("md", "# A\n-\n", r"line 2: text='.*': an experience is a line"),
        ("md", "- **E0** Ask.", "line 1: id='E0'"),
        ("md", "- **E1** Ask.\n- **E1** Say.", "ids .* one occurs twice"),
        ("yaml", "- [", "the text: while parsing"),
        ("csv", "id,advice\nE1,Ask.\n", r"the columns are \['id', 'advice'\]; name them id, text"),
        ("toml", "", "format='toml': the formats are json, yaml, md, skill, csv"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_the_place_and_what_to_write(
    format: str, text: str, fault: str
) -> None:
    with pytest.raises(LibraryFormatError, match=fault) as raised:
        parse(text, format)
    assert len(str(raised.value)) < 1000


def test_the_name_of_a_file_says_its_format(tmp_path: Path) -> None:
    for name in "a.json", "a.MD", "SKILL.md", "a.yaml", "a.txt", "a.csv":
        write_library(LIBRARY, tmp_path / name)
        assert list(read_library(tmp_path / name)) == list(LIBRARY)
    assert (tmp_path / "SKILL.md").read_text("utf-8").startswith("---\n")
    for act in (read_library, lambda path: write_library(LIBRARY, path)):
        with pytest.raises(LibraryFormatError, match=r"a\.toml: .*name the file SKILL\.md, or"):
            act(tmp_path / "a.toml")
