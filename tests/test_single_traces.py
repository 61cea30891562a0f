"""`learn` from logs as production has them: one attempt for each input."""

from typing import Any

import dspy
import pytest
from runs import ADVICE, library_texts, predictor
from scripted import EXTRACT, UPDATE, Prompt, lessons, operations, scripted_lm
from small import grpo

from tfgrpo_dspy import SettingsError

WORDS = "The customer missed the word please."


def traces(n: int = 6, **given: Any) -> list[dict[str, Any]]:
    return [
        {"inputs": {"question": f"question {i}"}, "outputs": {"answer": "no"}} | given
        for i in range(n)
    ]


def learned_of(rows: list[dict[str, Any]], student: Any = None) -> tuple[Any, list[Prompt]]:
    update = operations({"op": "ADD", "text": ADVICE, "lessons": [1]})
    lm = scripted_lm([(EXTRACT, lessons(ADVICE)), (UPDATE, update)])
    with dspy.context(lm=lm):
        done = grpo(None, progress=False).learn(student or predictor(), traces=rows)
    asked = ("critique", "semantic_advantage")
    prompts = [each for each in lm.engine.prompts if any(name in each.system for name in asked)]
    return done, sorted(prompts, key=lambda prompt: prompt.text)  # threads ask in any order


@pytest.mark.parametrize(
    "rows",
    [
        traces(feedback=WORDS),
        traces(feedback=WORDS, score=0.0),
        traces(feedback=WORDS, score=-3.0),
        [*traces(3, score=0.2), *traces(9, score=0.9)[3:]],
        [*traces(3, score=0.9), *traces(9, error="ValueError: no word")[3:]],
    ],
    ids=["words", "words and one score", "another unit", "lower scores", "errors"],
)
def test_single_attempts_with_feedback_or_a_lower_score_teach(rows: list[dict[str, Any]]) -> None:
    done, prompts = learned_of(rows)
    assert library_texts(done) == [ADVICE]
    assert len(prompts) == sum(
        "feedback" in r or r.get("score") == 0.2 or "error" in r for r in rows
    )


def test_single_attempts_that_say_nothing_teach_nothing_and_the_results_say_so() -> None:
    done, prompts = learned_of(traces())
    assert not prompts
    assert "6 inputs have one trace, which has no feedback" in str(done.detailed_results)


def test_traces_with_other_inputs_than_the_program_has_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"traces: Predict takes the inputs \['question'\]"):
        learned_of([{"inputs": {"q": "1"}, "outputs": {"answer": "no"}}, *traces()])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"inputs": {}}, "trace 1: inputs={}: give a mapping of fields"),
        ({"outputs": None}, "outputs={}: give a mapping of fields, or an error"),
        ({"score": float("nan")}, "score=nan: give a number below 1e+150, or None"),
        ({"score": "good"}, "trace 1: score='good': it should be a valid number"),
        ({"steps": [{"inputs": {}}]}, "trace 1: steps[0].name: field required"),
        (
            {"labels": "yes", "steps": 5},
            "trace 1: labels='yes': it should be a valid dictionary. trace 1: steps=5: ",
        ),
    ],
)
def test_a_trace_that_cannot_be_read_is_refused_with_field_and_value(
    change: dict[str, Any], fault: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        learned_of(traces(1, **change))
    assert fault in str(refused.value)


def test_traces_may_hold_examples_and_predictions() -> None:
    example = dspy.Example(question="question 1", answer="yes").with_inputs("question")
    rows = [
        {"inputs": example, "outputs": dspy.Prediction(answer=a), "score": float(a == "yes")}
        for a in ("yes", "no")
    ]
    _, prompts = learned_of(rows)
    plain = [
        {"inputs": {"question": "question 1"}, "outputs": {"answer": a}, "score": float(a == "yes")}
        for a in ("yes", "no")
    ]
    assert prompts and prompts == learned_of(plain)[1]


class Table:
    """As those of pandas and polars: what iterates over it gets its columns."""

    columns = ("inputs", "outputs")

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("given", "fault"),
    [(Table(), "traces=<"), (traces(1)[0], "traces={'"), (5, "traces=5: pass")],
    ids=["a table", "a single trace", "a number"],
)
def test_what_is_no_list_of_traces_is_refused_as_a_whole(given: Any, fault: str) -> None:
    with pytest.raises(SettingsError) as refused:
        learned_of(given)
    assert str(refused.value).startswith(fault)
    assert str(refused.value).endswith("pass a file, or a list of mappings.")
