"""A finished run is gone on with: with a larger budget from its end, with a test set beside it.

Each of the budgets that it had gives its own result again.
"""

import shutil
from pathlib import Path
from typing import Any

import dspy
import pytest
from coded_cases import CODES, FIRST_TEST, RIGHT, case_in, cases, is_right, luck_of, world
from runs import AtCall, learned_in, library_texts, n_calls, predictor
from scripted import chat

from tfgrpo_dspy import AddLessons, Execution, Reflection, TrainingFreeGRPO, best_so_far
from tfgrpo_dspy.errors import MissingRecordError
from tfgrpo_dspy.store import saved_runs

N_TEST = 20
UPDATES = Reflection(update=AddLessons())


def slowly_solved(prompt: Any) -> str:
    """The right lessons help a little, so that a run goes on as long as its budget."""
    chance = 0.2 + 0.3 * (RIGHT[case_in(prompt.user)[1]] in prompt.system)
    return chat(answer=CODES[case_in(prompt.user)[1]] if luck_of(prompt) < chance else "unsure")


def compiled(
    folder: Path | None, testset: Any = None, before: Any = None, n: int = 30, **given: Any
) -> tuple[Any, int]:
    """The program, and how many calls were made for it now."""
    lm = world(slowly_solved, before=before, max_tokens=50)
    usual: dict[str, Any] = {"num_threads": 4, "progress": False, "reflection": UPDATES}
    with dspy.context(lm=lm):
        optimizer = TrainingFreeGRPO(is_right, log_dir=folder, **{**usual, **given})
        return optimizer.compile(predictor(), trainset=cases(n), testset=testset), (
            lm.engine.n_calls()
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, int]:
    """The store of a finished run of 150 calls, its program, and how many calls it made."""
    folder = tmp_path_factory.mktemp("finished") / "log"
    dspy.configure_cache(enable_disk_cache=False)
    return folder, *compiled(folder, max_lm_calls=150)


@pytest.fixture
def ended(finished: tuple[Path, Any, int], tmp_path: Path) -> tuple[Path, Any, int]:
    """The same, with a copy of the store."""
    folder, program, n_calls = finished
    return Path(shutil.copytree(folder, tmp_path / "log")), program, n_calls


def n_replayed(program: Any) -> int:
    return sum(program.detailed_results.replayed.values())


def schedule_in(schedule: Any) -> dict[str, int]:
    return {k: v for k, v in schedule.items() if k not in ("epochs", "reserve", "n_validation")}


def schedule_of(program: Any) -> dict[str, int]:
    return schedule_in(program.detailed_results.schedule)


def planned(**given: Any) -> dict[str, int]:
    """The schedule of a run that goes on from nothing."""
    with dspy.context(lm=world(slowly_solved, max_tokens=50)):
        optimizer = TrainingFreeGRPO(is_right, reflection=UPDATES, **given)
        return schedule_in(optimizer.estimate(predictor(), trainset=cases(30)).schedule)


SMALLER_AND_LARGER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "auto": ({"auto": "light"}, {"auto": "medium"}),
    "metric calls": ({"max_metric_calls": 80}, {"max_metric_calls": 160}),
    "no limit any more": ({"max_lm_calls": 120}, {"group_size": None}),
    "more threads, too": (
        {"max_lm_calls": 120, "num_threads": 2},
        {"max_lm_calls": 250, "num_threads": 24},
    ),
}


