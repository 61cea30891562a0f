"""Examples and their values as text; rollouts made elsewhere; demos, and what else is added.

Demos are DSPy's own, in a predictor's `demos`: made from a rollout's record, or from the fields of
a labelled example. To the student are added a library and demos; in an extra attempt a hint, or a
teacher takes its place.
"""

import copy
import dataclasses
import decimal
import enum
import itertools
import json
import logging
import random
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from os import PathLike
from typing import Annotated, Any, Self, TypeVar, get_args

import dspy
import pydantic
from pydantic import BeforeValidator

from tfgrpo_dspy import dspy_seam, errors, user_code
from tfgrpo_dspy.experience import ALL, ExperienceLibrary, with_instructions
from tfgrpo_dspy.files import json_values, read_text
from tfgrpo_dspy.rollout import MOST, Failure, FailureKind, Group, Rollout, Step, fields_text
from tfgrpo_dspy.text import cleaned_text, counted
from tfgrpo_dspy.user_code import copy_to_change, named_predictors

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
        of_media = user_code.digest(user_code.Identities().of(inputs))
        return f"{errors.written(sorted(inputs.items()), repr)} {of_media}"


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
        fallback=lambda item: user_code.without_addresses(errors.written(item)),
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
            if name != "logprobs" or not isinstance(value, dspy.Prediction)
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
    value = {} if is_missing(value) else value
    return dict(named_items(value)) if isinstance(value, dspy.Example) else value


AsText = Annotated[str, BeforeValidator(lambda value: "" if is_missing(value) else str(value))]
AsFields = Annotated[
    Mapping[str, str], BeforeValidator(lambda x: as_fields(None if is_missing(x) else x))
]
Fields = Annotated[Mapping[str, Any], BeforeValidator(_mapping_of)]
IS_SCORE = errors.such_that(
    lambda score: abs(score) < MOST, f"give a number below {MOST:g}, or None"
)


class TraceStep(pydantic.BaseModel):
    """A step of a rollout that was made elsewhere."""

    name: AsText
    kind: Annotated[str, BeforeValidator(lambda k: k if k == "tool" else "predictor")] = "predictor"
    inputs: AsFields = {}
    outputs: AsFields = {}
    error: AsText = ""


class Trace(pydantic.BaseModel):
    """A rollout that was made elsewhere. Values may be absent, None or NaN where it has none."""

    inputs: Annotated[Fields, errors.such_that(bool, "give a mapping of fields")]
    outputs: Fields = {}
    error: AsText = ""
    labels: Fields = {}
    score: Annotated[float, IS_SCORE] | None = None
    feedback: AsText = ""
    steps: Annotated[list[TraceStep], BeforeValidator(lambda x: [] if is_missing(x) else x)] = []

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
        place, group = places.setdefault(key, len(places)), groups.setdefault(key, [])
        if has_scores and trace.score is None and not trace.error:
            n_left_out += 1
            continue
        rollout = Rollout(
            place, number, as_fields(trace.outputs),
            tuple(Step(**dict(step)) for step in trace.steps), trace.score, trace.feedback,
            failure=Failure(FailureKind.PROGRAM, trace.error) if trace.error else None,
        )  # fmt: skip
        group.append(rollout)
    if n_left_out:
        logger.warning("%d traces have no score, as others have, and are left out", n_left_out)
    return [*examples.values()], [*groups.values()]


def _accepted(traces: Any) -> list[Trace]:
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


T = TypeVar("T")

HINT = "\n\nA hint for this input: "
N_SETS = 8  # of demos, that a run compares: to a small LM it may matter which are shown
LEAST_BEST = 4  # examples that must have a good rollout before demos are made of rollouts


