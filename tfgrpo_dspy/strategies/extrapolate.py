"""Extrapolate: from a worse and a better state of advice past the better one, by a factor."""

from collections.abc import Iterable
from typing import Annotated

import dspy
from pydantic import Field

from tfgrpo_dspy.experience.values import Add, Advice, Experience
from tfgrpo_dspy.reflection.answer_forms import read_lessons
from tfgrpo_dspy.reflection.lessons import read_lesson
from tfgrpo_dspy.strategies.arguments import Least1, strategy
from tfgrpo_dspy.strategies.base import Ask, Proposed, Strategy, UpdateContext


class GoPast(dspy.Signature):
    """Go on from a worse to a better state of advice, and past the better one.

    Both states were in a program's prompt; beside a line stands its measured effect on the score,
    where there is one. First find what changed from worse to better: what was added, left out, made
    stricter, narrower, more exact. Then make the same change once more, starting from the better
    state, and factor times as large: at 0.5 half of a step further, at 1.0 a whole one. Change
    nothing else.

    Write at most max_candidates lines of advice of that further state, each of them new, and
    nothing else. Write None if the change has no direction.
    """

    program: str = dspy.InputField(desc="what the program does")
    max_words: int = dspy.InputField(desc="the most words that one line may have")
    max_candidates: int = dspy.InputField()
    worse: str = dspy.InputField()
    better: str = dspy.InputField()
    factor: float = dspy.InputField()
    further: str = dspy.OutputField(desc="one line each, or the word None")


@strategy
class Extrapolate(Strategy):
    """Proposes advice that lies past the better one of two states, in the direction from the worse.

    further = better + factor * (better - worse). The states are two texts of one experience, of
    which the effects were measured (without measured effects, the later is the better one); or,
    where no experience has two, the library now and before its latest changes. Every few updates
    the reflection LM is asked to take that step. What it writes stands beside the better state, and
    the gate judges each line by its own effect: both may stay.

    **Source.** ExPO (arXiv 2404.16792): weights are moved from those before alignment past those
    after it, theta = theta_1 + alpha (theta_1 - theta_0), without more training.
    **When to use.** Runs that change wordings rather than facts, such as for style.

    Args:
        factor: how far to go past the better state, as a share of the change; .1 to 3.
        every: how many updates lie between two questions, at least 1.
        most: how many candidates are taken from an answer, at least 1.
    """

    factor: Annotated[float, Field(ge=0.1, le=3)] = 0.5
    every: Least1 = 5
    most: Least1 = 2

    async def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """Advice past the better of two states; asked for after each `every` updates."""
        pair = None if context.update % self.every else _pair(context)
        if not context.update or pair is None:
            return Proposed(context.lessons)
        worse, better = ("\n".join(map(str, state)) for state in pair)
        n, factor = self.most, self.factor
        answer = await ask(GoPast, max_candidates=n, worse=worse, better=better, factor=factor)
        evidence = tuple(dict.fromkeys(e for one in pair[1] for e in one.evidence))
        lines = read_lessons(answer.get("further", "None"))[:n]
        scope = pair[1][0].scope
        read = (read_lesson(line, context.predictors, scope) for line in lines)
        added = tuple(Add(text, scope, evidence=evidence) for text, scope in read)
        return Proposed(context.lessons, added)


def _pair(context: UpdateContext) -> tuple[list[Experience], list[Experience]] | None:
    """A worse and a better state; those of one experience whose effects differ most, if any."""
    texts: dict[str, dict[Advice, Experience]] = {}
    for library in context.libraries:
        for experience in library:
            texts.setdefault(experience.id, {})[experience.advice] = experience
    pairs = []
    for id_, of_id in texts.items():
        states = list(of_id.values())
        if len(states) > 1 and id_ in context.library:
            ranked = sorted(states, key=_effect)  # of equal ones, the later is the better
            pairs.append((_effect(ranked[-1]) - _effect(ranked[0]), ranked[0], ranked[-1]))
    if pairs:
        _, worse, better = max(pairs, key=lambda pair: pair[0])
        return [worse], [better]
    return _libraries(context)


def _libraries(context: UpdateContext) -> tuple[list[Experience], list[Experience]] | None:
    """The library before its latest changes, and now; None: nothing was left out or reworded."""
    now = list(context.library)
    for library in reversed(context.libraries):
        before = list(library)
        if before and now and _advice(before) - _advice(now) and _advice(now) - _advice(before):
            return before, now
    return None


def _advice(experiences: Iterable[Experience]) -> set[Advice]:
    return {experience.advice for experience in experiences}


def _effect(experience: Experience) -> float:
    return experience.effect.estimate if experience.effect else 0.0
