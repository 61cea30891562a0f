"""Files that users own: read as other tools write them, replaced whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from runs import Pair, knowing
from test_cli import editor, refusal, run
from warm import TESTS, ran

from tfgrpo_dspy import ExperienceLibrary
from tfgrpo_dspy.cli import tfgrpo
from tfgrpo_dspy.errors import LibraryFormatError, SettingsError, UnsavedError
from tfgrpo_dspy.files import write_text
from tfgrpo_dspy.interchange import read_library, render, write_library
from tfgrpo_dspy.sampling.traces import read_traces

DOORS = ["save", *(f"write_library {e}" for e in ("md", "yaml")), "write_html",
         "edit", "bake", "export", "import", "merge", "report", "parquet"]  # fmt: skip
TWO = ExperienceLibrary.from_texts(["Ask first.", "Sag „bitte“."])


# ------------------------------------------------------------------------------------- the writer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of the file of each door; all are tried in one process."""
    arguments = [TESTS / "writing_child.py", tmp_path_factory.mktemp("doors"), *DOORS]
    done = ran(arguments, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("door", DOORS)
def test_a_kill_a_full_disk_and_a_colleague_cost_no_file_at_any_door(
    door: str, written: dict[str, Any]
) -> None:
    found = written[door]
    assert (found["is_new"], found["mode"]) == (True, 0o640)
    assert found["killed"].count("old") >= 2 and set(found["killed"]) <= {"old", "new"}
    # the new text came back with the error
    assert found["full"] == [2 if door == "parquet" else 3, "old"]
    assert (found["shared"], found["kept"]) == ([2, "colleague's"], [True])


def test_a_link_stays_and_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("real.json")
    TWO.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert ExperienceLibrary.load(tmp_path / "real.json") == TWO
    (tmp_path / "plain").touch()
    assert (tmp_path / "real.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"link.json", "real.json", "plain"}


def test_a_library_is_not_saved_over_what_others_saved_since_it_was_loaded(tmp_path: Path) -> None:
    path = tmp_path / "library.json"
    TWO.save(path)
    mine = ExperienceLibrary.load(path)
    theirs = ExperienceLibrary.from_texts(["Theirs."])
    path.write_text(json.dumps(theirs.to_dict()))
    with pytest.raises(UnsavedError, match=r"changed since it was read.* is in (.*unsaved)") as no:
        mine.save(path)
    assert (ExperienceLibrary.load(path), no.value.text) == (theirs, "")
    (kept,) = tmp_path.glob(".library.json.*.unsaved")
    assert ExperienceLibrary.from_dict(json.loads(kept.read_text())) == mine
    for _ in range(2):  # it was read again by now
        mine.save(path)
    assert ExperienceLibrary.load(path) == mine


def test_what_was_to_be_written_is_kept_where_a_folder_has_taken_the_place(tmp_path: Path) -> None:
    (tmp_path / "library.json").mkdir()
    with pytest.raises(UnsavedError, match=r"Is a directory.* is in (.*unsaved)"):
        TWO.save(tmp_path / "library.json")
    (kept,) = tmp_path.glob("*.unsaved")
    assert ExperienceLibrary.from_dict(json.loads(kept.read_text())) == TWO


def test_links_that_name_themselves_are_refused_and_stay(tmp_path: Path) -> None:
    link = tmp_path / "library.json"
    link.symlink_to(link)
    with pytest.raises(UnsavedError, match=r"symbolic links.* is in (.*unsaved)"):
        TWO.save(link)
    assert link.is_symlink()
    with pytest.raises(OSError, match="symbolic links"):
        ExperienceLibrary.load(link)
    TWO.save(tmp_path / "real.json")
    knowing("Ask first.").save(tmp_path / "program.json")
    program_and_library = (tmp_path / "program.json", tmp_path / "real.json")
    assert "symbolic links" in refusal("bake", *program_and_library, "-o", link)


def test_a_link_that_names_another_file_by_now_is_not_written_through(tmp_path: Path) -> None:
    theirs = ExperienceLibrary.from_texts(["Theirs."])
    TWO.save(tmp_path / "v1.json")
    theirs.save(tmp_path / "v2.json")
    link = tmp_path / "current.json"
    link.symlink_to("v1.json")
    mine = ExperienceLibrary.load(link)
    link.unlink()
    link.symlink_to("v2.json")
    with pytest.raises(UnsavedError, match="changed since it was read"):
        mine.save(link)
    assert ExperienceLibrary.load(link) == theirs


def test_a_device_is_written_to_and_not_replaced_and_a_missing_folder_is_named(
    tmp_path: Path,
) -> None:
    TWO.save(os.devnull)
    assert not Path(os.devnull).is_file()
    reader, writer = os.pipe()
    write_text(f"/dev/fd/{writer}", "through a pipe")
    assert os.read(reader, 100) == b"through a pipe"
    for descriptor in (reader, writer):
        os.close(descriptor)
    with pytest.raises(FileNotFoundError, match=r"no/library\.json'$"):
        TWO.save(tmp_path / "no" / "library.json")


# ---------------------------------------------------------- what is written back is what was read

AGENT = 'agent:\n  name: a\n  instructions: "Be kind.\\n\\n[G0]. Ask."\ntoolkits: {x: [1, 2]}\n'
FORMS_OF_AGENTS = {
    "as it is": AGENT,
    "a byte order mark": "\ufeff" + AGENT,
    "Windows lines": AGENT.replace("\n", "\r\n"),
    "a quoted key": AGENT.replace("agent:", '"agent":'),
    "a blank before the colon": AGENT.replace("agent:", "agent :"),
    "flow style": '{name: b, "agent": {instructions: "Be kind.\\n\\n[G0]. Ask."}, n: 1}\n',
    "an indented document": "".join(f"    {line}\n" for line in AGENT.splitlines()),
    "a document marker and a comment": f"# ours\n--- # agent:\n{AGENT}",
    "a block": "agent:\n  instructions: |-\n    Be kind.\n\n    [G0]. Ask.\n  name: a\n",
    "anchors elsewhere": AGENT + "a: &x {y: 1}\nb: *x\n",
}


@pytest.mark.parametrize("text", FORMS_OF_AGENTS.values(), ids=FORMS_OF_AGENTS)
def test_the_agent_of_any_form_of_yaml_is_edited_and_all_else_stays(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "agent.yaml"
    path.write_bytes(text.encode())
    old = 'instructions: "Be kind.\\n\\n[G0]. Ask."'
    result = run("edit", path, **editor(tmp_path, "text = text.replace('Ask.', 'Beg.')"))
    assert result.exit_code == 0, result.output
    after = path.read_bytes().decode()
    assert [each.text for each in read_library(path)] == ["Beg."]
    if old in text:
        before, rest = text.split(old)
        assert after.startswith(before) and after.endswith(rest)
        assert len(after) > len(before + rest) + 20


@pytest.mark.parametrize("style", ["|", "|+", "|-", ">"])
@pytest.mark.parametrize("learned", [[], ["Beg."]])
def test_line_ends_at_the_end_of_instructions_stay(style: str, learned: list[str]) -> None:
    text = f"agent:\n  instructions: {style}\n    Be kind.\n\n    [G0]. Ask.\n\n\n  name: a\n"
    old = yaml.safe_load(text)["agent"]["instructions"]
    new = yaml.safe_load(render(ExperienceLibrary.from_texts(learned), "yaml", into=text))["agent"]
    kept = old.replace("Ask.", "Beg.") if learned else f"Be kind.{old[len(old.rstrip()) :]}"
    assert new == {"instructions": kept, "name": "a"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.json"])
def test_a_file_with_windows_line_ends_keeps_them_when_it_is_edited(
    name: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    write_library(TWO, path)
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode(encoding))
    result = run("edit", path, **editor(tmp_path, "text = text.replace('Ask', 'Beg')"))
    assert result.exit_code == 0, result.output
    after = path.read_bytes().decode(encoding)
    assert "Beg first." in after
    assert after.count("\r\n") == after.count("\n") == after.count("\r")


FLAWED = {
    "the instructions of an alias": ("base: &i Be kind.\nagent:\n  instructions: *i\n", 3),
    "an anchor that others use": ("agent:\n  instructions: &i Be kind.\nb: *i\n", 2),
    "an agent that is an alias": ("x: &a {instructions: Be kind.}\nagent: *a\n", 2),
    "a tag": ("agent:\n  name: a\n  instructions: !env Be kind.\n", 3),
    "a comment in the head of a block": ("agent:\n  instructions: | # ours\n    Be kind.\n", 2),
    "a key twice": ("agent:\n  instructions: Be kind.\n  instructions: Be short.\n", 2),
    "a key twice elsewhere": ("agent: {instructions: Be kind.}\nb:\n  c: 1\n  c: 2\n", 3),
}


@pytest.mark.parametrize(("text", "line"), FLAWED.values(), ids=FLAWED)
def test_yaml_that_cannot_be_written_back_faithfully_is_refused_with_the_line(
    text: str, line: int, tmp_path: Path
) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    (tmp_path / "opened").touch()
    said = refusal("edit", path, **editor(tmp_path, "pathlib.Path('opened').unlink()"))
    assert f"line {line}: " in said
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("list.yaml", "- Ask.\n- Say.\n", "tfgrpo import"),
        ("named.yaml", "G0: Ask.\n", "tfgrpo import"),
        ("agent.json", json.dumps({"agent": {"instructions": "[G0]. Ask."}}), "tfgrpo import"),
        ("lines.jsonl", '{"id": "E1", "text": "Ask."}\n{"id": "E2", "text": "Say."}\n', "import"),
        ("list.md", "# Experiences\n\n- Ask.\n\n## For ACME\n- Say.\n", "line 5: '## For ACME'"),
        ("plain.txt", "Ask.\n# Of the night shift\nSay.\n", "line 2: "),
    ],
)
def test_a_file_of_which_something_would_be_lost_is_not_edited(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert len(read_library(path)) > 0
    assert said in refusal("edit", path, **editor(tmp_path, "text += '- New.\\n'"))
    assert path.read_text() == text


def test_an_edit_that_the_file_cannot_hold_is_shown_again_and_the_file_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(AGENT)
    code = "text = text if '# Error' in text else text + '- (for \"solve\") Think.\\n'"
    assert "scope" in refusal("edit", path, **editor(tmp_path, code))
    assert path.read_text() == AGENT


@pytest.mark.parametrize("id_", ["G0", "G3", '"G0"'])
def test_an_id_that_occurs_twice_in_yaml_is_refused(id_: str, tmp_path: Path) -> None:
    path = tmp_path / "library.yaml"
    path.write_text(f"{id_}: Ask.\nG7: Say.\n{id_}: Other.\n")
    with pytest.raises(LibraryFormatError, match=r"line 1: the key 'G\d' occurs twice"):
        read_library(path)


EXCEL = {
    "semicolons, UTF-8 with a mark": ("utf-8-sig", ";"),
    "semicolons, Windows": ("cp1252", ";"),
    "tabs, UTF-16": ("utf-16", "\t"),
    "commas": ("utf-8", ","),
}


@pytest.mark.parametrize(("encoding", "separator"), EXCEL.values(), ids=EXCEL)
def test_a_table_of_excel_is_read_and_stays_one_when_it_is_edited(
    encoding: str, separator: str, tmp_path: Path
) -> None:
    path = tmp_path / "library.csv"
    rows = [("id", "text"), ("E1", "Ask first."), ("E2", "Sag „bitte“.")]
    text = "".join(f"{separator.join(row)}\r\n" for row in rows)
    hint = "sep=;\r\n" if separator == ";" else ""
    path.write_bytes((hint + text).encode(encoding))
    assert read_library(path) == TWO
    result = run("edit", path, **editor(tmp_path, "text = text.replace('Ask', 'Beg')"))
    assert result.exit_code == 0, result.output
    written = path.read_bytes().decode("utf-8-sig" if encoding == "cp1252" else encoding)
    assert written.startswith(f'{hint}"id"{separator}"text"{separator}"scope"\r\n')
    assert [each.text for each in read_library(path)] == ["Beg first.", "Sag „bitte“."]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("format", ["json", "yaml", "md", "txt"])
def test_a_library_is_read_in_every_encoding_of_unicode(
    format: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / f"library.{format}"
    write_library(TWO, path)
    path.write_bytes(path.read_bytes().decode().replace("\n", "\r\n").encode(encoding))
    assert read_library(path) == TWO
    if format == "json":
        assert ExperienceLibrary.load(path) == TWO
    shown = CliRunner().invoke(tfgrpo, ["show", str(path)])
    assert "Sag „bitte“." in shown.output


def test_a_program_is_baked_whatever_the_encoding_of_the_library_is(tmp_path: Path) -> None:
    knowing("Old.", student=Pair()).save(tmp_path / "pair.json")
    write_library(TWO, tmp_path / "new.md")
    text = (tmp_path / "new.md").read_text("utf-8")
    (tmp_path / "new.md").write_text(text, encoding="utf-16")
    assert run("bake", tmp_path / "pair.json", tmp_path / "new.md", "--in-place").exit_code == 0
    assert [each.text for each in read_source_of(tmp_path / "pair.json")] == [e.text for e in TWO]


def read_source_of(path: Path) -> ExperienceLibrary:
    program = Pair()
    program.load(path)
    return ExperienceLibrary.from_program(program)


# ----------------------------------------------------------------------------------------- traces

TRACES: list[dict[str, Any]] = [
    {"inputs": {"note": "für 1"}, "outputs": {"bay": bay}, "labels": {"bay": "A"},
     "score": score, "feedback": "near"}
    for bay, score in (("A", 1.0), ("B", 0.5))
]  # fmt: skip
LINES = "\n".join(json.dumps(trace, ensure_ascii=False) for trace in TRACES)
ROWS = "inputs.note;outputs.bay;labels.bay;score;feedback\r\nfür 1;A;A;1;near\r\nfür 1;B;A;0,5;near"
AS_JSON = '{"note": "für 1"}'.replace('"', '""')
CELLS = "inputs,outputs.bay,labels.bay,score,feedback\n"
CELLS += f'"{AS_JSON}",A,A,1,near\n"{AS_JSON}",B,A,.5,near\n'
FILES = {
    "lines.jsonl": LINES.encode(),
    "marked.jsonl": LINES.encode("utf-8-sig"),
    "windows.jsonl": LINES.replace("\n", "\r\n\r\n").encode("utf-16"),
    "array.json": json.dumps(TRACES).encode(),
    "pretty.json": json.dumps(TRACES, indent=2).encode("utf-16"),
    "objects.json": "\n".join(json.dumps(t, indent=1) for t in TRACES).encode(),
    "excel.csv": ROWS.encode("utf-8-sig"),
    "windows.csv": ROWS.encode("cp1252"),
    "unicode.tsv": ROWS.replace(";", "\t").encode("utf-16"),
    "cells.csv": CELLS.encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_traces_are_read_in_each_form_in_which_tools_save_them(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    examples, groups = read_traces(tmp_path / name)
    assert [(dict(e.inputs()), dict(e.labels())) for e in examples] == [
        ({"note": "für 1"}, {"bay": "A"})
    ]
    assert [(r.outputs["bay"], r.score, r.feedback) for r in groups[0]] == [
        ("A", 1.0, "near"), ("B", 0.5, "near")
    ]  # fmt: skip


BROKEN = {
    "a broken array of 3,000 lines": (json.dumps(TRACES * 300, indent=1)[:-40], ".json"),
    "100,000 lines of prose": ("not a trace\n" * 100_000, ".jsonl"),
    "a list of long texts": (json.dumps(["x" * 5_000] * 500), ".json"),
    "an object of another tool": (json.dumps({"spans": [{"x": ["y" * 90] * 90}] * 900}), ".json"),
    "lines without inputs": (f"{json.dumps({'outputs': 'z' * 9_000})}\n" * 500, ".jsonl"),
    "cells without end": ("inputs.a;score\n" + "x;a very long score\n" * 9_000, ".csv"),
    "half a file of UTF-8": ("é", ".jsonl"),
}


@pytest.mark.parametrize(("text", "ending"), BROKEN.values(), ids=BROKEN)
def test_an_error_about_a_file_of_traces_is_short_whatever_the_file_is(
    text: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"traces{ending}"
    path.write_bytes(text.encode()[:-1] if text == "é" else text.encode())
    with pytest.raises(SettingsError, match=r"JSON lines|UTF-8") as refused:
        read_traces(path)
    assert len(str(refused.value)) < 2_500 and str(refused.value).count("\n") < 20


def test_a_table_of_traces_with_a_column_twice_or_an_open_quote_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "traces.csv"
    for text, fault in {
        "inputs.a,inputs.a,outputs.b\nx,y,z\n": "line 1: the column 'inputs.a' occurs twice",
        'inputs.a,outputs.b\nx,"y\n': "line 2: .*close each double quote",
    }.items():
        path.write_text(text)
        with pytest.raises(SettingsError, match=fault):
            read_traces(path)


def test_a_score_whose_comma_may_group_thousands_is_refused_not_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "traces.csv"
    for score in ('"1,000"', '"12,500"', '"1,000,000"'):
        path.write_text(f"inputs.a,outputs.b,score\nx,y,{score}\n")
        why = "the comma of .* may stand for" if score != '"1,000,000"' else "valid number"
        with pytest.raises(SettingsError, match=f"score.*{why}"):
            read_traces(path)
    path.write_text('inputs.a,outputs.b,score\nx,y,"0,125"\nx,z,"1,5"\n')
    assert [rollout.score for rollout in read_traces(path)[1][0]] == [0.125, 1.5]


def test_a_table_of_traces_without_their_columns_is_told_what_to_call_them(tmp_path: Path) -> None:
    path = tmp_path / "traces.csv"
    path.write_text("question,answer,score\na,b,1\n")
    with pytest.raises(SettingsError, match=r"columns such as inputs\.question"):
        read_traces(path)
