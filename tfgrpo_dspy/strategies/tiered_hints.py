"""TieredHints: an example that always fails is tried with hints; the least that works is kept."""

from collections.abc import Sequence

import dspy

from tfgrpo_dspy.reflection.texts import UNKNOWN, as_input
from tfgrpo_dspy.rollout import fields_text
from tfgrpo_dspy.strategies.arguments import Least0, strategy
from tfgrpo_dspy.strategies.base import (
    Ask,
    Attempt,
    GroupContext,
    Proposed,
    Strategy,
    UpdateContext,
)
from tfgrpo_dspy.strategies.giveaways import answers_of, gives_away, without_giveaways

TIERS = ("concept", "plan", "step")


class WriteHints(dspy.Signature):
    """A program fails on this input. Write three hints, each of which helps more than the last.

    None of them may contain the expected answer, a part of it, or another way to say it: the
    program has to find the answer itself. Each is one sentence.
    """

    program: str = dspy.InputField(desc="what the program does")
    example: str = dspy.InputField(desc="the input on which the program fails")
    expected: str = dspy.InputField(desc="the right answer, where it is known")
    attempt: str = dspy.InputField(desc="what the program answered, and the feedback on it")
    concept: str = dspy.OutputField(desc="the idea, rule or fact that is needed here")
    plan: str = dspy.OutputField(desc="the steps to take, in their order")
    step: str = dspy.OutputField(desc="the first step, carried out; still without the answer")


@strategy
class TieredHints(Strategy):
    """Tries a failing example with a concept, then a plan, then a concrete step, until it succeeds.

    Only an example whose latest groups have failed gets hints. The reflection LM writes them from
    the label and the feedback. The hinted success against the failures without a hint is the
    contrast that lessons are drawn from. No score with a hint counts for any experience. A hint
    with the example's label in it is not given, and a lesson from a hinted group with that label is
    dropped, unless other training examples have the same label: then it names a class.

    **Source.** Scaf-GRPO (arXiv 2510.19807; scaffolded group relative policy optimization).
    **Carried over.** Hints only where learning stagnates, their three tiers, the least that works.
    **When to use.** Most groups fail throughout, and the metric says nothing in words.

    Args:
        after: how many of the latest groups of the example must have failed, at least 0.
    """

    after: Least0 = 1

    async def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """The next hint, if the group still fails."""
        earlier, failed = context.earlier, context.sampled.unaided.rollouts
        latest = earlier[len(earlier) - self.after :]
        is_stuck = len(earlier) >= self.after and all(map(context.has_failed, latest))
        if not (context.fails and is_stuck and failed):
            return ()
        labels = answers_of(context)
        answer = await ask(
            WriteHints,
            example=context.shown_example.text,
            expected=fields_text(labels) if context.shows_labels and labels else UNKNOWN,
            attempt=f"{fields_text(failed[0].outputs)}\n{failed[0].words}".strip() or "(no answer)",
        )
        tried = {one.hint for one in context.sampled.additions}
        written = [" ".join(str(answer.get(tier, "")).split()) for tier in TIERS]
        hints = dict.fromkeys(map(as_input, written))
        left = [hint for hint in hints if hint and hint not in tried]
        usable = [hint for hint in left if not gives_away(hint, labels)]
        return [Attempt(hint=usable[0])] if usable else ()

    async def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """The lessons that do not give away the label of an example that had a hint."""
        hinted = {e.group.example for e in context.groups if any(g.hint for g in e.additions)}
        lessons = without_giveaways(context.lessons, hinted, context.examples, context.training)
        return Proposed(lessons)
