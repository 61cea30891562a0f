"""The account of a comparison, and its view of optimizers that are ended."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

for package in ("gepa", "optuna", "numpy"):
    pytest.importorskip(package)

from compare_budget import POLICY, REFLECTION, Account, BudgetSpentError, counted  # noqa: E402
from compare_cells import Options, setup_of  # noqa: E402
from compare_optimizers import OPTIMIZERS, our_arguments  # noqa: E402
from dspy.teleprompt.simba_utils import prepare_models_for_resampling  # noqa: E402
from random_world_model import World, traits_of  # noqa: E402
from random_worlds import FREE, ROWS, run, task_of  # noqa: E402
from scripted import ScriptedEngine  # noqa: E402
from tasks import Task, seeded  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # other packages' own


class Talker(dspy.Module):
    """One call for each run."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.say(question=question)


def task() -> Task:
    return task_of(World(traits_of(0), 0))


def policy(account: Account) -> Any:
    return counted(task().make_lm(0), POLICY, account)


def test_threads_together_make_exactly_as_many_calls_as_the_budget_has() -> None:
    account, examples = Account(20), task().train
    lm = policy(account)

    def go(example: Any) -> bool:
        try:
            with dspy.context(lm=lm):
                dspy.Predict("request -> answer")(**example.inputs())
        except BudgetSpentError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        went = list(pool.map(go, examples))
    assert len(examples) > 20
    assert went.count(True) == account.n_calls == 20
    assert account.spent[POLICY].prompt_tokens > 0


def test_several_completions_are_several_calls_and_copies_count_too() -> None:
    account = Account()
    lm = policy(account).copy(temperature=1.0, rollout_id=7)
    with dspy.context(lm=lm):
        dspy.Predict("request -> answer", n=3)(**task().train[0].inputs())
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


@pytest.mark.parametrize("row", [row for row in ROWS if row not in FREE])
def test_every_optimizer_stays_within_its_budget_and_gives_a_program(row: str) -> None:
    record = run(0, "", row, 120, in_dollars=False)
    assert 60 <= sum(record["calls"].values()) <= 120
    assert record["ended"] in ("finished", "budget")
    assert (record["calls"]["reflection"] > 0) == (row != "bootstrap")


def test_an_optimizer_that_the_budget_ends_gives_the_best_program_it_told_of() -> None:
    record = run(5, "cot", "gepa-mb8", 200, in_dollars=False)
    assert record["ended"] == "budget"
    assert record["score"] > record["student"]


def test_our_row_sets_the_budget_and_nothing_of_the_method() -> None:
    lms = task().make_lm(0), task().make_reflection_lm(0)
    setup = setup_of(task(), lms, Account(120), 120, 0, Options(n_threads=2))
    execution = {"num_threads": 2, "seed": 0, "progress": False}
    expected = {"reflection_lm": setup.reflection, "max_lm_calls": 120} | execution
    assert our_arguments(setup) == expected
    assert set(ROWS) <= set(OPTIMIZERS)
