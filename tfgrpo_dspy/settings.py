"""All arguments of the optimizer, checked and frozen; and the checks on student and data.

Every fault is collected, so that one message names them all, before the first LM call. Nothing
here runs a program or asks an LM.
"""

import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import dspy

from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.experience import (
    ExperienceLibrary,
    Limits,
    language_models,
    n_words,
    named_predictors,
)
from tfgrpo_dspy.gate import Gate, NoGate, PairedGate
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.reflection import ExtractAdvantage, SummarizeTrajectory, UpdateLibrary
from tfgrpo_dspy.sampling import allows_temperature, is_deterministic

logger = logging.getLogger(__name__)

DEFAULT_TEMPERATURE = 0.7
WHOLE_TRAINSET = 2**31
"""A batch size that no training set reaches: one batch an epoch."""
VALIDATION_SHARE = 1 / 3
MAX_HELD_OUT = 100
MIN_EXAMPLES_TO_SPLIT = 6


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of `TrainingFreeGRPO`, which documents them.

    Raises:
        SettingsError: names every argument that cannot be used.
    """

    metric: Callable[..., Any] | None
    reflection_lm: Any = None
    objective: str | None = None
    group_size: int = 5
    epochs: int = 3
    temperature: float | None = DEFAULT_TEMPERATURE
    batch_size: int | None = None
    max_experiences: int = 30
    max_experience_words: int = 40
    min_contrast: float = 1e-9
    use_labels: bool = True
    gate: Gate | None = None
    summarize_trajectory: Any = None
    extract_advantage: Any = None
    update_library: Any = None
    summarize_always: bool = False
    failure_analysis: bool = True
    update_per_group: bool = False
    num_threads: int | None = None
    failure_score: float = 0.0
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        defaults: dict[str, Callable[[], Any]] = {
            "gate": NoGate if self.metric is None else PairedGate,
            "summarize_trajectory": SummarizeTrajectory,
            "extract_advantage": ExtractAdvantage,
            "update_library": UpdateLibrary,
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default())
        faults = [*self._number_faults(), *self._object_faults()]
        if faults:
            raise SettingsError(" ".join(faults))

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of all arguments."""
        return frozenset(f.name for f in fields(cls))

    def _number_faults(self) -> Iterator[str]:
        least = {
            "epochs": 1,
            "max_experiences": 1,
            "max_experience_words": 1,
            "batch_size": 1,
            "num_threads": 1,
        }
        if not _is_int(self.group_size) or self.group_size < 2:
            yield (
                f"group_size={self.group_size!r}: a group needs at least 2 rollouts to compare; "
                f"pass group_size=5 (the paper's value)."
            )
        for name, minimum in least.items():
            value = getattr(self, name)
            optional = name in ("batch_size", "num_threads") and value is None
            if not optional and (not _is_int(value) or value < minimum):
                yield f"{name}={value!r}: pass a whole number of at least {minimum}."
        if not _is_int(self.seed):
            yield f"seed={self.seed!r}: pass a whole number."
        if not _is_finite(self.failure_score):
            yield f"failure_score={self.failure_score!r}: pass a finite number."
        if not _is_finite(self.min_contrast) or self.min_contrast < 0:
            yield f"min_contrast={self.min_contrast!r}: pass a finite number of at least 0."
        yield from self._temperature_faults()

    def _temperature_faults(self) -> Iterator[str]:
        if self.temperature is None:
            return
        if not isinstance(self.temperature, int | float) or not 0 <= self.temperature <= 2:
            yield f"temperature={self.temperature!r}: pass a number above 0 and at most 2, or None."
        elif self.temperature == 0:
            yield (
                f"temperature={self.temperature!r}: all {self.group_size} rollouts of a group "
                f"would be the same answer; pass temperature={DEFAULT_TEMPERATURE}."
            )

    def _object_faults(self) -> Iterator[str]:
        if self.metric is not None:
            try:
                adapt_metric(self.metric)
            except SettingsError as error:
                yield str(error)
        if self.reflection_lm is not None and not isinstance(self.reflection_lm, dspy.BaseLM):
            yield f"reflection_lm={self.reflection_lm!r}: pass a dspy.LM('provider/model')."
        if not callable(getattr(self.gate, "next", None)):
            yield f"gate={self.gate!r} has no method next(evidence); pass PairedGate() or NoGate()."
        if isinstance(self.gate, PairedGate) and self.gate_metric is None:
            yield (
                "gate=PairedGate() and metric=None: nothing scores the trials; pass "
                "PairedGate(metric=...), or leave the gate out."
            )
        for name in ("summarize_trajectory", "extract_advantage", "update_library"):
            if not isinstance(getattr(self, name), dspy.Module):
                yield f"{name}={getattr(self, name)!r}: pass a dspy.Module."

    @property
    def limits(self) -> Limits:
        """What the library may hold at every moment."""
        return Limits(self.max_experiences, self.max_experience_words)

    @property
    def gate_metric(self) -> Callable[..., Any] | None:
        """What scores the trials: the gate's own metric, or the optimizer's."""
        return getattr(self.gate, "metric", None) or self.metric

    @property
    def measures(self) -> bool:
        """Whether libraries are measured on a validation set."""
        return not isinstance(self.gate, NoGate) and self.gate_metric is not None

    def batch_size_for(self, n_examples: int) -> int:
        """The batch size: as given, or a fifth of the training set, at least 5, at most 20."""
        return self.batch_size or min(20, max(5, math.ceil(n_examples / 5)))

    def scalars(self) -> dict[str, Any]:
        """The settings that are numbers, strings or flags, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: value
            for name, value in values.items()
            if value is None or isinstance(value, bool | int | float | str)
        }


def check_run(
    settings: Settings,
    student: Any,
    trainset: Any,
    valset: Any,
    teacher: Any = None,
) -> None:
    """Refuse what a run could only fail on later.

    Raises:
        SettingsError: names every fault of student, data and LMs.
        LibraryFormatError: the library baked into the student is damaged.
    """
    faults = [*_program_faults(student), *_data_faults("trainset", trainset)]
    if valset is not None:
        faults += _data_faults("valset", valset)
    if teacher is not None:
        faults.append(f"teacher={type(teacher).__name__}: this optimizer has no use for a teacher.")
    if not faults:
        library = ExperienceLibrary.from_program(student)
        faults += [*_library_faults(settings.limits, library), *_lm_faults(settings, student)]
    if faults:
        raise SettingsError(" ".join(faults))
    if settings.metric is None and not settings.measures:
        warnings.warn(
            "metric=None: lessons are drawn from agreement and self-critique, without ground "
            "truth; nothing keeps the result from being worse than the student.",
            stacklevel=3,
        )


def split(
    settings: Settings, trainset: Sequence[Any], valset: Sequence[Any] | None
) -> tuple[list[int], list[Any]]:
    """The positions of the examples to train on, and the validation set.

    Without a `valset`, a third of the trainset (at most 100, drawn by the seed) is held out; below
    6 examples the trainset is the validation set too, with a warning; without a gate nothing is
    held out. Sets that overlap are warned of.
    """
    if valset is not None:
        _warn_of_overlap(trainset, valset)
        return list(range(len(trainset))), list(valset)
    if not settings.measures:
        return list(range(len(trainset))), []
    if len(trainset) < MIN_EXAMPLES_TO_SPLIT:
        warnings.warn(
            f"{len(trainset)} examples are too few to hold some out: the gate measures on the "
            f"training examples themselves; pass a valset.",
            stacklevel=3,
        )
        return list(range(len(trainset))), list(trainset)
    n_held_out = min(MAX_HELD_OUT, round(len(trainset) * VALIDATION_SHARE))
    order = list(range(len(trainset)))
    random.Random(f"{settings.seed}/split").shuffle(order)
    return sorted(order[n_held_out:]), [trainset[i] for i in sorted(order[:n_held_out])]


def policy_lms(student: Any) -> list[Any]:
    """Every LM that the student may call: its modules' own, and the configured one."""
    own = language_models(student)
    needs_default = any(predictor.lm is None for _, predictor in named_predictors(student))
    return [*own, dspy.settings.lm] if needs_default or not own else own


