"""Tasks made of another one: of its questions, with scores of a coin, or for two predictors.

**Coin.** No advice can help: the score of an answer is a coin, thrown by its text. The same answer
to the same question always has the same score, so on the examples of training and validation some
programs look better than others; on held-out examples all have .5 in the mean, but for runs that
fail. What an optimizer returns here instead of the student is a false commit.

**Stages.** The predictor that answers sees only what the first wrote. The labels say what the
second should return, and nothing says what the first should: as in the pipelines of users.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import dspy


class Derived:
    """The questions, labels and scores of another task."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.fields, self.instruction = source.fields, source.instruction
        self.advice = source.advice

    def examples(self, rng: random.Random) -> Iterator[dspy.Example]:
        """Those of the task."""
        yield from self._source.examples(rng)

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """That of the task."""
        return self._source.verdict(gold, pred)  # type: ignore[no-any-return]


class Coin(Derived):
    """The questions of a task, with scores that mean nothing."""

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """1.0 or 0.0, by the SHA-256 of example and answer."""
        text = f"{sorted(gold.toDict().items())}/{sorted(pred.toDict().items())}"
        is_right = hashlib.sha256(text.encode()).digest()[0] % 2 == 0
        return float(is_right), "Right." if is_right else "This answer is not right."


class Stages(Derived):
    """A task whose longest input, the last one, is summed up before it is worked on."""

    def student(self, signature: type[dspy.Signature]) -> dspy.Module:
        """The two predictors, for the signature of the task."""
        return _SumsUpAndAnswers(signature)


class _SumsUpAndAnswers(dspy.Module):
    def __init__(self, signature: type[dspy.Signature]) -> None:
        super().__init__()
        *short, self._long = signature.input_fields
        inputs, outputs = ", ".join([*short, "summary"]), ", ".join(signature.output_fields)
        says = "Sum up the text in one sentence."
        self.sum_up = dspy.Predict(dspy.Signature(f"{self._long} -> summary", says))
        answers = dspy.Signature(f"{inputs} -> {outputs}", signature.instructions)
        self.answer = dspy.Predict(answers)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        summary = self.sum_up(**{self._long: inputs.pop(self._long)}).summary
        return self.answer(**inputs, summary=summary)