@dataclass(frozen=True, slots=True)
class Demo:
    """One answer of a predictor: the name and the text of each of its fields, in and out."""

    predictor: str
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Additions:
    """A library, and demos after the student's own; in an extra attempt a hint or a teacher."""

    library: ExperienceLibrary
    demos: tuple[Demo, ...] = ()
    hint: str = ""  # at the end of the instructions
    teacher: Any = None  # a program, which runs as it is, or an LM, which the student runs on
    demo_set: int = 0  # which of the run's sets the demos are, from 1; 0: there are none
    brief: int = 0  # which of the run's briefs the library has, from 1; 0: the student's own

    @property
    def aid(self) -> str:
        """The hint or the teacher in words; if it is not empty, the score is not the student's."""
        parts = [f'with the hint "{self.hint}"'] if self.hint else []
        return ", ".join([*parts, "by a teacher"] if self.teacher is not None else parts)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all that it has besides the student: `("E1", "brief 1", "16 demos")`."""
        return (*(experience.id for experience in self.library), *self.arms)

    @property
    def arms(self) -> tuple[str, ...]:
        """Its brief and its demos in words."""
        brief = [f"brief {self.brief}"] if self.brief else []
        return (*brief, *([counted(len(self.demos), "demo")] if self.demos else []))

    def is_for_all(self, predictors: Iterable[str]) -> bool:
        """True if the instructions of each of these predictors hold experiences."""
        scopes = {experience.scope for experience in self.library}
        is_program = isinstance(self.teacher, dspy.Module)
        return not is_program and (ALL in scopes or scopes.issuperset(predictors))

    def bake(self, student: Any, lm_for: Callable[[Any], Any] | None = None) -> Any:
        """A copy of the student with these; or a copy of the teacher that is a program.

        With `lm_for`, it is for one rollout: in place of each LM stands what that gives for it.
        Raises KeyError, ValueError: the demos do not fit the student.
        """
        of_rollout, lm_for = lm_for is not None, lm_for or (lambda lm: lm)
        if isinstance(self.teacher, dspy.Module):
            return user_code.copy_program(self.teacher, lm_for)
        # of the run's own student it was seen that its copies share no predictor
        copied = user_code.copy_program(student, lm_for) if of_rollout else copy_to_change(student)
        program = self.library.written_into(copied, of_rollout)
        predictors = dict(named_predictors(program)) if self.demos or self.hint else {}
        for demo in self.demos:
            predictor = predictors[demo.predictor]
            types = {name: info.annotation for name, info in predictor.signature.fields.items()}
            values = {name: parsed_for_demo(text, types[name]) for name, text in demo.fields}
            shown = dspy.Example(**values).with_inputs(*predictor.signature.input_fields)
            predictor.demos = [*predictor.demos, shown]
        for predictor in predictors.values() if self.hint else ():
            old, hint = predictor.signature, f"{HINT}{self.hint}"
            predictor.signature = with_instructions(old, f"{old.instructions}{hint}", of_rollout)
        if self.teacher is not None:
            program.set_lm(lm_for(self.teacher))
        return program


@dataclass(frozen=True)
class SampledGroup:
    """A group of an update, and the additions of each of `group.all_rollouts`."""

    group: Group
    additions: tuple[Additions, ...]  # some lack experiences that are on trial
    update: int = 0
    measured: Group | None = None  # by the metric, where strategies have changed the scores
    probes: tuple[Rollout, ...] = ()  # rollouts that only helped to value the steps of others
    note: str = ""  # what the reflection LM reads before the group

    def additions_of(self, rollout: Rollout) -> Additions:
        """The additions of the program of this rollout."""
        ids = [each.rollout_id for each in self.group.all_rollouts]
        return self.additions[ids.index(rollout.rollout_id)]

    @cached_property
    def aids(self) -> tuple[str, ...]:
        """For each of `group.all_rollouts`, the help that it had; "" if it had none.

        That is a hint, a teacher, or the steps of another rollout from which it goes on.
        """
        starts = (r.n_replayed for r in self.group.all_rollouts)
        return tuple(
            one.aid or ("" if n is None else f"goes on after step {n} of another attempt")
            for one, n in zip(self.additions, starts, strict=True)
        )

    @cached_property
    def unaided(self) -> Group:
        """The group without the rollouts that had aid (`aids`)."""
        return self._unaided(self.group)

    @property
    def by_metric(self) -> Group:
        """As `unaided`, with the scores of the metric."""
        return self._unaided(self.measured or self.group)

    def with_more(
        self, rollouts: Sequence[Rollout], additions: Sequence[Additions]
    ) -> "SampledGroup":
        """The group with further rollouts, and their additions."""

        def joined(group: Group) -> Group:
            every = (*group.all_rollouts, *rollouts)
            return replace(group, rollouts=(*group.rollouts, *rollouts), all_rollouts=every)

        measured = self.measured and joined(self.measured)
        more = (*self.additions, *additions)
        return replace(self, group=joined(self.group), additions=more, measured=measured)

    def _unaided(self, group: Group) -> Group:
        if not any(aids := self.aids):
            return group
        pairs = zip(self.group.all_rollouts, aids, strict=True)
        ids = {rollout.rollout_id for rollout, aid in pairs if not aid}
        compared, every = (
            tuple(each for each in rollouts if each.rollout_id in ids)
            for rollouts in (group.rollouts, group.all_rollouts)
        )
        return replace(group, rollouts=compared, all_rollouts=every)


def demos_of(rollout: Rollout, program: Any) -> tuple[Demo, ...]:
    """A demo of each predictor's last call, if all of its fields are there and can be read back."""
    infos = {name: predictor.signature.fields for name, predictor in named_predictors(program)}
    demos: dict[str, Demo] = {}
    for step in rollout.steps:
        if step.kind == "predictor" and step.name in infos:
            texts = {k: cleaned_text(text) for k, text in {**step.inputs, **step.outputs}.items()}
            types = {name: info.annotation for name, info in infos[step.name].items()}
            if all(n in texts and _comes_back(texts[n], kind) for n, kind in types.items()):
                demos[step.name] = Demo(step.name, tuple((name, texts[name]) for name in types))
    return tuple(demos.values())