def _program_faults(student: Any) -> Iterator[str]:
    if not isinstance(student, dspy.Module):
        yield f"student={student!r}: pass a dspy.Module, such as dspy.Predict('q -> a')."
    elif not named_predictors(student):
        yield (
            f"student={type(student).__name__} has no predictors into whose instructions "
            f"experiences could be baked (sub-modules with _compiled=True are frozen)."
        )


def _library_faults(limits: Limits, library: ExperienceLibrary) -> Iterator[str]:
    if len(library) > limits.max_experiences:
        yield (
            f"max_experiences={limits.max_experiences}: the student starts with {len(library)} "
            f"experiences; allow as many, or bake a smaller library into it first."
        )
    longest = max((n_words(experience.text) for experience in library), default=0)
    if longest > limits.max_experience_words:
        yield (
            f"max_experience_words={limits.max_experience_words}: the student starts with an "
            f"experience of {longest} words; allow as many, or shorten it first."
        )


def _data_faults(name: str, examples: Any) -> list[str]:
    if not isinstance(examples, Sequence) or not examples:
        return [f"{name}={examples!r}: pass a list of at least one dspy.Example."]
    without = [index for index, example in enumerate(examples) if not _has_inputs(example)]
    if without:
        return [
            f"{name}: {len(without)} of {len(examples)} examples have no inputs (the first at "
            f"position {without[0]}); call example.with_inputs('question') on each."
        ]
    return []


