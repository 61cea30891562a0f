"""Every example runs as a user runs it, in a folder of its own, with no key and no network."""

import ast
import csv
import io
import json
import os
import re
import runpy
import sys
from pathlib import Path
from subprocess import CompletedProcess

import gsm8k
import multiple_choice_zh
import nbformat
import pytest
from nbclient import NotebookClient
from simulated_rules import Prompt, lessons
from warm import ran

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
INDEX = (EXAMPLES / "README.md").read_text(encoding="utf-8")
MODULES = {"simulated.py", "simulated_rules.py", "support_replies.py"}
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.name not in MODULES)
ON_REAL_LMS = {"quickstart", "recorded"}  # the first takes minutes
ON_SIMULATED_LM = [name for name in SCRIPTS if name not in ON_REAL_LMS]
INTERVAL = r"([+-]\d\.\d+) \[([+-]\d\.\d+), "

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def environment(folder: Path) -> dict[str, str]:
    """No key of the user's, no cache but an empty one, and a proxy that nobody answers at."""
    nobody = "http://127.0.0.1:9"
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "DSPY_CACHEDIR": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(EXAMPLES)]),
        "HTTP_PROXY": nobody,
        "HTTPS_PROXY": nobody,
    }


def run(name: str, folder: Path, *arguments: str) -> CompletedProcess[str]:
    return ran([EXAMPLES / f"{name}.py", *arguments], cwd=folder, env=environment(folder))


def printed(name: str, folder: Path) -> str:
    """What the example prints; it says that its LM is simulated."""
    done = run(name, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Simulated LM: these figures say nothing about real LMs.")
    return done.stdout


def gain(text: str, row: str = "held-out test  gain ") -> tuple[float, float]:
    """The mean and the lower bound of a gain."""
    ((mean, low),) = re.findall(rf"^\s*{row}.*?{INTERVAL}", text, re.MULTILINE)
    return float(mean), float(low)


def test_an_example_that_needs_another_package_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "rdflib.py").write_text("raise ModuleNotFoundError('No module named rdflib')")
    given = environment(tmp_path)
    given["PYTHONPATH"] = os.pathsep.join([str(tmp_path), given["PYTHONPATH"]])
    done = ran([EXAMPLES / "sparql_agent.py"], cwd=tmp_path, env=given)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install rdflib" in done.stderr


def test_a_recorded_run_on_real_lms_is_replayed_without_any(tmp_path: Path) -> None:
    done = run("recorded", tmp_path)
    assert done.returncode == 0, done.stderr
    assert gain(done.stdout, "held-out test +gain ") == (0.625, 0.531)
    before, _, after = done.stdout.partition("The instructions of 'self', before:")[2].partition(
        "and after:"
    )
    assert "| RMA |" in after and "| RMA |" not in before
    assert "Lessons of update" in done.stdout
    assert "LOG/P4" in (tmp_path / "recorded.html").read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in (EXAMPLES / "recorded").iterdir()) < 1_000_000


def test_a_program_of_ones_own_gains_and_is_saved_with_its_advice(tmp_path: Path) -> None:
    text = printed("own_program", tmp_path)
    assert gain(text)[1] > 0.1
    saved = (tmp_path / "triage.json").read_text(encoding="utf-8")
    assert "When the message is about outages, the priority is urgent." in saved


def test_an_agent_learns_the_customs_of_its_database(tmp_path: Path) -> None:
    text = printed("sqlite_agent", tmp_path)
    assert gain(text)[0] > 0.2
    assert re.search("divide them by 100|status 'paid'", text)
    assert len(set(re.findall(r"^(?:before|after): (.*)", text, re.MULTILINE))) == 2


def test_word_problems_are_read_from_a_file_of_gsm8k(tmp_path: Path) -> None:
    text = printed("gsm8k", tmp_path)
    assert gain(text)[1] > 0.1
    assert "Give the number alone." in text
    row = {"question": "How many?", "answer": "First 2*617=<<2*617=1234>>1234.\n#### 1,234"}
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(row)}\n", encoding="utf-8")
    assert [example.answer for example in gsm8k.read(tmp_path / "train.jsonl")] == ["1,234"]


