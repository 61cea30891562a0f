"""Libraries in other formats: what each keeps, what people may write, and what is refused."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tfgrpo_dspy import Effect, Evidence, Experience, ExperienceLibrary, LibraryFormatError
from tfgrpo_dspy.interchange import parse, read_library, render, write_library

SEEN = Evidence(update=0, example=4, rollout_ids=(11, 12), scores=(0.0, None))
LIBRARY = ExperienceLibrary(
    [
        Experience("E1", "Ask: for the order number.", evidence=(SEEN,)),
        Experience("E3", "Say sorry first,\nthen help.", "solve", effect=Effect(0.12, 0.04, 80)),
    ],
    next_number=6,  # E2, E4 and E5 are retired
)
HEADER = (
    "When solving problems, you MUST first carefully read and understand the helpful instructions "
    "and experiences:"
)
# A file as the reference implementation writes it: a header for Hydra, and PyYAML's folding.
AGENT = r"""# @package _global_
defaults:
  - _self_

type: simple
model:
  model_provider:
    model: deepseek-chat  # by the public API
agent:
  name: sums_agent
  instructions: "You add numbers.\nThe last line is \"\\\\boxed{{'sum'}}\".\n\nWhen solving\
    \ problems, you MUST first carefully read and understand the helpful instructions\
    \ and experiences:\n[G0]. Carry check: Write down each carry, e.g. \"1\", before\
    \ you add: a lost carry is the usual fault.\n[G1]. 单位: 先统一单位.\n[G2].\
    \ Two ways: Add from the left, then from the right:\n- left\n- right"
