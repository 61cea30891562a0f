"""ConflictAware: advice that helps on some inputs and harms on others is narrowed, not deleted."""

import statistics
from collections.abc import Sequence
from typing import Annotated

import dspy
from pydantic import Field

from tfgrpo_dspy.experience.values import Add, Evidence, Modify, Operation
from tfgrpo_dspy.reflection.reading import read_lessons
from tfgrpo_dspy.rollout import fields_text
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.scores import MIN_CONTRAST
from tfgrpo_dspy.strategies.arguments import strategy
from tfgrpo_dspy.strategies.base import Ask, GroupContext, Proposed, Shown, Strategy, UpdateContext
from tfgrpo_dspy.strategies.contradictions import Difference, differences, p_value
from tfgrpo_dspy.wording import shortened

FIRST_LOOK, N_LOOKS = 8, 8
"""A text is tested at so many differences, at twice as many, and so on, so many times."""
MOST_SHOWN, INPUT_BYTES = 12, 210  # inputs on either side of the question, and their length


class NarrowAdvice(dspy.Signature):
    """Narrow a line of advice in a program's prompt to the inputs on which it helps.

    The program was run with and without the advice on the same inputs. On some inputs it scored
    higher with it, on others lower; a single difference may be luck. Find what sets the inputs
    where the advice helps apart, as far as the program can see it. Write the advice anew with that
    as its condition, "When <condition>, <advice>.", and change nothing else in it. Write None if
    nothing sets them apart.
    """

    program: str = dspy.InputField(desc="what the program does")
    max_words: int = dspy.InputField(desc="the most words that the text may have")
    advice: str = dspy.InputField()
    helped: str = dspy.InputField(desc="how much the score rose with the advice, and the input")
    harmed: str = dspy.InputField(desc="how much the score fell with the advice, and the input")
    narrower: str = dspy.OutputField(desc="one line, or the word None")


@strategy
class ConflictAware(Strategy):
    """Narrows advice that helps on some inputs and harms on others.

    At 8, 16, 32, ... groups that show a difference between rollouts with and without a text, a
    permutation test finds out whether similar inputs agree while others contradict them. The first
    time that it does, the reflection LM is asked where the text helps; the gate judges its answer.

    **Source.** GTPO (arXiv 2508.03772).
    **Carried over.** What is good in some rollouts and bad in others is not punished where it is
    good; rollouts of a high entropy are not compared.
    **Not carried over.** Tokens and gradients; the threshold that the paper proves.
    **When to use.** Where general advice may suit only some kinds of inputs.

    Args:
        level: of the test, between 0 and 1; a higher one asks more often.
        max_entropy: in standard deviations above the mean of the run, .01 to 100. Rollouts above it
            are not compared, as long as the others differ; those of unknown entropy always are.

    Raises:
        SettingsError: a setting is out of its range.
    """

    level: Annotated[float, Field(gt=0, lt=1)] = 0.2
    max_entropy: Annotated[float, Field(ge=0.01, le=100)] = 2.0

    async def show(self, context: GroupContext, ask: Ask) -> Shown:
        """The rollouts without those of a high entropy; all where the others would not differ."""
        group = context.group
        made = [r for each in context.past for r in each.group.rollouts] + [*group.rollouts]
        known = [r.entropy for r in made if r.entropy is not None] or [0.0]
        most = statistics.fmean(known) + self.max_entropy * statistics.pstdev(known)
        kept = tuple(r for r in group.rollouts if r.entropy is None or r.entropy <= most)
        scores = [rollout.score or 0.0 for rollout in kept] or [0.0]
        differ = max(scores) - min(scores) > MIN_CONTRAST
        return Shown(kept if differ else group.rollouts)

    async def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """A narrower text for each conflict that shows now for the first time."""
        before, operations = differences(context.past), list[Operation]()
        ids = {experience.advice: experience.id for experience in context.library}
        for advice, found in differences((*context.past, *context.groups)).items():
            looks = [n for k in range(N_LOOKS) if (n := FIRST_LOOK << k) <= len(found)]
            if not looks or looks[-1] <= len(before.get(advice, ())):
                continue
            texts = tuple(fields_text(as_fields(each.inputs())) for each in context.trainset)
            *earlier, now = (p_value(found[:n], texts) <= self.level for n in looks)
            if not now or any(earlier):
                continue
            told, sources = _question(found[: looks[-1]], texts)
            answer = await ask(NarrowAdvice, advice=advice[0], **told)
            for text in read_lessons(answer.get("narrower", "None"))[:1]:
                is_there, add = advice in ids, Add(text, advice[1], evidence=sources)
                change = Modify(ids[advice], text, evidence=sources) if is_there else add
                operations.append(change)
        return Proposed(context.lessons, tuple(operations))


def _question(
    found: Sequence[Difference], texts: Sequence[str]
) -> tuple[dict[str, str], tuple[Evidence, ...]]:
    """Where the text helped and harmed, the largest differences first; the groups it helped."""
    ranked = sorted(found, key=lambda one: -abs(one[0]))
    helped, harmed = ([o for o in ranked if (o[0] > 0) == is_gain] for is_gain in (True, False))
    told = {
        name: "\n".join(
            f"{added:+.2f}: {shortened(texts[source.example], INPUT_BYTES)}"
            for added, source in part[:MOST_SHOWN]
        )
        for name, part in (("helped", helped), ("harmed", harmed))
    }
    return told, tuple(source for _, source in helped)
