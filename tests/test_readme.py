"""What the README says is run: its example as it stands, but for the LMs' names."""

import re
from pathlib import Path

import dspy
import pytest
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADVICE = "Give the number alone."


def answer(prompt: Prompt) -> str:
    right = ADVICE in prompt.system or prompt.random().random() < 0.4
    return chat(reasoning="It is a sum.", answer="4" if right else "four")


def without_figures(text: str) -> list[str]:
    """The lines, with # for each number: what a gate estimates may change a little."""
    return [re.sub(r"\d+(\.\d+)?", "#", line) for line in text.strip().splitlines()]


def test_the_example_runs_as_it_stands_and_prints_what_stands_below_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(import dspy\n.*?)```", README, re.DOTALL)
    output = re.findall(r"this prints:\n\n```text\n(.*?)```", README, re.DOTALL)
    code = code.replace("dspy.configure(lm=dspy.LM(", "str((")
    code = re.sub(r"dspy\.LM\([^)]*\)", "None", code)
    lm = scripted_lm(
        [
            (EXTRACT, lessons(ADVICE)),
            (UPDATE, operations({"op": "ADD", "text": ADVICE, "lessons": [1]})),
            ("`lessons`", chat(lessons="None")),
            ("question", answer),
        ]
    )
    monkeypatch.chdir(tmp_path)
    with dspy.context(lm=lm):
        exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert [without_figures(printed)] == [without_figures(text) for text in output]
    saved = (tmp_path / "optimized.json").read_text(encoding="utf-8")
    assert f"[E1*] {ADVICE}" in saved


def test_the_prompt_after_learning_is_the_block_that_the_example_ends_with() -> None:
    assert f"\n[E1*] {ADVICE}\n(next id: E2)\n</experiences>\n" in README


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_ci_runs_the_tests_by_the_readmes_own_command() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- test command -->" in README
    assert "/<!-- test command -->/" in ci
