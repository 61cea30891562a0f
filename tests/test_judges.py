"""Judges: metrics that ask LMs of their own are counted, priced and kept for."""

from typing import Any

import dspy
import pytest
from runs import ADVICE, learned, optimizer_of, polite_rules, predictor, questions
from scripted import ScriptedEngine, chat, lessons, operations
from tally import Tally, lm_on, priced

from tfgrpo_dspy import NoGate
from tfgrpo_dspy.results import RunResults

VERDICT = chat(verdict="1.0")


class Judge:
    """Asks its own LM about each answer, in the way named."""

    def __init__(self, way: str = "module", **kwargs: Any) -> None:
        self.way = way
        self.engine = Tally([("", VERDICT)])
        self.lm = lm_on(self.engine, **kwargs)
        self.ask = dspy.Predict("answer -> verdict")
        self.ask.lm = self.lm

    def __call__(self, _example: Any, pred: Any, _trace: Any = None) -> dspy.Prediction:
        if self.way == "module":
            self.ask(answer=pred.answer)
        elif self.way == "context":
            with dspy.context(lm=self.lm):
                dspy.Predict("answer -> verdict")(answer=pred.answer)
        else:
            self.lm(f"Is this polite? {pred.answer}")
        return dspy.Prediction(score=float(pred.answer == "please"), feedback="Say please.")


def judged(judge: Judge, engine: Tally, **settings: Any) -> RunResults:
    with dspy.context(lm=lm_on(engine)):
        optimizer = optimizer_of(metric=judge, **settings)
        data = {"trainset": questions(6), "valset": questions(12, start=100)}
        results: RunResults = optimizer.compile(predictor(), **data).detailed_results
    return results


@pytest.mark.parametrize("way", ["module", "context", "the LM itself"])
@pytest.mark.parametrize("limits", [{}, {"max_lm_calls": 150}, {"max_cost": 0.5}])
def test_calls_tokens_and_dollars_of_a_judges_own_lm_are_stated_truly(
    way: str, limits: dict[str, Any]
) -> None:
    judge, engine = Judge(way), Tally(polite_rules())
    results = judged(judge, engine, **priced(), **limits)
    stated = results.usage["metric"]
    assert judge.engine.n_calls() > 10
    assert stated.n_lm_calls == judge.engine.n_calls()
    assert stated.prompt_tokens + stated.completion_tokens == judge.engine.dollars
    assert stated.cost_usd == pytest.approx(1e-6 * judge.engine.dollars)
    in_all = sum(usage.cost_usd for usage in results.usage.values())
    assert in_all == pytest.approx(1e-6 * (engine.dollars + judge.engine.dollars))
    assert results.usage["unfinished"].n_lm_calls == 0


def test_what_a_judge_is_answered_from_a_cache_costs_nothing() -> None:
    judge, engine = Judge(cache=True), Tally(polite_rules())
    stated = judged(judge, engine, max_lm_calls=150).usage["metric"]
    assert stated.n_lm_calls == judge.engine.n_calls()
    assert stated.n_lm_calls < 5 < stated.n_cached_calls


def test_the_estimate_knows_a_judge_that_the_metric_holds() -> None:
    judge, data = Judge(), {"trainset": questions(20), "valset": questions(12, start=100)}
    with dspy.context(lm=lm_on(Tally(polite_rules()))):
        with_judge = optimizer_of(metric=judge, **priced()).estimate(predictor(), **data).total
        without = optimizer_of(**priced()).estimate(predictor(), **data).total
    assert with_judge.n_lm_calls >= without.n_lm_calls + without.n_rollouts
    assert with_judge.cost > without.cost


def test_the_second_lm_of_an_adapter_is_billed_at_its_own_price_in_reflections_too() -> None:
    answers = {"`lessons`": lessons(ADVICE), "`operations`": operations(), "": chat(answer="no")}
    second = dspy.LM("second", engine=ScriptedEngine([*answers.items()]), cache=False)
    with dspy.context(adapter=dspy.TwoStepAdapter(second)):
        program = learned(gate=NoGate(), prices={"scripted": (0, 0), "second": (1e6, 1e6)})
    results = program.detailed_results
    assert results.usage["lesson"].cost_usd > 0 and results.usage["rollout"].cost_usd > 0
    assert results.spent.cost_usd < results.spent.n_tokens
