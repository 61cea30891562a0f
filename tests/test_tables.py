"""The tables of a run: its rollouts, its questions to the reflection LM, its examples."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from click.testing import CliRunner
from runs import (
    ADVICE,
    AtCall,
    is_polite,
    learned,
    optimizer_of,
    polite_rules,
    predictor,
    questions,
)
from scripted import EXTRACT, chat, lessons, scripted_lm

from tfgrpo_dspy import NoGate
from tfgrpo_dspy.cli import tfgrpo
from tfgrpo_dspy.events import RunEnded, UpdateDecided
from tfgrpo_dspy.report import html
from tfgrpo_dspy.store.runs import saved_runs


def command(*args: Any) -> str:
    result = CliRunner().invoke(tfgrpo, [*map(str, args)])
    assert result.exit_code == 0, result.output
    return result.stdout


def rows(name: str, log_dir: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command(name, log_dir, "--json"))
    return found


def with_objectives(example: Any, pred: Any, trace: Any = None) -> dspy.Prediction:
    score = is_polite(example, pred, trace).score
    return dspy.Prediction(
        score=score, objectives={"short": 1.0} | ({"polite": score} if score else {})
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run with a test set; the results have its events as `events`."""
    events: list[Any] = []
    log_dir = tmp_path_factory.mktemp("done")
    settings = {"max_lm_calls": 150, "log_dir": log_dir, "max_demos": 2, "on_event": events.append}
    sets = {"trainset": questions(6), "valset": questions(12, 100), "testset": questions(4, 200)}
    with dspy.context(lm=scripted_lm(polite_rules()), adapter=None, callbacks=[]):
        program = optimizer_of(metric=with_objectives, **settings).compile(predictor(), **sets)
    return log_dir, program.detailed_results, events


def test_every_rollout_of_the_updates_and_of_the_choice_is_a_row(done: Any) -> None:
    log_dir, results, events = done
    found = rows("rollouts", log_dir)
    training = [row for row in found if row["set"] == "training"]
    for update in results.updates:
        scores = sorted(s for group in update.groups for s in group.scores if s is not None)
        assert sorted(r["score"] for r in training if r["update"] == update.update) == scores
    of_student = [r for r in found if r["set"] == "test" and not r["experiences"]]
    assert [r["score"] for r in of_student].count(1.0) == results.test.student.mean * 4
    told = [e.rollouts for e in events if isinstance(e, UpdateDecided | RunEnded)]
    assert [row.score for of in told for row in of] == [row["score"] for row in found]


def test_csv_json_and_parquet_have_the_same_rows(done: Any, tmp_path: Path) -> None:
    log_dir, _, _ = done
    found = rows("rollouts", log_dir)
    read = list(csv.DictReader(io.StringIO(command("rollouts", log_dir, "--csv"))))
    assert [row["outputs"] for row in read] == [row["outputs"] for row in found]
    assert [float(row["score"]) for row in read] == [row["score"] for row in found]
    assert {row["objective polite"] for row in read} == {"1.0", ""}
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is in the extra `parquet`")
    assert command("rollouts", log_dir, "--parquet", tmp_path / "rows.parquet") == ""
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == found


def test_two_forms_at_once_are_refused(done: Any) -> None:
    both = CliRunner().invoke(tfgrpo, ["rollouts", str(done[0]), "--json", "--csv"])
    assert (both.exit_code, both.stdout) == (2, "")
    assert "pass --json or --csv, not both." in both.stderr


def test_the_terminal_shows_the_beginning_of_a_long_text_and_csv_all_of_it(done: Any) -> None:
    log_dir, _, _ = done
    asked = max((row["asked"] for row in rows("reflections", log_dir)), key=len)
    beginning = asked[:20].replace("\n", " ")
    lines = [line for line in command("reflections", log_dir).split("\n") if beginning in line]
    assert lines and all(" ..." in line and len(line) < len(asked) for line in lines)
    assert asked in [
        r["asked"] for r in csv.DictReader(io.StringIO(command("reflections", log_dir, "--csv")))
    ]


def test_a_cell_that_a_spreadsheet_would_run_is_a_text(tmp_path: Path) -> None:
    rules = [("question", chat(answer='=HYPERLINK("http://x.example")'))]
    learned(lm=scripted_lm([*polite_rules()[:2], *rules]), log_dir=tmp_path)
    text = command("rollouts", tmp_path, "--csv")
    assert "answer: =HYPER" in text
    assert '"=' not in text


