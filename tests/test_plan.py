"""What `estimate` says: whole calls, dollars where prices are known, which budget is enough."""

import json
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import dspy
import pytest
from runs import ADVICE, Pair, agent, is_polite, look_up, polite_lm, predictor, questions
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm

from tfgrpo_dspy import Execution, NoGate, Reflection, TrainingFreeGRPO
from tfgrpo_dspy.settings.plan import Plan


def plan_with(
    student: Any = None, lm: Any = None, n: int = 31, testset: Any = None, **given: Any
) -> Plan:
    metric = given.pop("metric", is_polite)
    data = {"trainset": questions(n), "valset": questions(23, start=900), "testset": testset}
    with dspy.context(lm=lm or polite_lm()):
        optimizer = TrainingFreeGRPO(metric, progress=False, **given)
        return optimizer.estimate(student or predictor(), **data)


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
    "one epoch": {"reflection": Reflection(drafts=5), "n": 200, "epochs": 1},
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_rollouts_and_calls_are_whole_and_add_up(given: dict[str, Any]) -> None:
    plan = plan_with(**given)
    numbers = [
        n for row in plan.rows for part in (row.likely, row.at_most) for n in astuple(part)[:2]
    ]
    assert {type(number) for number in numbers} == {int}
    sums = [sum(getattr(row.likely, name) for row in plan.rows[:-1])
            for name in ("n_rollouts", "n_lm_calls")]  # fmt: skip
    limit = given.get("max_lm_calls") or 10**9
    assert plan.total.likely.n_lm_calls <= sums[1]
    if not {"max_lm_calls", "max_metric_calls", "auto"} & given.keys():
        assert [plan.total.likely.n_rollouts, plan.total.likely.n_lm_calls] == sums
    assert plan.total.likely.n_lm_calls <= limit
    assert "nan" not in str(plan)


MODEL = {"scripted": (100.0, 400.0)}


def test_dollars_are_known_where_prices_are_though_nothing_limits_an_answer() -> None:
    plan = plan_with(execution=Execution(prices=MODEL))
    likely, most = plan.total.likely, plan.total.at_most
    assert likely.cost is not None
    assert likely.cost > 1e-4 * 200 * likely.n_rollouts  # of the format alone
    assert most.cost is None
    assert "?: nothing limits how long an answer of scripted gets; set max_tokens" in str(plan)


def test_dollars_are_known_of_everything_with_prices_and_a_longest_answer() -> None:
    plan = plan_with(lm=polite_lm(max_tokens=50), execution=Execution(prices=MODEL))
    assert "?" not in str(plan)
    costs = [(row.likely.cost, row.at_most.cost) for row in plan.rows]
    assert all(known <= most for known, most in costs if known is not None and most is not None)
    assert plan.total.likely.cost == pytest.approx(sum(known or 0 for known, _ in costs[:-1]))


def test_a_lesson_costs_more_the_more_attempts_its_prompt_shows_at_most_in_proportion() -> None:
    prices = []
    for group_size in (4, 8):
        execution = Execution(prices=MODEL)
        plan = plan_with(max_lm_calls=400, group_size=group_size, execution=execution)
        (of_lessons,) = (row.likely for row in plan.rows if row.purpose == "lessons")
        assert of_lessons.cost is not None
        prices.append(of_lessons.cost / of_lessons.n_lm_calls)
    assert prices[0] < prices[1] < 2 * prices[0]


def test_an_lm_without_a_price_is_named_and_hides_no_other_price() -> None:
    unknown = polite_lm(max_tokens=50)
    unknown.model = "mine"
    given = {"reflection_lm": unknown, "execution": Execution(prices=MODEL)}
    plan = plan_with(lm=polite_lm(max_tokens=50), **given)
    costs = {row.purpose: row.likely.cost for row in plan.rows}
    assert costs["training rollouts"]
    assert costs["lessons"] is costs["in all"] is None
    assert "?: DSPy knows no price of mine;" in str(plan)


