"""Labels of examples: missing ones, values in another form than their field, accepted answers."""

import datetime
import re
from enum import Enum
from typing import Any, Literal

import dspy
import pydantic
import pytest
from coded_cases import CODES, cases
from runs import Run, predictor
from scripted import EXTRACT, Prompt, chat, scripted_lm
from small import grpo
from test_demos import world

from tfgrpo_dspy import Gate
from tfgrpo_dspy.sampling.examples import labelled_demos


class Part(pydantic.BaseModel):
    name: str
    n: int = 0


class Person(pydantic.BaseModel):
    full_name: str = pydantic.Field(alias="fullName")
    parts: list[Part] = []


class Money(dspy.Type):
    amount: float

    def format(self) -> str:
        return f"{self.amount} EUR"


class Bay(Enum):
    NORTH = "n"


def demo_of(annotation: Any, label: Any) -> str | None:
    """How a demo shows a label of a field of this type."""
    fields = {"q": (str, dspy.InputField()), "answer": (annotation, dspy.OutputField())}
    example = dspy.Example(q="a", answer=label).with_inputs("q")
    (*_, demo) = [None, *labelled_demos(example, dspy.Predict(dspy.Signature(fields, "Do.")))]
    return None if demo is None else dict(demo.fields)["answer"]


@pytest.mark.parametrize(
    ("annotation", "label", "shown"),
    [
        (float, 4, "4.0"), (int, 4.0, "4"), (bool, "true", "True"),
        (list[float], [1, 2], "[1.0, 2.0]"), (set[str], ["b", "a"], '["a", "b"]'),
        (datetime.datetime, "2026-01-02 10:00", "2026-01-02T10:00:00"),
        (Part, {"name": "x"}, '{"name": "x", "n": 0}'),
        (list[Person], [Person(fullName="x")], '[{"fullName": "x", "parts": []}]'),
        (Bay, "n", "n"), (str, 4, "4"), (str, ["4", "four"], "4"),
        (Literal["yes", None], None, "None"), (list[str], ["4", "four"], '["4", "four"]'),
        (float | None, None, "None"), (str, float("nan"), None), (str, [], None),
        (Literal["yes", "no"], "Yes", None),
    ],
)  # fmt: skip
def test_a_demo_shows_a_label_in_the_form_of_its_field(
    annotation: Any, label: Any, shown: str | None
) -> None:
    assert demo_of(annotation, label) == shown


def is_a_code(_case: Any, pred: Any, _trace: Any = None) -> float:
    return float(pred.answer in CODES.values())


@pytest.mark.parametrize("missing", [None, float("nan")], ids=["None", "NaN"])
def test_a_missing_label_is_shown_to_no_lm(missing: Any) -> None:
    gaps = [case if i % 3 else case.copy(answer=missing) for i, case in enumerate(cases(12))]
    trainset = [case.with_inputs("question") for case in gaps]
    lm = world(chance=0.3)
    settings: dict[str, Any] = {"group_size": 4, "epochs": 2, "batch_size": 6, "max_demos": 12}
    optimizer = grpo(metric=is_a_code, gate=Gate(), progress=False, drafts=2, **settings)
    with dspy.context(lm=lm):
        optimized = optimizer.compile(predictor(), trainset=trainset, valset=cases(20, 200))
    texts = [prompt.text for prompt in lm.engine.prompts]
    assert any(re.search(EXTRACT, text) for text in texts)
    shown = re.compile(rf"(?:answer: |^){missing}$", re.MULTILINE)
    assert not any(map(shown.search, texts))
    assert 0 < optimized.detailed_results.n_demos <= 8


@pytest.mark.parametrize(
    ("annotation", "label", "answer", "is_right"),
    [
        (str, ["Paris", "Paris, France"], "paris", True),
        (float, 4, "4.0", True),
        (dict[str, int], {"a": 1, "b": 2}, '{"b": 2, "a": 1}', True),
        (str, ["Paris", "Paris, France"], "Rome", False),
        (float, 4, "5.0", False),
        (list[str], ["a", "b"], '["b", "a"]', False),
    ],
)
def test_where_all_answers_are_those_of_labels_no_lesson_is_asked_for(
    annotation: Any, label: Any, answer: str, is_right: bool
) -> None:
    fields = {"question": (str, dspy.InputField()), "answer": (annotation, dspy.OutputField())}
    examples = [dspy.Example(question=f"question {i}", answer=label) for i in range(4)]
    run = Run(
        [["", ""]] * 4,
        ("question", chat(answer=answer)),
        metric=lambda _example, _pred: 1.0,
        student=dspy.Predict(dspy.Signature(fields, "Do.")),
        trainset=[example.with_inputs("question") for example in examples],
    )
    assert set(run.uses) == {"no contrast" if is_right else "failure analysis"}


def test_a_metric_that_scores_the_example_and_not_the_answer_is_asked_about_only_at_first() -> None:
    """Its scores differ from example to example, and for other answers by noise alone."""
    examples = [dspy.Example(q=f"q{n}", answer="north").with_inputs("q") for n in range(30)]

    def answer(prompt: Prompt) -> str:
        return chat(answer=f"bay {prompt.seed}")

    def similar(example: Any, pred: Any, _trace: Any = None) -> float:
        return 0.8 + int(example.q[1:]) / 300 + len(set(pred.answer)) * 1e-5

    lm = scripted_lm([(EXTRACT, chat(lessons="Answer with north.")), ("", answer)])
    with dspy.context(lm=lm):
        optimizer = grpo(similar, max_lm_calls=300, max_staleness=0, progress=False, group_size=3)
        optimizer.compile(dspy.Predict("q -> answer"), trainset=examples)
    n_asked = sum("`semantic_advantage`" in prompt.system for prompt in lm.engine.prompts)
    assert 1 <= n_asked <= 10
