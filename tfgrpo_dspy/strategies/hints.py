"""Strategies that help where a group fails throughout: hints, a teacher, attempts that differ."""

import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import dspy
from pydantic import Field

from tfgrpo_dspy.reflection.texts import UNKNOWN, as_input
from tfgrpo_dspy.rollout import MIN_CONTRAST, fields_text
from tfgrpo_dspy.strategies.base import (
    IS_TEACHER,
    Ask,
    Attempt,
    GroupContext,
    Least0,
    Proposed,
    Scored,
    Share,
    Strategy,
    UpdateContext,
    strategy,
)
from tfgrpo_dspy.text import shortened

TIERS = ("concept", "plan", "step")
LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A letter or digit of a script that sets spaces between words."""
SHOWN_BYTES = 400  # of the answer on which the attempts agree
DIFFER = "several attempts agree, and are not right: {answer}. Take another way to another answer."
SHORT = 3  # letters: "A", "no", "1" stand in many sentences that do not give them as the answer
STATED = (
    r"(?:\b(?:is|be|say|answer|choose|pick|write|output|option|label)\W*|[=:\"'(\u201c]\W*"
    r"|(?<=[\u0e00-\uffff]))"
)


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

    The reflection LM writes the hints from the label and the feedback. The hinted success against
    the failures without a hint is the contrast that lessons are drawn from. No score with a hint
    counts for any experience. A hint with the example's label in it is not given, and a lesson from
    a hinted group with that label is dropped, unless other training examples have the same label.

    **Source.** Scaf-GRPO (arXiv 2510.19807).

    Args:
        after: how many of the latest groups of the example must have failed, at least 0.
    """

    after: Least0 = 1

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """The next hint, if the group still fails."""
        earlier, failed = context.earlier, context.sampled.unaided.rollouts
        latest = earlier[len(earlier) - self.after :]
        is_stuck = len(earlier) >= self.after and all(map(context.has_failed, latest))
        if not (context.fails and is_stuck and failed):
            return ()
        every = context.example.labels
        outputs = {name for rollout in context.group.all_rollouts for name in rollout.outputs}
        labels = {name: text for name, text in every.items() if name in outputs} or every
        answer = ask(
            WriteHints,
            example=context.example.text,
            expected=fields_text(labels) if context.shows_labels and labels else UNKNOWN,
            attempt=f"{fields_text(failed[0].outputs)}\n{failed[0].words}".strip() or "(no answer)",
        )
        tried = {one.hint for one in context.sampled.additions}
        hints = (as_input(" ".join(str(answer.get(tier, "")).split())) for tier in TIERS)
        left = (hint for hint in hints if hint and hint not in tried)
        usable = (hint for hint in left if not gives_away(hint, labels))
        return [Attempt(hint=hint) for hint in usable][:1]

    def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """The lessons, and their reasons, that do not give away the label of a hinted example."""
        hinted = {e.group.example for e in context.groups if any(g.hint for g in e.additions)}
        n_having = Counter(
            label
            for i in context.training
            if hinted
            for label in context.examples[i].labels.items()
        )
        kept = []
        for lesson in context.lessons:
            examples = [context.examples[e.example] for e in lesson.evidence if e.example in hinted]
            labels = [dict(one for one in example.labels.items() if n_having[one] == 1)
                      for example in examples]  # fmt: skip
            if not any(gives_away(lesson.text, each) for each in labels):
                tells = any(gives_away(lesson.reason, each) for each in labels)
                kept.append(replace(lesson, reason="") if tells else lesson)
        return Proposed(tuple(kept))


def gives_away(text: str, labels: Mapping[str, Any]) -> bool:
    """True if one of these labels stands in the text as whole words, in any case and spacing.

    A label of at most `SHORT` letters must stand there as an answer: behind a word such as "is" or
    "answer", a colon or a quotation mark.
    """
    plain, *of_labels = (
        " ".join(unicodedata.normalize("NFKC", str(each)).casefold().split())
        for each in (text, *labels.values())
    )
    for label in filter(None, of_labels):
        before = STATED if len(label) <= SHORT and label.isascii() else f"(?<!{LETTER})"
        if re.search(f"{before}{re.escape(label)}(?!{LETTER})", plain):
            return True
    return False


