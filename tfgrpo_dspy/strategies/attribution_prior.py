"""AttributionPrior: before the first rollout, the reflection LM says which properties matter."""

import random
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import dspy

from tfgrpo_dspy.experience.values import Experience
from tfgrpo_dspy.reflection.answer_forms import read_lessons
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.texts import UNKNOWN, by_example
from tfgrpo_dspy.strategies.arguments import Least1, strategy
from tfgrpo_dspy.strategies.base import Ask, GroupContext, Proposed, Shown, Strategy, UpdateContext
from tfgrpo_dspy.wording import shortened

FIELD_BYTES = 1050  # of the inputs of each example that is shown, and of its labels
NOTE = (
    "Somebody who has not seen the program run says what matters; heed it unless the facts differ: "
)


class SayWhatMatters(dspy.Signature):
    """Say which input fields, and which properties of the inputs, decide what the right answer is.

    The program has not been run yet. Use what you know of the world and of tasks like this one;
    in few examples much agrees by accident with the labels, so do not rely on them alone.

    In at most three sentences, say which fields or properties of the inputs the right answer
    depends on, the most important first, and which do not matter although one might think so.
    """

    program: str = dspy.InputField(desc="what the program does")
    examples: str = dspy.InputField(desc="inputs and, where they are known, labels")
    matters: str = dspy.OutputField(desc="at most three sentences, or the word None")


class FindOthers(dspy.Signature):
    """Which of these lines of advice rest on something else than what is said to matter?

    A line rests on what its condition names, and on what its advice asks to look at. Write the
    numbers of the lines that rest on what matters does not name, or says does not matter; write
    None if all rest on what matters.
    """

    program: str = dspy.InputField(desc="what the program does")
    matters: str = dspy.InputField(desc="what decides the right answer")
    lines: str = dspy.InputField(desc="numbered lines of advice")
    others: str = dspy.OutputField(desc="numbers, or the word None")


@strategy
class AttributionPrior(Strategy):
    """Learns from the reflection LM what matters in the inputs, before there is a rollout.

    One question shows it the program and a few examples. What it says decides the answer is told
    it again whenever it writes lessons. In updates with lessons of a single group, one question
    measures obedience: which of these, and of the experiences, rest on something else? Such a
    lesson is left out where another lesson explains the group by what matters, and comes last
    elsewhere: in few examples much agrees by accident. Where the experiences that rest on something
    else have the higher mean effect, the facts refute the prior, and it pulls no more.

    **Source.** Large Language Models as Attribution Regularizers for Efficient Model Training
    (arXiv 2502.20268): loss + strength * distance of the model's attributions from those that an LM
    gives for the task.
    **When to use.** With few examples, where much agrees with the labels by accident.

    Args:
        n_examples: how many training examples the question shows, at least 1.
    """

    proposes_first = True
    n_examples: Least1 = 6

    async def show(self, context: GroupContext, ask: Ask) -> Shown:
        """All rollouts, with a note on what matters."""
        return Shown(context.group.rollouts, _note(await self._said(context, ask)))

    async def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """What matters, for the drafts before the first rollout; then the lessons that obey."""
        answer = await self._said(context, ask)
        if not context.update:
            return Proposed(context.lessons, note=_note(answer))
        measured = [one for one in context.library if one.effect is not None]
        single = [lesson for lesson in context.lessons if len(lesson.evidence) < 2]
        others = await _others(answer, (*measured, *single), ask) if single else set()
        if _is_refuted(measured, others):
            return Proposed(context.lessons)
        obeying = [one for one in context.lessons if one.text not in others]
        explained = {evidence.example for one in obeying for evidence in one.evidence}
        rest = (one for one in context.lessons if one.text in others)
        kept = [one for one in rest if not explained & {e.example for e in one.evidence}]
        return Proposed((*obeying, *kept))

    async def _said(self, context: UpdateContext | GroupContext, ask: Ask) -> Mapping[str, Any]:
        """The answer to the one question, which is always the same."""
        n = min(self.n_examples, len(context.training))
        positions = random.Random("attribution").sample(sorted(context.training), n)
        parts = []
        for example in (context.examples[position] for position in positions):
            labels = example.labels_text if context.shows_labels else ""
            texts = (example.text, "Labels:", labels or UNKNOWN)
            parts.append("\n".join(shortened(text, FIELD_BYTES) for text in texts))
        examples = by_example(parts)
        return await ask(SayWhatMatters, examples=examples)


def _note(answer: Mapping[str, Any]) -> str:
    """A note for the writer of lessons: which parts of the input matter."""
    matters = shortened(answer.get("matters", ""), FIELD_BYTES)
    return f"{NOTE}{matters}" if read_lessons(matters) else ""


async def _others(
    answer: Mapping[str, Any], lines: Sequence[Lesson | Experience], ask: Ask
) -> set[str]:
    """The texts that rest on something else than what matters."""
    texts, matters = list(dict.fromkeys(one.text for one in lines)), answer.get("matters", "")
    if not texts or not read_lessons(matters):
        return set()
    numbered = "\n".join(f"{n}. {text}" for n, text in enumerate(texts, 1))
    answer = await ask(FindOthers, matters=shortened(matters, FIELD_BYTES), lines=numbered)
    numbers = {int(n) for n in re.findall(r"\d{1,3}", str(answer.get("others", "")))}
    return {text for n, text in enumerate(texts, 1) if n in numbers}


def _is_refuted(experiences: Sequence[Experience], others: set[str]) -> bool:
    """Whether experiences that rest on something else have the higher mean effect."""
    effects: tuple[list[float], list[float]] = ([], [])
    for one in experiences:
        effects[one.text in others].append(one.effect.estimate if one.effect else 0.0)
    return all(effects) and fmean(effects[True]) > fmean(effects[False])
