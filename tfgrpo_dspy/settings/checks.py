"""The checks on student, data and LMs, and the split of the data."""

import logging
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import dspy

from tfgrpo_dspy.budget import price_of
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.operations import n_words
from tfgrpo_dspy.experience.programs import language_models, named_predictors
from tfgrpo_dspy.gate import NoGate
from tfgrpo_dspy.metric import held_lms
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.models import allows_temperature
from tfgrpo_dspy.settings import DEFAULT_TEMPERATURE, Execution, Reflection, RunSettings, Settings
from tfgrpo_dspy.settings.arguments import refuse
from tfgrpo_dspy.settings.plan import derive_settings, plan_of
from tfgrpo_dspy.store import Unseen, digest, object_identity

logger = logging.getLogger(__name__)

VALIDATION_SHARE = 1 / 3
MAX_HELD_OUT = 100
MIN_EXAMPLES_TO_SPLIT = 6


def prepare(
    settings: Settings,
    student: Any,
    trainset: Any,
    valset: Any,
    teacher: Any = None,
    testset: Any = None,
) -> tuple[RunSettings, list[int], list[Any]]:
    """The run's settings, the positions of the examples to train on, and the validation set.

    Logs the plan of the run.

    Raises:
        SettingsError: names every fault of student, data, LMs and budget.
        LibraryFormatError: the library baked into the student is damaged.
    """
    check_run(settings, student, trainset, valset, teacher, testset)
    if settings.metric is None:
        warnings.warn(
            "metric=None: lessons are drawn from agreement and self-critique, without ground "
            "truth; nothing checks that the result is not worse than the student.",
            stacklevel=2,
        )
    training, validation = split(settings, trainset, valset)
    if testset is not None:
        _warn_of_overlap(trainset, testset, "test", "training")
        _warn_of_overlap(valset or (), testset, "test", "validation")
    examples = [trainset[index] for index in training]
    data = {"n_test": len(testset or ()), "is_split": valset is None}
    return _planned(settings, student, examples, len(validation), **data), training, validation


def prepare_learning(
    settings: Settings,
    student: Any,
    examples: Sequence[Any],
    recorded: Sequence[Sequence[Rollout]],
    valset: Any,
) -> tuple[RunSettings, list[Any]]:
    """The settings for learning from traces, and the validation set.

    Without a validation set, or without a metric, nothing is measured. If no trace has a score,
    lessons are drawn as without a metric.

    Raises:
        SettingsError, LibraryFormatError: as `prepare`.
    """
    is_scored = any(rollout.score is not None for group in recorded for rollout in group)
    gate: Any = settings.gate if valset and settings.measures else NoGate()
    metric = (settings.metric or _scores_of_traces) if is_scored else None
    settings = replace(settings, metric=metric, gate=gate)
    check_run(settings, student, examples, valset)
    validation = list(valset or []) if settings.metric is not _scores_of_traces else []
    return _planned(settings, student, examples, len(validation), runs_rollouts=False), validation


def _planned(
    settings: Settings, student: Any, examples: Sequence[Any], n_validation: int, **data: Any
) -> RunSettings:
    """The settings with budget and schedule. Logs the plan."""
    refuse([*_price_faults(settings, student)])
    data["can_draft"] = not _draft_faults(settings, examples)
    run_settings = derive_settings(settings, student, examples, n_validation, **data)
    if not settings.offline:
        logger.info("the plan:\n%s", plan_of(run_settings, student, examples))
    return run_settings


def _scores_of_traces(example: Any, prediction: Any, trace: Any = None) -> float:
    """Stands for the unknown metric that scored the traces. Never called: nothing is run."""
    raise NotImplementedError((example, prediction, trace))


def check_run(
    settings: Settings,
    student: Any,
    trainset: Any,
    valset: Any,
    teacher: Any = None,
    testset: Any = None,
) -> None:
    """Refuse a student, data or LMs with which a run would fail later.

    Raises:
        SettingsError: names every fault of student, data and LMs.
        LibraryFormatError: the library baked into the student is damaged.
    """
    faults = [*_program_faults(student), *_data_faults("trainset", trainset)]
    if valset is not None:
        faults += _data_faults("valset", valset)
    if testset is not None:
        faults += _data_faults("testset", testset)
        if settings.metric is None:
            faults.append("testset and metric=None: nothing scores the test set; pass a metric.")
    if not faults and settings.reflection is not None and settings.reflection.drafts:
        faults += _draft_faults(settings, trainset)
    if teacher is not None:
        faults.append(f"teacher={type(teacher).__name__}: this optimizer uses no teacher.")
    if not faults:
        library = ExperienceLibrary.from_program(student)
        faults += [*_library_faults(settings, library), *_lm_faults(settings, student)]
    refuse(faults)