@pytest.mark.parametrize(("smaller", "larger"), SMALLER_AND_LARGER.values(), ids=SMALLER_AND_LARGER)
def test_a_larger_budget_goes_on_from_the_end_of_a_finished_run(
    smaller: dict[str, Any], larger: dict[str, Any], tmp_path: Path
) -> None:
    first, n_first = compiled(tmp_path, **smaller)
    second, n_second = compiled(tmp_path, **larger)
    assert n_replayed(second) >= 0.8 * n_first
    assert schedule_of(second) == schedule_of(first)
    assert planned(**larger) != schedule_of(first), "else this shows nothing"
    whole = learned_in(first.detailed_results)[:-3]  # the budget has cut what follows
    assert whole
    assert learned_in(second.detailed_results)[: len(whole)] == whole
    assert len(second.detailed_results.updates) > len(first.detailed_results.updates)
    assert n_second < n_calls(second) <= (larger.get("max_lm_calls") or 10_000)
    assert len(saved_runs(tmp_path)) == 2
    third, n_third = compiled(tmp_path, **larger)
    assert n_third == 0
    assert third.dump_state() == second.dump_state()


def test_a_run_that_is_stopped_while_it_goes_on_keeps_the_result_that_it_had(
    ended: tuple[Path, Any, int],
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    folder, first, n_first = ended
    with pytest.raises(KeyboardInterrupt):
        compiled(folder, max_lm_calls=330, before=AtCall(20, stop))
    assert [run.is_finished for run in saved_runs(folder)] == [True, False]
    assert library_texts(best_so_far(folder, predictor())) != []
    last, _ = compiled(folder, max_lm_calls=330)
    assert n_replayed(last) >= 0.8 * n_first + 10
    assert schedule_of(last) == schedule_of(first)


@pytest.mark.parametrize(
    "changes",
    [{"max_lm_calls": 100}, {"seed": 1}, {"batch_size": 4}, {"max_cost": 9.0}],
    ids=["a smaller budget", "another seed", "another schedule that is set", "one limit more"],
)
def test_what_is_not_the_same_run_with_more_is_derived_anew(
    changes: dict[str, Any], ended: tuple[Path, Any, int]
) -> None:
    given: dict[str, Any] = {"max_lm_calls": 200, **changes}
    given["execution"] = Execution(prices={"scripted": (0.0, 0.0)})
    assert schedule_of(compiled(ended[0], **given)[0]) == planned(**given)


PRICED = Execution(prices={"scripted": (1.0, 1.0)})
BUDGETS: list[dict[str, Any]] = [
    {"max_metric_calls": 80},
    {"auto": "light"},
    {"epochs": 2},
    {"max_cost": 0.04, "execution": PRICED},
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_a_test_set_is_measured_beside_a_finished_run(
    budget: dict[str, Any], tmp_path: Path
) -> None:
    first, _ = compiled(tmp_path, **budget)
    testset = cases(N_TEST, FIRST_TEST)
    second, n_made = compiled(tmp_path, testset, **budget)
    n_programs = 1 + bool(library_texts(second))
    assert n_made == n_programs * N_TEST
    assert second.dump_state() == first.dump_state()
    assert learned_in(second.detailed_results) == learned_in(first.detailed_results)
    assert second.detailed_results.best == first.detailed_results.best
    test = second.detailed_results.test
    assert (test.student.n, test.best.n) == (N_TEST, N_TEST)
    assert len(saved_runs(tmp_path)) == 1
    for again in (testset, None):
        assert compiled(tmp_path, again, **budget)[1] == 0


def test_an_unfinished_run_takes_the_test_set_from_its_budget(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(tmp_path, max_lm_calls=150, before=AtCall(60, stop))
    program, n_made = compiled(tmp_path, cases(N_TEST, FIRST_TEST), max_lm_calls=150)
    assert n_made < n_calls(program) <= 150
    assert program.detailed_results.test.best.n == N_TEST


# ---------------------------------------------------------------------- several budgets


OTHER_BUDGETS: list[tuple[dict[str, Any], dict[str, Any]]] = [
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


@pytest.mark.parametrize(("smaller", "larger"), OTHER_BUDGETS, ids=str)
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


def test_offline_a_budget_that_the_run_never_had_is_no_end_of_it(tmp_path: Path) -> None:
    compiled(tmp_path, max_lm_calls=120)
    with pytest.raises(MissingRecordError, match="did not come so far"):
        compiled(tmp_path, max_lm_calls=250, offline=True)
