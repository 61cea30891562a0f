"""TeacherRollouts: where the student always fails, a stronger program or LM joins the group."""

from collections.abc import Sequence
from typing import Annotated, Any

import dspy
from pydantic import Field

from tfgrpo_dspy.checked import such_that
from tfgrpo_dspy.experience.programs import is_lm
from tfgrpo_dspy.experience.values import ALL
from tfgrpo_dspy.strategies.arguments import strategy
from tfgrpo_dspy.strategies.base import Ask, Attempt, GroupContext, Strategy


@strategy
class TeacherRollouts(Strategy):
    """Adds rollouts of a teacher to the groups in which the student fails throughout.

    The reflection LM compares them with the student's, and writes lessons for the student. No score
    of the teacher counts for any experience, so that each is judged on the student alone.

    **Source.** None. `TeacherMarks` is the counterpart of CoDistill-GRPO, whose large model makes
    no rollouts.
    **When to use.** The student fails on most examples, and a stronger program or LM is at hand
    that is too dear to deploy.

    Args:
        teacher: a program, which runs in place of the student, or an LM, on which the student runs,
            with the library.
        share: how many rollouts the teacher adds, as a share of the student's in the group, .01
            to 1; at least one.
        shares_library: whether a teacher that is a program runs with the library: its experiences
            that are for every predictor. Afterwards, `ExperienceLibrary.from_program(result)` can
            be baked into the teacher.
    """

    teacher: Annotated[
        Any,
        such_that(
            lambda teacher: isinstance(teacher, dspy.Module) or is_lm(teacher),
            "pass a dspy.Module, or an LM such as dspy.LM(...)",
        ),
    ]
    share: Annotated[float, Field(ge=0.01, le=1)] = 0.5
    shares_library: bool = False

    async def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """The teacher's rollouts, once."""
        if not context.fails or any(each.teacher is not None for each in context.sampled.additions):
            return ()
        teacher = self.teacher
        if self.shares_library and isinstance(teacher, dspy.Module):
            everywhere = [each for each in context.library if each.scope == ALL]
            teacher = context.library.holding(everywhere).bake(teacher)
        n_student = sum(not each.aid for each in context.sampled.additions)
        return [Attempt(teacher=teacher)] * max(1, int(self.share * n_student))
