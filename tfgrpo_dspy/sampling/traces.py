"""Rollouts that were made elsewhere, from JSON or CSV: groups form by equal inputs."""

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import dspy

from tfgrpo_dspy.checked import shown
from tfgrpo_dspy.errors import LibraryFormatError, SettingsError, sentence
from tfgrpo_dspy.experience.files import json_value, json_values
from tfgrpo_dspy.files import read_text
from tfgrpo_dspy.interchange.tables import cells_of
from tfgrpo_dspy.rollout import Failure, FailureKind, Rollout, Step
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.scores import MOST

logger = logging.getLogger(__name__)

MOST_FAULTS = 10  # in one message


def read_traces(
    traces: str | PathLike[str] | Iterable[Mapping[str, Any]],
) -> tuple[list[dspy.Example], list[list[Rollout]]]:
    """An example for each distinct input, and its rollouts. Raises SettingsError: the faults."""
    examples: list[dspy.Example] = []
    rollouts: list[list[Rollout]] = []
    places: dict[str, int] = {}
    for number, trace in _accepted(traces):
        inputs, labels = dict(trace["inputs"]), dict(trace.get("labels") or {})
        key = json.dumps(inputs, sort_keys=True, default=str)
        place = places.setdefault(key, len(examples))
        if place == len(examples):
            examples.append(dspy.Example(inputs))
            rollouts.append([])
        examples[place] = dspy.Example({**labels, **examples[place]}).with_inputs(*inputs)
        rollouts[place].append(_rollout(trace, place, number))
    if not examples:
        raise SettingsError(
            f"traces={shown(traces)}: there is none in it; pass mappings with 'inputs'."
        )
    if any(rollout.score is not None for group in rollouts for rollout in group):
        known = [[r for r in group if r.score is not None or r.failure] for group in rollouts]
        if n := sum(map(len, rollouts)) - sum(map(len, known)):
            logger.warning("%d traces have no score, as others have, and are left out", n)
        rollouts = known
    return examples, rollouts


def _accepted(traces: Any) -> Iterator[tuple[int, Any]]:
    """The traces with their numbers. Raises SettingsError in the end: some have faults."""
    faults: list[str] = []
    for number, trace in enumerate(_traces(traces), start=1):
        if not (fault := _fault(trace)):
            yield number, trace
        elif len(faults) == MOST_FAULTS:
            faults.append("There are more.")
            break
        else:
            faults.append(f"trace {number}: {fault}")
    if faults:
        is_file = isinstance(traces, str | PathLike)
        forms = [f"{traces}: write JSON lines, a JSON array, or CSV."] if is_file else []
        raise SettingsError(" ".join([*faults, *forms]))


def _traces(given: Any) -> Iterator[Any]:
    """Each trace; of a file, a LibraryFormatError in place of what cannot be read."""
    if not isinstance(given, str | PathLike):
        if not isinstance(given, Iterable):
            raise SettingsError(f"traces={given!r:.100}: pass a file, or mappings.")
        yield from given
        return
    is_table = Path(given).suffix.lower() in (".csv", ".tsv")
    try:
        text = read_text(given, is_table)
        if is_table:
            yield from _table(text)
            return
    except (OSError, LibraryFormatError, csv.Error) as error:
        raise SettingsError(f"traces={str(given)!r} cannot be read: {sentence(error)}") from error
    for value in json_values(text, "it"):
        yield from value if isinstance(value, list) else [value]


def _table(text: str) -> Iterator[dict[str, Any]]:
    """The rows of CSV as traces: `inputs.question` is a field, `inputs` a JSON object of fields."""
    columns, rows = cells_of(text)
    for where, row in rows:
        trace: dict[str, Any] = {}
        for column, cell in zip(columns, row, strict=False):
            name, _, of = column.partition(".")
            if of and isinstance(trace.get(name, {}), dict):
                trace.setdefault(name, {}).update({of: cell} if cell or name != "labels" else {})
            elif cell.strip() and column in ("inputs", "outputs", "labels", "steps"):
                trace[column] = json_value(cell, f"{where}: {column}")
            elif cell.strip():
                trace[column] = _number(cell) if column == "score" else cell
        yield trace


def _number(cell: str) -> float | str:
    """The number in a cell, which some spreadsheets write with a comma; else the cell."""
    try:
        return float(cell.replace(",", "."))
    except ValueError:
        return cell


def _fault(trace: Any) -> str:
    if isinstance(trace, LibraryFormatError):
        return str(trace)
    if not isinstance(trace, Mapping):
        return f"{shown(trace)}: give a mapping with 'inputs' and 'outputs'."
    for name in ("inputs", "outputs", "labels"):
        value = trace.get(name)
        is_needed = name == "inputs" or (name == "outputs" and not trace.get("error"))
        if not isinstance(value or {}, Mapping) or (is_needed and not value):
            return f"{name}={shown(value)}: give a mapping of fields."
    score, steps = trace.get("score"), trace.get("steps") or ()
    if score is not None and not (isinstance(score, int | float) and abs(score) < MOST):
        return f"score={shown(score)}: give a finite number (below {MOST:g}), or leave it out."
    is_list = isinstance(steps, list | tuple)
    if not is_list or not all(isinstance(step, Mapping) and "name" in step for step in steps):
        return f"steps={shown(steps)}: give a list of mappings with 'name', 'inputs' and 'outputs'."
    return ""


def _rollout(trace: Mapping[str, Any], place: int, number: int) -> Rollout:
    error, score = trace.get("error"), trace.get("score")
    return Rollout(
        example=place,
        rollout_id=number,
        outputs=as_fields(trace.get("outputs")),
        steps=tuple(_step(step) for step in trace.get("steps") or ()),
        score=None if score is None else float(score),
        feedback=str(trace.get("feedback") or ""),
        failure=Failure(FailureKind.PROGRAM, str(error)) if error else None,
    )


def _step(step: Mapping[str, Any]) -> Step:
    return Step(
        "tool" if step.get("kind") == "tool" else "predictor",
        str(step["name"]),
        as_fields(step.get("inputs")),
        as_fields(step.get("outputs")),
        str(step.get("error") or ""),
    )
