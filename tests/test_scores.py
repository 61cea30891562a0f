"""Scores have no zero but what the run has seen, and differ where the difference matters."""

import functools
import random
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import (
    ADVICE,
    UNPARSED,
    Run,
    learned,
    library_texts,
    n_calls,
    polite_answer,
    polite_rules,
    questions,
)
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.rollout import Group, Rollout, ScoreRange

UNITS: dict[str, Callable[[float], float]] = {
    "0 to 1": lambda score: score,
    "-1 to 0": lambda score: score - 1,
    "0 to 100": lambda score: 100 * score,
    "-20000 to -3000": lambda score: 17_000 * score - 20_000,
    "5 to 5.01": lambda score: 5 + score / 100,
    "0 to 0.001": lambda score: score / 1000,
}


def compiled(answer: Callable[[Prompt], Any], unit: str, feedback: str, n: int = 300) -> Any:
    """What the default learns on 24 of 36 questions where right and wrong are told in this unit."""

    def metric(example: dspy.Example, pred: dspy.Prediction) -> dspy.Prediction:
        score = UNITS[unit](float(pred.answer == example.answer))
        return dspy.Prediction(score=score, feedback=feedback)

    update = operations({"op": "ADD", "text": ADVICE, "lessons": [1]})
    lm = scripted_lm([(EXTRACT, lessons(ADVICE)), (UPDATE, update), ("question", answer)])
    given: dict[str, Any] = {"max_lm_calls": n, "num_threads": 1, "progress": False}
    with dspy.context(lm=lm):
        optimizer = TrainingFreeGRPO(metric, **given, max_demos=0)
        return optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(36))


def uses_of(program: Any) -> list[str]:
    return [group.used_as for u in program.detailed_results.updates for group in u.groups]


def often_unreadable(prompt: Prompt) -> str:
    return UNPARSED if prompt.random("form").random() < 0.2 else polite_answer(prompt)


def only_with_advice(prompt: Prompt) -> str:
    return polite_answer(prompt) if ADVICE in prompt.system else chat(answer="no")


def only_once_in_four(prompt: Prompt) -> str:
    return chat(answer="please" if prompt.random().random() < 0.25 else "no")


@functools.cache
def usual_of(answer: Callable[[Prompt], Any]) -> Any:
    return compiled(answer, "0 to 1", "Say please.")


ANSWERS = [polite_answer, often_unreadable, only_with_advice, only_once_in_four]
LEARNED = [
    *(("-20000 to -3000", answer) for answer in ANSWERS),
    ("-1 to 0", often_unreadable),
    ("0 to 100", only_once_in_four),
    ("5 to 5.01", only_with_advice),
    ("0 to 0.001", often_unreadable),
]


@pytest.mark.parametrize(("unit", "answer"), LEARNED)
def test_the_same_metric_in_another_unit_learns_the_same_from_as_many_calls(
    unit: str, answer: Callable[[Prompt], Any]
) -> None:
    usual, other = usual_of(answer), compiled(answer, unit, "Say please.")
    assert library_texts(other) == library_texts(usual)
    assert n_calls(other) == pytest.approx(n_calls(usual), rel=0.1)
    assert uses_of(other) == uses_of(usual)


@pytest.mark.parametrize("unit", ["0 to 1", "-20000 to -3000", "0 to 0.001"])
def test_a_perfect_program_ends_early_in_every_unit(unit: str) -> None:
    done = compiled(lambda _: chat(answer="please"), unit, "Fine.", n=600)
    assert {*uses_of(done)} == {"no contrast"}
    assert done.detailed_results.ended_because.endswith("20 groups had the best score")
    assert n_calls(done) < 200


SCORES = st.lists(st.floats(-1000, 1000), min_size=2, max_size=5)


def scored(scores: list[float], known: ScoreRange | None = None) -> Group:
    rollouts = [Rollout(0, n, {"answer": "a"}, score=score) for n, score in enumerate(scores)]
    return Group.of(0, rollouts, has_metric=True, score_range=known or ScoreRange())


@given(SCORES, st.floats(0, 1000))
def test_attempts_whose_scores_look_alike_have_the_same_advantage(
    scores: list[float], spread: float
) -> None:
    group = scored(scores, ScoreRange(min(scores), min(scores) + spread))
    by_text: dict[str, set[float]] = {}
    for text, advantage in zip(group.score_texts, group.advantages, strict=True):
        by_text.setdefault(text, set()).add(advantage)
    assert all(len(advantages) == 1 for advantages in by_text.values())
    assert any(group.advantages) == group.has_contrast


@pytest.mark.parametrize(
    ("scores", "known", "has_contrast"),
    [
        ([0.8291, 0.8290], ScoreRange(0.8, 0.9), False),
        ([0.8291, 0.8290], ScoreRange(0.8285, 0.8295), True),
        ([0.825, 0.80], ScoreRange(0.0, 1.0), True),
        ([-17_531.0, -17_535.0], ScoreRange(-20_000, -3_000), False),
        ([-17_531.0, -17_135.0], ScoreRange(-20_000, -3_000), True),
        ([12.0, 13.0], ScoreRange(0, 40), True),
    ],
)
def test_contrast_is_a_hundredth_of_the_scores_of_the_run(
    scores: list[float], known: ScoreRange, has_contrast: bool
) -> None:
    assert scored(scores, known).has_contrast == has_contrast


def test_a_score_that_differs_is_shown_with_as_many_digits_as_it_takes() -> None:
    run = Run([["-17531", "-17535"]])
    (prompt,) = run.texts(EXTRACT)
    assert "score -17531, advantage +1.00" in prompt and "score -17535, advantage -1.00" in prompt


@pytest.mark.parametrize("is_same", [True, False], ids=["equal answers", "unlike answers"])
def test_a_metric_that_only_makes_noise_costs_few_lessons_and_asks_for_no_more_budget(
    is_same: bool,
) -> None:
    def said(prompt: Prompt) -> str:
        return chat(answer="no" if is_same else f"no {prompt.random().random()}")

    def metric(_example: Any, _pred: Any, _trace: Any = None) -> float:
        return noise.random()

    noise = random.Random(1)
    rules = [*polite_rules()[:2], ("question", said)]
    given = {"metric": metric, "max_lm_calls": 400, "max_demos": 0, "num_threads": 1}
    results = learned(lm=scripted_lm(rules), epochs=None, **given).detailed_results
    n_trained = results.usage["rollout"].n_lm_calls
    assert results.usage["lesson"].n_lm_calls <= 35
    assert (n_trained < 200) == is_same
    assert ("equal answers were scored as unlike" in results.ended_because) == is_same
    assert "more budget is not worth it: nothing changed after update" in results.next_step