def test_what_the_reflection_lm_answered_is_shown_also_where_it_could_not_be_read(
    tmp_path: Path,
) -> None:
    (_, good), *rest = polite_rules()
    talk = "}{ I had rather talk of ships"
    asked_again = (EXTRACT + r"(?s:.*)Your previous answer could not be read", good)
    rambling = [(EXTRACT + r"(?s:.*)question 3", talk), asked_again, (EXTRACT, talk)]
    learned(lm=scripted_lm([*rambling, *rest]), log_dir=tmp_path, epochs=1)
    found = rows("reflections", tmp_path)
    by_use = {row["fault"]: row for row in found}
    assert by_use["nothing in the answer could be read"]["answered"].startswith("}{ I had rather")
    assert json.loads(by_use[f"could not be read at first: {talk}"]["answered"]) == [ADVICE]
    assert "question 3" in by_use["nothing in the answer could be read"]["asked"]
    assert "at most" not in found[0]["asked"]  # what all of them are asked is left out
    assert {row["stage"] for row in found} == {"lesson", "update"}


def test_examples_stand_with_the_worst_of_the_result_first(done: Any) -> None:
    log_dir, results, _ = done
    found = rows("examples", log_dir)
    assert [row["result"] for row in found] == sorted(row["result"] for row in found)
    for name, best, n in (("validation", results.best, 12), ("test", results.test.best, 4)):
        of_set = [row["result"] for row in found if row["set"] == name]
        assert len(of_set) <= n
        assert sum(of_set) / len(of_set) == pytest.approx(best.mean)
    first = next(row for row in found if row["student"] < row["result"])
    assert (first["student_outputs"], first["result_outputs"]) == ("answer: no", "answer: please")


def test_a_run_that_was_interrupted_shows_what_was_decided(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    lm = scripted_lm(polite_rules(), before=AtCall(40, interrupt))
    with pytest.raises(KeyboardInterrupt):
        learned(lm=lm, log_dir=tmp_path, batch_size=2, num_threads=1)
    (run,) = saved_runs(tmp_path)
    n_decided = len(run.results.updates)
    assert n_decided
    assert {row["update"] for row in rows("rollouts", tmp_path)} == set(range(n_decided))
    assert command("examples", tmp_path) == "no examples\n"
    learned(log_dir=tmp_path, batch_size=2, num_threads=1)
    (run,) = saved_runs(tmp_path)
    found = rows("rollouts", tmp_path)
    ids = [(row["set"], row["experiences"], row["rollout_id"]) for row in found]
    assert len(set(ids)) == len(ids)
    updates = {row["update"] for row in found if row["set"] == "training"}
    assert updates == set(range(len(run.results.updates)))


def test_a_lesson_that_names_its_examples_has_the_evidence_of_these_only(tmp_path: Path) -> None:
    named = lessons(f"{ADVICE} (example 2)")
    rules = [(EXTRACT, named), *polite_rules()[1:]]
    program = learned(
        lm=scripted_lm(rules), groups_per_call=3, epochs=1, gate=NoGate(), log_dir=tmp_path
    )
    asked = [row["asked"] for row in rows("reflections", tmp_path) if "Example 2" in row["asked"]]
    second = {int(text.partition("Example 2\nquestion: question ")[2][0]) for text in asked}
    first = {int(text.partition("Example 1\nquestion: question ")[2][0]) for text in asked}
    (experience,) = program.detailed_results.experiences
    found = {evidence.example for evidence in experience.evidence}
    assert second <= found
    assert not first & found
    (updated, *_) = [
        row["asked"] for row in rows("reflections", tmp_path) if row["stage"] == "update"
    ]
    assert f'at "question: question {experience.evidence[0].example}"' in updated


def test_csv_is_whole_whatever_the_terminal_can_write(tmp_path: Path) -> None:
    lm = scripted_lm(polite_rules("Sag „bitte“ 😀."))
    learned(lm=lm, log_dir=tmp_path, gate=NoGate(), epochs=1)
    arguments = ["reflections", str(tmp_path), "--csv"]
    printed = CliRunner(charset="cp1250").invoke(tfgrpo, arguments).stdout_bytes
    assert "Sag „bitte“ 😀." in printed.decode("utf-8")


def test_the_report_says_which_run_it_is_and_shows_examples_and_demos(done: Any) -> None:
    log_dir, results, _ = done
    page = html(log_dir)
    (run,) = saved_runs(log_dir)
    assert f"Run {run.id[:8]}, begun {run.begun[:10]} " in page
    assert str(log_dir) in page
    assert "the program Predict ran on scripted" in page
    assert page.count('<th scope="row">validation ') == sum(
        row.set == "validation" for row in results.examples
    )
    assert results.n_demos == len(results.demos) == 2
    assert f"question: {results.demos[0].fields['question']}" in page
    assert html(results) == page
