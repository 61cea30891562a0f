"""What the program of a rollout has beyond the student, and the group that rollouts form."""

from dataclasses import dataclass
from typing import Any

import dspy

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.programs import copy_program, named_predictors, with_instructions
from tfgrpo_dspy.rollout import Group
from tfgrpo_dspy.sampling.demos import Demo, with_demos

HINT = "\n\nA hint for this input: "


@dataclass(frozen=True, slots=True)
class Additions:
    """A library, and demos after the student's own; in an extra attempt also a hint or a teacher.

    `hint` stands at the end of the instructions. `teacher` is another program, which runs as it is,
    or an LM, which the student runs on.
    """

    library: ExperienceLibrary
    demos: tuple[Demo, ...] = ()
    hint: str = ""
    teacher: Any = None

    @property
    def aid(self) -> str:
        """The hint or the teacher in words; if it is not empty, the score is not the student's."""
        told = [f'with the hint "{self.hint}"'] if self.hint else []
        return ", ".join([*told, "by a teacher"] if self.teacher is not None else told)

    def bake(self, student: Any) -> Any:
        """A copy of the student with these; or a copy of the teacher that is a program."""
        if isinstance(self.teacher, dspy.Module):
            return copy_program(self.teacher)
        program = self.library.bake(with_demos(student, self.demos))
        if self.hint:
            for _, predictor in named_predictors(program):
                told = f"{predictor.signature.instructions}{HINT}{self.hint}"
                predictor.signature = with_instructions(predictor.signature, told)
        if self.teacher is not None:
            program.set_lm(self.teacher)
        return program


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """A group of an update, and what each of `group.all_rollouts` was given.

    Some rollouts lack experiences that are on trial. `measured` is the group with the scores of the
    metric, where strategies have changed those of `group`.
    """

    group: Group
    given: tuple[Additions, ...]
    update: int = 0
    measured: Group | None = None

    @property
    def unaided(self) -> Group:
        """The group without the rollouts that had a hint or a teacher."""
        return self._unaided(self.group)

    @property
    def by_metric(self) -> Group:
        """As `unaided`, with the scores of the metric."""
        return self._unaided(self.measured or self.group)

    def _unaided(self, group: Group) -> Group:
        if not any(given.aid for given in self.given):
            return group
        pairs = zip(self.group.all_rollouts, self.given, strict=True)
        ids = {rollout.rollout_id for rollout, given in pairs if not given.aid}
        kept = (
            tuple(r for r in rollouts if r.rollout_id in ids)
            for rollouts in (group.rollouts, group.all_rollouts)
        )
        return Group(group.example, *kept)
