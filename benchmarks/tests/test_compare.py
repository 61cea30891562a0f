"""The comparison's account, its view of optimizers that are ended, and its records."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

for package in ("gepa", "optuna", "numpy", "scipy", "rich"):
    pytest.importorskip(package)

from compare import cell_of, run_all  # noqa: E402
from compare_budget import POLICY, REFLECTION, Account, BudgetSpentError, counted  # noqa: E402
from compare_cells import Cell, Options, all_cells, run_cell  # noqa: E402
from compare_observe import Observer  # noqa: E402
from compare_optimizers import OPTIMIZERS, Setup, our_arguments  # noqa: E402
from dspy.teleprompt.simba_utils import prepare_models_for_resampling  # noqa: E402
from rich.console import Console  # noqa: E402
from running import stored  # noqa: E402
from scripted import ScriptedEngine  # noqa: E402
from tasks.seeded import seeded  # noqa: E402
from tasks.simulated import load  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # other packages' own


class Talker(dspy.Module):
    """One call for each run."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.say(question=question)


def policy(account: Account, **kwargs: Any) -> Any:
    task = load("sim:easy", 0)
    return counted(task.make_lm(0).copy(**kwargs), POLICY, account)  # type: ignore[misc]


def test_threads_together_make_exactly_as_many_calls_as_the_budget_has() -> None:
    account, task = Account(50), load("sim:easy", 0)
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


def test_several_completions_are_several_calls_and_copies_count_too() -> None:
    account, task = Account(), load("sim:easy", 0)
    lm = policy(account).copy(temperature=1.0, rollout_id=7)
    with dspy.context(lm=lm):
        dspy.Predict(task.student().ask.predict.signature, n=3)(**task.train[0].inputs())
    assert account.spent[POLICY].calls == 3
    assert account.spent[REFLECTION].calls == 0


def simba_samples(lm: Any, n: int = 4) -> None:
    """Runs one program on one example with the LMs that SIMBA prepares for its samples."""
    with dspy.context(lm=lm):
        models = prepare_models_for_resampling(Talker(), n)
    for model in models:
        program = Talker()
        program.set_lm(model)
        program(question="the same")


def test_simbas_four_samples_of_one_prompt_are_requests_with_four_seeds() -> None:
    engine = ScriptedEngine([(".", lambda p: f"[[ ## answer ## ]]\n{p.seed}")])
    lm = dspy.LM("scripted/fixed-seed", engine=engine, seed=0, temperature=0.0)
    simba_samples(seeded(lm))
    assert len({prompt.seed for prompt in engine.prompts}) == len(engine.prompts) == 4


def test_an_optimizer_that_the_budget_ends_gives_the_best_program_it_told_of() -> None:
    record = run_cell(Cell("sim:easy", "gepa-mb8", 150, 0), Options(n_threads=2))
    assert record["ended"] == "budget"
    assert sum(role["calls"] for role in record["spent"].values()) == 150
    assert record["mean"] > run_cell(Cell("sim:easy", "none", 0, 0), Options())["mean"]
    assert "When a request names" in record["instructions"]["ask.predict"]


def test_a_cell_that_is_run_again_gives_the_same_scores() -> None:
    cell = Cell("sim:noisy", "simba", 120, 1)
    once, again = (run_cell(cell, Options(n_threads=n)) for n in (1, 4))
    assert once["scores"] == again["scores"]
    assert once["instructions"] == again["instructions"]


def setup_of(task: Any, budget: int, seed: int = 0) -> Setup:
    account = Account(budget)
    return Setup(
        task=task,
        budget=budget,
        seed=seed,
        policy=counted(task.make_lm(0), POLICY, account),
        reflection=counted(task.make_reflection_lm(0), REFLECTION, account),
        observer=Observer(task.student()),
        n_threads=2,
        calls=1.0,
    )


def test_best_of_n_shows_right_runs_of_the_bare_student_and_spends_the_budget_on_them() -> None:
    task = load("sim:easy", 0)
    setup = setup_of(task, 200)
    with dspy.context(lm=setup.policy):
        program = OPTIMIZERS["best-of-n demos"](setup)
    account = setup.policy.compare_account
    assert (account.spent[POLICY].calls, account.spent[REFLECTION].calls) == (200, 0)
    demos = program.ask.predict.demos
    golds = {example.request: example for example in task.train}
    assert [task.plain_metric(golds[demo.request], demo) for demo in demos] == [1.0] * 4
    assert len({demo.request for demo in demos}) == 4
    bare = task.student().ask.predict.signature
    assert program.ask.predict.signature.instructions == bare.instructions


def test_our_row_sets_the_budget_and_nothing_of_the_method() -> None:
    setup = setup_of(load("sim:easy", 0), 120)
    execution = {"num_threads": 2, "seed": 0, "progress": False}
    expected = {"reflection_lm": setup.reflection, "max_lm_calls": 120} | execution
    assert our_arguments(setup) == expected


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
