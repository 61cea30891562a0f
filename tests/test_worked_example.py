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

import dspy
import pytest
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm
from small import grpo

from tfgrpo_dspy import Evidence, Experience, ExperienceLibrary, NoGate
from tfgrpo_dspy.rollout import relative_advantages, rollout_id_for

SCORES = (0.8, 0.6, 0.4, 0.2, 0.5)
ADVANTAGES = (1.5, 0.5, -0.5, -1.5, 0.0)
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


@pytest.fixture
def lm() -> dspy.LM:
    return scripted_lm(
        [
            (EXTRACT, lessons(ADVICE)),
            (UPDATE, operations({"op": "ADD", "text": ADVICE, "reason": "new", "lessons": [1]})),
            ("question 0", answer),
        ]
    )


@pytest.fixture
def optimized(lm: dspy.LM) -> dspy.Module:
    optimizer = grpo(lambda _, pred: float(pred.answer), gate=NoGate(), epochs=1, progress=False)
    trainset = [dspy.Example(question="question 0", answer="8").with_inputs("question")]
    student = dspy.Predict(dspy.Signature("question -> answer", "Answer the question."))
    with dspy.context(lm=lm):
        return optimizer.compile(student, trainset=trainset)


def test_the_advantages_of_the_five_scores_are_those_worked_out_by_hand() -> None:
    assert relative_advantages(SCORES) == pytest.approx(ADVANTAGES)


@pytest.mark.usefixtures("optimized")
def test_the_five_attempts_are_shown_to_extract_advantage_the_best_first(
    lm: dspy.LM,
) -> None:
    (shown,) = [prompt.user for prompt in lm.engine.prompts if re.search(EXTRACT, prompt.text)]
    attempts = shown.partition("[[ ## attempts ## ]]\n")[2].partition("\n\nRespond with")[0]
    assert attempts == (
        "Attempt 1 (score 0.8, advantage +1.50)\n"
        "Outputs:\n"
        "answer: 0.8\n"
        "\n"
        "Attempt 2 (score 0.6, advantage +0.50)\n"
        "Outputs:\n"
        "answer: 0.6\n"
        "\n"
        "Attempt 3 (score 0.5, advantage +0.00)\n"
        "Outputs:\n"
        "answer: 0.5\n"
        "\n"
        "Attempt 4 (score 0.4, advantage -0.50)\n"
        "Outputs:\n"
        "answer: 0.4\n"
        "\n"
        "Attempt 5 (score 0.2, advantage -1.50)\n"
        "Outputs:\n"
        "answer: 0.2"
    )


def test_the_lesson_is_added_to_the_library_with_the_five_rollouts_as_its_evidence(
    optimized: dspy.Module,
) -> None:
    (update,) = optimized.detailed_results.updates
    (operation,) = update.operations
    assert (operation.op, operation.text, operation.reason, operation.refused) == (
        "ADD",
        "When a number is asked for, give the number alone.",
        "new",
        "",
    )
    assert optimized.detailed_results.to_dict()["library"] == {
        "format": "tfgrpo_dspy.library",
        "version": 1,
        "next_number": 2,
        "experiences": [
            {
                "id": "E1",
                "text": "When a number is asked for, give the number alone.",
                "scope": "*",
                "evidence": [
                    {
                        "update": 0,
                        "example": 0,
                        "rollout_ids": list(ROLLOUT_IDS),
                        "scores": [0.8, 0.6, 0.4, 0.2, 0.5],
                    },
                ],
                "price": 17,  # "[E1*] ", 50 characters and a line's end: 57 / 3.5, rounded up
            }
        ],
    }


def test_the_baked_program_ends_its_instructions_with_the_experience(
    optimized: dspy.Module,
) -> None:
    assert optimized.signature.instructions == BAKED
    assert ExperienceLibrary.from_program(optimized) == ExperienceLibrary(
        [
            Experience(
                id="E1",
                text=ADVICE,
                evidence=(Evidence(0, 0, ROLLOUT_IDS, SCORES),),
            )
        ]
    )
