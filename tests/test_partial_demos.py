"""Labelled demos for predictors whose inputs the examples do not hold: pipelines and agents.

The labels of a final answer are all that such examples say of a predictor that also reads what an
earlier predictor, or a tool, has found.
"""

import re
from typing import Any

import dspy
import pytest
from coded_cases import CODES, case_in, cases
from coded_cases import world as world_of
from scripted import Prompt, chat, lessons
from test_demos import compiled

from tfgrpo_dspy.rollout import Rollout, Step
from tfgrpo_dspy.sampling.additions import Demo, DemoPool
from tfgrpo_dspy.sampling.fields import Example


class Pipeline(dspy.Module):
    """Sums a case up, then gives its code."""

    def __init__(self) -> None:
        super().__init__()
        self.sum_up = dspy.Predict("question -> summary")
        self.answer = dspy.Predict("question, summary -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        summary = self.sum_up(question=question).summary
        return self.answer(question=question, summary=summary)


def look(question: str) -> str:
    """Look a case up."""
    return f"{question} is listed"


def agent() -> dspy.Module:
    return dspy.ReAct("question -> answer", tools=[look], max_iters=2)


def world() -> dspy.LM:
    """Gives a code only where a demo has shown what a code looks like."""

    def answers(prompt: Prompt) -> str:
        if "next_tool_name" in prompt.system:
            return chat(next_thought="Done.", next_tool_name="finish", next_tool_args="{}")
        if "`summary`" in prompt.system and "`answer`" not in prompt.system:
            return chat(summary="It is a case.")
        is_shown = re.search(rf"\b(?:{'|'.join(CODES.values())})\b", prompt.user)
        code = CODES[case_in(prompt.user)[1]] if is_shown else "unsure"
        return chat(reasoning="So it is.", answer=code)

    return world_of(answers, lessons("Think of it."), num_retries=0)


@pytest.mark.parametrize(
    ("student", "last"), [(Pipeline, "answer"), (agent, "extract.predict")], ids=["two", "agent"]
)
def test_the_last_predictor_is_shown_labels_without_what_was_found_before(
    student: Any, last: str
) -> None:
    optimized = compiled(world(), student(), max_demos=8)
    shown = {name: predictor.demos for name, predictor in optimized.named_predictors()}
    labelled = {(case.question, case.answer) for case in cases(12)}
    assert len(shown[last]) == 8
    assert {(demo["question"], demo["answer"]) for demo in shown.pop(last)} <= labelled
    assert not any(shown.values()), "no label is an output of another predictor"
    assert optimized.detailed_results.student.mean == 0.0
    assert optimized.detailed_results.best.mean == 1.0


def test_an_example_is_shown_by_its_best_rollout_once_that_is_good() -> None:
    program, inputs = Pipeline(), [case.question for case in cases(8)]
    pool = DemoPool(program, [*map(Example, cases(8))], range(8), 6, seed=0)
    best = [Rollout(i, 1, steps=_steps(inputs[i]), score=1.0) for i in range(4)]
    at_first = _questions(pool.choose(1, (), set()), "answer")
    shown = pool.choose(1, best, set())
    assert _questions(shown, "answer") == at_first, "the same examples in the same order"
    assert set(_questions(shown, "sum_up")) == set(at_first) & set(inputs[:4])
    of_rollouts = [dict(demo.fields) for demo in shown if "summary" in dict(demo.fields)]
    assert {fields["question"] for fields in of_rollouts} == set(at_first) & set(inputs[:4])


def _steps(question: str) -> tuple[Step, ...]:
    return (
        Step("predictor", "sum_up", {"question": question}, {"summary": "s"}),
        Step("predictor", "answer", {"question": question, "summary": "s"}, {"answer": "a"}),
    )


def _questions(demos: tuple[Demo, ...], predictor: str) -> list[str]:
    return [dict(demo.fields)["question"] for demo in demos if demo.predictor == predictor]
