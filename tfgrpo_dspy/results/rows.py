"""The rows of the tables of a run: its rollouts, questions to the reflection LM, examples."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A rollout, in the set ("training", "validation" or "test") that its example is of."""

    set: str
    update: int | None  # from 0; None outside training
    example: int  # the position in its set
    rollout_id: int
    score: float | None
    outputs: str
    feedback: str
    failure: str  # the kind and the message
    experiences: str  # the ids that it was given
    n_demos: int = 0
    aid: str = ""  # the help that it had: a hint, a teacher, a start from another rollout
    n_lm_calls: int = 0
    n_tokens: int = 0
    dollars: float = 0.0
    objectives: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReflectionRow:
    """A question to the reflection LM: what it was asked and what it answered."""

    stage: str  # "draft", "summary", "lesson", "update" or "strategy"
    update: int
    asked: str
    answered: str  # what was read, as JSON; or the beginning of what could not be read
    explanation: str = ""
    fault: str = ""  # what failed, also if the LM was asked once more and then gave `answered`
    n_lm_calls: int = 0
    n_tokens: int = 0
    dollars: float = 0.0


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """What student and result scored and gave on an example of the validation or test set."""

    set: str
    example: int  # the position in its set
    inputs: str  # this and other texts are shortened
    student: float | None
    result: float | None
    student_outputs: str
    result_outputs: str
    feedback: str = ""


def objective_means(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each objective, over those that have it."""
    columns = [*values]
    names = dict.fromkeys(name for of_one in columns for name in of_one)
    return {n: statistics.fmean(of_one[n] for of_one in columns if n in of_one) for n in names}


def as_columns(rows: Iterable[Any]) -> list[dict[str, Any]]:
    """The rows as dicts that all have the same keys; an objective is a column `objective NAME`."""
    plain = [asdict(row) for row in rows]
    names = dict.fromkeys(name for row in plain for name in row.get("objectives", ()))
    for row in plain:
        objectives = row.pop("objectives", {})
        row.update({f"objective {name}": objectives.get(name) for name in names})
    return plain
