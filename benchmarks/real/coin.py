"""A task on which no advice can help: the score of an answer is a coin, thrown by its text.

The questions and labels are those of another task. The same answer to the same question always has
the same score, so on the examples of training and validation some programs look better than others;
on held-out examples all have .5 in the mean, but for runs that fail. What an optimizer returns here
instead of the student is a false commit.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import dspy


class Coin:
    """The questions of a task, with scores that mean nothing."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.fields, self.instruction = source.fields, source.instruction
        self.advice = source.advice

    def examples(self, rng: random.Random) -> Iterator[dspy.Example]:
        """Those of the task."""
        yield from self._source.examples(rng)

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """1.0 or 0.0, by the SHA-256 of example and answer."""
        text = f"{sorted(gold.toDict().items())}/{sorted(pred.toDict().items())}"
        is_right = hashlib.sha256(text.encode()).digest()[0] % 2 == 0
        return float(is_right), "Right." if is_right else "This answer is not right."
