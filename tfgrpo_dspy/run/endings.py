"""Why a run ends before its budget: it can never work, or there is nothing more to learn.

A limit that is reached ends it in `budget/ledger.py`, too many failures in `calls/paid.py`.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy

from tfgrpo_dspy.errors import sentence
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.rollout import FailureKind, Group, Rollout
from tfgrpo_dspy.run.updates import EXPLAINED, LEFT, NOT_ASKED, TEACHING, Update
from tfgrpo_dspy.settings.schedule import RunInputs, RunSettings
from tfgrpo_dspy.strategies.auto import may_rescue
from tfgrpo_dspy.wording import shortened

N_FIRST = 3  # rollouts that show whether the metric works at all
FIRST_ROLLOUTS = 10
"""A program is given up after 10 rollouts none of whose answers can be read."""
ANSWERS_IN_A_ROW = 8
"""A reflection LM is given up after 8 answers in a row that are of no use."""
SHOWN_BYTES = 400  # the most of the first such answer that the reason quotes
SATURATED_GROUPS = 20
"""After 20 groups in a row that had the best score throughout, no more is expected, whatever
is on trial. With 10, some simulated runs ended too early (`benchmarks/recipe.py`)."""
FLAT_GROUPS = 40
"""The same after 40 groups if the run has seen one score only: it may as well be the lowest,
and then the lessons of failures need time to be tried."""
TARGET_GROUPS = 10  # in a row, which must have the target score on average
UNCHANGED_EPOCHS, UNCHANGED_UPDATES = 2, 16
"""After 2 epochs, and 16 updates, without a change of the result no more is expected."""


def why_unscored(rollouts: Sequence[Rollout]) -> str:
    """Why a metric can never work that failed on all of these rollouts; "": it did not."""
    failures = [rollout.failure for rollout in rollouts if rollout.failure]
    messages = [failure.message for failure in failures if failure.kind is FailureKind.METRIC]
    if not rollouts or len(messages) < len(rollouts):
        return ""
    return f"the metric gave no score to any of the first {len(rollouts)} rollouts: {min(messages)}"


def why_unreadable(rollouts: Sequence[Rollout], lms: Iterable[Any]) -> str:
    """Why a program can never work that gave no answer, or empty ones of one score; "": it may."""
    scores = {rollout.score for rollout in rollouts if rollout.score is not None}
    if not rollouts or len(scores) > 1 or not all(rollout.is_unreadable for rollout in rollouts):
        return ""
    first = rollouts[0].failure
    example = _shown("all outputs are empty" if first is None else first.message)
    return (
        f"none of the first {len(rollouts)} answers of the program could be read. The first: "
        f"{example} {_advice(lms)}"
    )


def why_useless(answers: Mapping[int, Sequence[Answer]], last: int, lm: Any) -> str:
    """Why a reflection LM can never work, by its answers up to the `last` update; "": it may."""
    useless: list[Answer] = []
    # the clock decides which answers for later updates are there
    for update in sorted(update for update in answers if update <= last):
        if any(not answer.is_useless for answer in answers[update]):
            useless = []
        else:
            useless += answers[update]
    if len(useless) < ANSWERS_IN_A_ROW:
        return ""
    first = useless[0]
    example = first.error or f"it could not be read: {first.unread or '(empty)'}"
    ending = (
        f"the reflection LM gave {len(useless)} answers in a row that are of no use. The first: "
        f"{_shown(example)}"
    )
    if useless[-1].is_too_long:
        return f"{ending} No prompt is short enough: pass a reflection_lm with a larger context"
    return ending.removesuffix(".") if first.error else f"{ending} {_advice([lm])}"


def why_finished(
    updates: Sequence[Update], n_drafts: int, n_batches: int, inputs: RunInputs
) -> str:
    """Why no more is to be expected after these updates, start and drafts included; "": more is."""
    latest, n_decided = updates[-1], len(updates) - 1
    if finished := _why_reached(latest, inputs.settings) or _why_saturated(latest, inputs):
        return finished
    n_trained = n_decided - n_drafts
    if latest.decision.is_open or n_trained < n_batches:
        return ""
    n_epochs = 1 + may_rescue(inputs.settings.strategies, latest.groups)  # what failed in one
    n_idle = n_batches * n_epochs
    uses = {use for update in updates[1:][-n_idle:] for use in update.extracted.uses}
    if n_trained >= n_idle and uses.isdisjoint((*TEACHING, NOT_ASKED, LEFT, EXPLAINED)):
        epochs = "two epochs" if n_idle > n_batches else "a whole epoch"
        return f"no group of {epochs} had anything to teach"
    n = max(UNCHANGED_EPOCHS * n_batches, UNCHANGED_UPDATES)
    if inputs.settings.measures and n_trained >= n:
        before = updates[-1 - n : -1]
        is_unchanged = all(list(u.decision.result) == list(latest.decision.result) for u in before)
        shown = [update.best[: inputs.settings.max_demos] for update in (before[0], latest)]
        first, last = ([rollout.score for rollout in best] for best in shown)
        if is_unchanged and first == last:
            return f"the last {n} updates did not change what a program would be given"
    return ""


def _why_reached(latest: Update, settings: RunSettings) -> str:
    """Why the target score is reached; "": it is not, or there is none."""
    target = settings.execution.target_score
    groups = [sampled.by_metric for sampled in latest.groups[-TARGET_GROUPS:]]
    scores = [score for group in groups for score in group.scores]
    if target is None or len(groups) < TARGET_GROUPS or not scores:
        return ""
    mean = statistics.fmean(scores)
    last = f"the last {len(groups)} groups have a mean score of {mean:z.3f}"
    return f"target_score={target} is reached: {last}" if mean >= target else ""


def _why_saturated(latest: Update, inputs: RunInputs) -> str:
    """Why the latest groups leave nothing to gain; "" if they leave something.

    All of their rollouts have the best score of the run so far; or the run has seen one score only,
    which nobody knows to be the best, for long enough that advice was tried.
    """
    scores, late = latest.score_range, latest.groups[-FLAT_GROUPS:]
    groups = [replace(sampled.unaided, score_range=scores) for sampled in late]

    def is_at_best(group: Group) -> bool:
        return group.is_at_best(inputs.examples[group.example].labels)

    n = SATURATED_GROUPS
    if len(groups) >= n and all(map(is_at_best, groups[-n:])):
        return f"all rollouts of the last {n} groups had the best score"
    n = FLAT_GROUPS
    if scores.is_flat and len(groups) >= n and not any(g.has_contrast for g in groups[-n:]):
        return f"all rollouts of the last {n} groups had the same score"
    return ""


def _shown(message: str) -> str:
    return sentence(shortened(message, SHOWN_BYTES))


def _advice(lms: Iterable[Any]) -> str:
    """What to change, with the limits that the LMs have."""
    kwargs = [getattr(lm or dspy.settings.lm, "kwargs", {}) for lm in lms]
    limits = [k.get("max_tokens") or k.get("max_completion_tokens") for k in kwargs]
    now = ", ".join(dict.fromkeys(str(limit) for limit in limits if limit))
    return (
        f"Answers that are cut or empty need a higher max_tokens{now and f' (now {now})'} or a "
        f"larger context; an LM that does not keep to the form may keep to that of another adapter,"
        f" such as dspy.JSONAdapter()"
    )
