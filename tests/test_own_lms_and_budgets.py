"""LMs of their own, traces, and budgets over several starts."""

import logging
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from runs import optimizer_of, polite_answer, polite_rules, predictor, questions
from scripted import Prompt, chat, scripted_lm

from tfgrpo_dspy import (
    ExtractAdvantage,
    RunFailedError,
    SettingsError,
)

RULES = polite_rules()


def compiled(lm: dspy.LM, **settings: Any) -> Any:
    given = {"group_size": 2, "epochs": 1, "num_threads": 2}
    with dspy.context(lm=lm):
        return optimizer_of(**given | settings).compile(predictor(), trainset=questions(9))


def own_lm(lm: dspy.LM) -> ExtractAdvantage:
    module = ExtractAdvantage()
    module.set_lm(lm)
    return module


def test_an_lm_of_a_reflection_modules_own_is_counted_and_bounded() -> None:
    lm, own = scripted_lm(RULES), scripted_lm(RULES)
    results = compiled(lm, extract=own_lm(own)).detailed_results
    assert results.usage["lesson"].n_lm_calls == own.engine.n_calls() > 0
    lm, own = scripted_lm(RULES), scripted_lm(RULES)
    compiled(lm, extract=own_lm(own), max_lm_calls=14)
    assert lm.engine.n_calls() + own.engine.n_calls() <= 14


def test_a_refused_key_of_a_reflection_modules_own_lm_ends_the_run_at_the_first() -> None:
    own = scripted_lm([("", lm15.AuthError("no such key"))])
    with pytest.raises(RunFailedError, match="no such key"):
        compiled(scripted_lm(RULES), extract=own_lm(own), num_threads=1)
    assert own.engine.n_calls() == 1


def test_max_cost_asks_for_the_prices_of_every_lm_that_can_be_found() -> None:
    judge = scripted_lm([("", chat(verdict="yes"))], max_tokens=5)

    def judged(example: dspy.Example, pred: dspy.Prediction, _trace: Any = None) -> float:
        return float("yes" in judge(f"Is {pred.answer} {example.answer}?")[0])

    judge.model = "the-judge"
    lm = scripted_lm(RULES, max_tokens=5)
    with pytest.raises(SettingsError, match="the-judge"):
        compiled(lm, metric=judged, max_cost=1.0, prices={"scripted": (1, 1)})
    assert lm.engine.n_calls() == judge.engine.n_calls() == 0


def test_what_was_lost_to_faults_counts_when_the_run_is_started_again(tmp_path: Path) -> None:
    def fails(prompt: Prompt) -> Any:
        return (
            polite_answer(prompt)
            if prompt.random("fault").random() < 0.5
            else lm15.ServerError("down")
        )

    lm = scripted_lm([*RULES[:2], ("", fails)], num_retries=0)
    for _ in range(4):
        compiled(lm, log_dir=tmp_path, max_lm_calls=20, max_errors=1000)
    n_calls = lm.engine.n_calls()
    assert n_calls <= 20
    compiled(lm, log_dir=tmp_path, max_lm_calls=30, max_errors=1000)
    assert n_calls < lm.engine.n_calls() <= 30


TRACES = [
    {"inputs": {"question": "one"}, "outputs": {"answer": str(n)}, "score": n} for n in range(3)
]


def test_learning_from_traces_logs_its_plan_and_has_a_preset(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lm = scripted_lm(RULES)
    with caplog.at_level(logging.INFO, logger="tfgrpo_dspy"), dspy.context(lm=lm):
        learned = optimizer_of(auto="light").learn(predictor(), traces=TRACES)
    assert any("the plan" in record.getMessage() for record in caplog.records)
    assert learned.detailed_results.settings["max_lm_calls"] is not None


def test_a_budget_that_ends_before_the_student_is_measured_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lm = scripted_lm(RULES, max_tokens=5)
    with caplog.at_level(logging.WARNING, logger="tfgrpo_dspy"):
        results = compiled(lm, max_cost=1e-9, prices={"scripted": (1, 1)}).detailed_results
    assert results.student is None and lm.engine.n_calls() == 0
    assert "nothing was learned: the run ended early: max_cost" in caplog.text
    assert "the run ended early: max_cost" in results.nothing_learned
