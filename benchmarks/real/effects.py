"""Stated effects of experiences against the truth, on a real LM.

    nice -n 19 python benchmarks/real/effects.py --task sql            # what is missing
    python benchmarks/real/effects.py --task sql --labels v8 v13 --show
    python benchmarks/real/effects.py --demos     # what labelled demos add, for the gate's prior

Reads the records of this optimizer in `results/real.jsonl`: each says which advice its rollouts
were given, with effects and standard errors, and which of it was kept. The truth of a text is
measured on the 60 held-out examples of the run's seed, at temperature 0, paired by example, beside
the 16 labelled demos of the row `labelled` (most rollouts of these runs had demos, and without
any the student scores .00):

- alone: the student with this text, less the student;
- left out: the library of the result with this text, less the same library without it.

A library has one line in `results/real_effects.jsonl`, and is measured once. Writes nothing else.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import dspy  # noqa: E402 - the folders come first
import numpy as np  # noqa: E402
from compare_cells import held_out, silence  # noqa: E402
from compare_optimizers import N_LABELLED  # noqa: E402
from real_tasks import TASKS, load  # noqa: E402
from run import ADAPTERS, RESULTS  # noqa: E402
from running import append, stored  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from tfgrpo_dspy import ExperienceLibrary  # noqa: E402

MEASURED = RESULTS.with_name("real_effects.jsonl")
Z_90 = 1.6449
KINDS = ("alone", "left out")
Library = tuple[str, str, int, tuple[str, ...]]
"""Task, model, seed and texts: what a held-out score belongs to."""
Scores = Mapping[Library, Sequence[float]]


def of_runs(
    records: Sequence[Mapping[str, Any]], task: str, model: str, labels: Sequence[str]
) -> list[Mapping[str, Any]]:
    """The runs of this optimizer that are asked for, and say what they tried; no label: all."""
    named = {"task": task, "model": model, "row": "tfgrpo"}
    found = [r for r in records if r.get("tried") and all(r[k] == v for k, v in named.items())]
    found = [record for record in found if not labels or record["label"] in labels]
    return sorted(found, key=lambda record: (record["budget"], record["seed"], record["label"]))


def pairs(run: Mapping[str, Any], text: str) -> dict[str, tuple[Library, Library]]:
    """By kind of truth, the libraries with and without the text."""
    place = (run["task"], run["model"], run["seed"])
    rest = tuple(sorted(kept for kept in run["kept"] if kept != text))
    return {
        "alone": ((*place, (text,)), (*place, ())),
        "left out": ((*place, tuple(sorted((*rest, text)))), (*place, rest)),
    }


def wanted(runs: Sequence[Mapping[str, Any]], most: int) -> Iterator[Library]:
    """The libraries to be measured, for so many experiences of each run; the most tried first."""
    for run in runs:
        for own in most_tried(run, most):
            for with_it, without in pairs(run, own["text"]).values():
                yield from (without, with_it)


def most_tried(run: Mapping[str, Any], most: int) -> list[Mapping[str, Any]]:
    """So many of the experiences that the run states effects of, those with most rollouts."""
    return sorted(run["tried"], key=lambda own: (-own["n_rollouts"], own["text"]))[:most]


def measure(libraries: Sequence[Library], path: Path) -> None:
    """Append the held-out scores of each library."""
    dspy.configure_cache(enable_disk_cache=False)
    for n, (name, model, seed, texts) in enumerate(libraries, 1):
        print(
            f"library {n} of {len(libraries)}: {name}, seed {seed}, {len(texts)} texts", flush=True
        )
        task = load(name, model, seed)
        optimizer = dspy.LabeledFewShot(k=N_LABELLED)
        student = optimizer.compile(task.student(), trainset=task.train)
        program = ExperienceLibrary.from_texts(texts).bake(student) if texts else student
        with silence(), dspy.context(adapter=ADAPTERS[model]()):
            scores, _, _ = held_out(program, task, task.make_lm(seed), 1)
        line = {"task": name, "model": model, "seed": seed, "texts": texts, "scores": scores}
        append(path, line)


def measured(path: Path) -> dict[Library, list[float]]:
    """What has been measured."""
    return {
        (line["task"], line["model"], line["seed"], tuple(line["texts"])): line["scores"]
        for line in stored(path)
    }


def report(runs: Sequence[Mapping[str, Any]], scores: Scores, most: int) -> str:
    """Each experience with its stated effect and both truths; then coverage and rank correlation.

    An interval covers where stated effect and truth differ by less than 1.64 times the root of
    the sum of both squared errors.
    """
    lines = [
        f"{'seed':>4}{'stated':>9}{'error':>7}{'alone':>8}{'error':>7}{'left out':>10}{'error':>7}"
    ]
    found: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in KINDS}
    for run in runs:
        for own in most_tried(run, most):
            truths = []
            for kind, (with_it, without) in pairs(run, own["text"]).items():
                if with_it in scores and without in scores:
                    gained = np.subtract(scores[with_it], scores[without])
                    error = float(gained.std(ddof=1) / len(gained) ** 0.5)
                    truths.append(f"{gained.mean():+8.3f}{error:7.3f}")
                    stated = (own["estimate"], own["standard_error"])
                    found[kind].append((*stated, float(gained.mean()), error))
            effect = f"{own['estimate']:+9.3f}{own['standard_error']:7.3f}"
            lines.append(f"{run['seed']:>4}{effect}{'  '.join(truths)}  {own['text'][:60]}")
    return "\n".join([*lines, *(_agreement(kind, found[kind]) for kind in KINDS)])


def _agreement(kind: str, found: Sequence[tuple[float, float, float, float]]) -> str:
    if len(found) < 3:
        return f"{kind}: {len(found)} experiences measured, too few to compare"
    estimate, stated_error, true, true_error = np.transpose(found)
    covers = np.abs(estimate - true) <= Z_90 * np.hypot(stated_error, true_error)
    rank = spearmanr(estimate, true).statistic
    return (
        f"{kind}: {len(found)} experiences, 90 % intervals cover {covers.mean():.2f}, rank "
        f"correlation {rank:.2f}, mean stated {estimate.mean():+.3f}, true {true.mean():+.3f}"
    )


def demo_gains(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """What 16 labelled demos add to the student, in standard deviations of the scores of both."""
    by_run: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        if record["row"] in ("none", "labelled"):
            place = (record["task"], record["model"], record["seed"])
            by_run.setdefault(place, {})[record["row"]] = record["scores"]
    pairs = {place: scores for place, scores in by_run.items() if len(scores) == 2}
    gains = []
    for (task, model, seed), scores in sorted(pairs.items()):
        gained = np.mean(scores["labelled"]) - np.mean(scores["none"])
        spread = np.std([*scores["labelled"], *scores["none"]])
        gains.append((f"{task} {model} {seed}", float(gained / spread)))
    return gains


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and show the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="sql")
    parser.add_argument("--demos", action="store_true", help="what labelled demos add, and no more")
    parser.add_argument("--model", choices=ADAPTERS, default="0.5B")
    parser.add_argument("--labels", nargs="+", default=(), help="of the rows of this optimizer")
    parser.add_argument("--most", type=int, default=8, help="experiences of each run")
    parser.add_argument("--runs", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=MEASURED)
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.demos:
        gains = demo_gains(stored(asked.runs))
        print("\n".join(f"{name:<20}{gain:+.2f}" for name, gain in gains))
        own = [gain for _, gain in gains]
        print(f"mean {np.mean(own):+.2f}, standard deviation {np.std(own, ddof=1):.2f}")
        return
    runs = of_runs(stored(asked.runs), asked.task, asked.model, asked.labels)
    if not runs:
        parser.error(
            f"{asked.runs} has no run of tfgrpo on {asked.task} with {asked.model} and the labels "
            f"{asked.labels or 'of all'} that says what it tried; run run.py --rows tfgrpo first"
        )
    if not asked.show:
        done = measured(asked.out)
        measure(
            [lib for lib in dict.fromkeys(wanted(runs, asked.most)) if lib not in done], asked.out
        )
    print(report(runs, measured(asked.out), asked.most))


if __name__ == "__main__":
    main()
