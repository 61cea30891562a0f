"""What can never work, by its first tries: then the run ends, and says why and what to change."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy

from tfgrpo_dspy.errors import sentence
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.run.asking import Answer
from tfgrpo_dspy.wording import shortened

FIRST_ROLLOUTS = 10
"""A program none of whose first answers can be read is given up after so many rollouts."""
ANSWERS_IN_A_ROW = 8
"""A reflection LM is given up after so many answers in a row that are of no use."""
SHOWN_BYTES = 400  # of the first of them


def why_unreadable(rollouts: Sequence[Rollout], lms: Iterable[Any]) -> str:
    """Why a program can never work none of whose rollouts gave an answer; "": one did.

    Answers that are empty are none, if the metric does not tell them apart.
    """
    scores = {rollout.score for rollout in rollouts if rollout.score is not None}
    if not rollouts or len(scores) > 1 or not all(rollout.is_unreadable for rollout in rollouts):
        return ""
    first = rollouts[0].failure
    said = "all outputs are empty" if first is None else _shown(first.message)
    return (
        f"none of the first {len(rollouts)} answers of the program could be read. The first: "
        f"{said} {_advice(lms)}"
    )


def why_useless(answers: Mapping[int, Sequence[Answer]], lm: Any) -> str:
    """Why a reflection LM can never work, by its answers for each update; "": it may."""
    useless: list[Answer] = []
    for update in sorted(answers):
        if any(not answer.is_useless for answer in answers[update]):
            useless = []
        else:
            useless += answers[update]
    if len(useless) < ANSWERS_IN_A_ROW:
        return ""
    first = useless[0]
    said = first.error or f"it could not be read: {first.unread or '(empty)'}"
    return (
        f"the reflection LM gave {len(useless)} answers in a row that are of no use. The first: "
        f"{_shown(said)} {_advice([lm])}"
    )


def _shown(message: str) -> str:
    return sentence(shortened(message, SHOWN_BYTES))


def _advice(lms: Iterable[Any]) -> str:
    """What to change, with the limits that the LMs have."""
    kwargs = [getattr(lm or dspy.settings.lm, "kwargs", {}) for lm in lms]
    limits = [given.get("max_tokens") or given.get("max_completion_tokens") for given in kwargs]
    known = ", ".join(dict.fromkeys(str(limit) for limit in limits if limit))
    return (
        f"Answers that are cut or empty need a higher max_tokens{known and f' (now {known})'} or a "
        f"larger context; an LM that does not keep to the form may keep to that of another adapter,"
        f" such as dspy.JSONAdapter()"
    )
