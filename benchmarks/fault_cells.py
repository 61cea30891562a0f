"""One run of one optimizer under one fault, in a process of its own; what came of it, as JSON.

Holds the four optimizers with the settings that they recommend for 24 training
and 24 validation examples. Judges nothing: `faults.py` does.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from fault_rows import ROWS, Fault, FirstAttemptsAreRepeatedAtOnce
from flat_settings import grouped
from simulated import (
    POLICY,
    REFLECTION,
    SimulatedEngine,
    Triage,
    accuracy,
    examples,
    is_right,
    lms,
    score_without_faults,
    with_feedback,
)

from tfgrpo_dspy import TrainingFreeGRPO

THREADS = 8
TRAIN, VALIDATION, HELD_OUT = examples(24), examples(24, 100), examples(60, 1000)
TIMEOUT_S = 5.0
"""The rollout timeout that our optimizer is given; the others have no such setting."""

# ---------------------------------------------------------------------- the optimizers


@dataclass(frozen=True)
class Run:
    """What an optimizer is given."""

    fault: Fault
    policy: dspy.LM
    reflection: dspy.LM
    log_dir: str = ""

    def feedback(self, gold: Any, pred: Any, *_: Any) -> Any:
        """The metric with feedback."""
        score = self.fault.metric(gold.question, is_right(gold, pred))
        return with_feedback(gold, score) if isinstance(score, float) and score in (0, 1) else score

    def number(self, gold: Any, pred: Any, _trace: Any = None) -> Any:
        """The metric as a number, for optimizers that do not read feedback."""
        return self.fault.metric(gold.question, is_right(gold, pred))


def gepa(run: Run) -> tuple[Any, Any]:
    """dspy.GEPA, auto="light"; gives the program and the score that it reports for it."""

    def metric(
        gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> Any:
        return run.feedback(gold, pred, trace, pred_name, pred_trace)

    optimizer = dspy.GEPA(
        metric,
        auto="light",
        reflection_lm=run.reflection,
        num_threads=THREADS,
        track_stats=True,
        log_dir=run.log_dir or None,
    )
    program = optimizer.compile(Triage(run.fault.before), trainset=TRAIN, valset=VALIDATION)
    results = program.detailed_results
    return program, results.val_aggregate_scores[results.best_idx]


def simba(run: Run) -> tuple[Any, Any]:
    """dspy.SIMBA at its defaults; it has no validation set, so it trains on all 48 examples."""

    def metric(gold: Any, pred: Any, trace: Any = None) -> Any:
        return run.feedback(gold, pred, trace)

    optimizer = dspy.SIMBA(metric=metric, prompt_model=run.reflection, num_threads=THREADS)
    program = optimizer.compile(Triage(run.fault.before), trainset=[*TRAIN, *VALIDATION])
    return program, program.candidate_programs[0]["score"]


def mipro(run: Run) -> tuple[Any, Any]:
    """dspy.MIPROv2, auto="light", on a plain number: a dspy.Prediction counts as true for it."""
    optimizer = dspy.MIPROv2(
        run.number,
        prompt_model=run.reflection,
        auto="light",
        num_threads=THREADS,
        log_dir=run.log_dir or None,
    )
    program = optimizer.compile(Triage(run.fault.before), trainset=TRAIN, valset=VALIDATION)
    return program, None if program.score is None else program.score / 100


AS_MEASURED = {"group_size": 5, "epochs": 3, "drafts": 0, "max_demos": 0, "max_staleness": 1}


def ours(run: Run) -> tuple[Any, Any]:
    """TrainingFreeGRPO with groups of 5, 3 epochs and a rollout timeout."""

    def metric(gold: Any, pred: Any, trace: Any = None) -> Any:
        return run.feedback(gold, pred, trace)

    optimizer = TrainingFreeGRPO(
        metric,
        reflection_lm=run.reflection,
        num_threads=THREADS,
        **grouped({"rollout_timeout_s": TIMEOUT_S, **AS_MEASURED}),
        log_dir=run.log_dir or None,
        progress=False,
    )
    program = optimizer.compile(Triage(run.fault.before), trainset=TRAIN, valset=VALIDATION)
    return program, program.detailed_results.best.mean


OPTIMIZERS: dict[str, Callable[[Run], tuple[Any, Any]]] = {
    "GEPA": gepa,
    "SIMBA": simba,
    "MIPROv2": mipro,
    "TrainingFreeGRPO": ours,
}


# ---------------------------------------------------------------------- one cell


class Lines(logging.Handler):
    """Keeps what is logged at WARNING and above, by whomever."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {self.format(record)}"[:2000])

    def listen(self) -> None:
        logging.captureWarnings(True)
        logging.getLogger().addHandler(self)
        for name in list(logging.root.manager.loggerDict):
            logger = logging.getLogger(name)
            if not logger.propagate:
                logger.addHandler(self)


