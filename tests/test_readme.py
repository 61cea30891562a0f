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


def test_the_example_on_ones_own_program_runs_as_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(import dspy\n.*?)```", README, re.DOTALL)
    code = code.replace("dspy.configure(lm=dspy.LM(", "str((")
    code = re.sub(r"dspy\.LM\([^)]*\)", "None", code)
    lm = scripted_lm(
        [
            (EXTRACT, lessons(ADVICE)),
            (UPDATE, operations({"op": "ADD", "text": ADVICE, "lessons": [1]})),
            ("question", answer),
        ]
    )
    examples = [
        dspy.Example(question=f"{number} - {number - 4}", answer="4").with_inputs("question")
        for number in range(40)
    ]
    monkeypatch.chdir(tmp_path)
    names = {"trainset": examples[:15], "valset": examples[15:]}
    with dspy.context(lm=lm):
        exec(compile(code, "README.md", "exec"), names)
    assert f"[E1*] {ADVICE}" in capsys.readouterr().out
    assert "Give the number alone." in (tmp_path / "optimized.json").read_text(encoding="utf-8")


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_ci_runs_the_tests_by_the_readmes_own_command() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- test command -->" in README
    assert "/<!-- test command -->/" in ci
