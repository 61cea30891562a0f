"""One run under several budgets, larger and smaller ones: each gives its own result again."""

from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import is_polite, learned_in, n_calls, polite_lm, predictor, questions
from test_continuing import compiled

from tfgrpo_dspy import Execution, TrainingFreeGRPO, best_so_far
from tfgrpo_dspy.errors import MissingRecordError

PRICED = Execution(prices={"scripted": (1.0, 1.0)})
SMALLER_AND_LARGER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_lm_calls": 100}, {"max_lm_calls": 120}),
    ({"max_metric_calls": 60}, {"max_metric_calls": 120}),
    ({"max_cost": 0.04, "execution": PRICED}, {"max_cost": 0.08, "execution": PRICED}),
    ({"max_lm_calls": 80, "max_minutes": 60}, {"max_lm_calls": 160}),
]


def facts(program: Any) -> tuple[Any, ...]:
    results = program.detailed_results
    scores = results.gain, results.student, results.best
    updates = learned_in(results)
    return (program.dump_state(), updates, results.ended_because, scores, n_calls(program))


@pytest.mark.parametrize(("smaller", "larger"), SMALLER_AND_LARGER, ids=str)
def test_each_budget_that_a_run_had_gives_its_result_again_without_a_call(
    smaller: dict[str, Any], larger: dict[str, Any], tmp_path: Path
) -> None:
    first, _ = compiled(tmp_path, **smaller)
    second, n_second = compiled(tmp_path, **larger)
    assert n_second > 0
    assert facts(first) != facts(second), "else this shows nothing"
    for budget, program in ((smaller, first), (larger, second)):
        for is_offline in (True, False):
            again, n_made = compiled(tmp_path, offline=is_offline, **budget)
            assert n_made == 0
            assert facts(again) == facts(program)
        best = best_so_far(tmp_path, dspy.Predict("question -> answer"))
        assert best.dump_state() == program.dump_state()
        assert learned_in(best.detailed_results) == learned_in(program.detailed_results)


def test_a_budget_that_a_run_had_is_not_taken_for_more_of_another_run(tmp_path: Path) -> None:
    compiled(tmp_path, max_lm_calls=120)
    larger, _ = compiled(tmp_path, max_lm_calls=290)
    between, n_between = compiled(tmp_path, max_lm_calls=200)  # a run of its own, with more drafts
    assert n_between > 0
    for budget, program in ((290, larger), (200, between), (120, None), (290, larger)):
        again, n_made = compiled(tmp_path, max_lm_calls=budget)
        assert n_made == 0
        assert program is None or facts(again) == facts(program)


def test_under_a_smaller_budget_that_it_never_had_a_run_replays_what_is_paid(
    tmp_path: Path,
) -> None:
    compiled(tmp_path, max_lm_calls=200)
    program, n_made = compiled(tmp_path, max_lm_calls=149)
    assert n_made < n_calls(program) <= 149
    assert program.detailed_results.gain is not None


def of_dollars(log_dir: Path, max_cost: float, n_test: int = 0, **given: Any) -> tuple[Any, int]:
    """The polite task under a limit of dollars, and how many calls were made for it now."""
    lm = polite_lm(max_tokens=50)
    more = {"max_cost": max_cost, "execution": PRICED, "log_dir": log_dir, "progress": False}
    data = {"trainset": questions(12), "valset": questions(8, 100)}
    with dspy.context(lm=lm):
        program = TrainingFreeGRPO(is_polite, **{**more, **given}).compile(
            predictor(), testset=questions(n_test, 200) or None, **data
        )
    return program, lm.engine.n_calls()


@pytest.mark.parametrize("max_cost", [0.025, 0.045])
def test_a_replay_knows_what_the_dearest_call_may_cost_as_the_run_did(
    max_cost: float, tmp_path: Path
) -> None:
    first, _ = of_dollars(tmp_path, max_cost)
    for is_offline in (True, False):
        again, n_made = of_dollars(tmp_path, max_cost, offline=is_offline)
        assert n_made == 0
        assert facts(again) == facts(first)
        assert again.detailed_results.candidates == first.detailed_results.candidates


def test_a_test_set_after_the_end_is_paid_for_whatever_its_last_call_may_cost(
    tmp_path: Path,
) -> None:
    of_dollars(tmp_path, 0.04)
    of_dollars(tmp_path, 0.1)
    program, n_made = of_dollars(tmp_path, 0.04, n_test=4)
    assert n_made == 2 * 4
    assert program.detailed_results.test.best.n == 4


def test_offline_a_budget_that_the_run_never_had_is_no_end_of_it(tmp_path: Path) -> None:
    compiled(tmp_path, max_lm_calls=120)
    with pytest.raises(MissingRecordError, match="did not come so far"):
        compiled(tmp_path, max_lm_calls=250, offline=True)
