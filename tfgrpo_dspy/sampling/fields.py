"""Values that go into a program and come out of it, as text; examples; rollouts made elsewhere."""

import copy
import dataclasses
import decimal
import enum
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from functools import cached_property
from os import PathLike
from typing import Annotated, Any, Self, get_args

import dspy
import pydantic
from pydantic import BeforeValidator

from tfgrpo_dspy import dspy_seam, errors
from tfgrpo_dspy.files import json_values, read_text
from tfgrpo_dspy.identity import Identities, digest, without_addresses
from tfgrpo_dspy.rollout import MOST, Failure, FailureKind, Rollout, Step, fields_text

logger = logging.getLogger(__name__)

MEDIA = (dspy.Image, dspy.Audio, dspy.File)
JSONABLE = pydantic.TypeAdapter(Any)
MOST_FAULTS = 10  # of traces, in one message
_MISSING = ("NAType", "NaTType")  # of pandas


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """An example of the user's. Its texts are made when they are first asked for."""

    raw: Any  # the user's own object
    nullable: Set[str] = frozenset()  # the labels that may be None

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The inputs, as texts by name."""
        return as_fields(self.raw.inputs())

    @cached_property
    def labels(self) -> dict[str, str]:
        """The labels that are there, as texts by name; None is one if it is `nullable`."""
        return as_fields({
            name: value
            for name, value in named_items(self.raw.labels())
            if not is_missing(value) or (value is None and name in self.nullable)
        })  # fmt: skip

    @property
    def text(self) -> str:
        """The inputs in one text."""
        return fields_text(self.inputs)

    @property
    def labels_text(self) -> str:
        """The labels in one text."""
        return fields_text(self.labels)

    @cached_property
    def identity(self) -> str:
        """The inputs as a text that tells them from others, also those of media."""
        inputs = dict(self.raw.inputs().items())
        return f"{errors.written(sorted(inputs.items()), repr)} {digest(Identities().of(inputs))}"


def is_missing(value: Any) -> bool:
    """True if a value says that there is none: None, NaN, or what pandas writes for them."""
    if isinstance(value, float | decimal.Decimal):
        return "nan" in str(value).lower()  # `math.isnan` raises for a signalling NaN
    return value is None or type(value).__name__ in _MISSING


def as_text(value: Any) -> str:
    """A value in the form in which DSPy's adapters write it: an Enum by its value, a date in ISO.

    Images and other media are only `<image>`, ... The fields of a model have the names by which the
    LM has to write them. A value has the same text in each process: sets are in a fixed order, and
    of objects that show their address it is left out.
    """
    return errors.written(value, _text_of)


def _text_of(value: Any) -> str:
    if type(value) is str:
        return value
    try:
        value = as_json(value)
        is_container = isinstance(value, dict | list)
        return json.dumps(value, ensure_ascii=False) if is_container else str(value)
    except (TypeError, ValueError):  # keys that JSON does not have, a list that holds itself
        return str(value)


def as_json(value: Any) -> Any:
    """The value in containers, texts and numbers of JSON. Raises TypeError, ValueError."""
    return JSONABLE.dump_python(
        _plain(value),
        mode="json",
        by_alias=True,
        warnings=False,  # a list stands where a model has a set
        fallback=lambda item: without_addresses(errors.written(item)),
    )


def _plain(value: Any) -> Any:
    """The value without media, wherever it holds them; sets as lists in a fixed order."""
    if isinstance(value, MEDIA):
        return f"<{type(value).__name__.lower()}>"
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):  # their order differs between processes
        return sorted(map(_plain, value), key=as_text)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    fields = _fields_of(value)
    is_opened = any(isinstance(each, (*MEDIA, set, frozenset)) for each in _all_in(fields))
    return _plain(fields) if is_opened else value


def _fields_of(value: Any) -> dict[str, Any]:
    """The fields of a model or a dataclass by name; empty for any other value."""
    kind: Any = type(value)
    fields: Any = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", ())
    return {name: getattr(value, name) for name in fields}


def _all_in(value: Any) -> Iterator[Any]:
    """The value and all that it holds, in their order; what holds itself, or much, once."""
    waiting, seen = [value], set[int]()
    while waiting:
        yield (value := waiting.pop())
        if id(value) not in seen and not isinstance(value, MEDIA):
            seen.add(id(value))
            is_list = isinstance(value, list | tuple | set | frozenset)
            is_mapping = isinstance(value, Mapping | dspy.Example)
            fields = dict(named_items(value)) if is_mapping else _fields_of(value)
            waiting += reversed([*value] if is_list else [*fields.values()])


def named_items(value: Mapping[Any, Any] | dspy.Example) -> list[tuple[str, Any]]:
    """The fields by name; DSPy's own way to them takes no names that are no texts."""
    if isinstance(value, dspy.Example):  # a Prediction is one
        fields = {errors.written(name): item for name, item in dspy_seam.stored_in(value).items()}
        return [(name, item) for name, item in fields.items() if not name.startswith("dspy_")]
    return [(errors.written(name), item) for name, item in value.items()]


