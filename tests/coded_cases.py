"""The task of codes: a case of one of four kinds has to be given the code of its kind.

The LM is scripted. A lesson 'When a case is of kind slate, answer T08.' makes the right code
likely, a wrong one unlikely. Luck is that of case and sample, whatever the library, so that two
libraries are compared pair by pair.
"""

import random
import re
from typing import Any

import dspy
from runs import library_texts, predictor
from scripted import EXTRACT, Prompt, chat, lessons, scripted_lm
from small import grpo

from tfgrpo_dspy import AddLessons

CODES = {"slate": "T08", "amber": "B20", "cedar": "M55", "linen": "V93"}
RIGHT = {kind: f"When a case is of kind {kind}, answer {code}." for kind, code in CODES.items()}
WRONG = {kind: f"When a case is of kind {kind}, answer X99." for kind in CODES}
FIRST_VALIDATION, FIRST_TEST = 200, 700
SMALL: dict[str, Any] = {"n": 8, "n_validation": 12, "batch_size": 4, "epochs": 1}


def cases(n: int, start: int = 0) -> list[dspy.Example]:
    kinds = [(i, list(CODES)[i % len(CODES)]) for i in range(start, start + n)]
    asked = [dspy.Example(question=f"Case {i}, of kind {k}", answer=CODES[k]) for i, k in kinds]
    return [example.with_inputs("question") for example in asked]


def is_right(case: dspy.Example, pred: dspy.Prediction, _trace: Any = None) -> dspy.Prediction:
    told = f"{case.question}: expected {case.answer}."
    return dspy.Prediction(score=float(pred.answer == case.answer), feedback=told)


def case_in(text: str) -> tuple[int, str]:
    number, kind = re.findall(r"Case (\d+), of kind (\w+)", text)[-1]
    return int(number), kind


def luck_of(prompt: Prompt) -> float:
    return random.Random(f"{case_in(prompt.user)[0]}/{prompt.seed}").random()


def solved(prompt: Prompt) -> str:
    """By the lessons in the prompt; the luck is that of case and sample."""
    _, kind = case_in(prompt.user)
    chance = 0.4 + 0.55 * (RIGHT[kind] in prompt.system) - 0.35 * (WRONG[kind] in prompt.system)
    return chat(answer=CODES[kind] if luck_of(prompt) < chance else "unsure")


def drawn(prompt: Prompt) -> str:
    """A lesson on the kind that the attempts are at; that of every third case is wrong."""
    number, kind = case_in(prompt.user)
    return lessons((RIGHT if number % 3 else WRONG)[kind])


def world(answers: Any = solved, told: Any = drawn, **lm_arguments: Any) -> dspy.LM:
    return scripted_lm([(EXTRACT, told), ("question", answers)], **lm_arguments)


def compiled(
    lm: dspy.LM, *, n: int = 40, n_validation: int = 24, testset: Any = None, student: Any = None,
    first_validation: int = FIRST_VALIDATION, **settings: Any,
) -> Any:  # fmt: skip
    chosen = {"group_size": 4, "epochs": 3, "batch_size": 10, "num_threads": 4, "progress": False}
    given = {"metric": is_right, "update": AddLessons(), **chosen, **settings}
    with dspy.context(lm=lm):
        return grpo(**given).compile(
            student or predictor(),
            trainset=cases(n),
            valset=cases(n_validation, first_validation),
            testset=testset,
        )


def texts(program: Any) -> set[str]:
    return set(library_texts(program))
