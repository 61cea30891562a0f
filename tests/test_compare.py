"""The comparison's account, its view of optimizers that are ended, and its records."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

for package in ("gepa", "optuna", "numpy", "scipy", "matplotlib", "rich"):
    pytest.importorskip(package)

from compare import cell_of, run_all, stored  # noqa: E402
from compare_budget import POLICY, REFLECTION, Account, BudgetSpentError, counted  # noqa: E402
from compare_cells import Cell, Options, all_cells, run_cell  # noqa: E402
from compare_tasks import find  # noqa: E402
from rich.console import Console  # noqa: E402
from scripted import ScriptedEngine  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # other packages' own


class Talker(dspy.Module):
    """One call for each run."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.say(question=question)


def policy(account: Account, **kwargs: Any) -> Any:
    task = find("sim:easy", 0)
    return counted(task.make_lm(0).copy(**kwargs), POLICY, account)  # type: ignore[misc]


# ---------------------------------------------------------------------- the account


def test_threads_together_make_exactly_as_many_calls_as_the_budget_has() -> None:
    account, task = Account(50), find("sim:easy", 0)
    lm = policy(account)

    def run(example: Any) -> bool:
        try:
            with dspy.context(lm=lm):
                task.student()(**example.inputs())
        except BudgetSpentError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        went = list(pool.map(run, [*task.train, *task.val]))
    assert went.count(True) == account.n_calls == 50
    assert account.spent[POLICY].prompt_tokens > 0


def test_once_the_budget_is_spent_a_cached_answer_is_refused_too() -> None:
    account, task = Account(1), find("sim:easy", 0)
    with dspy.context(lm=policy(account)):
        task.student()(**task.train[0].inputs())
        with pytest.raises(BudgetSpentError):
            task.student()(**task.train[1].inputs())
        with pytest.raises(BudgetSpentError):
            task.student()(**task.train[0].inputs())
    assert account.n_calls == 1


def test_a_cached_call_is_given_back() -> None:
    account, task = Account(3), find("sim:easy", 0)
    with dspy.context(lm=policy(account)):
        for _ in range(5):
            task.student()(**task.train[0].inputs())
    assert account.n_calls == 1


def test_several_completions_are_several_calls_and_copies_count_too() -> None:
    account, task = Account(), find("sim:easy", 0)
    lm = policy(account).copy(temperature=1.0, rollout_id=7)
    with dspy.context(lm=lm):
        dspy.Predict(task.student().ask.predict.signature, n=3)(**task.train[0].inputs())
    assert account.spent[POLICY].calls == 3
    assert account.spent[REFLECTION].calls == 0


def test_a_program_cannot_catch_the_end_of_the_budget() -> None:
    account = Account(0)
    with pytest.raises(BudgetSpentError), dspy.context(lm=policy(account)):
        try:
            Talker()(question="-")
        except Exception:  # noqa: BLE001 - as programs do
            pytest.fail("caught")


def test_a_call_that_waits_for_others_goes_on_when_they_turn_out_to_be_free() -> None:
    account = Account(1)
    lm = counted(
        dspy.LM("scripted/a", engine=ScriptedEngine([(".", "[[ ## answer ## ]]\nyes")])),
        POLICY,
        account,
    )
    with dspy.context(lm=lm):
        Talker()(question="first")
    account.limit = 2
    with dspy.context(lm=lm), ThreadPoolExecutor(8) as pool:
        barrier = threading.Barrier(8)

        def run(_: int) -> Any:
            barrier.wait()
            with dspy.context(lm=lm):
                return Talker()(question="first").answer

        assert list(pool.map(run, range(8))) == ["yes"] * 8
    assert account.n_calls == 1


# ---------------------------------------------------------------------- one cell


def test_an_optimizer_that_the_budget_ends_gives_the_best_program_it_told_of() -> None:
    record = run_cell(Cell("sim:easy", "gepa-mb8", 150, 0), Options(n_threads=2))
    assert record["ended"] == "budget"
    assert sum(role["calls"] for role in record["spent"].values()) == 150
    assert record["mean"] == record["curve"][-2][1] > record["curve"][0][1]
    assert "When a request names" in record["instructions"]["ask.predict"]


def test_an_optimizer_that_raises_is_a_record_with_its_error() -> None:
    record = run_cell(Cell("sim:easy", "tfgrpo", 8, 0), Options(n_threads=2, curves=False))
    assert record["ended"].startswith("SettingsError: max_lm_calls=8")
    assert record["spent"]["policy"]["calls"] == 0
    assert record["mean"] == run_cell(Cell("sim:easy", "none", 0, 0), Options())["mean"]


def test_a_cell_that_is_run_again_gives_the_same_scores() -> None:
    cell = Cell("sim:noisy", "simba", 120, 1)
    once, again = (run_cell(cell, Options(n_threads=n, curves=False)) for n in (1, 4))
    assert once["scores"] == again["scores"]
    assert once["instructions"] == again["instructions"]


def test_prices_make_a_cost_of_tokens() -> None:
    prices = {"policy": (2.0, 0.0), "reflection": (0.0, 0.0)}
    record = run_cell(Cell("sim:easy", "simba", 120, 0), Options(prices=prices, curves=False))
    assert record["cost"] == pytest.approx(record["spent"]["policy"]["prompt_tokens"] * 2e-6)


def test_cells_of_a_results_file_are_not_run_again_and_a_cut_line_is_left_out(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.jsonl"
    cells = all_cells(["sim:easy"], ["none", "oracle"], [100, 200], [0])
    assert [cell.budget for cell in cells] == [0, 0]
    console = Console(file=io.StringIO(), width=100)
    run_all(cells[:1], Options(n_threads=2), 1, path, console)
    path.write_text(path.read_text() + '{"task": "sim:ea')
    assert [cell_of(record) for record in stored(path)] == cells[:1]
    run_all(cells[1:], Options(n_threads=2), 1, path, console)
    assert [cell_of(record) for record in stored(path)] == cells


# ---------------------------------------------------------------------- tasks and records


def test_a_task_is_found_by_name_with_variant_and_parameters() -> None:
    task = find("sim:many@attention=2,lesson_wrong=0.3", 1)
    assert task.name == "sim:many@attention=2,lesson_wrong=0.3"
    engine = task.make_lm(1)._engine_spec  # type: ignore[misc]  # noqa: SLF001
    assert (engine.parameters.attention, engine.parameters.lesson_wrong) == (2.0, 0.3)
    for unknown in ("nothing", "sim:nothing"):
        with pytest.raises(ValueError, match=f"task '{unknown}': there is none"):
            find(unknown, 0)


def test_records_are_plain_json() -> None:
    record = run_cell(Cell("sim:easy", "oracle", 0, 0), Options(n_threads=2))
    assert json.loads(json.dumps(record)) == record
    assert len(record["scores"]) == 200
