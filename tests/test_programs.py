"""Whole runs over the kinds of program that people have: where the experiences end up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from scripted import (
    EXTRACT,
    UPDATE,
    Prompt,
    Rule,
    ScriptedEngine,
    chat,
    lessons,
    operations,
    scripted_lm,
)
from small import grpo

from tfgrpo_dspy import ExperienceLibrary, Gate

ADVICE = "Add the numbers."


def is_four(_: dspy.Example, pred: dspy.Prediction) -> float:
    return float(pred.answer == "4")


def questions(n: int) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"question {i}", answer="4").with_inputs("question") for i in range(n)
    ]


def knows(prompt: Prompt, *advice: str) -> bool:
    """Whether the prompt holds all of the advice, or it is one of the lucky training rollouts."""
    if prompt.temperature is not None and (prompt.seed or 0) % 3 == 0:
        return True
    return all(text in prompt.system for text in advice)


def compiled(
    student: dspy.Module, *rules: Rule, adds: list[dict[str, Any]] | None = None
) -> tuple[Any, ScriptedEngine]:
    """The student, compiled with the plainest gate on six examples and three for validation."""
    adds = adds or [{"text": ADVICE}]
    engine_rules = [
        (EXTRACT, lessons(ADVICE, "[react] Prefer the tools.", "[writer] Write digits.")),
        (UPDATE, operations(*({"op": "ADD", "lessons": [1], **add} for add in adds))),
        *rules,
    ]
    lm = scripted_lm(engine_rules)
    optimizer = grpo(is_four, group_size=4, epochs=1, num_threads=2, progress=False, gate=Gate())
    before = {name: p.signature.instructions for name, p in student.named_predictors()}
    with dspy.context(lm=lm):
        optimized = optimizer.compile(student, trainset=questions(9))
        after = {name: p.signature.instructions for name, p in student.named_predictors()}
        assert after == before
        assert optimized(question="question 99").answer == "4"
    assert optimized.detailed_results.failures.keys() <= {"unknown scope"}  # [writer], [react]
    assert optimized.detailed_results.best.mean == 1.0
    assert optimized.detailed_results.student.mean == 0.0
    engine = lm.engine
    assert isinstance(engine, ScriptedEngine)
    return optimized, engine


def block(*lines: str, next_id: int) -> str:
    """What is baked behind a predictor's own instructions."""
    advice = "\n".join(lines)
    return (
        f"\n\n<experiences>\nAdvice learned from earlier attempts:\n{advice}\n"
        f"(next id: E{next_id})\n</experiences>"
    )


def baked(optimized: Any, student: Any) -> dict[str, str]:
    """By predictor, what the optimized program's instructions have behind the student's own."""
    own = dict(student.named_predictors())
    return {
        name: predictor.signature.instructions.removeprefix(own[name].signature.instructions)
        for name, predictor in optimized.named_predictors()
    }


def answer(*advice: str, **fields: str) -> Callable[[Prompt], str]:
    return lambda prompt: chat(**fields, answer="4" if knows(prompt, *advice) else "5")


# ---------------------------------------------------------------------- one predictor


def test_predict_has_its_experiences_behind_its_own_instructions() -> None:
    student = dspy.Predict(dspy.Signature("question -> answer", "Two and two."))
    optimized, _ = compiled(student, ("Two and two", answer(ADVICE)))
    assert type(optimized) is dspy.Predict
    assert optimized.signature.instructions == "Two and two." + block(
        "[E1*] Add the numbers.", next_id=2
    )


def test_chain_of_thought_has_its_experiences_in_its_inner_predictor() -> None:
    student = dspy.ChainOfThought("question -> answer")
    optimized, engine = compiled(student, ("question", answer(ADVICE, reasoning="Hm.")))
    assert baked(optimized, student) == {"predict": block("[E1*] Add the numbers.", next_id=2)}
    assert list(optimized.predict.signature.output_fields) == ["reasoning", "answer"]
    assert engine.n_calls("reasoning: Hm") > 0  # the reflection LM saw how it reasoned


# ---------------------------------------------------------------------- ReAct with two tools


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def look_up(name: str) -> str:
    """Looks a number up."""
    return f"{name} is not in the book"


def think(prompt: Prompt) -> str:
    if "observation_0" in prompt.user:
        return chat(next_thought="Done.", next_tool_name="finish", next_tool_args={})
    if knows(prompt, ADVICE):
        return chat(next_thought="Add.", next_tool_name="add", next_tool_args={"a": 2, "b": 2})
    return chat(next_thought="Search.", next_tool_name="look_up", next_tool_args={"name": "two"})


def conclude(prompt: Prompt) -> str:
    found = "[[ ## observation_0 ## ]]\n4" in prompt.user
    return chat(reasoning="As seen.", answer="4" if found else "5")