class Stubborn:
    """Answers prompts of an agent with one more turn, and chat prompts with no form where told."""

    def __init__(self, is_formed: bool) -> None:
        self.is_formed = is_formed

    def __call__(self, prompt: Prompt) -> str:
        if "[[ ## completed ## ]]" in prompt.text and not self.is_formed:
            return "I had rather not say."
        fields: dict[str, Any] = {"answer": "please" if prompt.random().random() < 0.5 else "no"}
        if "`next_tool_name`" in prompt.text:
            fields = {
                "next_thought": "on",
                "next_tool_name": "look_up",
                "next_tool_args": {"page": 7},
            }
        if "`reasoning`" in prompt.text:
            fields = {"reasoning": "hm", **fields}
        is_chat = "[[ ## completed ## ]]" in prompt.text
        return chat(**fields) if is_chat else json.dumps(fields)


PROGRAMS: dict[str, tuple[Callable[[], Any], bool]] = {
    "answers in form": (predictor, True),
    "predictor": (predictor, False),
    "two predictors": (Pair, False),
    "agent": (lambda: dspy.ReAct("question -> answer", tools=[look_up], max_iters=5), False),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("program", "is_formed"), PROGRAMS.values(), ids=PROGRAMS)
def test_what_is_enough_measures_student_and_result(program: Any, is_formed: bool) -> None:
    enough = plan_with(program()).enough
    assert enough.keys() == {"max_lm_calls", "max_metric_calls"}, "no prices are known"
    lm = scripted_lm(
        [
            (EXTRACT, lessons(ADVICE)),
            (UPDATE, operations({"op": "ADD", "text": ADVICE, "lessons": [1]})),
            ("", Stubborn(is_formed)),
        ]
    )
    max_lm_calls = enough["max_lm_calls"]
    optimizer = TrainingFreeGRPO(
        is_polite, max_lm_calls=max_lm_calls, num_threads=4, progress=False
    )
    data = {"trainset": questions(31), "valset": questions(23, start=100)}
    with dspy.context(lm=lm):
        results = optimizer.compile(program(), **data).detailed_results
    assert results.student.n >= 10
    assert results.best.n == results.student.n
    assert f"enough: max_lm_calls={max_lm_calls}, max_metric" in str(plan_with(program()))


def test_a_task_that_one_lesson_solves_takes_about_what_the_plan_says_of_easy_ones() -> None:
    data = {"trainset": questions(60), "valset": questions(40, start=900)}
    optimizer = TrainingFreeGRPO(is_polite, progress=False, num_threads=8)
    with dspy.context(lm=polite_lm()):
        plan = optimizer.estimate(predictor(), **data)
        results = optimizer.compile(predictor(), **data).detailed_results
    took = sum(usage.n_lm_calls for usage in results.usage.values())
    assert plan.easy / 1.4 < took < plan.easy * 1.4
    assert plan.easy < plan.total.likely.n_lm_calls / 2
    assert f"easy: {plan.easy:,} LM calls where one lesson" in str(plan)


def test_nothing_is_enough_to_measure_without_a_metric() -> None:
    with pytest.warns(UserWarning, match="metric=None"):
        plan = plan_with(metric=None)
    assert not plan.enough
    assert "enough" not in str(plan)


def test_the_name_of_a_model_cannot_steer_the_terminal_through_a_plan() -> None:
    lm = polite_lm()
    lm.model = "model\x1b[2J\u202e"
    shown = str(plan_with(lm=lm))
    assert r"model\x1b[2J\u202e" in shown
    assert shown.replace("\n", "").isprintable()


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


def test_the_dollars_of_a_run_hold_the_demos_of_its_prompts() -> None:
    with_demos, without = (
        long_plan(500, max_demos=n).rows[0].likely.cost or 0 for n in (8, 0)
    )  # fmt: skip
    assert 3 < with_demos / without < 8
