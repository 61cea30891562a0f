"""Files that users own: read as other tools write them, replaced whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from warm import ran

from tfgrpo_dspy import ExperienceLibrary
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.sampling.examples import read_traces

TWO = ExperienceLibrary.from_texts(["Ask first.", "Sag „bitte“."])
KILLED = """
import os, signal, sys
from tfgrpo_dspy.files import write_text

path, moment = sys.argv[1], int(sys.argv[2])
events = iter(range(moment))

def hook(event, args):
    if event in ("open", "os.rename", "os.chmod") and next(events, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
write_text(path, "new" * 9000)
"""


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, seen = tmp_path / "library.json", []
    for moment in range(10):
        path.write_text("old")
        if ran(["-c", KILLED, path, moment]).returncode == 0:
            break
        seen.append(path.read_text())
    assert seen.count("old") >= 2 and set(seen) <= {"old", "new" * 9000}
    assert path.read_text() == "new" * 9000


def test_what_cannot_be_written_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "no" / "library.json"):
        with pytest.raises(OSError, match=f"{path}'$"):
            TWO.save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_and_a_mode_stay_and_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("real.json")
    TWO.save(tmp_path / "link.json")
    (tmp_path / "plain").touch()
    real = tmp_path / "real.json"
    assert real.stat().st_mode == (tmp_path / "plain").stat().st_mode
    real.chmod(0o640)
    TWO.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert ExperienceLibrary.load(real) == TWO
    assert {path.name for path in tmp_path.iterdir()} == {"link.json", "real.json", "plain"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_library_is_read_in_every_encoding_of_unicode(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "library.json"
    TWO.save(path)
    path.write_bytes(path.read_text("utf-8").replace("\n", "\r\n").encode(encoding))
    assert ExperienceLibrary.load(path) == TWO


TRACES: list[dict[str, Any]] = [
    {"inputs": {"note": "für 1"}, "outputs": {"bay": bay}, "labels": {"bay": "A"},
     "score": score, "feedback": "near"}
    for bay, score in (("A", 1.0), ("B", 0.5))
]  # fmt: skip
LINES = "\n".join(json.dumps(trace, ensure_ascii=False) for trace in TRACES)
FILES = {
    "lines.jsonl": LINES.encode(),
    "marked.jsonl": LINES.encode("utf-8-sig"),
    "windows.jsonl": LINES.replace("\n", "\r\n\r\n").encode("utf-16"),
    "array.json": json.dumps(TRACES).encode(),
    "pretty.json": json.dumps(TRACES, indent=2).encode("utf-16"),
    "objects.json": "\n".join(json.dumps(t, indent=1) for t in TRACES).encode(),
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