REACT_RULES: list[Rule] = [
    (r"2. `trajectory`(?s:.)*`next_thought`", think),
    ("trajectory", conclude),
]


def test_react_keeps_its_tools_and_learns_for_one_of_its_predictors() -> None:
    student = dspy.ReAct("question -> answer", tools=[add, look_up], max_iters=3)
    optimized, engine = compiled(
        student, *REACT_RULES, adds=[{"text": ADVICE, "scope": "react", "lessons": [1]}]
    )
    assert baked(optimized, student) == {
        "react": block("[E1] Add the numbers.", next_id=2),
        "extract.predict": "",
    }
    assert "(1) add, whose description is" in optimized.react.signature.instructions
    assert "(2) look_up, whose description is" in optimized.react.signature.instructions
    assert sorted(optimized.tools) == ["add", "finish", "look_up"]
    assert engine.n_calls("tool look_up(?s:.)*result: two is not in the book") > 0


def test_react_shares_an_experience_for_all_among_its_predictors() -> None:
    student = dspy.ReAct("question -> answer", tools=[add, look_up], max_iters=3)
    optimized, engine = compiled(student, *REACT_RULES)
    for_all = block("[E1*] Add the numbers.", next_id=2)
    assert baked(optimized, student) == {"react": for_all, "extract.predict": for_all}
    assert engine.n_calls(r"3\. Prefer the tools\.|Prefer the tools\. \(for react\)") > 0


# ---------------------------------------------------------------------- two stages


class TwoStages(dspy.Module):
    """A reader makes notes, a writer answers from them; both have the same kind of signature."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = dspy.Predict(dspy.Signature("text -> result", "Read."))
        self.writer = dspy.Predict(dspy.Signature("text -> result", "Write."))

    def forward(self, question: str) -> dspy.Prediction:
        note = self.reader(text=question).result
        return dspy.Prediction(answer=self.writer(text=note).result)


TWO_STAGE_RULES: list[Rule] = [
    (
        r"(?s)objective is:\s+Read\.",
        lambda prompt: chat(result="2 + 2" if knows(prompt, ADVICE) else "2 and 2"),
    ),
    (
        r"(?s)objective is:\s+Write\.",
        lambda prompt: chat(
            result="4" if "2 + 2" in prompt.user and knows(prompt, "Write digits.") else "four"
        ),
    ),
]


def test_two_stages_of_equal_signatures_each_have_their_own_experiences() -> None:
    student = TwoStages()
    optimized, engine = compiled(
        student,
        *TWO_STAGE_RULES,
        adds=[
            {"text": ADVICE, "scope": "reader"},
            {"text": "Write digits.", "scope": "writer", "lessons": [3]},
        ],
    )
    assert baked(optimized, student) == {
        "reader": block("[E1] Add the numbers.", next_id=3),
        "writer": block("[E2] Write digits.", next_id=3),
    }
    assert engine.n_calls(r"3\. Write digits\. \(for writer\)") > 0


def test_two_stages_share_what_is_for_all() -> None:
    student = TwoStages()
    optimized, _ = compiled(
        student, *TWO_STAGE_RULES, adds=[{"text": ADVICE}, {"text": "Write digits."}]
    )
    for_all = block("[E1*] Add the numbers.", "[E2*] Write digits.", next_id=3)
    assert baked(optimized, student) == {"reader": for_all, "writer": for_all}


# ---------------------------------------------------------------------- for each of them

PROGRAMS: dict[str, tuple[Callable[[], Any], list[Rule]]] = {
    "Predict": (lambda: dspy.Predict("question -> answer"), [("question", answer(ADVICE))]),
    "ChainOfThought": (
        lambda: dspy.ChainOfThought("question -> answer"),
        [("question", answer(ADVICE, reasoning="Hm."))],
    ),
    "ReAct": (
        lambda: dspy.ReAct("question -> answer", tools=[add, look_up], max_iters=3),
        REACT_RULES,
    ),
}


@pytest.mark.parametrize(("make", "rules"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_fresh_program_that_loads_the_saved_state_knows_the_same_library(
    make: Callable[[], Any], rules: list[Rule], tmp_path: Path
) -> None:
    optimized, _ = compiled(make(), *rules)
    optimized.save(tmp_path / "state.json")
    loaded = make()
    loaded.load(tmp_path / "state.json")
    library = ExperienceLibrary.from_program(loaded)
    assert library.render() == "[E1*] Add the numbers."
    assert library == ExperienceLibrary.from_program(optimized)


@pytest.mark.parametrize(("make", "rules"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_an_emptied_library_gives_the_student_back_byte_for_byte(
    make: Callable[[], Any], rules: list[Rule]
) -> None:
    student = make()
    optimized, _ = compiled(student, *rules)
    assert baked(ExperienceLibrary().bake(optimized), student) == {
        name: "" for name, _ in student.named_predictors()
    }
