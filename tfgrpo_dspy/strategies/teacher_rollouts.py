"""TeacherRollouts: where the student always fails, a stronger program or LM joins the group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.experience.programs import is_lm
from tfgrpo_dspy.experience.values import ALL
from tfgrpo_dspy.strategies.base import Ask, Attempt, GroupContext, Strategy
from tfgrpo_dspy.strategies.checks import check_range


@dataclass(frozen=True)
class TeacherRollouts(Strategy):
    """Adds rollouts of a teacher to the groups in which the student fails throughout.

    The reflection LM compares them with the student's, and writes lessons for the student. No score
    of the teacher counts for any experience, so that each is judged on the student alone.

    **Source.** CoDistill-GRPO (arXiv 2605.08873; a large and a small model learn from each other's
    rollouts).
    **Carried over.** The bounded share of the teacher's rollouts; with `shares_library` the teacher
    learns from the student's rollouts, too: through the library.
    **Not carried over.** The importance weights of rollouts from another policy: no gradient is
    made.
    **When to use.** The student fails on most examples, and a stronger program or LM is at hand
    that is too dear to deploy.
    **Measured.** Simulated, as for `TieredHints`: .980 of the attainable gain, beside .341 without
    a teacher; with `shares_library`, a teacher with a score of .800 rises to .967. In an ordinary
    world it changes the score by +.009. (`python benchmarks/strategies.py`)

    Args:
        teacher: a program, which runs in place of the student, or an LM, on which the student runs,
            with the library.
        share: how many rollouts the teacher adds, as a share of the student's in the group, .01
            to 1; at least one.
        shares_library: whether a teacher that is a program runs with the library: its experiences
            that are for every predictor. Afterwards, `ExperienceLibrary.from_program(result)` can
            be baked into the teacher.

    Raises:
        SettingsError: a setting cannot be used.
    """

    teacher: Any
    share: float = 0.5
    shares_library: bool = False

    def __post_init__(self) -> None:
        check_range("share", self.share, 0.01, 1)
        if not isinstance(self.teacher, dspy.Module) and not is_lm(self.teacher):
            raise SettingsError(
                f"teacher={self.teacher!r}: pass a dspy.Module, or an LM such as dspy.LM(...)."
            )

    async def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """The teacher's rollouts, once."""
        given = context.sampled.given
        if not context.fails or any(each.teacher is not None for each in given):
            return ()
        teacher = self.teacher
        if self.shares_library and isinstance(teacher, dspy.Module):
            everywhere = [each for each in context.library if each.scope == ALL]
            teacher = context.library.holding(everywhere).bake(teacher)
        n_student = sum(not each.aid for each in given)
        return [Attempt(teacher=teacher)] * max(1, int(self.share * n_student))