def media_in(value: Any) -> list[Any]:
    """The images and other media that a value is or holds, in their order."""
    return [each for each in _all_in(value) if isinstance(each, MEDIA)]


def as_fields(value: Any) -> dict[str, str]:
    """The fields of an example, prediction or mapping as texts, no log-probabilities; None: {}."""
    if value is None:
        return {}
    if isinstance(value, Mapping | dspy.Example):
        return {
            name: as_text(item)
            for name, item in named_items(value)
            if name != "logprobs" or not dspy_seam.has_log_probabilities(item)
        }
    return {"output": as_text(value)}


def parsed(text: str, annotation: Any) -> Any:
    """The value that was written as this text. Raises ValueError: no text holds it (an image)."""
    if annotation is str:
        return text
    if any(issubclass(kind, MEDIA) for kind in dspy_seam.custom_types_in(annotation)):
        raise ValueError(f"{annotation} is written as a text that does not hold all of it")
    if text == "None" and has_none(annotation):  # as a text, it would be taken for a word
        return None
    for read in ("validate_json", "validate_python"):
        with suppress(Exception):  # a user's type may raise anything
            value = getattr(pydantic.TypeAdapter(annotation), read)(text)
            if as_text(value) == text:
                return value
    raise ValueError(f"{text[:80]!r} is not the text of a {annotation}")


def parsed_for_demo(text: str, annotation: Any) -> Any:
    """The value that was written as this text, in the form that a saved program has.

    Models and sets are dicts and lists: DSPy's adapters write both alike. Raises ValueError as
    `parsed` does.
    """
    if annotation is str:
        return text
    value = parsed(text, annotation)
    with suppress(TypeError, ValueError):
        plain = as_json(value)
        if isinstance(plain, dict | list) or not dspy_seam.can_be_saved(value):
            value = plain
    return value if dspy_seam.can_be_saved(value) else text


def has_none(annotation: Any) -> bool:
    """True if a field of this type may be None."""
    return type(None) in get_args(annotation) or None in get_args(annotation)


def with_values(text: str, *holders: Any) -> str:
    """The text with members of the holders' Enums as DSPy writes them, not as `Bay.NORTH`."""
    held = itertools.chain(*map(_all_in, holders if "." in text else ()))
    for kind in {type(each) for each in held if isinstance(each, enum.Enum)}:
        for name, member in kind.__members__.items():
            forms = f"{re.escape(repr(member))}|{kind.__name__}\\.{name}"
            text = re.sub(rf"(?:{forms})(?!\w)", as_text(member).replace("\\", r"\\"), text)
    return text


def copied_example(example: dspy.Example) -> dspy.Example:
    """The example with copies of its values; what cannot be copied (a lock) is shared."""
    copies = dict(example.items())
    for name, value in example.items():
        with suppress(Exception):  # a user's type may raise anything
            copies[name] = copy.deepcopy(value)
    return example.copy(**copies)


def _mapping_of(value: Any) -> Any:
    """The inputs of an Example that names them, all fields of any other; all else as it is."""
    with suppress(AttributeError, ValueError):  # a Prediction does not know, an Example may not
        value = value.inputs() if isinstance(value, dspy.Example) else value
    return dict(named_items(value)) if isinstance(value, dspy.Example) else value


AsText = Annotated[str, BeforeValidator(str)]
AsFields = Annotated[Mapping[str, str], BeforeValidator(as_fields)]
Fields = Annotated[Mapping[str, Any], BeforeValidator(_mapping_of)]
IS_SCORE = errors.such_that(
    lambda score: abs(score) < MOST, f"give a number below {MOST:g}, or None"
)