def labelled_demos(example: Any, program: Any) -> tuple[Demo, ...]:
    """A demo for each predictor of which the example has an input and an output, at least."""
    values, inputs = dict(named_items(example)), set(example.inputs().keys())
    labelled = []
    for name, predictor in named_predictors(program):
        signature, shown = predictor.signature, dict[str, str]()
        for field, info in signature.fields.items():
            is_output = field in signature.output_fields
            text = _shown(values.get(field), info.annotation, is_output)
            if field in values and text is not None:
                shown[field] = text
        has_input = shown.keys() & signature.input_fields.keys() & inputs
        if has_input and shown.keys() & signature.output_fields.keys():
            labelled.append(Demo(name, tuple(shown.items())))
    return tuple(labelled)


def _shown(value: Any, annotation: Any, is_output: bool) -> str | None:
    """The text with which a field of this type shows a value of an example; None: it cannot.

    A value that the type takes in another form is shown in that of the type: 4 as 4.0, a dict with
    the defaults of its model. Of a list of accepted answers, where the output takes no list, the
    first is shown.
    """
    typed = None
    with suppress(Exception):  # a user's type may raise anything
        typed = pydantic.TypeAdapter(annotation).validate_python(value)
    if is_output and isinstance(value, list | tuple) and typed is None:
        return _shown(value[0] if value else None, annotation, is_output=False)
    if is_missing(value) and not (value is None and has_none(annotation)):
        return None
    texts = [as_text(each) for each in (value, typed) if each is value or each is not None]
    return next((text for text in texts if _comes_back(text, annotation)), None)


def _comes_back(text: str, annotation: Any) -> bool:
    """True if a field of this type that is written so has the same value again."""
    try:
        text.encode()  # half of a pair of surrogates cannot be sent to an LM
        parsed(text, annotation)
    except ValueError:
        return False
    return True


