"""Demos: inputs and outputs of a rollout's predictors, which are shown to them as examples later.

They are DSPy's own demos, in a predictor's `demos`; here they are made from a rollout's record, or
from the fields of a labelled example.
"""

import itertools
import logging
import math
import random
import statistics
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import dspy
import pydantic

from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.outside import cleaned_text
from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.sampling.fields import (
    Example,
    as_text,
    has_none,
    is_missing,
    named_items,
    parsed,
    parsed_for_demo,
)
from tfgrpo_dspy.wording import counted, shortened

logger = logging.getLogger(__name__)
T = TypeVar("T")

N_SETS = 8
"""The number of sets of demos that a run compares. For a small LM, the choice and order of the
examples may matter more than whether any are shown (`docs/measurements.md`)."""
LEAST_BEST = 4  # examples that must have a good rollout before demos are made of rollouts


@dataclass(frozen=True, slots=True)
class Demo:
    """One answer of a predictor: the name and the text of each of its fields, in and out."""

    predictor: str
    fields: tuple[tuple[str, str], ...]


def demos_of(rollout: Rollout, program: Any) -> tuple[Demo, ...]:
    """A demo of each predictor's last call, if all of its fields are there and can be read back."""
    fields = {name: predictor.signature.fields for name, predictor in named_predictors(program)}
    demos: dict[str, Demo] = {}
    for step in rollout.steps:
        if step.kind == "predictor" and step.name in fields:
            texts = {k: cleaned_text(text) for k, text in {**step.inputs, **step.outputs}.items()}
            wanted = fields[step.name].items()
            if all(name in texts and _comes_back(texts[name], i.annotation) for name, i in wanted):
                shown = tuple((name, texts[name]) for name, _ in wanted)
                demos[step.name] = Demo(step.name, shown)
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
    if is_output and isinstance(value, list | tuple) and _as_type(value, annotation) is None:
        value = value[0] if value else None
    if is_missing(value) and not (value is None and has_none(annotation)):
        return None
    if _comes_back(text := as_text(value), annotation):
        return text
    text = as_text(_as_type(value, annotation))
    return text if text != "None" and _comes_back(text, annotation) else None


def _as_type(value: Any, annotation: Any) -> Any:
    """The value as this type takes it; None: it does not."""
    with suppress(Exception):  # a user's type may raise anything
        return pydantic.TypeAdapter(annotation).validate_python(value)
    return None


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
        shown_from = labelled if max_demos else ()
        demos = {i: labelled_demos(examples[i].raw, program) for i in shown_from}
        self._warn_of_unshown(demos)
        unlike = {(examples[i].identity, shown): (i, shown) for i, shown in demos.items() if shown}
        whole = [one for one in unlike.values() if self._are_whole(one[1])]
        self._whole = {example for example, _ in whole}
        others = [one for one in unlike.values() if one[0] not in self._whole]
        self.n_sets = N_SETS if max_demos else 0
        numbers = range(1, self.n_sets + 1 if unlike else 0)
        self._labelled = {k: self._mixed(whole, k) + self._mixed(others, k) for k in numbers}

    def choose(self, number: int, best: Sequence[Rollout], hidden: Set[str]) -> tuple[Demo, ...]:
        """The demos of set `number`, from 1; not of `hidden` identities; `best` is in its order."""
        usable = [one for one in best if self._examples[one.example].identity not in hidden]
        if self._labelled:
            better = (rollout for rollout in usable if rollout.example not in self._whole)
            of_rollouts = {rollout.example: demos_of(rollout, self._program) for rollout in better}
            others = (
                of_rollouts.get(example) or demos
                for example, demos in self._labelled[number]
                if self._examples[example].identity not in hidden
            )
            shown = list(itertools.islice(others, self._max_demos))
        elif len(best) < min(LEAST_BEST, self._max_demos):
            return ()
        else:
            of_best = (demos_of(rollout, self._program) for rollout in usable)
            shown = list(itertools.islice(filter(None, of_best), self._max_demos))
            shown = shown if number == 1 else self._mixed(shown, number)
        return tuple(itertools.chain(*shown))

    def _are_whole(self, demos: Iterable[Demo]) -> bool:
        """True if no input of a predictor is missing that may not be None."""
        predictors = dict(named_predictors(self._program))
        return not any(
            name not in dict(demo.fields) and not has_none(field.annotation)
            for demo in demos
            for name, field in predictors[demo.predictor].signature.input_fields.items()
        )

    def _warn_of_unshown(self, demos: dict[int, tuple[Demo, ...]]) -> None:
        """Log once for each output field which labels of examples it cannot show."""
        for _, predictor in named_predictors(self._program):
            for field, info in predictor.signature.output_fields.items():
                having = [i for i in demos if field in self._examples[i].labels]
                raws = [self._examples[i].raw[field] for i in having]
                unshown = [raw for raw in raws if _shown(raw, info.annotation, True) is None]
                if unshown:
                    is_read = _as_type(unshown[0], info.annotation) is None
                    why = "give the examples labels of the field's type"
                    unread = "DSPy writes it so, and does not read that text: let the type read it"
                    logger.warning(
                        "%s of the field %r cannot be shown as demos: it is a %s, and the first "
                        "label is %s; %s",
                        counted(len(unshown), "label"),
                        field,
                        getattr(info.annotation, "__name__", info.annotation),
                        shortened(as_text(unshown[0]), 80),
                        why if is_read else unread,
                    )

    def _mixed(self, items: Sequence[T], number: int) -> list[T]:
        return random.Random(f"{self._seed}/demos/{number}").sample(items, len(items))


class BestRollouts:
    """The best rollout of each training example; of equally good ones the latest."""

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._by_example: dict[int, Rollout] = {}

    def add(self, group: Group) -> None:
        """Look at the rollouts of a group."""
        self._scores += group.scores
        for rollout in group.rollouts:
            best = self._by_example.get(rollout.example, rollout)
            if rollout.failure is None and _score_of(rollout) >= _score_of(best):
                self._by_example.pop(rollout.example, None)  # the latest stands last
                self._by_example[rollout.example] = rollout

    def above_mean(self) -> tuple[Rollout, ...]:
        """The rollouts that score above the mean of all, the best first."""
        mean = statistics.fmean(self._scores or [0.0])
        good = [one for one in reversed(self._by_example.values()) if _score_of(one) > mean]
        return tuple(sorted(good, key=_score_of, reverse=True))


def _score_of(rollout: Rollout) -> float:
    return -math.inf if rollout.score is None else rollout.score


def add_demos(program: Any, demos: Sequence[Demo]) -> None:
    """Show these demos after the program's own. Raises KeyError, ValueError: they do not fit."""
    predictors = dict(named_predictors(program)) if demos else {}
    for demo in demos:
        predictor = predictors[demo.predictor]
        types = {field: info.annotation for field, info in predictor.signature.fields.items()}
        values = {field: parsed_for_demo(text, types[field]) for field, text in demo.fields}
        shown = dspy.Example(**values).with_inputs(*predictor.signature.input_fields)
        predictor.demos = [*predictor.demos, shown]