@strategy
class TeacherRollouts(Strategy):
    """Adds rollouts of a teacher to the groups in which the student fails throughout.

    The reflection LM compares them with the student's, and writes lessons for the student. No score
    of the teacher counts for any experience.

    **Source.** None.

    Args:
        teacher: a program, which runs in place of the student, or an LM, on which the student runs.
        share: how many rollouts the teacher adds, as a share of the student's in the group, .01
            to 1; at least one.
    """

    teacher: Annotated[Any, IS_TEACHER]
    share: Annotated[float, Field(ge=0.01, le=1)] = 0.5

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """The teacher's rollouts, once."""
        if not context.fails or any(each.teacher is not None for each in context.sampled.additions):
            return ()
        n_student = sum(not each.aid for each in context.sampled.additions)
        return [Attempt(teacher=self.teacher)] * max(1, int(self.share * n_student))


@strategy
class ClippedDiversity(Strategy):
    """Explores where attempts agree, and lets the unusual one of equal attempts count for more.

    Where all attempts of a group give the same answer and fail, further ones are told that answer,
    and to take another way. In every group, a rollout counts with its score, plus or minus its
    entropy compared with that of the rollouts with the same score, where all have one (ask for it
    with `dspy.LM(..., logprobs=True)`): at most `clip` times the distance to the next score of the
    group, so a worse rollout never reaches a better one. Student and result are compared by the
    score.

    **Source.** EGPO, for function calling (arXiv 2508.05118).
    **When to use.** The usual way is wrong on many inputs, and the metric is strict and silent.

    Args:
        clip: the largest change, as a share of the distance to the nearest other score of the
            group; above 0 and below 0.5.
        explore: how many further attempts, as a share of the first ones, 0 to 1; at least one,
            with 0 none.
        temperature: the least of these attempts, 0 to 2. With 1.5, which not all providers take,
            more attempts of a real LM differed.
    """

    clip: Annotated[float, Field(gt=0, lt=0.5)] = 0.25
    explore: Share = 0.5
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """Attempts that must differ from those that agree and fail; once."""
        rollouts, additions = context.sampled.unaided.rollouts, context.sampled.additions
        agree = len({rollout.answer for rollout in rollouts}) == 1 and rollouts[0].answer
        is_done = any(one.aid for one in additions) or not self.explore
        if is_done or not (agree and len(rollouts) > 1 and context.fails):
            return ()
        shown = shortened(as_input(fields_text(rollouts[0].outputs)), SHOWN_BYTES)
        hint = DIFFER.format(answer=as_input(shown))
        n = max(1, int(self.explore * len(rollouts)))
        return [Attempt(hint=hint, temperature=self.temperature)] * n

    def reward(self, scored: Scored) -> Sequence[float]:
        """The scores, changed by less than what sets them apart from others of the group."""
        scores = [rollout.score or 0.0 for rollout in scored.rollouts]
        rewards, groups = list(scores), dict[int, list[int]]()
        for place, rollout in enumerate(scored.rollouts if scored.is_training else ()):
            if not any(scored.aided[place : place + 1]):
                groups.setdefault(rollout.example, []).append(place)
        for places in groups.values():
            surprise = {place: scored.rollouts[place].entropy for place in places}
            entropies = {p: max(0.0, entropy) for p, entropy in surprise.items() if entropy}
            if None in surprise.values() or not (highest := max(entropies.values(), default=0.0)):
                continue
            for place in places:
                gaps = {other: abs(scores[place] - scores[other]) for other in places}
                mates = [entropies.get(p, 0.0) for p, gap in gaps.items() if gap <= MIN_CONTRAST]
                room = min((gap for gap in gaps.values() if gap > MIN_CONTRAST), default=0.0)
                unusual = entropies.get(place, 0.0) - statistics.fmean(mates)
                rewards[place] += self.clip * room * unusual / highest
        return rewards