class DemoPool:
    """The sets of demos that a run may show: of labelled examples, else of the best rollouts.

    An example that lacks an input of a predictor, as what an agent's tools returned, is shown after
    those that lack none, and by its best rollout as soon as that is good. Of equal ones one is
    shown.

    `n_sets` is how many there are. Each set of labelled examples is another draw in another order;
    the sets of the best rollouts differ in their order alone, and the first begins with the best.
    """

    def __init__(
        self,
        program: Any,  # the student
        examples: Sequence[Example],  # to which rollouts refer by their position
        labelled: Sequence[int],  # positions of the examples whose labels may be shown
        max_demos: int,  # examples, or rollouts, that become the demos of a set
        seed: int,  # draws and mixes the examples
    ) -> None:
        self._program, self._examples = program, examples
        self._max_demos, self._seed = max_demos, seed
        self.n_sets = N_SETS if max_demos else 0
        demos = {i: labelled_demos(examples[i].raw, program) for i in labelled if max_demos}
        unlike = {(examples[i].identity, shown): i for i, shown in demos.items() if shown}
        needed = {(name, field) for name, each in named_predictors(program)
                  for field, info in each.signature.input_fields.items()
                  if not has_none(info.annotation)}  # fmt: skip
        self._whole, others = list[int](), list[int]()
        for (_, shown), example in unlike.items():
            predictors = {demo.predictor for demo in shown}
            there = {(demo.predictor, field) for demo in shown for field, _ in demo.fields}
            lacking = {pair for pair in needed - there if pair[0] in predictors}
            (others if lacking else self._whole).append(example)
        numbers = range(1, self.n_sets + 1 if unlike else 0)
        mixed = {k: self._mixed(self._whole, k) + self._mixed(others, k) for k in numbers}
        self._labelled = {k: [(i, demos[i]) for i in order] for k, order in mixed.items()}

    def choose(self, number: int, best: Sequence[Rollout], hidden: Set[str]) -> tuple[Demo, ...]:
        """The demos of set `number`, from 1; not of `hidden` identities; `best` is in its order."""
        of_best = ((one.example, demos_of(one, self._program)) for one in best
                   if self._examples[one.example].identity not in hidden
                   and one.example not in self._whole)  # fmt: skip
        if self._labelled:
            by_example = dict(of_best)
            every: Iterator[tuple[Demo, ...]] = (
                by_example.get(example) or demos
                for example, demos in self._labelled[number]
                if self._examples[example].identity not in hidden
            )
            return tuple(chain(*islice(every, self._max_demos)))
        if len(best) < min(LEAST_BEST, self._max_demos):
            return ()
        shown = list(islice((demos for _, demos in of_best if demos), self._max_demos))
        return tuple(chain(*(shown if number == 1 else self._mixed(shown, number))))

    def _mixed(self, items: Sequence[T], number: int) -> list[T]:
        return random.Random(f"{self._seed}/demos/{number}").sample(items, len(items))


def best_rollouts(groups: Iterable[Group]) -> tuple[Rollout, ...]:
    """The best rollout of each example, where it scores above the mean of all, the best first.

    Of equally good ones the latest counts, and stands first.
    """
    scored = [(r.score, r) for group in groups for r in group.rollouts if r.score is not None]
    best: dict[int, tuple[float, Rollout]] = {}
    for score, rollout in scored:
        if rollout.failure is None and score >= best.get(rollout.example, (score,))[0]:
            best.pop(rollout.example, None)  # the latest stands last
            best[rollout.example] = score, rollout
    mean = statistics.fmean([score for score, _ in scored] or [0.0])
    good = [pair for pair in reversed(best.values()) if pair[0] > mean]
    return tuple(rollout for _, rollout in sorted(good, key=lambda pair: -pair[0]))
