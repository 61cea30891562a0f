"""Every form of metric becomes one score, or a clear error."""
# ruff: noqa: ARG001, ARG002, ARG005 - a metric is given arguments that it has no use for

import functools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import dspy
import numpy as np
import pytest

from tfgrpo_dspy import MetricError, SettingsError
from tfgrpo_dspy.rollout import Score, adapt_metric

EXAMPLE = dspy.Example(question="Where is order 7?", answer="here").with_inputs("question")
PREDICTION = dspy.Prediction(answer="here")
TRACE = [("predictor", {"question": "Where is order 7?"}, PREDICTION)]


def score(metric: Callable[..., Any]) -> Score:
    return adapt_metric(metric)(EXAMPLE, PREDICTION, TRACE)


def returning(value: Any) -> Callable[..., Any]:
    def my_metric(example: Any, pred: Any, trace: Any = None) -> Any:
        return value

    return my_metric


def seen(*values: Any) -> dspy.Prediction:
    return dspy.Prediction(score=1, feedback=repr(values))


FORMS: dict[str, tuple[Any, str]] = {
    "two": (lambda example, pred: seen(example is EXAMPLE, pred is PREDICTION), "(True, True)"),
    "three": (lambda example, pred, trace=None: seen(trace), "(None,)"),
    "its own defaults": (lambda e, p, trace="x", strict=True: seen(trace, strict), "('x', True)"),
    "five with defaults": (
        lambda gold, pred, trace=None, pred_name=None, pred_trace=None: seen(trace, pred_name),
        "(None, None)",
    ),
    "six": (
        lambda gold, pred, trace, pred_name, pred_trace, program_trace: seen(
            trace, program_trace is TRACE
        ),
        "(None, True)",
    ),
    "program trace": (lambda e, p, *, program_trace: seen(program_trace is TRACE), "(True,)"),
    "any": (lambda *args, **kwargs: seen(len(args), kwargs), "(2, {})"),
}


class CallableObject:
    def __call__(self, example: Any, pred: Any, trace: Any = None) -> Any:
        return seen(trace)


class Judge(dspy.Module):
    def forward(self, example: Any, pred: Any, trace: Any = None) -> Any:
        return seen(trace)


async def three_async(example: Any, pred: Any, trace: Any = None) -> Any:
    return seen(trace)


def weighted(weight: Any, example: Any, pred: Any, trace: Any = None) -> Any:
    return seen(weight, trace)


FORMS |= {
    "an object": (CallableObject(), "(None,)"),
    "a module": (Judge(), "(None,)"),
    "async": (three_async, "(None,)"),
    "partial": (functools.partial(weighted, 3), "(3, None)"),
}


@pytest.mark.parametrize(("metric", "shown"), FORMS.values(), ids=FORMS)
def test_a_metric_is_called_in_the_form_that_it_is_written_in(metric: Any, shown: str) -> None:
    assert score(metric) == Score(1.0, shown)


@pytest.mark.parametrize("wrong", [None, 0.5, "exact_match", object()])
def test_a_metric_that_is_not_callable_is_refused_before_it_is_called(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="is not callable"):
        adapt_metric(wrong)


@pytest.mark.parametrize(
    "metric",
    [
        lambda pred: 1.0,
        lambda example, pred, trace, pred_name: 1.0,
        lambda a, b, c, d, e, f, g: 1.0,
        lambda example, pred, *, strict: 1.0,
    ],
)
def test_a_metric_of_the_wrong_number_of_arguments_is_refused_with_its_signature(
    metric: Any,
) -> None:
    with pytest.raises(SettingsError, match=r"<lambda>\(.*\) cannot be") as caught:
        adapt_metric(metric)
    assert "metric(example, pred, trace=None)" in str(caught.value)


TWICE = dspy.Prediction(score=0.5, feedback="Too long.")
SCORES: list[tuple[Any, float, str]] = [
    (True, 1.0, ""),
    (-0.25, -0.25, ""),
    (np.float32(0.5), 0.5, ""),
    (Decimal("0.1"), 0.1, ""),
    ({"score": 0.5, "feedback": "Too long."}, 0.5, "Too long."),
    (dspy.Prediction(score=np.bool_(True), feedback=None), 1.0, ""),
    (dspy.Prediction(score=0.5, other_scores={"a": 1}), 0.5, ""),
    (dspy.Prediction(score=0.5, feedback=["Too long.", "Rude."]), 0.5, "['Too long.', 'Rude.']"),
    (dspy.Prediction(score=TWICE), 0.5, "Too long."),
    (dspy.Prediction(score=TWICE, feedback="Rude."), 0.5, "Rude."),
]


@pytest.mark.parametrize(("value", "number", "feedback"), SCORES, ids=repr)
def test_every_kind_of_number_is_a_score_and_feedback_comes_with_it(
    value: Any, number: float, feedback: str
) -> None:
    result = score(returning(value))
    assert result == Score(number, feedback)
    assert type(result.value) is float


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None (NoneType)"),
        (Decimal("sNaN"), "Decimal('sNaN') (Decimal)"),
        (Decimal("1e999"), "Decimal('1E+999') (Decimal)"),
        (10**400, "... (int)"),
        ("1.0", "'1.0' (str)"),
        (np.array([1.0]), "array([1.]) (ndarray)"),
        (dspy.Prediction(score=None), "None (NoneType) as the score on the example"),
        ({"score": float("nan")}, "nan (float)"),
        (dspy.Prediction(score=dspy.Prediction(answer="here")), "answer='here'"),
        ({"feedback": "good"}, "{'feedback': 'good'} (dict)"),
        (dspy.Example(score=1.0), "(Example)"),
    ],
    ids=repr,
)
def test_what_is_not_a_finite_number_is_an_error_that_names_metric_example_and_value(
    value: Any, shown: str
) -> None:
    with pytest.raises(MetricError) as caught:
        score(returning(value))
    for named in ("my_metric returned", "Where is order 7?", shown):
        assert named in str(caught.value)


def raising(example: Any, pred: Any, trace: Any = None) -> float:
    return float(example["label"])


async def raising_async(example: Any, pred: Any, trace: Any = None) -> float:
    return float(example["label"])


@pytest.mark.parametrize("metric", [raising, raising_async, functools.partial(raising, trace=1)])
def test_a_metric_that_raises_is_a_short_error_that_names_metric_example_and_cause(
    metric: Any,
) -> None:
    example = dspy.Example(question="Where is order 7?" + " word" * 1000).with_inputs("question")
    with pytest.raises(MetricError, match=r"metric raising(_async)? raised KeyError") as caught:
        adapt_metric(metric)(example, PREDICTION, [])
    for named in ("'label'", "Where is order 7?"):
        assert named in str(caught.value)
    assert len(str(caught.value)) < 500
    assert isinstance(caught.value.__cause__, KeyError)