def split(
    settings: Settings, trainset: Sequence[Any], valset: Sequence[Any] | None
) -> tuple[list[int], list[Any]]:
    """The positions of the examples to train on, and the validation set.

    Without a `valset`, a third of the trainset (at most 100, drawn by the seed) is held out. Below
    6 examples the trainset is the validation set too, with a warning. A gate that measures nothing
    needs no validation set. Warns of a `valset` that overlaps the trainset.
    """
    order = list(range(len(trainset)))
    if valset is not None:
        _warn_of_overlap(trainset, valset, "validation", "training")
        return order, list(valset)
    if not settings.measures:
        return order, []
    if len(trainset) < MIN_EXAMPLES_TO_SPLIT:
        warnings.warn(
            f"{len(trainset)} examples are too few to hold some out: student and result are "
            f"compared on the training examples themselves; pass a valset.",
            stacklevel=3,
        )
        return order, list(trainset)
    n_held_out = min(MAX_HELD_OUT, round(len(trainset) * VALIDATION_SHARE))
    random.Random(f"{settings.seed}/split").shuffle(order)
    return sorted(order[n_held_out:]), [trainset[i] for i in sorted(order[:n_held_out])]


def all_lms(settings: Settings, student: Any) -> list[Any]:
    """Every LM that the run may call, if it can be found in student, modules or metric."""
    modules = (settings.reflection or Reflection()).modules
    of_modules = [lm for module in modules for lm in language_models(module)]
    reflection_lm = settings.reflection_lm or dspy.settings.lm
    return [*policy_lms(student), reflection_lm, *of_modules, *held_lms(settings.metric)]


def policy_lms(student: Any) -> list[Any]:
    """Every LM that the student may call: those of its modules, and the configured one."""
    lms = language_models(student)
    needs_default = any(predictor.lm is None for _, predictor in named_predictors(student))
    return [*lms, dspy.settings.lm] if needs_default or not lms else lms


def _price_faults(settings: Settings, student: Any) -> Iterator[str]:
    """A sentence for each LM without a known price, if `max_cost` is set."""
    if settings.max_cost is None:
        return
    for lm in {id(lm): lm for lm in all_lms(settings, student)}.values():
        price = price_of(lm, (settings.execution or Execution()).prices or {})
        if isinstance(price, str):
            yield f"max_cost={settings.max_cost}: {price}"


def _program_faults(student: Any) -> Iterator[str]:
    if not isinstance(student, dspy.Module):
        yield f"student={student!r}: pass a dspy.Module, such as dspy.Predict('q -> a')."
    elif not named_predictors(student):
        yield (
            f"student={type(student).__name__} has no predictors into whose instructions "
            f"experiences could be baked (sub-modules with _compiled=True are frozen)."
        )


def _library_faults(settings: Settings, library: ExperienceLibrary) -> Iterator[str]:
    limits = settings.limits
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
    for lm in [*policy_lms(student), settings.reflection_lm or dspy.settings.lm]:
        if not isinstance(lm, dspy.BaseLM):
            yield (
                f"lm={lm!r}: no LM is configured; call dspy.configure(lm=dspy.LM(...)), or set "
                f"one on every predictor and pass reflection_lm."
            )
            return
    temperature = settings.temperature or DEFAULT_TEMPERATURE
    for lm in policy_lms(student):
        if allows_temperature(lm, temperature):
            continue
        if temperature == DEFAULT_TEMPERATURE:
            logger.info("%s allows no temperature but its own; its rollouts use that one", lm.model)
        else:
            yield (
                f"temperature={temperature}: {lm.model} is a reasoning model and allows "
                f"no temperature but its own; leave temperature out."
            )


def _draft_faults(settings: Settings, trainset: Sequence[Any]) -> list[str]:
    """Why no lessons can be drafted from labels."""
    reflection = settings.reflection or Reflection()
    if not reflection.use_labels:
        reason = "use_labels=False"
    elif settings.metric is None:
        reason = "metric=None"
    elif not any(len(example.labels()) for example in trainset):
        reason = "a trainset without labels"
    else:
        return []
    return [f"drafts={reflection.drafts} and {reason}: drafts need labels; pass drafts=0."]


def _warn_of_overlap(used: Sequence[Any], held_out: Sequence[Any], name: str, use: str) -> None:
    """Warn of examples of the held-out set `name` that are also used for `use`."""
    inputs = {_inputs_of(example) for example in used}
    n_shared = sum(_inputs_of(example) in inputs for example in held_out)
    if n_shared:
        warnings.warn(
            f"{n_shared} of {len(held_out)} {name} examples are {use} examples too; scores on them "
            f"are too optimistic.",
            stacklevel=4,
        )


def _inputs_of(example: Any) -> str:
    """The inputs as text, with a digest because the text does not show the content of media."""
    inputs = dict(example.inputs().items())
    return f"{sorted(inputs.items())!r} {digest(object_identity(inputs, Unseen()))}"
