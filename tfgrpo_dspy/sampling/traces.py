"""Rollouts that were made elsewhere, from mappings or JSON: groups form by equal inputs."""

import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from os import PathLike
from typing import Annotated, Any, Self

import dspy
from pydantic import BaseModel, BeforeValidator, ValidationError, model_validator

from tfgrpo_dspy.checked import shown, such_that, text_of
from tfgrpo_dspy.errors import LibraryFormatError, SettingsError, sentence
from tfgrpo_dspy.experience.library_files import json_values
from tfgrpo_dspy.files import read_text
from tfgrpo_dspy.rollout import MOST, Failure, FailureKind, Rollout, Step
from tfgrpo_dspy.sampling.fields import as_fields, is_missing, named_items

logger = logging.getLogger(__name__)

MOST_FAULTS = 10  # in one message


def _or(value: Any, nothing: Any) -> Any:
    """The value; `nothing` where it is empty or missing, as the cells of a DataFrame are."""
    return nothing if is_missing(value) or not value else value


def _fields_of(value: Any) -> Any:
    """The inputs of an Example that names them, all fields of any other; all else as it is."""
    with suppress(AttributeError, ValueError):  # a Prediction does not know, an Example may not
        value = value.inputs() if isinstance(value, dspy.Example) else value
    return dict(named_items(value)) if isinstance(value, dspy.Example) else _or(value, {})


AsText = Annotated[str, BeforeValidator(lambda value: str(_or(value, "")))]
AsFields = Annotated[Mapping[str, str], BeforeValidator(as_fields)]
Fields = Annotated[Mapping[str, Any], BeforeValidator(_fields_of)]
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

    inputs: Annotated[Fields, such_that(bool, "give a mapping of fields")]
    outputs: Fields = {}
    error: AsText = ""
    labels: Fields = {}
    score: Annotated[float, IS_SCORE] | None = None
    feedback: AsText = ""
    steps: Annotated[list[TraceStep], BeforeValidator(lambda value: _or(value, []))] = []

    @model_validator(mode="after")
    def _has_ended(self) -> Self:
        if not (self.outputs or self.error):
            raise ValueError(f"outputs={self.outputs!r}: give a mapping of fields, or an error")
        return self


def read_traces(
    traces: str | PathLike[str] | Iterable[Mapping[str, Any]],
) -> tuple[list[dspy.Example], list[list[Rollout]]]:
    """An example for each distinct input, and its rollouts. Raises SettingsError: the faults."""
    examples, rollouts, places = list[dspy.Example](), list[list[Rollout]](), dict[str, int]()
    for number, trace in enumerate(_accepted(traces), start=1):
        inputs, labels = dict(trace.inputs), dict(trace.labels)
        key = json.dumps(inputs, sort_keys=True, default=str)
        place = places.setdefault(key, len(examples))
        if place == len(examples):
            examples.append(dspy.Example(inputs))
            rollouts.append([])
        examples[place] = dspy.Example({**labels, **examples[place]}).with_inputs(*inputs)
        rollout = Rollout(
            place,
            number,
            as_fields(trace.outputs),
            tuple(Step(**dict(step)) for step in trace.steps),
            trace.score,
            trace.feedback,
            failure=Failure(FailureKind.PROGRAM, trace.error) if trace.error else None,
        )
        rollouts[place].append(rollout)
    if any(one.score is not None for group in rollouts for one in group):
        usable = [[r for r in group if r.score is not None or r.failure] for group in rollouts]
        if n := sum(map(len, rollouts)) - sum(map(len, usable)):
            logger.warning("%d traces have no score, as others have, and are left out", n)
        rollouts = usable
    return examples, rollouts


def _accepted(traces: Any) -> list[Trace]:
    """The traces. Raises SettingsError: some have faults, or there is none."""
    form, values = "Write a trace as {'inputs': {...}, 'outputs': {...}, 'score': 0.5}.", traces
    if isinstance(traces, str | PathLike):
        form = f"{traces}: write JSON lines, or a JSON array."
        try:
            text = read_text(traces)
        except (OSError, LibraryFormatError) as error:
            fault = f"traces={str(traces)!r} cannot be read: {sentence(error)}"
            raise SettingsError(fault) from error
        lists = (each if isinstance(each, list) else [each] for each in json_values(text, "it"))
        values = (value for each in lists for value in each)
    elif isinstance(traces, Mapping) or hasattr(traces, "columns"):  # a DataFrame
        values = None
    if not isinstance(values, Iterable):
        raise SettingsError(f"traces={shown(traces)}: pass a file, or a list of mappings.")
    accepted, faults = list[Trace](), list[str]()
    for number, value in enumerate(values, start=1):
        try:
            if isinstance(value, LibraryFormatError):  # it stands in the place of a broken line
                raise value
            fields = dict(value) if isinstance(value, Mapping) else value
            accepted.append(Trace.model_validate(fields))
        except (LibraryFormatError, ValidationError) as error:
            faults.append(f"trace {number}: {text_of(error)}")
        if len(faults) > MOST_FAULTS:
            faults[MOST_FAULTS:] = ["There are more."]
            break
    if not (accepted or faults):
        faults = [f"traces={shown(traces)}: there is none in it."]
    if faults:
        raise SettingsError(" ".join([*faults, form]))
    return accepted
