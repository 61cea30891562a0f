"""What README and docs say is run: their code as it stands, on a scripted LM."""

import importlib.util
import inspect
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import dspy
import pytest
from click.testing import CliRunner
from runs import learned
from scripted import (
    EXTRACT,
    UPDATE,
    AsyncEngine,
    Prompt,
    Rule,
    ScriptedEngine,
    chat,
    lessons,
    operations,
    scripted_lm,
)

from tfgrpo_dspy import Execution, Reflection, TrainingFreeGRPO
from tfgrpo_dspy.cli import tfgrpo
from tfgrpo_dspy.results import FAILURES_IN_WORDS, RunResults
from tfgrpo_dspy.rollout import FailureKind
from tfgrpo_dspy.store import saved_runs

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
ADVICE = "Give the number alone."


def answer(prompt: Prompt) -> str:
    is_right = ADVICE in prompt.system or prompt.random().random() < 0.4
    return chat(reasoning="It is a sum.", answer="4" if is_right else "four")


def turn(prompt: Prompt) -> str:
    """An agent searches once."""
    is_done = "observation_0" in prompt.user
    tool, arguments = ("finish", {}) if is_done else ("search", {"query": "numbers"})
    return chat(next_thought="go on", next_tool_name=tool, next_tool_args=arguments)


def present(prompt: str) -> str:
    """The instructions as they stand: no brief is tried."""
    return re.findall(r"## present ## \]\]\n(.*?)\n\n\[\[ ##", prompt, re.DOTALL)[-1]


def rules(*texts: str) -> list[Rule]:
    """The reflection LM writes these lessons; the program's LM follows `ADVICE` alone."""
    found = [{"op": "ADD", "text": text, "lessons": [n]} for n, text in enumerate(texts, start=1)]
    return [
        (EXTRACT, lessons(*texts)),
        (UPDATE, operations(*found)),
        ("`lessons`", chat(lessons="None")),
        ("`brief`", lambda prompt: chat(brief=present(prompt.user))),
        (r"output fields are:\n1\. `topic`", chat(topic="numbers")),
        ("`next_tool_name`", turn),
        ("question", answer),
    ]


RULES = rules(ADVICE)
BAD_ADVICE = "Answer in words."
*REFLECTIONS, ASKED = rules(ADVICE, BAD_ADVICE)
WITH_BAD_ADVICE = [*REFLECTIONS, (BAD_ADVICE, chat(reasoning="", answer="four")), ASKED]
RULES_OF = {"results": WITH_BAD_ADVICE}
OUTPUT_FOLLOWS = "It prints:"  # the output of the block before


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:
    del trace  # DSPy's metrics have it
    is_right = example.answer == pred.answer
    feedback = "" if is_right else "Give a bare number."
    return dspy.Prediction(score=float(is_right), feedback=feedback)


def examples(first: int, last: int) -> list[dspy.Example]:
    pairs = [(f"{number} - {number - 4}", "4") for number in range(first, last)]
    return [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in pairs]


def without_figures(text: str) -> list[str]:
    """The lines, with # for each number: what a gate estimates may change a little."""
    lines = (re.sub(r"\d+([.,]\d+)*", "#", line) for line in text.strip().splitlines())
    return [re.sub(" +", " ", line) for line in lines]


def test_the_readmes_example_runs_as_it_stands_and_prints_what_stands_below_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [block for block in blocks(README, "python") if block.startswith("import dspy\n")]
    text = README.read_text(encoding="utf-8")
    (output,) = re.findall(r"this prints:\n\n```text\n(.*?)```", text, re.DOTALL)
    code = code.replace("dspy.configure(lm=dspy.LM(", "str((")
    code = re.sub(r"dspy\.LM\([^)]*\)", "None", code)
    monkeypatch.chdir(tmp_path)
    with dspy.context(lm=scripted_lm(RULES)):
        exec(compile(code, "README.md", "exec"), {})
    assert without_figures(capsys.readouterr().out) == without_figures(output)
    saved = (tmp_path / "optimized.json").read_text(encoding="utf-8")
    assert f"[E1*] {ADVICE}" in saved
    assert f"\n[E1*] {ADVICE}\n(next id: E2)\n</experiences>\n" in text  # the prompt after learning


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_as_it_stands(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also compares each text block behind "It prints:" with what the block before it printed."""
    given = RULES_OF.get(page.stem, RULES)
    lm = scripted_lm(given, async_engine=AsyncEngine(ScriptedEngine(given)))
    names = {
        "lm": lm,
        "program": dspy.ChainOfThought("question -> answer"),
        "metric": metric,
        "trainset": examples(4, 24),
        "valset": examples(24, 44),
        "testset": examples(44, 64),
    }
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    with dspy.context(lm=lm):
        for found in re.finditer(r"```(python|text)\n(.*?)```", text, re.DOTALL):
            kind, block = found.groups()
            if kind == "python":
                capsys.readouterr()
                line = text.count("\n", 0, found.start()) + 1
                exec(compile(block, f"{page.name}, line {line}", "exec"), names)
            elif text[: found.start()].rstrip().endswith(OUTPUT_FOLLOWS):
                assert without_figures(capsys.readouterr().out) == without_figures(block)


def anchors(page: Path) -> set[str]:
    """The names by which links lead to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *PAGES], ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    broken = []
    for link in links:
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (
            target.exists() and (not heading or heading in anchors(target))
        ):
            broken.append(link)
    assert broken == []


