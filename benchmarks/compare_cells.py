"""One cell of a comparison: one optimizer, task, budget and seed; what came of it, as JSON.

What is measured here is not charged to anybody: the held-out scores, and the two runs of the
student that tell how many LM calls a run takes.
"""

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy
from compare_budget import POLICY, REFLECTION, Account, BudgetSpentError, counted
from compare_optimizers import OPTIMIZERS, Observer, Setup
from running import silence
from tasks import Task

from tfgrpo_dspy.results import RunResults

N_PROBES = 2


@dataclass(frozen=True)
class Cell:
    """What names a cell."""

    task: str
    optimizer: str
    budget: int
    seed: int


@dataclass(frozen=True)
class Options:
    """What holds for all cells.

    `log_dir`: where a run of this optimizer is recorded, to go on after a stop.
    """

    n_threads: int = 4
    log_dir: Path | None = None


def run_cell(cell: Cell, options: Options, task: Task) -> dict[str, Any]:
    """The record of a cell."""
    began = time.monotonic()
    with silence():
        dspy.configure_cache(enable_disk_cache=False)  # nobody profits from what another paid
        lms = task.make_lm(cell.seed), task.make_reflection_lm(cell.seed)
        account = Account(cell.budget)
        setup = setup_of(task, lms, account, cell.budget, cell.seed, options)
        started = time.monotonic()
        program, ended = optimized(OPTIMIZERS[cell.optimizer], setup)
        wall_s = time.monotonic() - started
        scores, prompt_tokens, n_failed = held_out(program, task, lms[0], options.n_threads)
    return {
        **asdict(cell),
        "mean": statistics.fmean(scores),
        "scores": scores,
        "spent": {role: asdict(spent) for role, spent in account.spent.items()},
        "wall_s": round(wall_s, 3),
        "cell_s": round(time.monotonic() - began, 3),
        "prompt_words": prompt_words(program),
        "prompt_tokens": round(prompt_tokens, 1),
        "ended": ended,
        "failed": {"lm_calls": account.n_failed, "held_out_runs": n_failed},
        "instructions": {n: p.signature.instructions for n, p in program.named_predictors()},
        "n_demos": {name: len(p.demos) for name, p in program.named_predictors()},
        **learned(program),
    }


def setup_of(
    task: Task, lms: tuple[Any, Any], account: Account, budget: int, seed: int, options: Options
) -> Setup:
    """What an optimizer is given; the account counts its calls of both LMs."""
    policy, reflection = lms
    return Setup(
        task=task,
        budget=budget,
        seed=seed,
        policy=counted(policy, POLICY, account),
        reflection=counted(reflection, REFLECTION, account),
        observer=Observer(task.student()),
        n_threads=options.n_threads,
        calls=calls_per_run(task, policy),
        log_dir=options.log_dir,
    )


def learned(program: Any) -> dict[str, Any]:
    """What this optimizer says of its advice: the effects of all that was tried, what was kept.

    `replayed` counts, by role, what an earlier start had recorded; `spent` does not hold it.
    """
    results = getattr(program, "detailed_results", None)
    if not isinstance(results, RunResults):
        return {}
    tried = [
        {"text": advice.text, "chance": round(advice.chance, 3), **asdict(advice.effect)}
        for advice in results.tried
    ]
    kept = [experience.text for experience in results.experiences]
    return {"tried": tried, "kept": kept, "replayed": dict(results.replayed)}


def optimized(optimizer: Callable[[Setup], Any], setup: Setup) -> tuple[Any, str]:
    """The program, and how the optimizer ended: "finished", "budget", or what it raised."""
    try:
        with dspy.context(lm=setup.policy, callbacks=[setup.observer]):
            return optimizer(setup), "finished"
    except BudgetSpentError:
        ended = "budget"
        kept = None
    except Exception as error:  # noqa: BLE001 - whatever an optimizer raises is its result here
        ended = f"{type(error).__name__}: {error}"[:500]
        kept = getattr(error, "program", None)
    return kept or setup.observer.best or setup.task.student(), ended


def held_out(
    program: Any, task: Task, policy: Any, n_threads: int
) -> tuple[list[float], float, int]:
    """The score on each test example, prompt tokens of a run, and how many runs failed."""
    account = Account()
    lm = counted(policy.copy(cache=False), POLICY, account)

    def score(gold: Any, pred: Any) -> float:
        return float(task.metric(gold, pred).score)

    evaluate = dspy.Evaluate(
        devset=list(task.test), metric=score, num_threads=n_threads, max_errors=10**9
    )
    with dspy.context(lm=lm):
        results = evaluate(program).results
    n_failed = sum(prediction == dspy.Prediction() for _, prediction, _ in results)
    tokens = account.spent[POLICY].prompt_tokens / len(task.test)
    return [float(value) for *_, value in results], tokens, n_failed


def calls_per_run(task: Task, policy: Any) -> float:
    """How many LM calls a run of the student takes, by two of them."""
    account = Account()
    with dspy.context(lm=counted(policy.copy(cache=False), POLICY, account)):
        for example in task.train[:N_PROBES]:
            with contextlib.suppress(Exception):
                task.student()(**example.inputs())
    return max(1.0, account.n_calls / N_PROBES)


def prompt_words(program: dspy.Module) -> int:
    """Words of instructions and demos, which every later call pays."""
    words = 0
    for _, predictor in program.named_predictors():
        words += len(predictor.signature.instructions.split())
        words += sum(
            len(str(value).split()) for demo in predictor.demos for value in dict(demo).values()
        )
    return words
