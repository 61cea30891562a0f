"""Every form of metric becomes one: `score(example, prediction, program_trace) -> Score`.

Forms: `metric(example, pred)`, `metric(example, pred, trace=None)`, GEPA's
`metric(gold, pred, trace, pred_name, pred_trace)` and the same with `program_trace`; sync or
async; returning a finite number or something with `score`, `feedback` and `objectives`.
"""

import functools
import inspect
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import dspy

from tfgrpo_dspy.errors import MetricError, RunStopped, SettingsError, described, written
from tfgrpo_dspy.experience.programs import language_models
from tfgrpo_dspy.rollout import MOST, number_of
from tfgrpo_dspy.text import shortened
from tfgrpo_dspy.user_code import held_by, settled, without_partials

SHOWN_BYTES = 120  # how much of an example or a value an error message quotes
OF_PREDICTORS = ["pred_name", "pred_trace"]  # arguments of GEPA's metrics
VERDICT = {"score", "objectives", "objective_scores"}  # the last is GEPA's name of the second


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict of a metric: a finite number, more is better, and why in words."""

    value: float
    feedback: str = ""
    objectives: Mapping[str, float] = field(default_factory=dict)  # by name; more is better


PredictorTrace = list[tuple[Any, Any, Any]]
"""The calls of one predictor in a rollout: the predictor, its inputs, its outputs."""


@dataclass(frozen=True, slots=True)
class ScoringFunction:
    """A metric as a function of example, prediction and program trace."""

    metric: Callable[..., Any]
    asks_predictors: bool  # it also says what one predictor did well or badly, as GEPA's metrics do
    n_extra: int  # arguments behind the first two
    wants_program_trace: bool

    def __call__(self, example: Any, prediction: Any, program_trace: Any) -> Score:
        """The score. Raises MetricError: the metric raised, or gave no finite score."""
        return self.as_score(self.ask(example, prediction, program_trace), example)

    def feedback_on(
        self, predictor: str, calls: PredictorTrace, example: Any, prediction: Any, trace: Any
    ) -> str:
        """The metric's words on this predictor. Raises MetricError: it raised."""
        verdict = self.ask(example, prediction, trace, predictor, calls)
        if isinstance(verdict, dspy.Prediction | Mapping):
            verdict = written(verdict.get("feedback") or "")
        return verdict if isinstance(verdict, str) else ""

    def ask(self, example: Any, prediction: Any, program_trace: Any, *predictor: Any) -> Any:
        """The value that the metric itself returns. Raises MetricError: it raised."""
        kwargs = {"program_trace": program_trace} if self.wants_program_trace else {}
        behind = (program_trace, *predictor) if predictor else (None,) * self.n_extra
        try:
            return settled(self.metric(example, prediction, *behind, **kwargs))
        except (RunStopped, KeyboardInterrupt, MetricError):
            raise
        except BaseException as error:
            fault = f"raised {shortened(described(error), SHOWN_BYTES)}"
            raise self._error(fault, example) from error

    def _error(self, fault: str, example: Any, hint: str = "") -> MetricError:
        name = metric_name(self.metric)
        return MetricError(f"metric {name} {fault} on the example {_shown(example)}{hint}")

    def as_score(self, verdict: Any, example: Any) -> Score:
        """The score that the metric returned. Raises MetricError: it is none."""
        if not (isinstance(verdict, dspy.Prediction | Mapping) and VERDICT & {*verdict.keys()}):
            return Score(self._finite(verdict, example))
        by_name = verdict.get("objectives", verdict.get("objective_scores")) or {}
        if not isinstance(by_name, Mapping):
            hint = "; return a dict of finite numbers by name."
            raise self._error(f"returned objectives={_shown(by_name)}", example, hint)
        objectives = {
            str(name): self._finite(each, example, f" as objective {str(name)!r}")
            for name, each in by_name.items()
            if each is not None  # it applies to the example
        }
        mean = statistics.fmean(objectives.values()) if objectives else None
        value, feedback = verdict.get("score", mean), written(verdict.get("feedback") or "")
        if isinstance(value, dspy.Prediction) and "score" in value:  # a judge's verdict, passed on
            judged = self.as_score(value, example)
            return Score(judged.value, feedback or judged.feedback, objectives or judged.objectives)
        return Score(self._finite(value, example, " as the score"), feedback, objectives)

    def _finite(self, value: Any, example: Any, part: str = "") -> float:
        if (number := number_of(value)) is not None:
            return number
        fault = f"returned {_shown(value)} ({type(value).__name__}){part}"
        hint = f"; return a finite number (below {MOST:g}), or "
        raise self._error(fault, example, f"{hint}dspy.Prediction(score=..., feedback=...).")


def adapt_metric(metric: Any) -> ScoringFunction:
    """The metric in the one form that rollouts call.

    Arguments behind the first two keep their defaults; those without one are passed as None (in
    DSPy's metrics a trace that is not None asks for a strict yes or no instead of a score). Raises
    SettingsError: the metric is not callable, or cannot be called in any of those forms.
    """
    if not callable(metric) or inspect.isclass(metric):
        fault = "is a class; pass an instance, or" if callable(metric) else "is not callable; pass"
        form = "a function metric(example, pred, trace=None)"
        raise SettingsError(f"{metric!r} {fault} {form}.")
    try:
        signature = inspect.signature(metric)
    except (TypeError, ValueError):  # a callable of C code does not tell; the plainest form then
        return ScoringFunction(metric, False, 0, False)
    wants_trace = "program_trace" in signature.parameters
    kwargs = {"program_trace": None} if wants_trace else {}
    for extra in (0, 1, 3):  # two arguments, DSPy's three, or GEPA's five
        with suppress(TypeError):
            signature.bind(*(None,) * (2 + extra), **kwargs)
            asks_predictors = [*signature.parameters][3:5] == OF_PREDICTORS
            return ScoringFunction(metric, asks_predictors, extra, wants_trace)
    fault = f"metric {metric_name(metric)}{signature} cannot be called with example and prediction"
    raise SettingsError(f"{fault}; write it as metric(example, pred, trace=None).")


def held_lms(metric: Any) -> list[dspy.BaseLM]:
    """The LMs, and those of modules, that a metric, or a function that it names, refers to."""
    lms: list[dspy.BaseLM] = []
    waiting, seen = [metric], {id(metric)}
    while waiting:
        for held in (each for each in held_by(waiting.pop()) if id(each) not in seen):
            seen.add(id(held))
            if isinstance(held, dspy.BaseLM):
                lms.append(held)
            elif isinstance(held, dspy.Module):
                lms += language_models(held)
            elif isinstance(held, FunctionType | MethodType | functools.partial):
                waiting.append(held)
    return lms


def metric_name(metric: Any) -> str:
    """The name under which errors speak of the metric."""
    metric = without_partials(metric)
    return str(getattr(metric, "__qualname__", None) or type(metric).__qualname__)


def _shown(value: object) -> str:
    unseen = f"a {type(value).__name__} that cannot be shown"
    return shortened(written(value, repr, unseen), SHOWN_BYTES)