def told_by_results(program: Any) -> str:
    """What the returned program's own report says of failures; only our optimizer has such."""
    results = getattr(program, "detailed_results", None)
    if not hasattr(results, "failures"):
        return ""
    refused = [text for update in results.updates for text in update.refused_lessons]
    refused += [op.refused for update in results.updates for op in update.operations if op.refused]
    parts = [f"{n} failures of kind {kind!r}" for kind, n in results.failures.items()]
    parts += [f"{len(refused)} refused, the first: {refused[0][-80:]}"] if refused else []
    parts += [results.nothing_learned] if results.nothing_learned else []
    return "; ".join(parts)


def outcome(name: str, run: Run, lines: Lines) -> dict[str, Any]:
    """What came of the run."""
    started = time.monotonic()
    try:
        with dspy.context(lm=run.policy):
            program, reported = OPTIMIZERS[name](run)
    except Exception as error:  # noqa: BLE001 - any exception is an outcome here
        kept = getattr(error, "program", None)
        return {
            "raised": f"{type(error).__name__}: {error}"[:600],
            "wall_s": time.monotonic() - started,
            "hands_back_a_program": kept is not None,
        }
    wall_s = time.monotonic() - started
    program_of_ours = told_by_results(program)
    program.before = None
    examples_of_report = [*TRAIN, *VALIDATION] if name == "SIMBA" else VALIDATION
    return {
        "wall_s": wall_s,
        "held_out": accuracy(program, HELD_OUT),
        "reported": None if reported is None else float(reported),
        "measured": score_without_faults(program, examples_of_report),
        "told_by_results": program_of_ours,
        "named_by_log": next((x for x in lines.lines if re.search(run.fault.named, x)), "")[:300],
        "instructions": program.ask.signature.instructions[:1000],
        "n_demos": len(program.ask.demos),
    }


def run_cell(given: dict[str, Any]) -> dict[str, Any]:
    """The outcome of the run that is described: optimizer, fault, latency, cache, folders."""
    lines = Lines()
    lines.listen()
    dspy.configure_cache(enable_disk_cache=given.get("disk", False))
    fault = given_fault(given)
    engine = SimulatedEngine(fault.spoil, given.get("latency_s", 0.0), given.get("log_path", ""))
    policy, reflection = lms(engine, cache=given.get("cache", True))
    run = Run(fault, policy, reflection, given.get("log_dir", ""))
    result = outcome(given["optimizer"], run, lines)
    counts = {
        "n_policy_calls": engine.n_calls[POLICY],
        "n_reflection_calls": engine.n_calls[REFLECTION],
        "n_faults": fault.share.n,
        "n_log_lines": len(lines.lines),
    }
    return result | counts | {"is_hopeless": fault.is_hopeless, "named": fault.named}


def given_fault(given: dict[str, Any]) -> Fault:
    """The fault of that name; "ideal client" is one of the wall-time runs."""
    if given["fault"] == "ideal client":
        return FirstAttemptsAreRepeatedAtOnce(0.2, given["latency_s"])
    return ROWS[given["fault"]].make()


def main() -> None:
    """Run the cell that the first argument describes (JSON) and write what came of it."""
    given = json.loads(sys.argv[1])
    result = run_cell(given)
    target = Path(given["out"])
    target.with_suffix(".tmp").write_text(json.dumps(result), encoding="utf-8")
    target.with_suffix(".tmp").replace(target)
    sys.stdout.flush()
    os._exit(0)  # a call that hangs must not keep the process


if __name__ == "__main__":
    main()
