"""Grade-school mathematics, from `--data`: `gsm8k_train.jsonl` and `gsm8k_test.jsonl`.

The student thinks step by step and gives an answer, which is compared as mathematics ("$1,200" is
1200). Train and validation come from the first file, the test from the second.
"""

from pathlib import Path

import dspy

from tasks import Task, plain, rows, split
from tfgrpo_dspy.metrics import math_equivalent

N_TRAIN, N_VALIDATION, N_TEST = 40, 40, 100
FIELDS = ("question", "answer")
metric = math_equivalent("answer")


class SolveProblem(dspy.Signature):
    """Solve the problem."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="the number")


def student() -> dspy.ChainOfThought:
    return dspy.ChainOfThought(SolveProblem)


def load(seed: int, data: Path | None = None) -> Task:
    learned, tested = (
        [
            dspy.Example(**row).with_inputs("question")
            for row in rows.read(data, f"gsm8k_{part}.jsonl", FIELDS, "gsm8k")
        ]
        for part in ("train", "test")
    )
    train, val = split(learned, (N_TRAIN, N_VALIDATION), seed)
    (test,) = split(tested, (N_TEST,), seed)
    return Task(
        name="gsm8k",
        student=student,
        train=train,
        val=val,
        test=test,
        metric=metric,
        plain_metric=plain(metric),
        notes="Public data, which an LM may have seen in training.",
    )
