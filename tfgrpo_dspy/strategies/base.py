"""The decisions that a strategy may take, and the values that its methods take and return.

The run asks every strategy in the order of `strategies=(...)`, and knows none of them. A method is
a function of its arguments alone (no state, no clock), so a resumed run decides the same.
"""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

import dspy
from pydantic import Field

from tfgrpo_dspy.errors import SettingsError, checked, such_that
from tfgrpo_dspy.experience import ExperienceLibrary, Operation
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import UNKNOWN, as_input
from tfgrpo_dspy.rollout import NO_SCORES, Group, Rollout, number_of
from tfgrpo_dspy.sampling.examples import Example, SampledGroup
from tfgrpo_dspy.user_code import is_coroutine_function, is_lm

T = TypeVar("T")
Least0 = Annotated[int, Field(ge=0)]
Least1 = Annotated[int, Field(ge=1)]
Least2 = Annotated[int, Field(ge=2)]
Magnitude = Annotated[float, Field(ge=0.01, le=100)]  # a temperature, a weight or an entropy
Multiple = Annotated[float, Field(ge=0.1, le=10)]  # LM calls, beside those of a group's rollouts
IS_TEACHER = such_that(
    lambda teacher: isinstance(teacher, dspy.Module) or is_lm(teacher),
    "pass a dspy.Module, or an LM such as dspy.LM(...)",
)
NOT_ASYNC = such_that(lambda code: not is_coroutine_function(code), "it should not be async")


@typing.dataclass_transform(frozen_default=True, field_specifiers=(field,))
def strategy(kind: type[T]) -> type[T]:
    """The class as a frozen dataclass that verifies its arguments. Raises SettingsError."""
    return checked(SettingsError, f"{kind.__name__}: ", strict=True)(kind)


Ask = Callable[..., Mapping[str, Any]]
"""Asks the reflection LM: `answer = ask(signature, field=...)`; the output fields by name.

The signature is a class or a string, as for `dspy.Predict`. The answer is empty where the LM failed
or could not be read. The call is metered and recorded; the same question is asked once in a run.
"""
Play = Callable[..., Sequence[Rollout]]
"""Goes on from a step of a rollout: `made = play(rollout, n_steps, n=1)`, in the order of samples.

The program runs again: in the first `n_steps` steps (at least 0, less than `len(rollout.steps)`)
the LM's answers come from the record and cost nothing; what follows is sampled anew with the same
library, and scored. Asked again for the same steps, it gives the same rollouts first. Those without
a score are left out. With `answers_now=True`, the LM is asked for the outputs after these steps.

Raises NotReplayedError: the program does not repeat the recorded steps; UnpaidError: the budget
does not reach. Let them pass: the run then takes no values for the group, and goes on.
"""


@dataclass(frozen=True, slots=True)
class Credit:
    """The worth of the steps of a group's rollouts.

    `values` has, by rollout id, the score that is expected before the first step of the rollout and
    after each of its steps, so one number more than there are steps; None: not known.
    """

    values: Mapping[int, Sequence[float | None]]
    beside: tuple[Rollout, ...] = ()  # that `play` made, for the group; count for no experience
    note: str = ""  # what the reflection LM reads before the attempts
    measure: str = ""  # what the values are called where they are no scores, but go from 0 to 1


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batch of an update that is about to be made."""

    sizes: Mapping[int, int]  # the rollouts of its examples, as usual or by the strategy before
    past: tuple[SampledGroup, ...]  # all groups of the updates that are decided for sure, in order
    under_way: tuple[int, ...]  # the examples of the batches since, which are still being made
    training: tuple[int, ...]  # the positions of the examples that may be chosen
    trainset: Sequence[Any]  # all examples, by position
    group_size: int  # the usual number of rollouts of an example
    update: int  # the number of the update, from 0
    seed: int  # of the run


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The run so far, for a decision about a group or an update."""

    past: tuple[SampledGroup, ...]  # of the updates before; those decided when a group was planned
    library: ExperienceLibrary  # of the update; for a group, that with which the run would end now
    training: tuple[int, ...]  # the positions of the examples that are trained on
    examples: Sequence[Example]  # all of the training set with their texts, by position
    shows_labels: bool = True  # whether the reflection LM may be shown labels

    def shown_labels(self, example: Example) -> str:
        """The labels as the reflection LM may be shown them; "(not known)" where there are none."""
        return (self.shows_labels and example.labels_text) or UNKNOWN


