"""Induction: proposes the rules behind the lines that have come to stay."""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

import dspy

from tfgrpo_dspy.experience.values import Add, Experience, Modify
from tfgrpo_dspy.reflection.answer_forms import read_lessons
from tfgrpo_dspy.reflection.lessons import Lesson, read_lesson, sources_of
from tfgrpo_dspy.reflection.texts import NO_EXPERIENCES
from tfgrpo_dspy.strategies.arguments import Least1, strategy
from tfgrpo_dspy.strategies.base import Ask, Proposed, Strategy, UpdateContext

FEWEST_TEXTS = 2  # that came to stay: one alone has no direction
_ID = re.compile(r"\[(E[1-9]\d*)\*?\]:?")
_NAMED = re.compile(r"\W*(E[1-9]\d*)\W+(\w.*)")  # the id of an experience, and its new text


class FindRules(dspy.Signature):
    """Write advice for a program that goes further the way its advice has been changing.

    Lines of advice were tried in the program's prompt. Some came to stay, some went again; beside
    a line stands its measured effect on the score, where there is one. What do the lines that stay
    have in common that those that went lack? Which rule is behind several of them, and what does
    it say of inputs that none of them names? How would the best of them read if they were clearer,
    more exact, or held for more inputs?

    Write at most max_candidates lines, the most useful first, and nothing else:
    - "When <condition>, <advice>.", or only the advice if it always applies, for a new line.
    - "E3: " and the new text, for a better text of line E3.
    Only what the changes suggest. Write None if they suggest nothing.
    """

    program: str = dspy.InputField(desc="what the program does")
    max_words: int = dspy.InputField(desc="the most words that one line may have")
    max_candidates: int = dspy.InputField()
    before: str = dspy.InputField(desc="the advice that the program began with")
    came: str = dspy.InputField(desc="lines that are there now, with their effects")
    went: str = dspy.InputField(desc="lines that were tried and are gone, or were worded so before")
    candidates: str = dspy.OutputField(desc="one line each, or the word None")


@strategy
class Induction(Strategy):
    """Proposes rules behind single lines, and better texts of them, by induction over the library.

    Every few updates the reflection LM is shown the library that the student began with, what came
    since, what went, and the measured effects. It proposes lines that go further: a rule behind
    several of them, a better text of one. The gate judges these like any other candidate. It is
    asked again as long as one of the latest candidates is there and has a positive effect.

    **Source.** None: plain induction over lines and their measured effects; `Extrapolate` is the
    counterpart of ExPO.
    **When to use.** Where lessons are about single cases, and a rule is behind many of them.

    Args:
        every: how many updates lie between two questions, at least 1.
        most: how many candidates are taken from an answer, at least 1.
    """

    every: Least1 = 10
    most: Least1 = 3

    async def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """Rules behind the experiences that stayed; asked for after each `every` updates."""
        operations: tuple[Add | Modify, ...] = ()
        is_asked = context.update and not context.update % self.every
        for update in range(self.every, context.update + 1, self.every) if is_asked else ():
            libraries = context.libraries[: update + 1]
            then = replace(context, library=libraries[-1], libraries=libraries)
            if operations and not _has_paid(operations, then.library):
                return Proposed(context.lessons)
            operations = await self._operations(then, ask)  # earlier answers are remembered
        return Proposed(context.lessons, operations)

    async def _operations(self, context: UpdateContext, ask: Ask) -> tuple[Add | Modify, ...]:
        """The operations that the reflection LM answers to the library of an update."""
        start, *later = context.libraries
        of_start = {experience.advice for experience in start}
        came = [experience for experience in context.library if experience.advice not in of_start]
        if len(came) < FEWEST_TEXTS:
            return ()
        now = {experience.advice for experience in context.library}
        tried = {one.advice: one for one in itertools.chain(start, *later) if one.advice not in now}
        answer = await ask(
            FindRules,
            max_candidates=self.most,
            before=_lines(start),
            came=_lines(came),
            went=_lines(tried.values()),
        )
        lines = read_lessons(_ID.sub(r"\1:", answer.get("candidates", "None")))[: self.most]
        return tuple(_operations(lines, came, context))


def _has_paid(operations: Iterable[Add | Modify], library: Iterable[Experience]) -> bool:
    """Whether one of these candidates is in the library, and has done good so far."""
    texts = {operation.text for operation in operations}
    effects = [one.effect for one in library if one.text in texts]
    return any(effect is not None and effect.estimate > 0 for effect in effects)


def _lines(experiences: Iterable[Experience]) -> str:
    """A line for each: id, text, and the effect where it was measured."""
    return "\n".join(map(str, experiences)) or NO_EXPERIENCES


def _operations(
    lines: Iterable[str], came: Iterable[Experience], context: UpdateContext
) -> Iterator[Add | Modify]:
    """An operation for each line; it rests on what those lines rest on that it resembles."""
    learned = [Lesson(each.text, each.scope, each.evidence) for each in came]
    for line in lines:
        named = _NAMED.fullmatch(line)
        text, scope = read_lesson(named[2] if named else line, context.predictors)
        evidence = tuple(e for source in sources_of(text, learned) for e in source.evidence)
        if named and named[1] in context.library:
            yield Modify(named[1], text, evidence=evidence)
        else:
            yield Add(text, scope, evidence=evidence)
