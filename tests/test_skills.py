"""A library as SKILL.md, which coding agents read: written, read, and written into."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tfgrpo_dspy import Experience, ExperienceLibrary, LibraryFormatError
from tfgrpo_dspy.cli import tfgrpo
from tfgrpo_dspy.interchange import parse, read_library, render, write_library

LIBRARY = ExperienceLibrary(
    [Experience("E1", "Ask first.\nThen act."), Experience("E3", "# is a sign.", "solve")],
    next_number=6,
)
OF_OTHERS = """---
name: billing
description: Use it for bills.
---

# Billing

Read this first:

# Experiences

- Old advice.

## Files

- bills.py
"""


def bare(library: ExperienceLibrary) -> list[tuple[str, str, str]]:
    return [(each.id, each.text, each.scope) for each in library]


def test_a_new_file_has_front_matter_that_agents_read_and_the_list(tmp_path: Path) -> None:
    write_library(LIBRARY, tmp_path / "SKILL.md")
    text = (tmp_path / "SKILL.md").read_text("utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert set(front) == {"name", "description"}
    assert front["name"] == "learned-experiences"
    assert text.endswith("\n\n(next id: E6)\n")
    assert read_library(tmp_path / "SKILL.md") == LIBRARY


def test_in_a_file_of_others_only_the_section_changes_and_is_read() -> None:
    assert [text for _, text, _ in bare(parse(OF_OTHERS, "skill"))] == ["Old advice."]
    text = render(LIBRARY, "skill", into=OF_OTHERS)
    before, after = OF_OTHERS.split("# Experiences\n\n- Old advice.\n\n")
    assert text.startswith(before) and text.endswith(after)
    assert bare(parse(text, "skill")) == bare(LIBRARY)
    assert render(parse(text, "skill"), "skill", into=text) == text


@pytest.mark.parametrize(
    "more", ["These were learned in May.\n", "<!-- ours -->\n", "```bash\nls\n```\n"]
)
def test_what_else_stands_in_the_section_is_not_written_over(more: str) -> None:
    place = OF_OTHERS.index("- Old advice.")
    with pytest.raises(LibraryFormatError, match=r"line 12: .* is no item of a list"):
        render(LIBRARY, "skill", into=OF_OTHERS[:place] + more + OF_OTHERS[place:])


def test_a_section_is_added_where_there_is_none() -> None:
    text = render(LIBRARY, "skill", into="---\nname: x\n---\nDo it well.")
    assert text.startswith("---\nname: x\n---\nDo it well.\n\n# Experiences\n")
    assert bare(parse(text, "skill")) == bare(LIBRARY)


@pytest.mark.parametrize("text", [OF_OTHERS, "---\nname: x\n---\nDo it well.\n"])
def test_a_file_with_windows_line_ends_keeps_them(text: str) -> None:
    written = render(LIBRARY, "skill", into=text.replace("\n", "\r\n"))
    assert written == render(LIBRARY, "skill", into=text).replace("\n", "\r\n")
    assert bare(parse(written, "skill")) == bare(LIBRARY)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("---\nname: x\n---\n\n- Be nice.\n", "there is no heading '# Experiences'"),
        (f"{OF_OTHERS}\n# Experiences\n\n- More.\n", "line 18: '# Experiences' stands there twice"),
        ("# Experiences\n\nBe nice.\n", r"line 3: 'Be nice\.' is no item of a list"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(LibraryFormatError, match=fault):
        parse(text, "skill")


@given(st.lists(st.text(min_size=1, max_size=40), max_size=4), st.booleans())
def test_whatever_the_advice_says_a_round_trip_keeps_it(texts: list[str], is_into: bool) -> None:
    try:
        library = ExperienceLibrary.from_texts(texts)
    except ValueError:
        return
    text = render(library, "skill", into=OF_OTHERS if is_into else "")
    assert bare(parse(text, "skill")) == bare(library)


def test_the_command_line_exports_and_imports_it(tmp_path: Path) -> None:
    library, skill = tmp_path / "library.json", tmp_path / "SKILL.md"
    LIBRARY.save(library)
    skill.write_text(OF_OTHERS, "utf-8")
    arguments = ["export", str(library), "-o", str(skill), "--into", str(skill)]
    assert CliRunner().invoke(tfgrpo, arguments).exit_code == 0
    shown = CliRunner().invoke(tfgrpo, ["show", str(skill)])
    assert "Ask first." in shown.output and "Old advice" not in shown.output
    assert "## Files" in skill.read_text("utf-8")
    shown = CliRunner().invoke(tfgrpo, ["export", str(library), "--into", str(skill)])
    assert shown.stdout == skill.read_text("utf-8"), "its name says what it is"