def test_the_commands_of_the_page_on_results_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        learned(log_dir=tmp_path / "runs" / "support", seed=seed)
    ids = [run.origin["run"][:8] for run in saved_runs(tmp_path / "runs" / "support")]
    (block,) = blocks(ROOT / "docs" / "results.md", "bash")
    block = block.replace("#3f2c", f"#{ids[0]}").replace("#91ab", f"#{ids[1]}")
    monkeypatch.chdir(tmp_path)
    for line in block.splitlines():
        command = line.partition("  #")[0].removeprefix("tfgrpo ").split()
        done = CliRunner().invoke(tfgrpo, command)
        assert done.exit_code == (1 if command[0] == "diff" and done.output else 0), line
    assert (tmp_path / "SKILL.md").exists()


def test_the_fields_that_the_page_of_results_names_are_there() -> None:
    text = (ROOT / "docs" / "results.md").read_text("utf-8").partition("## The fields")[2]
    rows = [line.split(" | ")[0] for line in text.partition("\n## ")[0].splitlines()]
    named = re.findall(r"`(\w+)`", "\n".join(row for row in rows if row.startswith("| `")))
    assert len(named) >= 25
    assert {*named} <= {*dir(RunResults), *(each.name for each in fields(RunResults))}


def test_each_paper_has_a_verdict_and_tests_that_are_there() -> None:
    page = (ROOT / "docs" / "strategies.md").read_text("utf-8")
    table = page.partition("## From which paper")[2]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")]
    head, _, *systems = rows
    assert head[-2:] == [" verdict ", " test "]
    folders = ROOT / "tests", ROOT / "benchmarks" / "tests"
    paths = (path for folder in folders for path in folder.glob("test_*.py"))
    code = "\n".join(path.read_text("utf-8") for path in paths)
    there = {*re.findall(r"^def (test_\w+)\(", code, re.MULTILINE)}
    for *_, verdict, tests in systems:
        named = re.findall(r"`(test_\w+)`", tests)
        assert re.match(" (faithful|half: |no paper|name only)", verdict)
        assert named and not {*named} - there, tests


def test_the_page_of_a_result_says_in_words_what_each_kind_of_failure_is() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "tfgrpo_dspy").rglob("*.py")]
    kinds = re.findall(r'count_failure[,(]\s*"([^"]+)"', "\n".join(sources))
    kinds += [kind.value for kind in FailureKind if kind.is_counted]
    kinds += [
        "parameter left out",
        "usage not reported",
        "listener",
        "lesson refused",
        "lesson too many",
    ]
    assert {"replay", "guard"} < {*kinds}
    assert {*kinds} == FAILURES_IN_WORDS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_stands_in_the_list_of_pages(page: Path) -> None:
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert page.name == "README.md" or f"({page.name}" in listed


def build_api() -> ModuleType:
    pytest.importorskip("pdoc", reason="pdoc is in the extra `dev`")
    spec = importlib.util.spec_from_file_location("build_api", ROOT / "docs" / "build_api.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_the_page_of_all_arguments_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    made = build_api().page_with_arguments(page)
    assert page == made, "run: python docs/build_api.py --arguments"
    for kind in (TrainingFreeGRPO, Reflection, Execution):
        for name in inspect.signature(kind).parameters:
            assert f"| `{name}` |" in page


def test_the_layout_for_contributors_is_what_the_files_say() -> None:
    page = CONTRIBUTING.read_text(encoding="utf-8")
    assert page == build_api().page_with_layout(page), "run: python docs/build_api.py --layout"
