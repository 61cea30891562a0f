"""The command line, on run directories of real compiles."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import dspy
import pytest
from click.testing import CliRunner, Result
from runs import (
    ADVICE,
    Pair,
    is_polite,
    knowing,
    learned,
    optimizer_of,
    polite_rules,
    predictor,
    questions,
)
from scripted import EXTRACT, scripted_lm
from warm import ENVIRONMENT, TESTS, ran

from tfgrpo_dspy import Effect, Evidence, Experience, ExperienceLibrary, NoGate
from tfgrpo_dspy.cli import tfgrpo
from tfgrpo_dspy.events import RunEnded, UpdateDecided
from tfgrpo_dspy.interchange import read_library
from tfgrpo_dspy.store import DATABASE, Store, saved_runs

MODULE = ["-m", "tfgrpo_dspy"]
SEEN = (Evidence(0, 1, (1, 2), (0.0, 1.0)),)
KNOWN = Experience("E1", "Ask first.", evidence=SEEN, effect=Effect(0.2, 0.1, 40), n_tokens=7)
LIBRARY = ExperienceLibrary([KNOWN, Experience("E3", "Say ≥ 3.", "first")], next_number=5)


def run(*args: Any) -> Result:
    return CliRunner().invoke(tfgrpo, [*map(str, args)])


def values(*args: Any, exit_code: int = 0) -> Any:
    """The JSON that a command prints, and nothing else, on stdout."""
    result = run(*args, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def refusal(*args: Any) -> str:
    """The one line that a refused command says on stderr."""
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    *_, line = result.stderr.splitlines()
    assert line.startswith("Error: ") and "Traceback" not in result.stderr
    return line


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two run stores: in `a` two runs, of which the first found nothing; in `deep/b` one."""
    folder = tmp_path_factory.mktemp("runs")
    learned(log_dir=folder / "a", max_experiences=1, approve=lambda _: False, gate=NoGate())
    learned(log_dir=folder / "a")
    learned(log_dir=folder / "deep" / "b", gate=NoGate())
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A library file, and the saved programs `bare.json` and `pair.json`, which knows advice."""
    LIBRARY.save(tmp_path / "library.json")
    predictor().save(tmp_path / "bare.json")
    knowing("Old advice.", student=Pair()).save(tmp_path / "pair.json")
    return tmp_path


def test_runs_lists_every_run_below_a_folder_with_its_scores_and_calls(stores: Path) -> None:
    first, second, third = values("runs", stores)
    expected = saved_runs(stores / "a")[-1]
    assert second["run"] == expected.origin["run"]
    assert (second["finished"], second["n_experiences"]) == (True, 1)
    assert second["before"] == expected.student.mean < second["after"]
    assert second["n_LM_calls"] == sum(u.n_lm_calls for u in expected.usage.values())
    assert first["n_experiences"] == 0
    folders = [Path(each["run_dir"]) for each in (first, second, third)]
    assert folders == [stores / "a", stores / "a", stores / "deep" / "b"]
    lines = run("runs", stores).stdout.splitlines()
    ids = [each["run"][:8] for each in values("runs", stores)]
    assert [line.split()[0] for line in lines] == ["run", *ids]
    assert len({line.index("0.") for line in lines[1:]} | {lines[0].index("before")}) == 1


def test_runs_says_with_exit_code_1_that_there_are_none_and_names_unreadable_stores(
    tmp_path: Path, stores: Path
) -> None:
    none = run("runs", tmp_path)
    assert (none.exit_code, none.stdout) == (1, "") and "log_dir" in none.stderr
    Store(tmp_path / "a" / "damaged").close()
    (tmp_path / "a" / "damaged" / DATABASE).write_bytes(b"no database" * 1000)
    shutil.copytree(stores / "deep", tmp_path / "deep")
    result = run("runs", tmp_path)
    assert result.exit_code == 2 and "is damaged" in result.stderr
    assert str(tmp_path / "deep" / "b") in result.stdout


def test_show_has_the_effects_of_a_run_and_of_a_library_file(stores: Path, saved: Path) -> None:
    (shown,) = values("show", stores / "a")
    (known,) = saved_runs(stores / "a")[-1].experiences
    assert (shown["id"], shown["text"], shown["effect"]) == ("E1", ADVICE, known.effect.estimate)
    assert shown["n_groups"] == len(known.evidence) > 0
    first, second = values("show", saved / "library.json")
    assert (first["low"], first["high"]) == pytest.approx((0.2 - 1.96 * 0.1, 0.2 + 1.96 * 0.1))
    assert (second["effect"], second["scope"]) == (None, "first")
    head, line, _ = run("show", saved / "library.json").stdout.splitlines()
    assert " ".join(head.split()) == "id effect low high rollouts tokens groups scope text"
    assert line.split() == ["E1", "0.200", "0.004", "0.396", "40", "7", "1", "*", "Ask", "first."]
    assert [each["text"] for each in values("show", saved / "pair.json")] == ["Old advice."]
    assert values("show", saved / "bare.json") == []


def test_an_earlier_run_is_named_by_the_beginning_of_its_id(stores: Path) -> None:
    first, second = (run.origin["run"] for run in saved_runs(stores / "a"))
    assert values("show", f"{stores / 'a'}#{first[:6]}") == []
    assert "validation" in run("show", stores / "a", "--full").stdout
    assert values("show", f"{stores / 'a'}#{first}", "--full")["ended_because"]
    said = refusal("show", f"{stores / 'a'}#zz")
    assert first[:8] in said and second[:8] in said


def test_a_text_cannot_steer_the_terminal(tmp_path: Path) -> None:
    ExperienceLibrary.from_texts(["Red \x1b[31m and \u202e reversed."]).save(tmp_path / "x.json")
    assert "Red and reversed." in run("show", tmp_path / "x.json").stdout


def test_report_writes_the_page_of_a_run(stores: Path, tmp_path: Path) -> None:
    result = run("report", stores / "a", "-o", tmp_path / "report.html")
    assert result.stdout.strip() == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert ADVICE in page
    assert run("report", stores / "a", "-o", "-").stdout == page


def test_diff_ends_with_1_where_libraries_differ_and_with_0_where_they_do_not(
    saved: Path, stores: Path
) -> None:
    same = run("diff", saved / "library.json", saved / "library.json")
    assert (same.exit_code, same.stdout) == (0, "")
    changed = ExperienceLibrary([Experience("E1", "Ask twice."), Experience("E4", "New.")])
    changed.save(saved / "changed.json")
    differs = run("diff", saved / "library.json", saved / "changed.json")
    assert differs.exit_code == 1
    assert [line[:6] for line in differs.stdout.splitlines()] == ["+ [E4]", "- [E3]", "~ [E1]"]
    assert run("diff", stores / "a", stores / "deep" / "b").exit_code == 0  # the same advice


def test_merge_keeps_the_ids_of_the_first_library(saved: Path) -> None:
    out = saved / "merged.md"
    assert run("merge", saved / "library.json", saved / "pair.json", "-o", out).exit_code == 0
    texts = {each.id: each.text for each in read_library(out)}
    assert texts == {"E1": "Ask first.", "E3": "Say ≥ 3.", "E5": "Old advice."}


def test_export_writes_the_format_that_is_named(saved: Path) -> None:
    for name in ("out.json", "out.md", "SKILL.md"):
        assert run("export", saved / "library.json", "-o", saved / name).exit_code == 0
        assert read_library(saved / name) == LIBRARY
    printed = run("export", saved / "library.json").stdout
    assert printed == (saved / "out.json").read_text("utf-8")


def test_what_cannot_be_read_is_refused_in_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "latin.md").write_bytes(b"- na\xefve\n")
    for name, said in {
        "missing.json": "No such file", "bad.json": "line 1", "latin.md": "UTF-8",
        "x.pkl": "No such file", ".": "no run store",
    }.items():  # fmt: skip
        assert said in refusal("show", tmp_path / name)
    assert "No such command" in refusal("nonsense")


def test_the_script_and_the_module_are_the_same_command() -> None:
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text("utf-8"))
    module, _, name = project["project"]["scripts"]["tfgrpo"].partition(":")
    script = f"import sys; from {module} import {name}; sys.exit({name}())"
    one, other = (ran([*how, "--help"]) for how in (MODULE, ["-c", script]))
    assert one.stdout == other.stdout and one.returncode == other.returncode == 0
    assert "Usage: tfgrpo " in one.stdout and "Exit codes" in one.stdout


def test_a_terminal_without_the_characters_gives_no_traceback(saved: Path) -> None:
    latin = {"cwd": saved, "env": ENVIRONMENT | {"PYTHONIOENCODING": "latin-1"}}
    shown = ran([*MODULE, "show", "library.json"], **latin)
    assert (shown.returncode, shown.stderr) == (0, "") and r"Say \u2265 3." in shown.stdout


# -------------------------------------------------------------------- rollouts and reflections


def with_objectives(example: Any, pred: Any, trace: Any = None) -> dspy.Prediction:
    score = is_polite(example, pred, trace).score
    more = {"polite": score} if score else {}
    return dspy.Prediction(score=score, objectives={"short": 1.0} | more)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run with a test set: its folder, its results, and its events."""
    events: list[Any] = []
    log_dir = tmp_path_factory.mktemp("done")
    settings = {"max_lm_calls": 150, "log_dir": log_dir, "max_demos": 2, "on_event": events.append}
    sets = {"trainset": questions(6), "valset": questions(12, 100), "testset": questions(4, 200)}
    with dspy.context(lm=scripted_lm(polite_rules()), adapter=None, callbacks=[]):
        program = optimizer_of(metric=with_objectives, **settings).compile(predictor(), **sets)
    return log_dir, program.detailed_results, events


