"""Rollouts that were made elsewhere, from JSON or CSV: groups form by equal inputs."""

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Self

import dspy
from pydantic import BaseModel, BeforeValidator, ValidationError, model_validator

from tfgrpo_dspy.checked import shown, such_that, text_of
from tfgrpo_dspy.errors import LibraryFormatError, SettingsError, sentence
from tfgrpo_dspy.experience.library_files import json_value, json_values
from tfgrpo_dspy.files import read_text
from tfgrpo_dspy.rollout import MOST, Failure, FailureKind, Rollout, Step
from tfgrpo_dspy.sampling.fields import as_fields, is_missing, named_items

logger = logging.getLogger(__name__)

MOST_FAULTS = 10  # in one message


def _or(value: Any, nothing: Any) -> Any:
    """The value; `nothing` where it is empty or missing, as the cells of a DataFrame are."""
    return nothing if is_missing(value) or not value else value


AsText = Annotated[str, BeforeValidator(lambda value: str(_or(value, "")))]
AsFields = Annotated[Mapping[str, str], BeforeValidator(as_fields)]


def _fields_of(value: Any) -> Any:
    return dict(named_items(value)) if isinstance(value, dspy.Example) else value


def _inputs_of(value: Any) -> Any:
    """The inputs of an Example that names them; any other value as it is."""
    with suppress(AttributeError, ValueError):  # a Prediction does not know, an Example may not
        value = value.inputs() if isinstance(value, dspy.Example) else value
    return _fields_of(value)


MaybeFields = Annotated[
    Mapping[str, Any], BeforeValidator(lambda value: _fields_of(_or(value, {})))
]
IS_SCORE = such_that(lambda score: abs(score) < MOST, f"give a number below {MOST:g}, or None")


class TraceStep(BaseModel):
    """A step of a rollout that was made elsewhere."""

    name: Annotated[str, BeforeValidator(str)]
    kind: Annotated[str, BeforeValidator(lambda k: k if k == "tool" else "predictor")] = "predictor"
    inputs: AsFields = {}
    outputs: AsFields = {}
    error: AsText = ""


class Trace(BaseModel):
    """A rollout that was made elsewhere. Values may be absent, null or NaN where it has none.

    A score may not be NaN: it is rather a metric that failed than none.
    """

    inputs: Annotated[
        Mapping[str, Any],
        BeforeValidator(_inputs_of),
        such_that(bool, "give a mapping of fields"),
    ]
    outputs: MaybeFields = {}
    error: AsText = ""
    labels: MaybeFields = {}
    score: Annotated[float, IS_SCORE] | None = None
    feedback: AsText = ""
    steps: Annotated[list[TraceStep], BeforeValidator(lambda value: _or(value, []))] = []

    @model_validator(mode="after")
    def _has_ended(self) -> Self:
        if not (self.outputs or self.error):
            raise ValueError(f"outputs={self.outputs!r}: give a mapping of fields, or an error")
        return self

    def rollout(self, example: int, number: int) -> Rollout:
        """The rollout on this example; `number` tells it from others."""
        steps = tuple(Step(**dict(step)) for step in self.steps)
        failure = Failure(FailureKind.PROGRAM, self.error) if self.error else None
        rollout = Rollout(example, number, as_fields(self.outputs), steps, failure=failure)
        return replace(rollout, score=self.score, feedback=self.feedback)


def read_traces(
    traces: str | PathLike[str] | Iterable[Mapping[str, Any]],
) -> tuple[list[dspy.Example], list[list[Rollout]]]:
    """An example for each distinct input, and its rollouts. Raises SettingsError: the faults."""
    examples: list[dspy.Example] = []
    rollouts: list[list[Rollout]] = []
    places: dict[str, int] = {}
    for number, trace in _accepted(traces):
        inputs, labels = dict(trace.inputs), dict(trace.labels)
        key = json.dumps(inputs, sort_keys=True, default=str)
        place = places.setdefault(key, len(examples))
        if place == len(examples):
            examples.append(dspy.Example(inputs))
            rollouts.append([])
        examples[place] = dspy.Example({**labels, **examples[place]}).with_inputs(*inputs)
        rollouts[place].append(trace.rollout(place, number))
    if not examples:
        fault = f"traces={shown(traces)}: there is none in it"
        raise SettingsError(f"{fault}; pass mappings with 'inputs'.")
    if any(rollout.score is not None for group in rollouts for rollout in group):
        usable = [[r for r in group if r.score is not None or r.failure] for group in rollouts]
        if n := sum(map(len, rollouts)) - sum(map(len, usable)):
            logger.warning("%d traces have no score, as others have, and are left out", n)
        rollouts = usable
    return examples, rollouts


def _accepted(traces: Any) -> Iterator[tuple[int, Trace]]:
    """The traces with their numbers. Raises SettingsError in the end: some have faults."""
    faults: list[str] = []
    for number, value in enumerate(_traces(traces), start=1):
        try:
            if isinstance(value, LibraryFormatError):
                raise value
            yield number, Trace.model_validate(dict(value) if isinstance(value, Mapping) else value)
        except (LibraryFormatError, ValidationError) as error:
            faults.append(f"trace {number}: {text_of(error)}")
        if len(faults) > MOST_FAULTS:
            faults[MOST_FAULTS:] = ["There are more."]
            break
    if faults:
        is_file = isinstance(traces, str | PathLike)
        form = "write JSON lines, a JSON array, or CSV with columns such as inputs.question."
        plain = "Write a trace as {'inputs': {...}, 'outputs': {...}, 'score': 0.5}."
        raise SettingsError(" ".join([*faults, f"{traces}: {form}" if is_file else plain]))


def _traces(traces: Any) -> Iterator[Any]:
    """Each trace; of a file, a LibraryFormatError in place of what cannot be read."""
    if not isinstance(traces, str | PathLike):
        is_one, is_table = isinstance(traces, Mapping), hasattr(traces, "columns")
        if is_one or is_table or not isinstance(traces, Iterable):
            what = f"a {type(traces).__name__}" if is_table else f"={shown(traces)}"
            raise SettingsError(
                f"traces{' is ' if is_table else ''}{what}: pass a file, or a list of mappings."
            )
        yield from traces
        return
    is_table = Path(traces).suffix.lower() == ".csv"
    try:
        text = read_text(traces)
        if is_table:
            yield from _table(text)
            return
    except (OSError, LibraryFormatError) as error:
        raise SettingsError(f"traces={str(traces)!r} cannot be read: {sentence(error)}") from error
    for value in json_values(text, "it"):
        yield from value if isinstance(value, list) else [value]


def _table(text: str) -> Iterator[dict[str, Any]]:
    """The rows of CSV as traces: `inputs.question` is a field, `inputs` a JSON object of fields."""
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            where, trace = f"line {rows.line_num}", dict[str, Any]()
            if None in row:
                raise LibraryFormatError(f"{where}: put texts that hold a comma in double quotes.")
            for column, cell in row.items():
                name, _, of = column.strip().partition(".")
                if of and (cell or name != "labels"):
                    trace.setdefault(name, {})[of] = cell
                elif cell and name in ("inputs", "outputs", "labels", "steps"):
                    trace[name] = json_value(cell, f"{where}: {name}")
                elif cell:
                    trace[name] = cell
            yield trace
    except csv.Error as error:
        raise LibraryFormatError(f"line {rows.line_num}: {sentence(error)}") from error
