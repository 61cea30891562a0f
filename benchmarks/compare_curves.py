"""Learning curves: which score was held after how many LM calls.

A point of a curve is a program that its optimizer held for the best, with its held-out score; the
last one is the result. Where results alone were scored (`--no-curves`), nothing is said of calls.
Of two ways to say when a score was reached, the bar goes by the second:

- first: the first point that has it. An optimizer that notes many programs has many chances that
  one of them is above by luck, and loses it again;
- kept: the first point from which on all points of the run have it.

Runs at different budgets have different settings and are different draws. So each optimizer is
judged by its runs at one budget, that at which its median is lowest: it is not given the luckiest
of its runs for each seed. One that tells of nothing before its end (SIMBA) has one point for each
run, its result.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compare_statistics import WITHOUT_BUDGET, Record, by_optimizer

SHARE_TO_REACH = 0.9
Calls = int | None
"""LM calls; None: never."""


def calls_until(points: Sequence[Sequence[float]], wanted: float) -> tuple[Calls, Calls]:
    """LM calls until the points have the score: for good, and for the first time."""
    first = next((int(calls) for calls, score in points if score >= wanted), None)
    kept = None
    for calls, score in reversed(points):
        if score < wanted:
            break
        kept = int(calls)
    return kept, first


def median(calls: Iterable[float | None]) -> float | None:
    """The median, where None (never) is above all; None: so is the median."""
    middle = statistics.median(math.inf if n is None else n for n in calls)
    return None if math.isinf(middle) else middle


@dataclass(frozen=True)
class Reached:
    """LM calls until 90 % of the attainable gain, by seed: kept until the end, and at first."""

    task: str
    optimizer: str
    budget: int
    calls_by_seed: tuple[Calls, ...]
    first_by_seed: tuple[Calls, ...]

    @property
    def n_seeds(self) -> int:
        """How many seeds kept it."""
        return sum(calls is not None for calls in self.calls_by_seed)

    @property
    def median(self) -> float | None:
        """The median of what was kept; None where half of the seeds or more never did."""
        return median(self.calls_by_seed)

    @property
    def first_median(self) -> float | None:
        """The median of the first time."""
        return median(self.first_by_seed)


def reached(records: Sequence[Record]) -> list[Reached]:
    """For each task and optimizer, at its best budget; the quickest first.

    Attainable is the oracle's score of that seed, or else the best of any optimizer.
    """
    found = []
    for task in dict.fromkeys(record["task"] for record in records):
        of_task = [record for record in records if record["task"] == task]
        if not has_curves(of_task):
            continue
        wanted = _wanted(of_task)
        at: dict[str, list[Reached]] = {}
        for name, budget in dict.fromkeys((r["optimizer"], r["budget"]) for r in of_task):
            runs = [r for r in of_task if (r["optimizer"], r["budget"]) == (name, budget)]
            if name not in WITHOUT_BUDGET and wanted:
                at.setdefault(name, []).append(_reached(runs, wanted))
        found += [_best(of_optimizer) for of_optimizer in at.values()]
    return sorted(found, key=lambda item: (item.task, *_order(item)))


def has_curves(runs: Iterable[Record]) -> bool:
    """Whether any of the runs was scored before its end, too."""
    spending = [run for run in runs if run["optimizer"] not in WITHOUT_BUDGET]
    return any(run["curve"][0][0] < _n_calls(run) for run in spending)


def _n_calls(run: Record) -> int:
    return sum(spent["calls"] for spent in run["spent"].values())


def _reached(runs: Sequence[Record], wanted: Mapping[int, float]) -> Reached:
    runs = sorted(runs, key=lambda run: run["seed"])
    calls = [calls_until(run["curve"], wanted.get(run["seed"], math.inf)) for run in runs]
    kept, first = zip(*calls, strict=True)
    return Reached(runs[0]["task"], runs[0]["optimizer"], runs[0]["budget"], kept, first)


def _best(of_optimizer: Sequence[Reached]) -> Reached:
    """The one at the best of the budgets that have all seeds."""
    most = max(len(item.calls_by_seed) for item in of_optimizer)
    return min((r for r in of_optimizer if len(r.calls_by_seed) == most), key=_order)


def _order(item: Reached) -> tuple[float, int, int]:
    return math.inf if item.median is None else item.median, -item.n_seeds, item.budget


def _wanted(of_task: Sequence[Record]) -> dict[int, float]:
    """The score that is 90 % of the attainable gain, for each seed that has a student's."""
    by_name = by_optimizer(of_task)
    wanted = {}
    for seed, record in by_name.get("none", {}).items():
        start, best = record["mean"], by_name.get("oracle", {}).get(seed)
        top = best["mean"] if best else max(r["mean"] for r in of_task if r["seed"] == seed)
        wanted[seed] = start + SHARE_TO_REACH * (top - start)
    return wanted


def curve(records: Sequence[Record], start: float) -> tuple[list[int], list[float]]:
    """One optimizer's mean score against LM calls, over all seeds at its largest budget.

    Between two points a run holds the program of the first; before the first, the student.
    """
    largest = max(record["budget"] for record in records)
    runs = [record for record in records if record["budget"] == largest]
    others = [record for record in records if record["budget"] != largest]
    if all(len(record["curve"]) == 1 for record in runs):  # it tells of nothing before its end
        points: dict[int, list[tuple[int, float]]] = {}
        for record in [*runs, *others]:
            points.setdefault(record["budget"], []).append(record["curve"][-1])
        means = [
            (round(statistics.fmean(n for n, _ in ps)), statistics.fmean(s for _, s in ps))
            for ps in points.values()
        ]
        means.sort()
        return [0, *(n for n, _ in means)], [start, *(score for _, score in means)]
    calls = sorted({0, largest, *(n for record in runs for n, _ in record["curve"])})
    held = [[_held_at(record["curve"], n, start) for record in runs] for n in calls]
    return calls, [statistics.fmean(scores) for scores in held]


def _held_at(points: Sequence[Sequence[float]], n_calls: int, start: float) -> float:
    held = [score for calls, score in points if calls <= n_calls]
    return held[-1] if held else start