def test_every_rollout_of_the_updates_and_of_the_choice_is_a_row(done: Any) -> None:
    log_dir, results, events = done
    found = values("rollouts", log_dir)
    training = [row for row in found if row["set"] == "training"]
    for update in results.updates:
        scores = sorted(s for group in update.groups for s in group.scores if s is not None)
        assert sorted(r["score"] for r in training if r["update"] == update.update) == scores
    of_student = [r for r in found if r["set"] == "test" and not r["experiences"]]
    assert [r["score"] for r in of_student].count(1.0) == results.test.student.mean * 4
    rows = [e.rollouts for e in events if isinstance(e, UpdateDecided | RunEnded)]
    assert [row["score"] for of in rows for row in of] == [row["score"] for row in found]


def test_json_has_columns_for_objectives_and_the_terminal_the_beginning_of_long_texts(
    done: Any,
) -> None:
    log_dir, _, _ = done
    assert {row["objective polite"] for row in values("rollouts", log_dir)} == {1.0, None}
    asked = max((row["asked"] for row in values("reflections", log_dir)), key=len)
    beginning = asked[:20].replace("\n", " ")
    lines = [line for line in run("reflections", log_dir).stdout.split("\n") if beginning in line]
    assert lines and all(" ..." in line and len(line) < len(asked) for line in lines)


def test_what_the_reflection_lm_answered_is_shown_also_where_it_could_not_be_read(
    tmp_path: Path,
) -> None:
    (_, good), *rest = polite_rules()
    talk = "}{ I had rather talk of ships"
    asked_again = (EXTRACT + r"(?s:.*)Your previous answer could not be read", good)
    rambling = [(EXTRACT + r"(?s:.*)question 3", talk), asked_again, (EXTRACT, talk)]
    learned(lm=scripted_lm([*rambling, *rest]), log_dir=tmp_path, epochs=1)
    found = values("reflections", tmp_path)
    by_fault = {row["fault"]: row for row in found}
    assert by_fault["nothing in the answer could be read"]["answered"].startswith("}{ I had rather")
    assert json.loads(by_fault[f"could not be read at first: {talk}"]["answered"]) == [ADVICE]
    assert {row["stage"] for row in found} == {"lesson", "update"}
