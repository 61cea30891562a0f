"""TieredHints: an example that always fails is tried with hints; the least that works is kept."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.rollout import fields_text
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.strategies.base import (
    Ask,
    Attempt,
    GroupContext,
    Proposed,
    Strategy,
    UpdateContext,
)
from tfgrpo_dspy.strategies.checks import check_whole

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


@dataclass(frozen=True)
class TieredHints(Strategy):
    """Tries a failing example with a concept, then a plan, then a concrete step, until it succeeds.

    Only an example that has failed in so many groups before gets hints. The reflection LM writes
    them from the label and the feedback. The hinted success against the failures without a hint is
    the contrast that lessons are drawn from. No score with a hint counts for any experience. A hint
    with the example's label in it is not given, and a lesson from a hinted group with that label is
    dropped, unless other training examples have the same label: then it names a class.

    **Source.** Scaf-GRPO (arXiv 2510.19807; scaffolded group relative policy optimization).
    **Carried over.** Hints only where learning stagnates, their three tiers, the least that works.
    **Not carried over.** The hinted rollout replaces none: it stands beside those that failed.
    **When to use.** Most groups fail throughout, and the metric says nothing in words.
    **Measured.** Simulated, 90 % of the groups fail throughout and the metric is silent, ten seeds:
    .995 of the attainable gain, beside .341 without hints. In an ordinary world it changes the
    score by -.006. (`python benchmarks/strategies.py`)

    Args:
        after: how many earlier groups of the example must have failed, at least 0.

    Raises:
        SettingsError: `after` is out of range.
    """

    after: int = 1

    def __post_init__(self) -> None:
        check_whole("after", self.after, 0)

    async def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """The next hint, if the group still fails."""
        earlier = context.earlier
        n_failed = sum(not group.has_contrast for group in earlier)
        failed = context.sampled.unaided.rollouts
        is_stuck = len(earlier) >= self.after and n_failed == len(earlier)
        if not (context.fails and is_stuck and failed):
            return ()
        labels = as_fields(context.example.labels())
        answer = await ask(
            WriteHints,
            example=fields_text(as_fields(context.example.inputs())),
            expected=fields_text(labels) if context.shows_labels and labels else "(not known)",
            attempt=f"{fields_text(failed[0].outputs)}\n{failed[0].feedback}".strip()
            or "(no answer)",
        )
        tried = {given.hint for given in context.sampled.given}
        hints = dict.fromkeys(" ".join(str(answer.get(tier, "")).split()) for tier in TIERS)
        left = [each for each in hints if each and each not in tried and not _told(labels, each)]
        return [Attempt(hint=left[0])] if left else ()

    async def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """The lessons that do not give away the label of an example that had a hint."""
        hinted = {e.group.example for e in context.groups if any(g.hint for g in e.given)}
        labels = {i: as_fields(context.trainset[i].labels()) for i in context.training}
        own = {
            i: {name: text for name, text in labels[i].items() if _is_own(i, name, labels)}
            for i in hinted & labels.keys()
        }
        return Proposed(tuple(each for each in context.lessons if not _gives_away(each, own)))


def _is_own(index: int, name: str, labels: Mapping[int, Mapping[str, str]]) -> bool:
    """Whether no other example has the same label."""
    text = labels[index][name]
    return not any(other.get(name) == text for i, other in labels.items() if i != index)


def _gives_away(lesson: Lesson, own: Mapping[int, Mapping[str, str]]) -> bool:
    sources = {evidence.example for evidence in lesson.evidence}
    return any(_told(own[i], lesson.text) for i in sources & own.keys())


def _told(labels: Mapping[str, Any], text: str) -> bool:
    """Whether a label stands in the text, in any case and spacing; in ASCII, as whole words."""
    said = " ".join(text.casefold().split())
    wanted = [re.escape(" ".join(label.casefold().split())) for label in labels.values()]
    whole = [rf"(?<!\w){each}(?!\w)" if each.isascii() else each for each in wanted if each]
    return any(re.search(each, said) for each in whole)
