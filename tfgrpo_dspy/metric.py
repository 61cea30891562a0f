"""Every form of metric becomes one: `score(example, prediction, program_trace) -> Score`.

Forms: `metric(example, pred)`, `metric(example, pred, trace=None)`, GEPA's
`metric(gold, pred, trace, pred_name, pred_trace)` and the same with `program_trace`; sync or
async; returning a finite number or something with `score`, `feedback` and `objectives`.
"""

import functools
import inspect
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

import dspy

from tfgrpo_dspy.errors import MetricError, RunStopped, SettingsError, described, written
from tfgrpo_dspy.experience.programs import language_models
from tfgrpo_dspy.scores import MOST, number_of
from tfgrpo_dspy.user_code import held_by, settled, without_partials
from tfgrpo_dspy.wording import shortened

SHOWN_BYTES = 120  # how much of an example or a value an error message quotes
OF_PREDICTORS = ["pred_name", "pred_trace"]  # arguments of GEPA's metrics


@dataclass(frozen=True, slots=True)
class Score:
    """What a metric says of one prediction: a finite number, more is better, and why in words."""

    value: float
    feedback: str = ""
    objectives: Mapping[str, float] = field(default_factory=dict)  # by name; more is better


PredictorTrace = list[tuple[Any, Any, Any]]
"""The calls of one predictor in a rollout: the predictor, its inputs, its outputs."""


@dataclass(frozen=True, slots=True)
class ScoringFunction:
    """A metric as a function of example, prediction and program trace."""

    asks_predictors: bool  # it also says what one predictor did well or badly, as GEPA's metrics do
    ask: Callable[..., Any]  # gives what the metric itself returns
    name: str

    def __call__(self, example: Any, prediction: Any, program_trace: Any) -> Score:
        """The score. Raises MetricError: the metric raised, or gave no finite score."""
        verdict = self.ask(example, prediction, program_trace)
        with _refusing(self.name, "returned something that cannot be read:", example):
            return _as_score(verdict, self.name, example)

    def feedback_on(
        self, predictor: str, calls: PredictorTrace, example: Any, prediction: Any, trace: Any
    ) -> str:
        """What the metric says of this predictor, in words. Raises MetricError: it raised."""
        verdict = self.ask(example, prediction, trace, predictor, calls)
        with _refusing(self.name, "returned feedback that cannot be read:", example):
            if isinstance(verdict, dspy.Prediction | Mapping):
                verdict = str(verdict.get("feedback") or "")
            return verdict if isinstance(verdict, str) else ""


@contextmanager
def _refusing(name: str, what: str, example: Any) -> Iterator[None]:
    """Raises MetricError for whatever is raised, which code of the user's is."""
    try:
        yield
    except (RunStopped, KeyboardInterrupt, MetricError):
        raise
    except BaseException as error:
        what = f"{what} {shortened(described(error), SHOWN_BYTES)}"
        raise MetricError(f"metric {name} {what} on the example {_shown(example)}") from error


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
    wants_program_trace, extra, asks_predictors = _form(metric)
    name = metric_name(metric)

    def ask(example: Any, prediction: Any, program_trace: Any, *predictor: Any) -> Any:
        kwargs = {"program_trace": program_trace} if wants_program_trace else {}
        behind = (program_trace, *predictor) if predictor else (None,) * extra
        with _refusing(name, "raised", example):
            result = metric(example, prediction, *behind, **kwargs)
            return settled(result)

    return ScoringFunction(asks_predictors, ask, name)


def combined(metrics: Sequence[Any] | Mapping[str, Any]) -> Callable[..., dspy.Prediction]:
    """One metric of several: their weighted mean; what each gives is an objective.

    `[exact, short]` or `{"right": exact, "short": (short, 0.2)}`. One that returns None does not
    apply to the example, and does not count there. Raises SettingsError: there is none, one of them
    is no metric, or a weight is no positive number.
    """
    if isinstance(metrics, Mapping):
        pairs = [(str(k), v if isinstance(v, tuple) else (v, 1.0)) for k, v in metrics.items()]
    else:
        weighted = [v if isinstance(v, tuple) else (v, 1.0) for v in metrics]
        names = [metric_name(v[0]) for v in weighted]
        unique = (n if names.count(n) == 1 else f"{n} {k}" for k, n in enumerate(names, 1))
        pairs = list(zip(unique, weighted, strict=True))
    if not pairs:
        hint = "pass at least one metric, or metric=None."  # pydantic names the value
        raise SettingsError(hint)
    for name, pair in pairs:
        weight = number_of(pair[1]) if len(pair) == 2 else None
        if weight is None or weight <= 0:
            raise SettingsError(f"{name!r}: pass a metric, or (metric, weight above 0).")
        adapt_metric(pair[0])
    weights = {name: float(pair[1]) for name, pair in pairs}
    return functools.partial(weighted_mean, *(pair[0] for _, pair in pairs), weights=weights)


