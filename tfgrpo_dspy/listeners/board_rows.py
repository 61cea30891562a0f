"""What a run has made, as rows of tables: for events, the run store and the results."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfgrpo_dspy.reflection.answer import Answer
from tfgrpo_dspy.reflection.texts import clip
from tfgrpo_dspy.results.rows import ExampleRow, ReflectionRow, RolloutRow
from tfgrpo_dspy.rollout import Rollout, fields_text
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.sampling.fields import Example
from tfgrpo_dspy.wording import shortened

ASKED_TOKENS = 2_000  # of an input of the reflection LM
CELL_BYTES = 300  # of a text in an `ExampleRow`
RolloutsByExample = Mapping[int, tuple[Rollout, float | None]]
"""By example: a rollout, and the score that it counts with."""


def training_rows(update: int, groups: Iterable[SampledGroup]) -> tuple[RolloutRow, ...]:
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
) -> RolloutRow:
    """The row of a rollout, with what it was given."""
    ids = " ".join(experience.id for experience in additions.library)
    failure = rollout.failure and f"{rollout.failure.kind}: {rollout.failure.message}"
    return RolloutRow(
        set=set,
        update=update,
        example=rollout.example,
        rollout_id=rollout.rollout_id,
        score=rollout.score,
        outputs=fields_text(rollout.outputs),
        feedback=rollout.words,
        failure=failure or "",
        experiences=ids,
        n_demos=len(additions.demos),
        aid=aid,
        n_lm_calls=rollout.usage.n_lm_calls,
        n_tokens=rollout.usage.n_tokens,
        dollars=rollout.usage.cost_usd,
        objectives=dict(rollout.objectives),
    )


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


def reflection_row(
    stage: str, update: int, inputs: Mapping[str, Any], answer: Answer
) -> ReflectionRow:
    """The row of an answer to these inputs."""
    texts = (f"[{name}]\n{clip(str(value), ASKED_TOKENS)}" for name, value in inputs.items())
    usage, is_read = answer.usage, answer.output is not None
    at_first = f"could not be read at first: {answer.unread}"
    unreadable = at_first if is_read else "nothing in the answer could be read"
    return ReflectionRow(
        stage=stage,
        update=update,
        asked="\n\n".join(texts),
        answered=json.dumps(answer.output, ensure_ascii=False) if is_read else answer.unread,
        explanation=answer.explanation,
        fault=answer.error or (unreadable if answer.parse_failures else ""),
        n_lm_calls=usage.n_lm_calls,
        n_tokens=usage.n_tokens,
        dollars=usage.cost_usd,
    )
