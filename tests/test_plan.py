"""The plan that `estimate` gives: whole calls, dollars where prices are known, the limits."""

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import dspy
import pytest
from runs import Pair, agent, is_polite, polite_lm, polite_rules, predictor, questions
from scripted import ScriptedEngine, chat, scripted_lm

from tfgrpo_dspy import Execution, NoGate, Reflection, TrainingFreeGRPO
from tfgrpo_dspy.settings.preparation import Plan

DATA = {"trainset": questions(31), "valset": questions(23, start=900)}


def plan_with(student: Any = None, lm: Any = None, testset: Any = None, **given: Any) -> Plan:
    metric = given.pop("metric", is_polite)
    with dspy.context(lm=lm or polite_lm()):
        optimizer = TrainingFreeGRPO(metric, progress=False, **given)
        return optimizer.estimate(student or predictor(), **DATA, testset=testset)


GIVEN: dict[str, dict[str, Any]] = {
    "no limit": {},
    "LM calls": {"max_lm_calls": 333},
    "metric calls, an agent": {"max_metric_calls": 77, "student": agent()},
    "auto, a test set, two predictors": {
        "auto": "light",
        "testset": questions(7, start=500),
        "student": Pair(),
    },
    "no gate": {"gate": NoGate(), "group_size": 3, "batch_size": 7},
    "one epoch": {"reflection": Reflection(drafts=5), "epochs": 1},
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_rollouts_and_calls_are_whole_and_add_up_within_the_limits(given: dict[str, Any]) -> None:
    plan = plan_with(**given)
    numbers = [n for row in plan.rows for n in astuple(row)[1:3]]
    assert {type(number) for number in numbers} == {int}
    sums = [sum(row.n_rollouts for row in plan.rows[:-1]),
            sum(row.n_lm_calls for row in plan.rows[:-1])]  # fmt: skip
    assert plan.total.n_lm_calls <= min(sums[1], plan.limits.get("max_lm_calls", sums[1]))
    if not plan.limits:
        assert [plan.total.n_rollouts, plan.total.n_lm_calls] == sums
    assert "nan" not in str(plan)


def test_the_limits_that_are_set_stand_below_the_table() -> None:
    plan = plan_with(max_lm_calls=333, max_minutes=2.5)
    assert plan.limits == {"max_lm_calls": 333, "max_minutes": 2.5}
    assert " updates; limits: max_lm_calls=333, max_minutes=2.5\n" in str(plan)
    assert repr(plan).endswith("limits: max_lm_calls=333, max_minutes=2.5>")
    assert "limits: none is set" in str(plan_with())


MODEL = {"scripted": (100.0, 400.0)}


def test_dollars_are_known_where_prices_are_though_nothing_limits_an_answer() -> None:
    plan = plan_with(execution=Execution(prices=MODEL))
    assert "?" not in str(plan)
    assert plan.total.cost == pytest.approx(sum(row.cost or 0 for row in plan.rows[:-1]))


def test_an_lm_without_a_price_is_named_and_hides_no_other_price() -> None:
    unknown = polite_lm(max_tokens=50)
    unknown.model = "mine\x1b[2J"
    plan = plan_with(reflection_lm=unknown, execution=Execution(prices=MODEL))
    costs = {row.purpose: row.cost for row in plan.rows}
    assert costs["training rollouts"]
    assert costs["lessons"] is costs["in all"] is None
    assert r"?: DSPy knows no price of mine\x1b[2J;" in str(plan)
    assert str(plan).replace("\n", "").isprintable()


def cot() -> Any:
    return dspy.ChainOfThought("question -> answer")


def half_polite(prompt: Any) -> str:
    answer = "please" if prompt.random().random() < 0.5 else "no"
    reasoning = "The question is short, and so is the answer. " * 6
    return chat(**({"reasoning": reasoning} if "`reasoning`" in prompt.text else {}), answer=answer)


@pytest.mark.parametrize("max_lm_calls", [150, 400])
@pytest.mark.parametrize("student", [predictor, cot, Pair])
def test_a_run_takes_the_dollars_of_its_plan_within_a_factor_of_two(
    student: Callable[[], Any], max_lm_calls: int
) -> None:
    lm = scripted_lm([*polite_rules()[:2], ("", half_polite)], max_tokens=16_000)
    prices = {"scripted": (1.25, 10.0)}  # of a large model that may write long answers
    optimizer = TrainingFreeGRPO(
        is_polite, max_lm_calls=max_lm_calls, progress=False, execution=Execution(prices=prices)
    )
    with dspy.context(lm=lm):
        plan = optimizer.estimate(student(), **DATA)
        results = optimizer.compile(student(), **DATA).detailed_results
    took = sum(usage.cost_usd for usage in results.usage.values())
    assert took / 2 < (plan.total.cost or 0) < 2 * took


def long_plan(n_words: int, **given: Any) -> Plan:
    """Of examples with so many words, at known prices."""
    texts = [f"{i} " + "word " * n_words for i in range(40)]
    cases = [dspy.Example(question=text, answer="yes").with_inputs("question") for text in texts]
    optimizer = TrainingFreeGRPO(
        is_polite, progress=False, max_lm_calls=200, execution=Execution(prices=MODEL), **given
    )
    with dspy.context(lm=polite_lm()):
        return optimizer.estimate(predictor(), trainset=cases[:20], valset=cases[20:])


def test_long_examples_make_fewer_demos_and_the_user_may_want_more() -> None:
    chosen = [long_plan(n).schedule["max_demos"] for n in (5, 1500, 50_000)]
    assert chosen[0] == 16 > chosen[1] > chosen[2] == 1
    assert long_plan(1500, max_demos=16).schedule["max_demos"] == 16


def test_the_plan_has_the_calls_and_dollars_of_an_lm_that_the_adapter_holds() -> None:
    second = dspy.LM("second", engine=ScriptedEngine([("", chat(answer="no"))]), max_tokens=100)
    prices = {"scripted": (0.0, 0.0), "second": (1.25, 10.0)}
    optimizer = TrainingFreeGRPO(is_polite, execution=Execution(prices=prices))
    with dspy.context(lm=scripted_lm([], max_tokens=100), adapter=dspy.TwoStepAdapter(second)):
        row = next(r for r in optimizer.estimate(predictor(), **DATA).rows if "train" in r.purpose)
    assert row.n_lm_calls == 2 * row.n_rollouts
    assert row.cost
