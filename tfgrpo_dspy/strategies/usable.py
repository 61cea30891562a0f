"""What a run can use of what a strategy gives; each function raises StrategyError for the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from tfgrpo_dspy.errors import StrategyError
from tfgrpo_dspy.experience.values import Add, Delete, Keep, Modify
from tfgrpo_dspy.group import Group
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.texts import as_input
from tfgrpo_dspy.scores import MOST, number_of
from tfgrpo_dspy.strategies.base import Attempt, BatchPlan, Proposed, Shown

MOST_TEMPERATURE = 2


def check(is_usable: bool, answer: object, wanted: str) -> None:
    """Raise StrategyError, which says what is wanted, unless the answer is usable."""
    if not is_usable:
        raise StrategyError(f"it gave {answer!r:.200}; return {wanted}.")


def check_sizes(sizes: Any, plan: BatchPlan, least: int) -> None:
    """The number of rollouts of each example: at least `least`, and in all no more than planned."""
    are_numbers = isinstance(sizes, Mapping) and all(type(n) is int for n in sizes.values())
    check(are_numbers, sizes, "a mapping of examples to whole numbers")
    positions = set(plan.training)
    check(set(sizes) <= positions and bool(sizes), dict(sizes), "examples of plan.training")
    least = min(least, *plan.sizes.values())
    check(min(sizes.values()) >= least, dict(sizes), f"at least {least} rollouts for each example")
    most = sum(plan.sizes.values())
    check(sum(sizes.values()) <= most, dict(sizes), f"at most {most} rollouts in all")


def check_attempts(attempts: Sequence[Any]) -> None:
    """The extra attempts of a group."""
    wanted = (
        "Attempts; a hint is a text without field markers, a teacher a program or an LM, "
        "a temperature from 0 to 2"
    )
    check(all(map(_can_be_made, attempts)), attempts, wanted)


def _can_be_made(attempt: object) -> bool:
    if not isinstance(attempt, Attempt) or not isinstance(attempt.hint, str):
        return False
    if not isinstance(attempt.teacher, dspy.Module | dspy.BaseLM | None):
        return False
    temperature = number_of(attempt.temperature)
    is_temperature = temperature is not None and 0 <= temperature <= MOST_TEMPERATURE
    return is_temperature and as_input(attempt.hint) == attempt.hint


def check_rewards(rewards: Sequence[Any], n: int) -> None:
    """The scores with which `n` rollouts count."""
    are_numbers = all(each is None or number_of(each) is not None for each in rewards)
    wanted = f"{n} numbers below {MOST:g}, or None for no score"
    check(len(rewards) == n and are_numbers, rewards, wanted)


def check_shown(shown: Any, group: Group) -> None:
    """The rollouts of this group that the reflection LM compares."""
    check(isinstance(shown, Shown), shown, "a Shown")
    usable = all(rollout in group.rollouts for rollout in shown.rollouts)
    check(usable, shown.rollouts, "rollouts of context.group.rollouts")


def check_values(values: Any, group: Group) -> None:
    """The values of the steps of this group's rollouts."""
    wanted = "by rollout id a sequence of numbers or None, one more than there are steps"
    lengths = {rollout.rollout_id: len(rollout.values) for rollout in group.rollouts}
    check(isinstance(values, Mapping) and values.keys() <= lengths.keys(), values, wanted)
    for id_, of_rollout in values.items():
        are_numbers = all(value is None or number_of(value) is not None for value in of_rollout)
        check(are_numbers and len(of_rollout) == lengths[id_], of_rollout, wanted)


def check_proposed(proposed: Any) -> None:
    """The lessons and operations of an update."""
    check(isinstance(proposed, Proposed), proposed, "a Proposed")
    are_lessons = all(isinstance(each, Lesson) for each in proposed.lessons)
    check(are_lessons, proposed.lessons, "lessons")
    kinds = Add | Modify | Delete | Keep
    usable = all(isinstance(each, kinds) for each in proposed.operations)
    check(usable, proposed.operations, "operations")
