"""Additions of a rollout's program to the student, and the group that rollouts form."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.programs import copy_program, named_predictors, with_instructions
from tfgrpo_dspy.experience.values import ALL
from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.sampling.demos import Demo, add_demos
from tfgrpo_dspy.wording import counted

HINT = "\n\nA hint for this input: "


@dataclass(frozen=True, slots=True)
class Additions:
    """A library, and demos after the student's own; in an extra attempt a hint or a teacher."""

    library: ExperienceLibrary
    demos: tuple[Demo, ...] = ()
    hint: str = ""  # at the end of the instructions
    teacher: Any = None  # a program, which runs as it is, or an LM, which the student runs on
    demo_set: int = 0  # which of the run's sets the demos are, from 1; 0: there are none
    brief: int = 0  # which of the run's briefs the library has, from 1; 0: the student's own

    @property
    def aid(self) -> str:
        """The hint or the teacher in words; if it is not empty, the score is not the student's."""
        parts = [f'with the hint "{self.hint}"'] if self.hint else []
        return ", ".join([*parts, "by a teacher"] if self.teacher is not None else parts)

    @property
    def parts(self) -> tuple[str, ...]:
        """What it has besides the student: `("E1", "brief 1", "16 demos")`."""
        return (*(experience.id for experience in self.library), *self.arms)

    @property
    def arms(self) -> tuple[str, ...]:
        """Its brief and its demos in words."""
        brief = [f"brief {self.brief}"] if self.brief else []
        return (*brief, *([counted(len(self.demos), "demo")] if self.demos else []))

    def is_for_all(self, predictors: Iterable[str]) -> bool:
        """True if the instructions of each of these predictors hold experiences."""
        if isinstance(self.teacher, dspy.Module):
            return False
        scopes = {experience.scope for experience in self.library}
        return ALL in scopes or scopes.issuperset(predictors)

    def bake(self, student: Any) -> Any:
        """A copy of the student with these; or a copy of the teacher that is a program."""
        if isinstance(self.teacher, dspy.Module):
            return copy_program(self.teacher)
        program = self.library.bake(student)
        add_demos(program, self.demos)
        if self.hint:
            for _, predictor in named_predictors(program):
                instructions = f"{predictor.signature.instructions}{HINT}{self.hint}"
                predictor.signature = with_instructions(predictor.signature, instructions)
        if self.teacher is not None:
            program.set_lm(self.teacher)
        return program


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """A group of an update, and the additions of each of `group.all_rollouts`."""

    group: Group
    additions: tuple[Additions, ...]  # some lack experiences that are on trial
    update: int = 0
    measured: Group | None = None  # by the metric, where strategies have changed the scores
    probes: tuple[Rollout, ...] = ()  # rollouts that only helped to value the steps of others
    note: str = ""  # what the reflection LM reads before the group

    def additions_of(self, rollout: Rollout) -> Additions:
        """What the program of this rollout had."""
        ids = [each.rollout_id for each in self.group.all_rollouts]
        return self.additions[ids.index(rollout.rollout_id)]

    @property
    def aids(self) -> tuple[str, ...]:
        """For each of `group.all_rollouts`, the help that it had; "" if it had none.

        That is a hint, a teacher, or the steps of another rollout from which it goes on.
        """
        return tuple(
            one.aid or ("" if rollout.n_replayed is None else _goes_on(rollout.n_replayed))
            for one, rollout in zip(self.additions, self.group.all_rollouts, strict=True)
        )

    @property
    def advice(self) -> frozenset[str]:
        """The texts that its rollouts were given."""
        return frozenset(e.text for additions in self.additions for e in additions.library)

    @property
    def unaided(self) -> Group:
        """The group without the rollouts that had aid (`aids`)."""
        return self._unaided(self.group)

    @property
    def by_metric(self) -> Group:
        """As `unaided`, with the scores of the metric."""
        return self._unaided(self.measured or self.group)

    def _unaided(self, group: Group) -> Group:
        aids = self.aids
        if not any(aids):
            return group
        pairs = zip(self.group.all_rollouts, aids, strict=True)
        ids = {rollout.rollout_id for rollout, aid in pairs if not aid}

        def kept(rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
            return tuple(rollout for rollout in rollouts if rollout.rollout_id in ids)

        every = kept(group.all_rollouts)
        return replace(group, rollouts=kept(group.rollouts), all_rollouts=every)


def _goes_on(n_steps: int) -> str:
    return f"goes on after step {n_steps} of another attempt"