def _has_inputs(example: Any) -> bool:
    try:
        return bool(len(example.inputs()))
    except (ValueError, AttributeError):
        return False


def _lm_faults(settings: Settings, student: Any) -> Iterator[str]:
    for lm in dict.fromkeys([*policy_lms(student), settings.reflection_lm or dspy.settings.lm]):
        if not isinstance(lm, dspy.BaseLM):
            yield (
                f"lm={lm!r}: no LM is configured; call dspy.configure(lm=dspy.LM(...)), or set "
                f"one on every predictor and pass reflection_lm."
            )
            return
    predictors = [predictor for _, predictor in student.named_sub_modules(dspy.Predict)]
    if settings.temperature is None and all(map(_always_answers_the_same, predictors)):
        yield (
            f"temperature=None, and every predictor of the student runs at temperature 0: all "
            f"{settings.group_size} rollouts of a group would be the same answer; pass "
            f"temperature={DEFAULT_TEMPERATURE}."
        )
    for lm in policy_lms(student):
        yield from _temperature_faults(settings, lm)


def _always_answers_the_same(predictor: Any) -> bool:
    lm = predictor.lm or dspy.settings.lm
    return is_deterministic(lm, predictor.config.get("temperature"))


def _temperature_faults(settings: Settings, lm: Any) -> Iterator[str]:
    if settings.temperature is None or allows_temperature(lm, settings.temperature):
        return
    if settings.temperature != DEFAULT_TEMPERATURE:
        yield (
            f"temperature={settings.temperature}: {lm.model} is a reasoning model and allows "
            f"none but its own; leave temperature out, or pass None."
        )
    else:
        logger.info("%s allows no temperature but its own; its rollouts use that", lm.model)


def _warn_of_overlap(trainset: Sequence[Any], valset: Sequence[Any]) -> None:
    seen = {repr(sorted(example.inputs().items())) for example in trainset}
    n_shared = sum(repr(sorted(example.inputs().items())) in seen for example in valset)
    if n_shared:
        warnings.warn(
            f"{n_shared} of {len(valset)} validation examples are training examples too; scores "
            f"on them flatter what was learned.",
            stacklevel=4,
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
