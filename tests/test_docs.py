"""The Python blocks of docs/ run as they stand, page by page, on a scripted LM."""

import re
from pathlib import Path

import dspy
import pytest
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm

import tfgrpo_dspy.local

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
ADVICE = "Give the number alone."


def answer(prompt: Prompt) -> str:
    is_right = ADVICE in prompt.system or prompt.random().random() < 0.4
    return chat(reasoning="It is a sum.", answer="4" if is_right else "four")


def metric(example: dspy.Example, pred: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    del trace  # DSPy's metrics have it
    is_right = example.answer == pred.answer
    feedback = "" if is_right else "The number alone is wanted."
    return dspy.Prediction(score=float(is_right), feedback=feedback)


def examples(first: int, last: int) -> list[dspy.Example]:
    pairs = [(f"{number} - {number - 4}", "4") for number in range(first, last)]
    return [dspy.Example(question=q, answer=a).with_inputs("question") for q, a in pairs]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_as_it_stands(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = scripted_lm(
        [
            (EXTRACT, lessons(ADVICE)),
            (UPDATE, operations({"op": "ADD", "text": ADVICE, "lessons": [1]})),
            ("`lessons`", chat(lessons="None")),
            ("question", answer),
        ]
    )
    names = {
        "program": dspy.ChainOfThought("question -> answer"),
        "metric": metric,
        "trainset": examples(0, 30),
        "valset": examples(30, 60),
        "testset": examples(60, 80),
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tfgrpo_dspy.local, "local_lm", lambda **_: lm)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    with dspy.context(lm=lm):
        for number, block in enumerate(blocks, start=1):
            exec(compile(block, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
