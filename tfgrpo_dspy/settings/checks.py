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
from tfgrpo_dspy.settings.plan import derived, plan_of
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
    """The settings with all that is derived, the positions to train on, the validation set.

    Schedule and plan are logged.

    Raises:
        SettingsError: names every fault of student, data, LMs and budget.
        LibraryFormatError: the library baked into the student is damaged.
    """
    check_run(settings, student, trainset, valset, teacher, testset)
    if settings.metric is None:
        warnings.warn(
            "metric=None: lessons are drawn from agreement and self-critique, without ground "
            "truth; nothing keeps the result from being worse than the student.",
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

    Without a validation set, or a metric to score it by, nothing is measured. Traces without any
    score are learned from as without ground truth.

    Raises:
        SettingsError, LibraryFormatError: as `prepare`.
    """
    is_scored = any(rollout.score is not None for group in recorded for rollout in group)
    gate: Any = settings.gate if valset and settings.measures else NoGate()
    metric = (settings.metric or _scores_of_traces) if is_scored else None
    settings = replace(settings, metric=metric, gate=gate)
    check_run(settings, student, examples, valset)
    validation = list(valset or []) if settings.metric is not _scores_of_traces else []
    return _planned(settings, student, examples, len(validation), is_sampled=False), validation


def _planned(
    settings: Settings, student: Any, examples: Sequence[Any], n_validation: int, **data: Any
) -> RunSettings:
    """The settings with budget and schedule; the plan is logged."""
    refuse([*_price_faults(settings, student)])
    data["can_draft"] = not [*_draft_faults(settings, examples)]
    run_settings = derived(settings, student, examples, n_validation, **data)
    if not settings.offline:
        logger.info("the plan:\n%s", plan_of(run_settings, student, examples))
    return run_settings


def _scores_of_traces(example: Any, prediction: Any, trace: Any = None) -> float:
    """Stands for the metric that made the scores; nothing asks it, as nothing is run."""
    raise NotImplementedError((example, prediction, trace))


def check_run(
    settings: Settings,
    student: Any,
    trainset: Any,
    valset: Any,
    teacher: Any = None,
    testset: Any = None,
) -> None:
    """Refuse what a run could only fail on later.

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
        faults.append(f"teacher={type(teacher).__name__}: this optimizer has no use for a teacher.")
    if not faults:
        library = ExperienceLibrary.from_program(student)
        faults += [*_library_faults(settings, library), *_lm_faults(settings, student)]
    refuse(faults)


def split(
    settings: Settings, trainset: Sequence[Any], valset: Sequence[Any] | None
) -> tuple[list[int], list[Any]]:
    """The positions of the examples to train on, and the validation set.

    Without a `valset`, a third of the trainset (at most 100, drawn by the seed) is held out; below
    6 examples the trainset is the validation set too, with a warning; without a gate nothing is
    held out. Sets that overlap are warned of.
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
    """Every LM that the run may call, as far as it can be found."""
    modules = (settings.reflection or Reflection()).modules
    of_modules = [lm for module in modules for lm in language_models(module)]
    reflection_lm = settings.reflection_lm or dspy.settings.lm
    return [*policy_lms(student), reflection_lm, *of_modules, *held_lms(settings.metric)]


def policy_lms(student: Any) -> list[Any]:
    """Every LM that the student may call: its modules' own, and the configured one."""
    own = language_models(student)
    needs_default = any(predictor.lm is None for _, predictor in named_predictors(student))
    return [*own, dspy.settings.lm] if needs_default or not own else own


def _price_faults(settings: Settings, student: Any) -> Iterator[str]:
    """Each LM that the run may call whose price is not known, where `max_cost` needs it."""
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
            logger.info("%s allows no temperature but its own; its rollouts use that", lm.model)
        else:
            yield (
                f"temperature={temperature}: {lm.model} is a reasoning model and allows "
                f"none but its own; leave temperature out."
            )


def _draft_faults(settings: Settings, trainset: Sequence[Any]) -> Iterator[str]:
    """Why there is nothing to draw drafts from."""
    reflection = settings.reflection or Reflection()
    asked = f"drafts={reflection.drafts}"
    if not reflection.use_labels or settings.metric is None:
        hidden = "metric=None" if reflection.use_labels else "use_labels=False"
        yield f"{asked} and {hidden}: drafts are drawn from labels; pass drafts=0."
    elif not any(len(example.labels()) for example in trainset):
        yield (
            f"{asked}: drafts are drawn from labels, and no example of the trainset has any; pass "
            f"drafts=0."
        )


def _warn_of_overlap(others: Sequence[Any], kept: Sequence[Any], name: str, used: str) -> None:
    """Warn of `kept` examples (of the set `name`) that are among `others` (used for `used`)."""
    shown = {_shown(example) for example in kept}  # digests of all examples would take long
    seen = {_inputs_of(example) for example in others if _shown(example) in shown}
    n_shared = sum(_inputs_of(example) in seen for example in kept)
    if n_shared:
        warnings.warn(
            f"{n_shared} of {len(kept)} {name} examples are {used} examples too; scores on them "
            f"flatter what was learned.",
            stacklevel=4,
        )


def _shown(example: Any) -> str:
    return repr(sorted(example.inputs().items()))


def _inputs_of(example: Any) -> str:
    """The inputs as text, with what media hold, which they do not show."""
    inputs = dict(example.inputs().items())
    return f"{_shown(example)} {digest(object_identity(inputs, Unseen()))}"
