"""One group worked out by hand, then run through the real loop.

The example: "question 0". The program answers it five times; the metric gives

    scores      0.8    0.6    0.4    0.2    0.5
    mean        (0.8 + 0.6 + 0.4 + 0.2 + 0.5) / 5                        = 0.5
    distances  +0.3   +0.1   -0.1   -0.3    0.0
    deviation   sqrt((0.09 + 0.01 + 0.01 + 0.09 + 0.00) / 5) = sqrt(0.04) = 0.2
    advantages +1.5   +0.5   -0.5   -1.5    0.0                (distance / deviation)

From the five, ExtractAdvantage draws one lesson; UpdateLibrary makes one ADD of it; the library
gives it the id E1; baked, it stands behind the program's own instructions.
"""

import re
from typing import Any

import dspy
import pytest
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm
from small import grpo

from tfgrpo_dspy import Evidence, Experience, ExperienceLibrary, NoGate
from tfgrpo_dspy.rollout import rollout_id_for

SCORES = (0.8, 0.6, 0.4, 0.2, 0.5)
ADVICE = "When a number is asked for, give the number alone."
BAKED = """\
Answer the question.

<experiences>
Advice learned from earlier attempts:
[E1*] When a number is asked for, give the number alone.
(next id: E2)
</experiences>"""
ROLLOUT_IDS = tuple(rollout_id_for(0, 0, 0, index, "training") for index in range(5))


def answer(prompt: Prompt) -> str:
    """The answer of each of the five rollouts is its score, for the metric to read."""
    seeds = [rollout_id % 2**31 for rollout_id in ROLLOUT_IDS]
    return chat(answer=str(SCORES[seeds.index(prompt.seed or 0)]))


@pytest.fixture(scope="module")
def worked() -> tuple[Any, str]:
    """The optimized program, and what ExtractAdvantage was asked."""
    add = {"op": "ADD", "text": ADVICE, "reason": "new", "lessons": [1]}
    rules = [(EXTRACT, lessons(ADVICE)), (UPDATE, operations(add)), ("question 0", answer)]
    lm = scripted_lm(rules)
    optimizer = grpo(lambda _, pred: float(pred.answer), gate=NoGate(), epochs=1, progress=False)
    trainset = [dspy.Example(question="question 0", answer="8").with_inputs("question")]
    student = dspy.Predict(dspy.Signature("question -> answer", "Answer the question."))
    with dspy.context(lm=lm):
        optimized = optimizer.compile(student, trainset=trainset)
    (asked,) = [prompt.user for prompt in lm.engine.prompts if re.search(EXTRACT, prompt.text)]
    return optimized, asked


def test_the_five_attempts_are_shown_to_extract_advantage_the_best_first(
    worked: tuple[Any, str],
) -> None:
    attempts = worked[1].partition("[[ ## attempts ## ]]\n")[2].partition("\n\nRespond with")[0]
    best_first = ("0.8 +1.50", "0.6 +0.50", "0.5 +0.00", "0.4 -0.50", "0.2 -1.50")
    expected = [
        f"Attempt {number} (score {score}, advantage {advantage})\nOutputs:\nanswer: {score}"
        for number, (score, advantage) in enumerate(map(str.split, best_first), start=1)
    ]
    assert attempts == "\n\n".join(expected)


def test_the_lesson_is_added_to_the_library_with_the_five_rollouts_as_its_evidence(
    worked: tuple[Any, str],
) -> None:
    results = worked[0].detailed_results
    (operation,) = results.updates[0].operations
    assert (operation.op, operation.text, operation.refused) == ("ADD", ADVICE, "")
    evidence = {"update": 0, "example": 0, "rollout_ids": list(ROLLOUT_IDS)}
    (experience,) = results.to_dict()["library"]["experiences"]
    assert experience == {
        "id": "E1",
        "text": ADVICE,
        "scope": "*",
        "evidence": [evidence | {"scores": [0.8, 0.6, 0.4, 0.2, 0.5]}],
        "n_tokens": 17,  # "[E1*] ", 50 characters and a line's end: 57 / 3.5, rounded up
    }


def test_the_baked_program_ends_its_instructions_with_the_experience(
    worked: tuple[Any, str],
) -> None:
    assert worked[0].signature.instructions == BAKED
    evidence = (Evidence(0, 0, ROLLOUT_IDS, SCORES),)
    learned = ExperienceLibrary([Experience(id="E1", text=ADVICE, evidence=evidence)])
    assert ExperienceLibrary.from_program(worked[0]) == learned
