"""Additions of a rollout's program to the student: library, demos, hint, teacher; and its group.

Demos are DSPy's own, in a predictor's `demos`: made from a rollout's record, or from the fields of
a labelled example.
"""

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, TypeVar

import dspy
import pydantic

from tfgrpo_dspy.experience import ALL, ExperienceLibrary
from tfgrpo_dspy.experience.programs import copy_program, named_predictors, with_instructions
from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.sampling import fields
from tfgrpo_dspy.text import cleaned_text, counted

T = TypeVar("T")

HINT = "\n\nA hint for this input: "
N_SETS = 8
"""The number of sets of demos that a run compares. For a small LM, the choice and order of the
examples may matter more than whether any are shown (`docs/measurements.md`)."""
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

    def bake(self, student: Any) -> Any:
        """A copy of the student with these; or a copy of the teacher that is a program.

        Raises KeyError, ValueError: the demos do not fit the student.
        """
        if isinstance(self.teacher, dspy.Module):
            return copy_program(self.teacher)
        program = self.library.bake(student)
        predictors = dict(named_predictors(program))
        for demo in self.demos:
            predictor = predictors[demo.predictor]
            types = {name: info.annotation for name, info in predictor.signature.fields.items()}
            values = {name: fields.parsed_for_demo(text, types[name]) for name, text in demo.fields}
            shown = dspy.Example(**values).with_inputs(*predictor.signature.input_fields)
            predictor.demos = [*predictor.demos, shown]
        for predictor in predictors.values() if self.hint else ():
            instructions = f"{predictor.signature.instructions}{HINT}{self.hint}"
            predictor.signature = with_instructions(predictor.signature, instructions)
        if self.teacher is not None:
            program.set_lm(self.teacher)
        return program


@dataclass(frozen=True, slots=True)
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

    @property
    def aids(self) -> tuple[str, ...]:
        """For each of `group.all_rollouts`, the help that it had; "" if it had none.

        That is a hint, a teacher, or the steps of another rollout from which it goes on.
        """
        starts = (r.n_replayed for r in self.group.all_rollouts)
        return tuple(
            one.aid or ("" if n is None else f"goes on after step {n} of another attempt")
            for one, n in zip(self.additions, starts, strict=True)
        )

    @property
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
        compared = tuple(each for each in group.rollouts if each.rollout_id in ids)
        every = tuple(each for each in group.all_rollouts if each.rollout_id in ids)
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
    values, inputs = dict(fields.named_items(example)), set(example.inputs().keys())
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
    typed = _as_type(value, annotation)
    if is_output and isinstance(value, list | tuple) and typed is None:
        value = value[0] if value else None
        typed = _as_type(value, annotation)
    if fields.is_missing(value) and not (value is None and fields.has_none(annotation)):
        return None
    texts = [fields.as_text(each) for each in (value, typed) if each is value or each is not None]
    return next((text for text in texts if _comes_back(text, annotation)), None)


def _as_type(value: Any, annotation: Any) -> Any:
    """The value as this type takes it; None: it does not."""
    with suppress(Exception):  # a user's type may raise anything
        return pydantic.TypeAdapter(annotation).validate_python(value)
    return None


def _comes_back(text: str, annotation: Any) -> bool:
    """True if a field of this type that is written so has the same value again."""
    try:
        text.encode()  # half of a pair of surrogates cannot be sent to an LM
        fields.parsed(text, annotation)
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
        examples: Sequence[fields.Example],  # to which rollouts refer by their position
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
                  if not fields.has_none(info.annotation)}  # fmt: skip
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
