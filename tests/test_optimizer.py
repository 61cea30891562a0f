"""The loop of `optimizer`, end to end, on a scripted LM."""

import dspy
import pytest
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm

from tfgrpo_dspy import ExperienceLibrary, PairedGate, TrainingFreeGRPO

ADVICE = "When a customer asks, say please."


def polite_answer(prompt: Prompt) -> str:
    """'please' in nine of ten answers with the advice, in three of ten without."""
    chance = 0.9 if ADVICE in prompt.system else 0.3
    return chat(answer="please" if prompt.random().random() < chance else "no")


def is_polite(example: dspy.Example, pred: dspy.Prediction, trace: object = None) -> dspy.Prediction:
    return dspy.Prediction(score=float(pred.answer == "please"), feedback="Say please.")


def polite_lm() -> dspy.LM:
    return scripted_lm(
        [
            (EXTRACT, lessons(ADVICE)),
            (UPDATE, operations({"op": "ADD", "text": ADVICE, "lessons": [1]})),
            ("question", polite_answer),
        ]
    )


def questions(n: int, prefix: str = "question") -> list[dspy.Example]:
    return [
        dspy.Example(question=f"{prefix} {i}", answer="please").with_inputs("question")
        for i in range(n)
    ]


@pytest.fixture
def optimizer() -> TrainingFreeGRPO:
    return TrainingFreeGRPO(is_polite, epochs=1, num_threads=4, progress=False, gate=PairedGate())


def test_a_lesson_that_raises_the_score_is_learned_and_baked(optimizer: TrainingFreeGRPO) -> None:
    with dspy.context(lm=polite_lm()):
        optimized = optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(30))
    library = ExperienceLibrary.from_program(optimized)
    assert [experience.text for experience in library] == [ADVICE]
    results = optimized.detailed_results
    assert results.best.mean > results.student.mean
    assert results.nothing_learned == ""
