"""Rows of tables from what a run has made: for events, the run store and the results.

A row is a dict by the names of columns, ready for JSON.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tfgrpo_dspy.reflection.answer import Answer
from tfgrpo_dspy.reflection.texts import clip
from tfgrpo_dspy.results.records import ExampleRow, Row
from tfgrpo_dspy.rollout import Rollout, fields_text
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.sampling.fields import Example
from tfgrpo_dspy.wording import shortened

ASKED_TOKENS = 2_000  # of an input of the reflection LM
CELL_BYTES = 300  # of a text in an `ExampleRow`
RolloutsByExample = Mapping[int, tuple[Rollout, float | None]]
"""By example: a rollout, and the score that it counts with."""


def training_rows(update: int, groups: Iterable[SampledGroup]) -> tuple[Row, ...]:
    """The rollouts of an update, with the scores of the metric."""
    return tuple(
        rollout_row(rollout, "training", additions, update, aid)
        for sampled in groups
        for additions, rollout, aid in zip(
            sampled.additions,
            (sampled.measured or sampled.group).all_rollouts,
            sampled.aids,
            strict=True,
        )
    )


def rollout_row(
    rollout: Rollout, set: str, additions: Additions, update: int | None = None, aid: str = ""
) -> Row:
    """The row of a rollout on an example of this set, with the help (`aid`) that it had."""
    failure = rollout.failure and f"{rollout.failure.kind}: {rollout.failure.message}"
    return {
        "set": set,  # "training", "validation" or "test"
        "update": update,  # from 0; None outside training
        "example": rollout.example,  # the position in its set
        "rollout_id": rollout.rollout_id,
        "score": rollout.score,
        "outputs": fields_text(rollout.outputs),
        "feedback": rollout.words,
        "failure": failure or "",
        "experiences": " ".join(experience.id for experience in additions.library),
        "n_demos": len(additions.demos),
        "aid": aid,  # a hint, a teacher, a start from another rollout
        "n_lm_calls": rollout.usage.n_lm_calls,
        "n_tokens": rollout.usage.n_tokens,
        "dollars": rollout.usage.cost_usd,
        "objectives": dict(rollout.objectives),
    }


def example_rows(
    set: str, examples: Sequence[Example], student: RolloutsByExample, result: RolloutsByExample
) -> list[ExampleRow]:
    """A row for each example that both, or one of them, were measured on."""
    rows = []
    for example in sorted({*student, *result}):
        (before, old), (after, new) = (of.get(example, (None, None)) for of in (student, result))
        rows.append(
            ExampleRow(
                set=set,
                example=example,
                inputs=shortened(examples[example].text, CELL_BYTES),
                student=old,
                result=new,
                student_outputs=_outputs(before),
                result_outputs=_outputs(after),
                feedback=shortened(after.words, CELL_BYTES) if after else "",
            )
        )
    return rows


def worst_first(rows: Iterable[ExampleRow]) -> tuple[ExampleRow, ...]:
    """First the examples that the result has no score on, then those with its lowest scores."""

    def place(row: ExampleRow) -> tuple[bool, float, float]:
        result = row.result or 0.0
        return row.result is not None, result, result - (row.student or 0.0)

    return tuple(sorted(rows, key=place))


def _outputs(rollout: Rollout | None) -> str:
    if rollout is None:
        return ""
    failure = rollout.failure.message if rollout.failure else ""
    return shortened(fields_text(rollout.outputs) or failure, CELL_BYTES)


def reflection_row(stage: str, update: int, inputs: Mapping[str, Any], answer: Answer) -> Row:
    """The row of an answer to these inputs.

    `answered` is what was read, as JSON, or what could not be read; `fault` says what failed, also
    where the LM was asked once more.
    """
    texts = (f"[{name}]\n{clip(str(value), ASKED_TOKENS)}" for name, value in inputs.items())
    usage, is_read = answer.usage, answer.output is not None
    at_first = f"could not be read at first: {answer.unread}"
    unreadable = at_first if is_read else "nothing in the answer could be read"
    return {
        "stage": stage,
        "update": update,
        "asked": "\n\n".join(texts),
        "answered": json.dumps(answer.output, ensure_ascii=False) if is_read else answer.unread,
        "explanation": answer.explanation,
        "fault": answer.error or (unreadable if answer.parse_failures else ""),
        "n_lm_calls": usage.n_lm_calls,
        "n_tokens": usage.n_tokens,
        "dollars": usage.cost_usd,
    }


def objective_means(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each objective, over those that have it."""
    columns = [*values]
    names = dict.fromkeys(name for of_one in columns for name in of_one)
    return {n: statistics.fmean(of_one[n] for of_one in columns if n in of_one) for n in names}


def as_columns(rows: Iterable[Any]) -> list[Row]:
    """The rows as dicts that all have the same keys; an objective is a column `objective NAME`."""
    plain = [dict(row) if isinstance(row, Mapping) else asdict(row) for row in rows]
    names = dict.fromkeys(name for row in plain for name in row.get("objectives", ()))
    for row in plain:
        objectives = row.pop("objectives", {})
        row.update({f"objective {name}": objectives.get(name) for name in names})
    return plain