class _MadeElsewhere(pydantic.BaseModel):
    @pydantic.model_validator(mode="before")
    @classmethod
    def _present(cls, value: Any) -> Any:
        """The mapping without what is missing; but a score that is NaN is one that failed."""
        if not isinstance(value, Mapping):
            return value
        return {k: x for k, x in value.items() if not is_missing(x) or (k == "score" and x)}


class TraceStep(_MadeElsewhere):
    """A step of a rollout that was made elsewhere."""

    name: AsText
    kind: Annotated[str, BeforeValidator(lambda k: k if k == "tool" else "predictor")] = "predictor"
    inputs: AsFields = {}
    outputs: AsFields = {}
    error: AsText = ""


class Trace(_MadeElsewhere):
    """A rollout that was made elsewhere. Values may be absent, None or NaN where it has none."""

    inputs: Annotated[Fields, errors.such_that(bool, "give a mapping of fields")]
    outputs: Fields = {}
    error: AsText = ""
    labels: Fields = {}
    score: Annotated[float, IS_SCORE] | None = None
    feedback: AsText = ""
    steps: list[TraceStep] = []

    @pydantic.model_validator(mode="after")
    def _has_ended(self) -> Self:
        if not (self.outputs or self.error):
            raise ValueError(f"outputs={self.outputs!r}: give a mapping of fields, or an error")
        return self


TRACES = pydantic.TypeAdapter(list[Trace])


def read_traces(
    traces: str | PathLike[str] | Iterable[Mapping[str, Any]],
) -> tuple[list[dspy.Example], list[list[Rollout]]]:
    """An example for each distinct input, and its rollouts. Raises SettingsError: the faults."""
    accepted, examples, places = _accepted(traces), dict[str, dspy.Example](), dict[str, int]()
    has_scores = any(trace.score is not None for trace in accepted)
    groups, n_left_out = dict[str, list[Rollout]](), 0
    for number, trace in enumerate(accepted, start=1):
        key = json.dumps(dict(trace.inputs), sort_keys=True, default=str)
        example = examples.get(key) or dspy.Example(trace.inputs)
        examples[key] = dspy.Example({**trace.labels, **example}).with_inputs(*trace.inputs)
        group = groups.setdefault(key, [])
        rollout = Rollout(
            places.setdefault(key, len(places)),
            number,
            as_fields(trace.outputs),
            tuple(Step(**dict(step)) for step in trace.steps),
            trace.score,
            trace.feedback,
            failure=Failure(FailureKind.PROGRAM, trace.error) if trace.error else None,
        )
        if has_scores and trace.score is None and not trace.error:
            n_left_out += 1
        else:
            group.append(rollout)
    if n_left_out:
        logger.warning("%d traces have no score, as others have, and are left out", n_left_out)
    return [*examples.values()], [*groups.values()]


def _accepted(traces: Any) -> list[Trace]:
    """The traces. Raises SettingsError: some have faults, or there is none."""
    form, values = "Write a trace as {'inputs': {...}, 'outputs': {...}, 'score': 0.5}.", traces
    if isinstance(traces, str | PathLike):
        form, values = f"{traces}: write JSON lines, or a JSON array.", []
        try:
            for read in json_values(read_text(traces), "it"):
                values += read if isinstance(read, list) else [read]
        except (OSError, errors.LibraryFormatError) as error:
            at = "" if isinstance(error, OSError) else f" trace {len(values) + 1}:"
            fault = f"traces={str(traces)!r} cannot be read:{at} {errors.sentence(error)} {form}"
            raise errors.SettingsError(fault) from error
    is_table = isinstance(traces, Mapping) or hasattr(traces, "columns")
    if is_table or not isinstance(values, Iterable):
        fault = f"traces={errors.shown(traces)}: pass a file, or a list of mappings."
        raise errors.SettingsError(fault)
    try:
        accepted = TRACES.validate_python([*values])
        faults = [] if accepted else [f"traces={errors.shown(traces)}: there is none in it."]
    except pydantic.ValidationError as error:
        numbered = (re.sub(r"^\[(\d+)\]\.?", lambda m: f"trace {int(m[1]) + 1}: ", fault)
                    for fault in errors.faults_in(error))  # fmt: skip
        faults = [*itertools.islice(numbered, MOST_FAULTS)]
    if faults:
        raise errors.SettingsError(" ".join([*faults, form]))
    return accepted