toolkits: {}
"""
LEARNED = {
    "E1": 'Carry check: Write down each carry, e.g. "1", before you add: a lost carry is the usual '
    "fault.",
    "E2": "单位: 先统一单位.",
    "E3": "Two ways: Add from the left, then from the right:\n- left\n- right",
}


def texts(library: ExperienceLibrary) -> dict[str, str]:
    return {experience.id: experience.text for experience in library}


def bare(library: ExperienceLibrary, scope: str = "") -> ExperienceLibrary:
    """The library with no retired ids at its end, with this scope if one is given."""
    return ExperienceLibrary(Experience(e.id, e.text, scope or e.scope) for e in library)


HOSTILE = [
    "- a", "-", "* b", "1. c", "2)", "# d", "#", "---", "***", "[E1] f", "[G3]. g", "[G1]", "null",
    "**E1** h", "E2: i", '(for "solve") j', "(next id: E9)", "\\- k", "\\\\[G1]. l", "\ufeffm", "'",
    "=1+1", "'=1", "@n", 'say "p", q;r\ts', "${x}", "\\${y}", "a\\\\${z}", "key: v", "&a *a !!b",
    "\\boxed{1} \\neq \\[x\\]", "\x00\x07", "\u2028\x85\x0b", "世界", HEADER, f"{HEADER}\n[G0]. x",
]  # fmt: skip
pieces = st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8"), max_size=8)
breaks = st.sampled_from(["\n", "\n\n", "\n \n", "\r\n", "\r", "\n  ", "\n\t", " "])
any_texts = st.builds(str.join, breaks, st.lists(pieces, min_size=1, max_size=3)).filter(str.strip)
any_scopes = (
    st.just("*") | st.sampled_from(["solve", "d['k']", "=x", ' "', "a)\n"]) | pieces.filter(bool)
)
effects = st.none() | st.builds(Effect, st.floats(-2, 2), st.floats(0, 1), st.integers(0, 99))


@st.composite
def libraries(draw: st.DrawFn) -> ExperienceLibrary:
    numbers = draw(st.lists(st.integers(1, 2000), max_size=4, unique=True))
    experiences = [
        Experience(f"E{number}", draw(any_texts), draw(any_scopes), (SEEN,), draw(effects))
        for number in numbers
    ]
    free = max(numbers, default=0) + draw(st.integers(1, 3))
    return ExperienceLibrary(experiences, next_number=free)


@settings(max_examples=150, deadline=None)
@given(libraries())
@example(ExperienceLibrary())
@example(ExperienceLibrary(next_number=9))
def test_a_round_trip_keeps_what_the_format_can_hold(library: ExperienceLibrary) -> None:
    back = {name: parse(render(library, name), name) for name in ("json", "md", "csv", "yaml")}
    assert back["json"].to_dict() == library.to_dict()
    assert back["md"] == library
    assert back["csv"] == bare(library)
    assert [each.effect for each in back["csv"]] == [each.effect for each in library]
    assert back["yaml"] == bare(library, scope="*")
    numbered = ExperienceLibrary.from_texts(each.text for each in library)
    assert parse(render(library, "txt"), "txt") == numbered


@settings(max_examples=100, deadline=None)
@given(libraries(), libraries(), st.lists(pieces, max_size=3).map("\n".join))
def test_a_library_is_written_into_an_agent_file_again_and_again_and_all_else_stays(
    first: ExperienceLibrary, second: ExperienceLibrary, base: str
) -> None:
    base = re.sub(r"(?m)^\[G[0-9]+\]", "[H]", base)  # these would be experiences
    agent = {"type": "simple", "agent": {"name": "a", "instructions": base}, "toolkits": {}}
    file = yaml.safe_dump(agent, default_style='"', sort_keys=False)
    for library in first, second, first:
        file = render(library, "yaml", into=file)
        assert parse(file, "yaml") == bare(library, scope="*")
        read = yaml.safe_load(file)
        start = f"{base}\n\n{HEADER}\n[G" if len(library) else base
        assert read["agent"]["instructions"].startswith(start)
        assert {**read, "agent": None} == {**agent, "agent": None}
    assert yaml.safe_load(render(ExperienceLibrary(), "yaml", into=file)) == agent


@settings(max_examples=100, deadline=None)
@given(
    st.text(max_size=40) | st.lists(pieces, max_size=5).map("\n".join),
    st.sampled_from(["json", "yaml", "md", "csv", "txt"]),
)
def test_any_text_is_read_or_refused_with_a_message(text: str, format: str) -> None:
    try:
        assert isinstance(parse(text, format), ExperienceLibrary)
    except LibraryFormatError as error:
        assert str(error).startswith("the text")


def test_the_agent_file_of_the_reference_implementation_is_read_with_its_ids_plus_one() -> None:
    assert texts(parse(AGENT, "yaml")) == LEARNED
    assert texts(parse("\ufeff" + AGENT.replace("\n", "\r\n"), "yaml")) == LEARNED


def test_what_comes_back_into_an_agent_file_changes_the_instructions_alone() -> None:
    edited = parse(AGENT, "yaml").apply([{"op": "DELETE", "id": "E2"}, {"op": "ADD", "text": "Go"}])
    file = render(edited, "yaml", into=AGENT)
    before = AGENT.partition("  instructions: ")[0]
    assert file.startswith(before + '  instructions: "You add numbers.\\n')
    assert file.endswith('\\n[G3]. Go"\ntoolkits: {}\n')
    assert max(map(len, file.splitlines())) < 120
    old, new = (yaml.safe_load(each)["agent"]["instructions"] for each in (AGENT, file))
    start = old.index("[G0]")
    assert new[:start] == old[:start]
    assert new[start:].split("\n[G")[1:] == ["2]. " + LEARNED["E3"], "3]. Go"]
    assert render(parse(AGENT, "yaml"), "yaml", into=file).endswith('- right"\ntoolkits: {}\n')


@pytest.mark.parametrize(
    "written", ["|\n    Add.\n    Now.\n", "'Add.\n\n    Now.'\n", "Add.\n\n    Now.  # note\n"]
)
def test_instructions_in_any_style_of_yaml_take_experiences(written: str) -> None:
    file = f"agent:\n  instructions: {written}  name: a\n# end\n"
    agent = yaml.safe_load(file)["agent"]
    new = render(ExperienceLibrary.from_texts(["Go."]), "yaml", into=file)
    experiences = f"\n\n{HEADER}\n[G0]. Go."
    instructions = agent["instructions"] + experiences
    assert yaml.safe_load(new)["agent"] == {"instructions": instructions, "name": "a"}
    assert new.endswith("\n  name: a\n# end\n")
    assert ("# note" in new) == ("# note" in written)


def test_a_new_agent_file_has_the_form_that_the_reference_implementation_loads() -> None:
    file = render(ExperienceLibrary.from_texts(["Pay ${5}."]), "yaml")
    assert file.startswith("# @package _global_\ndefaults:\n  - _self_\n\nagent:\n  name: agent\n")
    instructions = yaml.safe_load(file)["agent"]["instructions"]
    said = f"You are a helpful assistant.\n\n{HEADER}\n[G0]. Pay \\${{5}}."
    assert instructions == said  # OmegaConf would put a value for a bare ${5}


@pytest.mark.parametrize(
    ("format", "text", "ids"),
    [
        ("json", '{"G0": "Ask.", "G2": "Say."}', "E1 E3"),
        ("json", '{"E1": "Ask.", "E2": "Say."}', "E1 E2"),
        ("json", '["Ask.", " Say. "]', "E1 E2"),
        ("json", '[{"id": "E4", "text": "Ask."}, {"id": "E5", "text": "Say."}]', "E4 E5"),
        ("json", '{"agent": {"instructions": "[G0]. Ask.\\n\\n[G1]: Say."}}', "E1 E2"),
        ("json", "{}", ""),
        ("yaml", "- Ask.\n- Say.\n", "E1 E2"),
        ("yaml", "experiences:\n- {id: E1, text: Ask.}\n- {id: E7, text: Say.}\n", "E1 E7"),
        ("yaml", "agent:\n  instructions: Be kind.", ""),
        ("md", "# Advice\n\n* Ask.\n\n## More\n1. Say.\n---\n", "E1 E2"),
        ("md", "- [E2*] Ask.\n- **G4**: Say.", "E2 E5"),
        ("md", "[E2] Ask.\nE5: Say.\n(next id: E9)", "E2 E5"),
        ("md", "- Ask.\n- **E7** Say.\n\n(next id: E9)\n", "E7 E9"),
        ("md", "", ""),
        ("txt", "Ask.\r\n\r\n\r\nSay.\r\n", "E1 E2"),
        ("txt", "Ask.\r\nSay.", "E1 E2"),
        ("txt", "- Ask.\n - Say.\n", "E1 E2"),
        ("txt", "[G0]. Ask.\n[G1]. Say.\n", "E1 E2"),
        ("csv", "Text\nAsk.\nSay.\n", "E1 E2"),
        ("csv", "id;text\r\n;Ask.\r\nE3;Say.\r\n;\r\n", "E3 E4"),
        ("csv", 'scope\ttext\n*\tAsk.\n\t"Say."', "E1 E2"),
    ],
)
def test_what_people_write_by_hand_is_read(format: str, text: str, ids: str) -> None:
    library = parse("\ufeff" + text, format)
    assert [experience.id for experience in library] == ids.split()
    assert {each.text for each in library} == ({"Ask.", "Say."} if ids else set())
    assert {each.scope for each in library} <= {"*"}


def test_further_lines_of_an_item_are_indented_whatever_its_bullet_is() -> None:
    text = "1. Ask.\n   - Once.\n\n   Then wait.\n\n-\tSay.\n\tLoudly.\n"
    assert texts(parse(text, "md")) == {"E1": "Ask.\n- Once.\n\nThen wait.", "E2": "Say.\nLoudly."}


def test_each_format_looks_as_documented() -> None:
    assert render(LIBRARY, "md") == (
        "# Experiences\n\n- **E1** Ask: for the order number.\n"
        '- **E3** (for "solve") Say sorry first,\n  then help.\n\n(next id: E6)\n'
    )
    assert render(LIBRARY, "txt") == "Ask: for the order number.\nSay sorry first,\n  then help.\n"
    assert render(LIBRARY, "csv").split("\r\n")[:2] == [
        '"id","text","scope","effect","standard_error","n_rollouts"',
        '"E1","Ask: for the order number.","*","","",""',
    ]
    assert render(ExperienceLibrary.from_texts(["=cmd()"]), "csv").endswith('"\'=cmd()","*"\r\n')


def test_a_prompt_for_use_elsewhere_has_the_instructions_once_and_each_text_in_its_item() -> None:
    advice = (
        "Advice learned from earlier attempts:\n- Ask: for the order number.\n"
        "- Say sorry first,\n  then help. (for solve)\n"
    )
    assert render(LIBRARY, "prompt") == advice
    baked = "Be kind.\n\n<experiences>\nAdvice learned from earlier attempts:\n[E1*] Old.\n"
    baked += "(next id: E2)\n</experiences>"
    for instructions in "Be kind.", baked:
        assert render(LIBRARY, "prompt", into=instructions) == f"Be kind.\n\n{advice}"
    assert render(ExperienceLibrary(), "prompt", into=baked) == "Be kind.\n"
    hostile = ExperienceLibrary.from_texts(["a\u2028# b\rc\n\nd"])
    assert render(hostile, "prompt").splitlines()[1:] == ["- a", "  # b", "  c", "  ", "  d"]


DEEP = "[" * 100_000
ALIASES = [f"{new}: &{new} [{f'*{old}, ' * 9}]\n" for old, new in pairwise("abcdefghi")]
BOMB = "a: &a [x, x]\n" + "".join(ALIASES)


@pytest.mark.parametrize(
    ("format", "text", "what"),
    [
        ("json", DEEP, "nested too deeply"),
        ("json", '{"G0": "a",}', "not JSON: line 1, column 12"),
        ("json", '{"G0": "a", "G0": "b"}', "'G0' occurs twice"),
        ("json", '{"G0": "a", "note": "b"}', r"the text: \[note\]: the id 'note' is not"),
        ("json", '{"G0": ["a"]}', "'G0': write \"G0\": \"text\""),
        ("json", '{"E1": "a", "G0": "b"}', "the id G0 is taken by 'a'"),
        ("json", '["a", ""]', r"\[1\]: text='': an experience is a line"),
        ("json", '["a", 5]', r"experiences\[0\]='a': it should be"),
        ("json", '{"E0": "a"}', r"\[E0\]: id='E0': an id is"),
        ("json", '{"G%s": "a"}' % ("9" * 5000), "experiences: it is missing"),
        ("json", '{"agent": {}}', 'agent.instructions is missing.* write agent: {instructions: "'),
        ("json", '{"agent": {"instructions": "[G0]. \\n[G1]. b"}}', r"\[G0\]: text=''"),
        ("json", '{"agent": {"instructions": "[G1]. a\\n[G1]. b"}}', "G1 is taken by 'a'"),
        ("yaml", DEEP, "nested too deeply"),
        ("yaml", BOMB, "a: there is no field of this name"),
        ("yaml", BOMB + "experiences: *i", r"experiences\[0\]=\[\[.{1,99}: it should"),
        ("yaml", "agent: \x00", "not YAML: unacceptable character #x0000"),
        ("yaml", "agent: &a {instructions: *a}", "not YAML: line 1, column 8: found unconstruct"),
        ("md", "- Ask.\nnow\n", r"line 2: 'now' is no item of a list: write '- ' in front, or two"),
        ("md", "  - Ask.", "line 1: .* is indented, but there is no item above: remove"),
        ("md", "# A\n-\n", r"line 2: text='\\n': an experience is a line"),
        ("md", "- **E1** Ask.\n- **E1** Say.", "line 2: the id E1 is taken by 'Ask.'; write anot"),
        ("txt", "E0: Ask.", "line 1: id='E0'"),
        ("csv", "id,advice\nE1,Ask.", "line 1: the columns .*'advice'"),
        ("csv", "id,text\nE1,Ask, then say.", "line 2: 3 cells under 2 columns: put a text that"),
        ("csv", 'id,text\nE1,"Ask', "the text: line 2: .*end of data: close each double quote"),
        ("csv", "id,text,id\nE1,Ask,E1", "line 1: the column 'id' occurs twice; keep one"),
        ("csv", "id,text\n1,Ask", "line 2: the id '1' is not 'E' and a number from 1"),
        ("csv", "text,effect\nAsk,0.1", "line 2: effect, standard_error, n_rollouts are .*write"),
        ("csv", "text,effect,standard_error,n_rollouts\nAsk,nan,1,1", "line 2: effect"),
        ("csv", 'text,effect,standard_error,n_rollouts\nAsk,"1,250",1,1', "effect: the comma"),
        ("csv", "text\n" + "x" * 200_000, "line 2: .*at most 131,072 characters"),
        ("txt", "x" * 10_000_001, "10000001 characters; at most"),
        ("prompt", "", "format='prompt': json, yaml, md, csv, txt and skill can be read"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_the_place_and_what_to_write(
    format: str, text: str, what: str
) -> None:
    with pytest.raises(LibraryFormatError, match=what) as raised:
        parse(text, format)
    assert len(str(raised.value)) < 1000


def test_nothing_of_a_yaml_file_is_run(tmp_path: Path) -> None:
    text = (
        f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:open [{tmp_path}/a, w]]"
    )
    with pytest.raises(LibraryFormatError, match="Write"):
        parse(text, "yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_format_is_named_or_follows_from_the_ending_and_takes_what_fits_it(
    tmp_path: Path,
) -> None:
    for name in "a.json", "a.YML", "a.yaml", "a.md", "a.markdown", "a.csv", "a.txt":
        write_library(LIBRARY, tmp_path / name)
        assert len(read_library(str(tmp_path / name))) == 2
    write_library(LIBRARY, tmp_path / "lessons", "csv")
    assert (tmp_path / "lessons").read_bytes() == render(LIBRARY, "csv").encode()
    assert read_library(tmp_path / "lessons", "csv") == bare(LIBRARY)
    assert read_library(tmp_path / "a.json") == ExperienceLibrary.load(tmp_path / "a.json")
    with pytest.raises(
        LibraryFormatError,
        match=r"lessons: no format has this ending; rename .*SKILL\.md, or pass its format\.",
    ):
        read_library(tmp_path / "lessons")
    (tmp_path / "a.txt").write_bytes("Say „bitte“.".encode("cp1252"))
    with pytest.raises(LibraryFormatError, match=r"a\.txt: .*save the file as UTF-8"):
        read_library(tmp_path / "a.txt")
    for format, into in ("md", "a"), ("word", ""):
        with pytest.raises(LibraryFormatError, match=f"format='{format}'"):
            render(LIBRARY, format, into=into)
    for into in "[", "agent: {name: a}", "agent: {instructions: [a]}", "- a", "5":
        with pytest.raises(LibraryFormatError, match=r"^into(:| is not YAML)"):
            render(LIBRARY, "yaml", into=into)
