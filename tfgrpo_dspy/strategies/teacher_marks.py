"""TeacherMarks: a stronger LM marks each step of the student's own rollouts."""

import re

import dspy

from tfgrpo_dspy.reflection.texts import UNKNOWN, clip
from tfgrpo_dspy.rollout import Rollout, fields_text, trajectory_text
from tfgrpo_dspy.strategies.arguments import Least0, strategy
from tfgrpo_dspy.strategies.base import Ask, Credit, GroupContext, Play, Strategy
from tfgrpo_dspy.strategies.state_values import states

SHOWN_TOKENS = 4_000  # of all attempts of a group
HIGHEST, BEFORE = 10, 0.5
"""The best mark; and what a state is worth before the first step, when nothing is known."""
LINE = re.compile(r"(\d+)\D*?:\s*([\d.,; ]+)")


class MarkSteps(dspy.Signature):
    """Mark each step of each attempt of a program: how likely would you go on to the right result?

    A mark is a number from 0 (all is lost) to 10 (as you would have done it yourself). Judge what
    the steps so far are worth to whoever goes on from there, not how they are worded. Steps that
    undo or repeat others get the mark of the step before. Earlier marks of yours stand beside the
    scores that the attempts had in the end: where they were too high or too low, learn from it.

    Write one line for each attempt, "attempt: marks", such as "1: 6, 6, 2", and nothing else.
    """

    program: str = dspy.InputField(desc="what the program does")
    example: str = dspy.InputField(desc="the input")
    expected: str = dspy.InputField(desc="the right result, where it is known")
    earlier: str = dspy.InputField(desc="last marks of earlier attempts, and their scores")
    attempts: str = dspy.InputField()
    marks: str = dspy.OutputField(desc='one line for each attempt, such as "1: 6, 6, 2"')


@strategy
class TeacherMarks(Strategy):
    """Lets the reflection LM mark the student's own rollouts, step by step, beside the metric.

    One question for each group that differs or fails shows it all attempts. The mark after a turn,
    as a share of ten, is the value of that state: the lesson writer reads where it fell, and
    lessons are for the predictor of that step. So groups that fail throughout teach, too, although
    the metric is silent. The teacher learns from the student's rollouts in turn: it is shown how
    its last marks of earlier attempts compare with the scores that the metric gave these.

    **Source.** CoDistill-GRPO (arXiv 2605.08873): the small model gets a dense on-policy reward for
    its own rollouts from the large model's distribution; the large one is trained on them, too.
    **When to use.** Programs of several steps with a silent metric, where the reflection LM could
    do the task itself. `TeacherRollouts` is for teachers that shall run in the student's place.

    Args:
        earlier: of how many earlier attempts marks and scores are shown; 0: of none.
    """

    earlier: Least0 = 8

    async def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The marks of each turn of each rollout, as shares of ten."""
        group = context.sampled.unaided
        if not group.rollouts or not (group.has_contrast or context.fails or not group.scores):
            return Credit({})
        share = SHOWN_TOKENS // len(group.rollouts)
        shown = [
            f"Attempt {n}\n{clip(trajectory_text(r), share)}\nOutputs:\n{fields_text(r.outputs)}"
            for n, r in enumerate(group.rollouts, 1)
        ]
        labels = context.shown_example.labels_text if context.shows_labels else ""
        answer = await ask(
            MarkSteps,
            example=context.shown_example.text,
            expected=labels or UNKNOWN,
            earlier=self._earlier(context) or "(none)",
            attempts="\n\n".join(shown),
        )
        lines = dict(LINE.findall(str(answer.get("marks", ""))))
        values = {}
        for n, rollout in enumerate(group.rollouts, 1):
            marks = [float(mark) for mark in re.findall(r"\d+(?:\.\d+)?", lines.get(str(n), ""))]
            if marked := _values(rollout, marks):
                values[rollout.rollout_id] = marked
        return Credit(values, measure="mark of the teacher")

    def _earlier(self, context: GroupContext) -> str:
        by_metric = [rollout for sampled in context.past for rollout in sampled.by_metric.rollouts]
        scores = {rollout.rollout_id: rollout.score for rollout in by_metric}
        marked = [
            f"mark {rollout.values[-1] * HIGHEST:.0f}, score {score:.3g}"
            for sampled in context.past
            for rollout in sampled.unaided.rollouts
            if rollout.values[-1] is not None
            and (score := scores.get(rollout.rollout_id)) is not None
        ]
        return "\n".join(marked[len(marked) - self.earlier :] if self.earlier else [])


def _values(rollout: Rollout, marks: list[float]) -> list[float | None]:
    """The marks of its steps, or of its turns, as values of states; none where they are too few."""
    ends = states(rollout)[1:]
    if len(marks) >= len(rollout.steps):
        marks = [marks[end - 1] for end in ends]
    if not ends or len(marks) < len(ends) or max(marks) > HIGHEST:
        return []
    by_end = dict(zip(ends, marks, strict=False))
    values: list[float | None] = [BEFORE]
    for n in range(1, len(rollout.values)):
        values.append(by_end[n] / HIGHEST if n in by_end else None)
    return values