def test_a_file_of_ones_own_needs_a_real_lm_and_the_example_says_so(tmp_path: Path) -> None:
    done = run("gsm8k", tmp_path, "--data", "train.jsonl")
    assert "the simulated LM cannot solve it; pass --lm" in done.stderr


def test_feedback_on_one_of_three_predictors_gives_advice_to_that_one(tmp_path: Path) -> None:
    text = printed("three_stages", tmp_path)
    library = text.partition("who reads which advice\n")[2].splitlines()
    about_claims = [line for line in library if "When the cause is" in line]
    assert len(about_claims) >= 2
    assert all(line.startswith("  [decide] ") for line in about_claims)
    assert not re.search(r"\[(read|write)\]", text)
    assert gain(text)[1] > 0.1


def test_traces_teach_without_being_run_again(tmp_path: Path) -> None:
    text = printed("from_traces", tmp_path)
    traces = (tmp_path / "traces.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(traces) == 60  # two replies to each of 30 complaints
    before, after = map(float, re.findall(r"other complaints, \w+: (\d\.\d+)", text))
    assert after - before > 0.3
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_library_that_was_learned_on_one_lm_gains_on_another(tmp_path: Path) -> None:
    text = printed("carry_over", tmp_path)
    assert all(gain(text, f"{lm} ")[1] > 0.1 for lm in "AB")
    assert (tmp_path / "library.json").exists()


def test_optimizers_are_compared_at_about_the_same_number_of_calls(tmp_path: Path) -> None:
    text = printed("optimizers_on_your_task", tmp_path)
    rows = dict(re.findall(r"^(\S.*?) +(\d+) +\d\.\d+  [+-]", text, re.MULTILINE))
    n_calls = {name: int(n) for name, n in rows.items() if name != "the student"}
    assert {"TrainingFreeGRPO", "GEPA", "SIMBA", "bootstrapping"} == n_calls.keys()
    assert n_calls["TrainingFreeGRPO"] <= 300
    assert all(240 <= n <= 340 for n in n_calls.values()), n_calls
    assert gain(text, "TrainingFreeGRPO")[1] > 0.1


def test_an_agent_learns_from_the_errors_of_its_queries(tmp_path: Path) -> None:
    text = printed("sparql_agent", tmp_path)
    before, after = map(float, re.findall(r"before (\S+) after (\S+) on the test set", text)[0])
    assert after > before + 0.2
    assert re.search(r"STR\(\?label\)|\(COUNT\(\?x\) AS \?n\)|Declare each prefix", text)
    assert re.search(r"^before: turn 2", text, re.MULTILINE)
    assert re.search(r"^after: turn \d, answer (\S+) \(right: \1\)", text, re.MULTILINE)


def test_the_whole_path_of_multiple_choice_is_chinese_and_gains(tmp_path: Path) -> None:
    text = printed("multiple_choice_zh", tmp_path)
    assert "192 training, 24 validation, 24 test questions" in text
    assert gain(text)[1] > 0.1
    library = re.findall(r"^  E\d+ .*every predictor  (.*)", text, re.MULTILINE)
    assert len([line for line in library if re.match("见.+者，辨为.+证。$", line)]) >= 4


@pytest.mark.parametrize("suffix", multiple_choice_zh.READERS)
def test_questions_are_read_from_csv_json_and_json_lines(suffix: str, tmp_path: Path) -> None:
    path, stem = tmp_path / f"questions{suffix}", "患者自汗，应辨为何证？"
    rows = [
        {"question": stem, "A": "气虚证", "B": "血虚证", "C": "阴虚证", "D": "阳虚证", "E": None},
        {"question": stem, "A": "甲", "B": "乙", "C": "丙", "D": "丁", "E": "戊"},
    ]
    rows = [{**row, "answer": a} for row, a in zip(rows * 5, "aＥ" * 5, strict=True)]
    rows[2] |= {"A": "007", "B": "None", "C": "两\n行"}
    rows = [{" A" if name == "A" else name: row[name] for name in row} for row in rows]
    if suffix == ".csv":
        table = io.StringIO()
        writer = csv.DictWriter(table, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(table.getvalue(), "gb18030", newline="")
    else:
        lines = "\n".join(map(json.dumps, rows))
        path.write_text(json.dumps(rows) if suffix == ".json" else lines)
    first, second, third, *_ = multiple_choice_zh.read(path)
    assert (first.question, first.answer, second.answer) == (stem, "A", "E")
    assert first.options == "A. 气虚证\nB. 血虚证\nC. 阴虚证\nD. 阳虚证"
    assert second.options.endswith("E. 戊")
    assert third.options == "A. 007\nB. None\nC. 两 行\nD. 阳虚证"


def test_the_gap_between_customer_groups_closes_at_no_loss_of_correctness(tmp_path: Path) -> None:
    text = printed("fair_replies", tmp_path)
    row = r"{} +right (\S+) +gap between groups (\S+) +words (\S+)"
    before, after = (
        tuple(map(float, re.search(row.format(name), text).groups()))
        for name in ("student", "Objectives")
    )
    assert after[0] >= before[0] and after[1] < before[1] / 2 and after[2] < before[2]


def test_agents_contribute_with_the_global_term_and_hardly_without(tmp_path: Path) -> None:
    text = printed("public_goods", tmp_path)
    shares = dict(re.findall(r"^(.*?) +(\d\.\d\d) of the agents", text, re.MULTILINE))
    assert float(shares["without the term"]) < 0.3 < 0.7 < float(shares["with the term"])


def test_grids_are_solved_more_often_with_a_reference_order(tmp_path: Path) -> None:
    text = printed("sudoku", tmp_path)
    shares = dict(re.findall(r"^(\w+) +(\d\.\d\d) of the test grids", text, re.MULTILINE))
    assert float(shares["student"]) < float(shares["without"]) < float(shares["with"])


def test_function_calls_gain_with_diversity(tmp_path: Path) -> None:
    text = printed("function_calls", tmp_path)
    means = {name: float(mean) for name, mean in re.findall(r"^(\w+) +(\S+) of", text, re.M)}
    assert means["with"] > means["without"] + 0.5


def test_the_notebook_runs_and_shows_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)  # none are stored
    for name, value in environment(tmp_path).items():  # which the kernel gets, too
        monkeypatch.setenv(name, value)
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in code for output in cell.outputs if "data" in output]
    shown = [output.data.get("text/html", "") for output in outputs]
    assert any("held-out test" in html for html in shown)
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_what_an_example_does_and_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert {"--lm", "--reflection-lm"} <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))


@pytest.mark.parametrize("name", ON_SIMULATED_LM)
def test_an_example_says_how_to_run_it_on_which_lm_and_how_long_it_takes(name: str) -> None:
    code = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(code)) or ""
    assert f"python examples/{name}.py" in about
    assert re.search(r"simulated LMs? in\s+\d+\s+seconds", about)


def test_the_index_lists_every_file_and_no_other() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    listed = re.findall(r"\]\((\w+\.\w+)\)", INDEX)
    assert set(listed) == files


def test_the_simulated_reflection_lm_knows_no_more_than_its_prompt_shows() -> None:
    told = "Say sorry for the trouble."
    said, unsaid = "Feedback: Mention Brightwell. Good: it is short.", "Outputs:\n- reply: Goodbye."
    shown, nothing = (Prompt(told, f"[[ ## attempts ## ]]\n{t}", {}, 1) for t in (said, unsaid))
    useless = ("", "Think before you answer.")
    assert set(lessons(shown, attentive=1.0)) - {useless} == {("", "Mention Brightwell.")}
    assert set(lessons(nothing, attentive=1.0)) <= {useless}
