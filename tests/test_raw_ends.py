"""Values that nobody expects, wherever they come in: taken, refused or counted, in words."""

import decimal
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from runs import is_polite, learned, polite_lm, questions
from scripted import scripted_lm
from small import grpo

from tfgrpo_dspy import Execution, NoGate, SettingsError
from tfgrpo_dspy.errors import TrainingFreeGRPOError
from tfgrpo_dspy.report import html
from tfgrpo_dspy.strategies import Strategy

ODD: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"\xff\x00",
    "Decimal": lambda: decimal.Decimal("sNaN"),
    "NumPy": lambda: np.array([np.nan, np.inf]),
    "half a letter": lambda: "please \ud83d",
    "keys": lambda: {1: 2, (3, 4): None, None: 5},
}


def number_of(example: Any) -> int:
    return int(re.findall(r"\d+", example.question)[0])


def odd_of(example: Any) -> Any:
    """The odd value of this question: five questions in a row have all of them."""
    return [*ODD.values()][number_of(example) % len(ODD)]()


def learned_from_twelve(student: Any = None, metric: Any = is_polite, **settings: Any) -> Any:
    """The student after one epoch of twelve questions, two rollouts each."""
    given = {"group_size": 2, "epochs": 1, "progress": False, "execution": MANY_ERRORS}
    sets = {"trainset": questions(12), "valset": questions(3, 50)}
    sets = {name: settings.pop(name, examples) for name, examples in sets.items()}
    with dspy.context(lm=polite_lm()):
        optimizer = grpo(metric, **given | settings)
        return optimizer.compile(student or dspy.Predict("question -> answer"), **sets)


MANY_ERRORS = Execution(max_errors=1000)


class Giving(dspy.Module):
    """Gives something beside its answer, by the question."""

    def __init__(self, value: Callable[[Any], Any], field: Any = "odd") -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.value, self.field = value, field

    def forward(self, question: str, **_: Any) -> Any:
        answered = self.ask(question=question)
        answered[self.field] = self.value(dspy.Example(question=question))
        return answered


def test_an_odd_output_ends_nothing(tmp_path: Path) -> None:
    student = Giving(odd_of)
    program = learned_from_twelve(student, log_dir=tmp_path)
    assert program.detailed_results.failures == {}
    again = learned_from_twelve(student, log_dir=tmp_path, offline=True)
    assert again.detailed_results.experiences == program.detailed_results.experiences


@pytest.mark.parametrize("inputs", [(), ("odd",)], ids=["label", "input"])
def test_an_odd_field_of_an_example_ends_nothing(inputs: tuple[str, ...]) -> None:
    examples = questions(13)
    for example in examples:
        example["odd"] = odd_of(example)
    trainset = [example.with_inputs("question", *inputs) for example in examples]
    program = learned_from_twelve(Giving(lambda _: 1), trainset=trainset)
    assert len(program.detailed_results.updates[0].groups) > 0
    assert program.detailed_results.failures == {}


def wrong_results() -> Iterator[Any]:
    values = learned().detailed_results.to_dict()
    yield from ({}, {"updates": 3}, {1: 2}, {**values, "student": None}, {**values, "best": None})
    yield {**values, "library": {"experiences": 3}}
    yield {**values, "usage": float("nan")}


def test_a_dict_that_is_not_of_a_run_is_refused_in_one_line() -> None:
    for wrong in wrong_results():
        with pytest.raises(SettingsError, match="pass a RunResults, a program") as refused:
            html(wrong)
        assert "\n" not in str(refused.value)


class OwnError(Exception):
    """What code of the user's raises."""


def boom(*_: Any, **_named: Any) -> Any:
    raise OwnError


QA = "question -> answer"
OF_USER = {
    "approve raised": lambda: {"approve": boom},
    "metric boom raised": lambda: {"metric": boom},
    "Own.choose": lambda: {"strategies": (type("Own", (Strategy,), {"choose": boom})(),)},
    "Own.reward": lambda: {"strategies": (type("Own", (Strategy,), {"reward": boom})(),)},
    "Own.decide raised": lambda: {"gate": type("Own", (NoGate,), {"decide": boom})()},
    "in the program": lambda: {"student": type("Own", (dspy.Predict,), {"forward": boom})(QA)},
    "arguments of dspy.LM": lambda: {"lm": scripted_lm([("", OwnError())], num_retries=0)},
}


@pytest.mark.parametrize("whose", OF_USER)
def test_what_ends_a_run_has_the_error_of_the_users_code_as_its_cause(whose: str) -> None:
    with pytest.raises(TrainingFreeGRPOError) as raised:
        learned(**OF_USER[whose]())
    assert whose in str(raised.value)
    cause: Any = raised.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, OwnError)
