"""Rollouts that were made elsewhere, from JSON lines: groups form by equal inputs."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import dspy

from tfgrpo_dspy.errors import SettingsError, sentence
from tfgrpo_dspy.metric import MOST
from tfgrpo_dspy.rollout import Failure, Rollout, Step
from tfgrpo_dspy.sampling.fields import as_fields

logger = logging.getLogger(__name__)


def read_traces(
    traces: str | PathLike[str] | Iterable[Mapping[str, Any]],
) -> tuple[list[dspy.Example], list[list[Rollout]]]:
    """An example for each distinct input, and its rollouts. Raises SettingsError: all faults."""
    examples: list[dspy.Example] = []
    rollouts: list[list[Rollout]] = []
    places: dict[str, int] = {}
    faults = []
    for number, trace in enumerate(_traces(traces), start=1):
        fault = _fault(trace)
        if fault:
            faults.append(f"trace {number}: {fault}")
            continue
        inputs, labels = dict(trace["inputs"]), dict(trace.get("labels") or {})
        key = json.dumps(inputs, sort_keys=True, default=str)
        place = places.setdefault(key, len(examples))
        if place == len(examples):
            examples.append(dspy.Example(inputs))
            rollouts.append([])
        examples[place] = dspy.Example({**labels, **examples[place]}).with_inputs(*inputs)
        rollouts[place].append(_rollout(trace, place, number))
    if faults:
        raise SettingsError(" ".join(faults))
    if not examples:
        raise SettingsError(f"traces={traces!r}: there is none in it; pass mappings with 'inputs'.")
    if any(rollout.score is not None for group in rollouts for rollout in group):
        known = [[r for r in group if r.score is not None or r.failure] for group in rollouts]
        if n := sum(map(len, rollouts)) - sum(map(len, known)):
            logger.warning("%d traces have no score, as others have, and are left out", n)
        rollouts = known
    return examples, rollouts


def _traces(given: Any) -> Iterator[Any]:
    if not isinstance(given, str | PathLike):
        if not isinstance(given, Iterable):
            raise SettingsError(f"traces={given!r}: pass a file of JSON lines, or mappings.")
        yield from given
        return
    try:
        lines = Path(given).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"traces={str(given)!r} cannot be read: {sentence(error)}") from error
    for line in lines:
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                yield f"{line[:80]!r} is not JSON ({error})"


def _fault(trace: Any) -> str:
    if not isinstance(trace, Mapping):
        return f"{trace!r}: give a mapping with 'inputs' and 'outputs'."
    for name in ("inputs", "outputs", "labels"):
        value = trace.get(name)
        is_needed = name == "inputs" or (name == "outputs" and not trace.get("error"))
        if not isinstance(value or {}, Mapping) or (is_needed and not value):
            return f"{name}={value!r}: give a mapping of fields."
    score, steps = trace.get("score"), trace.get("steps") or ()
    if score is not None and not (isinstance(score, int | float) and abs(score) < MOST):
        return f"score={score!r}: give a finite number (below {MOST:g}), or leave it out."
    is_list = isinstance(steps, list | tuple)
    if not is_list or not all(isinstance(step, Mapping) and "name" in step for step in steps):
        return f"steps={steps!r}: give a list of mappings with 'name', 'inputs' and 'outputs'."
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
        failure=Failure("program", str(error)) if error else None,
    )


def _step(step: Mapping[str, Any]) -> Step:
    return Step(
        "tool" if step.get("kind") == "tool" else "predictor",
        str(step["name"]),
        as_fields(step.get("inputs")),
        as_fields(step.get("outputs")),
        str(step.get("error") or ""),
    )