def weighted_mean(*arguments: Any, weights: Mapping[str, float]) -> dspy.Prediction:
    """The weighted mean of the metrics that apply; `arguments`: metrics, example, prediction."""
    *metrics, example, prediction = arguments
    scores: dict[str, Score] = {}
    for name, metric in zip(weights, metrics, strict=True):
        scoring = adapt_metric(metric)
        verdict = scoring.ask(example, prediction, None)
        with _refusing(scoring.name, "returned something that cannot be read:", example):
            if verdict is not None:
                scores[name] = _as_score(verdict, scoring.name, example)
    if not scores:
        names = ", ".join(weights)
        raise MetricError(f"none of the metrics ({names}) applies to the example {_shown(example)}")
    total = sum(weights[name] for name in scores)
    return dspy.Prediction(
        score=sum(weights[name] * score.value for name, score in scores.items()) / total,
        feedback="\n".join(f"{name}: {s.feedback}" for name, s in scores.items() if s.feedback),
        objectives={name: score.value for name, score in scores.items()},
    )


def held_lms(metric: Any) -> list[dspy.BaseLM]:
    """The LMs, and those of modules, that a metric, or a function that it names, refers to."""
    lms: list[dspy.BaseLM] = []
    waiting, seen = [metric], {id(metric)}
    while waiting:
        for held in held_by(waiting.pop()):
            if id(held) in seen:
                continue
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


def _form(metric: Callable[..., Any]) -> tuple[bool, int, bool]:
    """Whether it takes `program_trace`, how many arguments more than two, whether GEPA's."""
    try:
        signature = inspect.signature(metric)
    except (TypeError, ValueError):  # a callable of C code does not tell; the plainest form then
        return False, 0, False
    wants_program_trace = "program_trace" in signature.parameters
    kwargs = {"program_trace": None} if wants_program_trace else {}
    for extra in (0, 1, 3):  # two arguments, DSPy's three, or GEPA's five
        try:
            signature.bind(*(None,) * (2 + extra), **kwargs)
        except TypeError:
            continue
        return wants_program_trace, extra, [*signature.parameters][3:5] == OF_PREDICTORS
    raise SettingsError(
        f"metric {metric_name(metric)}{signature} cannot be called with an example and a "
        f"prediction; write it as metric(example, pred, trace=None)."
    )


def _as_score(result: Any, name: str, example: Any) -> Score:
    value, feedback, objectives, part = result, "", {}, ""
    if isinstance(result, dspy.Prediction | Mapping) and (
        "score" in result or "objectives" in result or "objective_scores" in result
    ):
        objectives = result.get("objectives", result.get("objective_scores"))  # the name in GEPA
        objectives = _objectives(objectives, name, example)
        mean = statistics.fmean(objectives.values()) if objectives else None
        value, feedback = result.get("score", mean), str(result.get("feedback") or "")
        part = " as the score"
    if isinstance(value, dspy.Prediction) and "score" in value:  # a judge's verdict, passed on
        judged = _as_score(value, name, example)
        return Score(judged.value, feedback or judged.feedback, objectives or judged.objectives)
    return Score(_finite(value, name, example, part), feedback, objectives)


def _objectives(objectives: Any, name: str, example: Any) -> dict[str, float]:
    if objectives is not None and not isinstance(objectives, Mapping):
        raise MetricError(
            f"metric {name} returned objectives={_shown(objectives)} on the example "
            f"{_shown(example)}; return a dict of finite numbers by name."
        )
    return {
        str(each): _finite(value, name, example, f" as objective {str(each)!r}")
        for each, value in (objectives or {}).items()
        if value is not None  # it does not apply to the example
    }


def _finite(value: Any, name: str, example: Any, part: str) -> float:
    number = number_of(value)
    if number is None:
        raise MetricError(
            f"metric {name} returned {_shown(value)} ({type(value).__name__}){part} on the example "
            f"{_shown(example)}; return a finite number (below {MOST:g}), or "
            f"dspy.Prediction(score=..., feedback=...)."
        )
    return number


def _shown(value: object) -> str:
    unseen = f"a {type(value).__name__} that cannot be shown"
    return shortened(written(value, repr, unseen), SHOWN_BYTES)