@dataclass(frozen=True, kw_only=True)
class GroupContext(RunContext):
    """A group of a batch."""

    sampled: SampledGroup  # as it is now, with the extra attempts so far
    group_size: int = 0  # the usual number of rollouts of an example

    @property
    def example(self) -> Example:
        """The example of the group, with its texts and labels; `raw` is the user's own."""
        return self.examples[self.group.example]

    @property
    def group(self) -> Group:
        """The rollouts, with those that had a hint or a teacher."""
        return self.sampled.group

    @property
    def earlier(self) -> list[Group]:
        """The earlier groups of this example that have scores of the metric, without aided ones."""
        groups = [e.by_metric for e in self.past if e.group.example == self.group.example]
        return [group for group in groups if group.scores]

    @property
    def fails(self) -> bool:
        """True if the group, with all attempts so far, `has_failed`."""
        return self.has_failed(self.sampled.measured or self.group)

    def has_failed(self, group: Group) -> bool:
        """True if a group has no contrast, and less than the best score of the metric so far.

        Where there was one score only, it is too low unless the answers are those of the labels.
        """
        score_range = NO_SCORES.including(s for each in self.past for s in each.by_metric.scores)
        group = replace(group, score_range=score_range)
        is_at_best = group.is_at_best(self.example.labels)
        return bool(group.scores) and not group.has_contrast and not is_at_best


@dataclass(frozen=True, kw_only=True)
class UpdateContext(RunContext):
    """An update, before UpdateLibrary is asked."""

    update: int  # its number, from 0
    libraries: tuple[ExperienceLibrary, ...]  # after each update before; first the student's
    lessons: tuple[Lesson, ...]  # learned from the groups of this update, or drafted from labels
    groups: tuple[SampledGroup, ...]  # of this update; none where the lessons were drafted
    predictors: tuple[str, ...]  # the names of the program's predictors


@strategy
class Attempt:
    """An extra rollout of a group, with a hint, with a teacher, or with neither.

    Raises SettingsError.

    Args:
        hint: stands at the end of the instructions, in this attempt only; without field markers.
        teacher: a program, in place of the student, or an LM, on which the student runs.
        temperature: the least, 0 to 2; where the run's is higher or "own", that counts.
    """

    hint: Annotated[str, such_that(lambda hint: as_input(hint) == hint, "pass plain text")] = ""
    teacher: Annotated[Any, IS_TEACHER] = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0


@dataclass(frozen=True, slots=True)
class Scored:
    """Rollouts that the metric, or the strategy before, gave scores.

    They are all of a batch, if `is_training`; otherwise they compare student and result.
    """

    rollouts: tuple[Rollout, ...]  # each has a score
    first: tuple[Rollout, ...]  # those of the first batch, with the scores of the metric
    is_training: bool
    aided: tuple[bool, ...] = ()  # for each rollout, whether it had a hint or a teacher


@dataclass(frozen=True, slots=True)
class Shown:
    """The rollouts of a group that the reflection LM compares, and a note that it reads first."""

    rollouts: tuple[Rollout, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Proposed:
    """The lessons that UpdateLibrary is shown, and operations beside its own."""

    lessons: tuple[Lesson, ...]
    operations: tuple[Operation, ...] = ()


class Strategy:
    """A change of how the run learns; a subclass overrides the methods that decide differently.

    What a method raises, or gives that cannot be used, is counted as a failure of kind "strategy",
    and the run goes on as without that answer; after rewards that failed, without these scores. A
    `choose` that fails in the first three batches, and a `reward` that fails in the first, end the
    run.
    """

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        """The number of rollouts (at least 2) of each example of the batch, by position.

        All together at most as many as in `plan.sizes`.
        """
        return plan.sizes

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """Extra attempts for a group; asked again with these in the group, until there are none."""
        return ()

    def reward(self, scored: Scored) -> Sequence[float | None]:
        """The score that each of the rollouts counts with; None: it has no score."""
        return [rollout.score or 0.0 for rollout in scored.rollouts]

    def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The values of the steps of the group's rollouts, and further rollouts for the group.

        The lessons are for the predictor whose step changed the value most, unless they say
        otherwise.
        """
        return Credit({})

    def show(self, context: GroupContext, ask: Ask) -> Shown:
        """The rollouts of `context.group` that the reflection LM compares, and a note."""
        return Shown(context.group.rollouts)

    def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        """The lessons that UpdateLibrary is shown, and operations beside its own."""
        return Proposed(context.lessons)


METHODS = tuple(name for name, one in vars(Strategy).items() if callable(one) and name[0] != "_")


def are_scores(values: Sequence[Any], n: int) -> bool:
    """True if these are `n` numbers or None."""
    return len(values) == n and all(v is None or number_of(v) is not None for v in values)


def overrides(strategy: object, method: str) -> bool:
    """True if the strategy decides on this."""
    return getattr(type(strategy), method, None) is not getattr(Strategy, method)
