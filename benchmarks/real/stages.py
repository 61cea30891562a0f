"""A task for a program with two predictors: the one that answers sees only what the first wrote.

The questions, labels and scores are those of another task. The labels say what the second predictor
should return, and nothing says what the first should: as in the pipelines of users.
"""

import random
from collections.abc import Iterator
from typing import Any

import dspy


class Stages:
    """A task whose longest input, the last one, is summed up before it is worked on."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.fields, self.instruction = source.fields, source.instruction
        self.advice = source.advice

    def student(self, signature: type[dspy.Signature]) -> dspy.Module:
        """The two predictors, for the signature of the task."""
        return _SumsUpAndAnswers(signature)

    def examples(self, rng: random.Random) -> Iterator[dspy.Example]:
        """Those of the task."""
        yield from self._source.examples(rng)

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """That of the task."""
        return self._source.verdict(gold, pred)  # type: ignore[no-any-return]


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
