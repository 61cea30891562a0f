"""BIG-Bench Hard, from `--data`: `bbh_<name>.jsonl` with `input` and `target`.

The student thinks step by step and gives an answer, which is compared as text without regard to
case, punctuation and articles. Of multiple-choice questions the letter is enough, and so is the
text of the right option; where both are given, the letter decides.
"""

import re
from pathlib import Path

import dspy

from tasks import BBH, Task, plain, rows, split
from tfgrpo_dspy.metrics import normalized_match

N_TRAIN, N_VALIDATION = 30, 30
LETTER_AND_TEXT = re.compile(r"(\([A-Z]\)|[A-Z][).:])\s*\S.*", re.DOTALL)

_answer_matches = normalized_match("answer", label_field="accepted")


class AnswerQuestion(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def student() -> dspy.ChainOfThought:
    return dspy.ChainOfThought(AnswerQuestion)


def metric(
    gold: dspy.Example,
    pred: dspy.Prediction,
    trace: object = None,  # noqa: ARG001 - DSPy and GEPA pass these three
    pred_name: str | None = None,  # noqa: ARG001
    pred_trace: object = None,  # noqa: ARG001
) -> dspy.Prediction:
    """1 for the right answer, else 0."""
    chosen = LETTER_AND_TEXT.fullmatch(str(pred.get("answer") or "").strip())
    return _answer_matches(gold, dspy.Prediction(answer=chosen[1]) if chosen else pred)


def load(seed: int, data: Path | None = None, name: str = BBH[0]) -> Task:
    """The task `bbh_<name>`: 30 examples to train, 30 to validate, the rest to test."""
    full_name = f"bbh_{name}"
    found = rows.read(data, f"{full_name}.jsonl", ("input", "target"), full_name)
    by_question = {row["input"]: row["target"] for row in found}  # none twice
    examples = [_example(question, target) for question, target in by_question.items()]
    n_test = max(0, len(examples) - N_TRAIN - N_VALIDATION)
    train, val, test = split(examples, (N_TRAIN, N_VALIDATION, n_test), seed)
    return Task(
        name=full_name,
        student=student,
        train=train,
        val=val,
        test=test,
        metric=metric,
        plain_metric=plain(metric),
        notes="Public data, which an LM may have seen in training.",
    )


def _example(question: str, target: str) -> dspy.Example:
    example = dspy.Example(question=question, answer=target, accepted=accepted(question, target))
    return example.with_inputs("question")


def accepted(question: str, target: str) -> list[str]:
    """The target; where it is the letter of an option, also the option's text."""
    option = re.search(rf"^{re.escape(target)} (.+)$", question, flags=re.MULTILINE)
    if not (re.fullmatch(r"\([A-Z]\)", target) and option):
        return [target]
    return [target, option[1].strip()]
