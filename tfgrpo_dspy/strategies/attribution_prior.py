"""AttributionPrior: before the first rollout, the reflection LM says which properties matter."""

import random
from collections.abc import Mapping
from typing import Any

import dspy

from tfgrpo_dspy.experience.values import Add
from tfgrpo_dspy.reflection.lessons import read_lesson
from tfgrpo_dspy.reflection.reading import read_lessons
from tfgrpo_dspy.reflection.texts import UNKNOWN, by_example
from tfgrpo_dspy.rollout import fields_text
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.strategies.arguments import Least0, Least1, strategy
from tfgrpo_dspy.strategies.base import (
    Ask,
    GroupContext,
    Proposed,
    Shown,
    Strategy,
    UpdateContext,
)
from tfgrpo_dspy.wording import shortened

FIELD_BYTES = 1050  # of the inputs of each example that is shown, and of its labels
NOTE = (
    "Somebody who has not seen the program run says what matters; heed it unless the facts differ: "
)


class SayWhatMatters(dspy.Signature):
    """Say which input fields, and which properties of the inputs, decide what the right answer is.

    The program has not been run yet. Use what you know of the world and of tasks like this one;
    in few examples much agrees by accident with the labels, so do not rely on them alone.

    First write matters: in at most three sentences, which fields or properties of the inputs the
    right answer depends on, the most important first, and which do not matter although one might
    think so. Then write advice for the program that follows from this: at most max_candidates
    lines, "When <condition>, <advice>.", or only the advice if it always applies. Advice must
    hold for inputs that are not shown here.
    """

    program: str = dspy.InputField(desc="what the program does")
    objective: str = dspy.InputField(desc="what the advice should improve")
    max_words: int = dspy.InputField(desc="the most words that one line of advice may have")
    max_candidates: int = dspy.InputField()
    examples: str = dspy.InputField(desc="inputs and, where they are known, labels")
    matters: str = dspy.OutputField(desc="at most three sentences, or the word None")
    advice: str = dspy.OutputField(desc="one line each, or the word None")


@strategy
class AttributionPrior(Strategy):
    """Learns from the reflection LM what matters in the inputs, before there is a rollout.

    One question shows it the program and a few examples. What it says decides the answer is told
    it again whenever it writes lessons, so that it looks for reasons there first; the advice that
    it writes is a set of candidates, which the gate judges like any other.

    **Source.** Large Language Models as Attribution Regularizers for Efficient Model Training
    (arXiv 2502.20268).
    **Carried over.** What an LM holds to be important, asked for once, guides all learning.
    **Not carried over.** Scores for each feature, and the loss that pulls gradients towards them.
    **When to use.** With few examples, where much agrees with the labels by accident.

    Args:
        n_examples: how many training examples the question shows.
        most: how many candidates are taken from the answer.

    Raises:
        SettingsError: `n_examples` is below 1, or `most` below 0.
    """

    proposes_first = True
    n_examples: Least1 = 6
    most: Least0 = 2

    async def show(self, context: GroupContext, ask: Ask) -> Shown:
        """All rollouts, with a note on what matters."""
        return Shown(context.group.rollouts, _note(await self._said(context, ask)))

    async def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """The advice that follows, before the first rollout."""
        if context.update:
            return Proposed(context.lessons)
        said = await self._said(context, ask)
        lines = read_lessons(said.get("advice", "None"))[: self.most]
        added = (Add(*read_lesson(line, context.predictors)) for line in lines)
        return Proposed(context.lessons, tuple(added), _note(said))

    async def _said(self, context: UpdateContext | GroupContext, ask: Ask) -> Mapping[str, Any]:
        """The answer to the one question, which is always the same."""
        n = min(self.n_examples, len(context.training))
        shown = random.Random("attribution").sample(sorted(context.training), n)
        parts = []
        for example in (context.trainset[position] for position in shown):
            labels = fields_text(as_fields(example.labels())) if context.shows_labels else ""
            told = (fields_text(as_fields(example.inputs())), "Labels:", labels or UNKNOWN)
            parts.append("\n".join(shortened(text, FIELD_BYTES) for text in told))
        examples = by_example(parts)
        return await ask(SayWhatMatters, max_candidates=self.most, examples=examples)


def _note(said: Mapping[str, Any]) -> str:
    """What matters, for whoever writes lessons."""
    matters = shortened(said.get("matters", ""), FIELD_BYTES)
    return f"{NOTE}{matters}" if read_lessons(matters) else ""
