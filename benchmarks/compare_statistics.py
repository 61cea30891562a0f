"""From records to figures: means, paired bootstrap intervals, LM calls until a score is reached.

Differences are paired: the same seed (so the same task and data) and the same test example. With 3
seeds or more the intervals are bootstrapped over seeds, whose mean differences hold the luck of
optimizer, data and LM alike; with fewer, over test examples, which leaves the luck of the
optimizer out: the tables say which.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

ENOUGH_SEEDS = 3
RESAMPLES = 2000
SHARE_TO_REACH = 0.9
WITHOUT_BUDGET = ("none", "oracle")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One optimizer on one task at one budget, over all seeds. Means, but for `ended`."""

    task: str
    budget: int
    optimizer: str
    n_seeds: int
    held_out: float
    spread: float
    against_none: Interval | None
    against_reference: Interval | None
    policy_calls: float
    reflection_calls: float
    tokens: float
    cost: float | None
    wall_s: float
    prompt_words: float
    prompt_tokens: float
    n_failures: int
    ended: str


def rows(records: Sequence[Record], reference: str) -> list[Row]:
    """A row for each task, budget and optimizer, the best first."""
    found = []
    for task in dict.fromkeys(record["task"] for record in records):
        of_task = [record for record in records if record["task"] == task]
        budgets = sorted({record["budget"] for record in of_task} - {0}) or [0]
        for budget in budgets:
            here = _by_optimizer(r for r in of_task if r["budget"] in (0, budget))
            of_budget = [_row(task, budget, name, here, reference) for name in here]
            found += sorted(of_budget, key=lambda row: -row.held_out)
    return found


def _by_optimizer(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        found.setdefault(record["optimizer"], {})[record["seed"]] = record
    return found


def _row(
    task: str,
    budget: int,
    name: str,
    here: Mapping[str, Mapping[int, Record]],
    reference: str,
) -> Row:
    records = list(here[name].values())
    costs = [record["cost"] for record in records]
    means = [record["mean"] for record in records]
    endings = Counter(record["ended"].partition(":")[0] for record in records)

    def mean(read: Any) -> float:
        return statistics.fmean(read(record) for record in records)

    return Row(
        task=task,
        budget=budget,
        optimizer=name,
        n_seeds=len(records),
        held_out=statistics.fmean(means),
        spread=statistics.stdev(means) if len(means) > 1 else 0.0,
        against_none=difference(here[name], here.get("none", {}), name == "none"),
        against_reference=difference(here[name], here.get(reference, {}), name == reference),
        policy_calls=mean(lambda r: r["spent"]["policy"]["calls"]),
        reflection_calls=mean(lambda r: r["spent"]["reflection"]["calls"]),
        tokens=mean(_tokens),
        cost=None if None in costs else statistics.fmean(costs),
        wall_s=mean(lambda r: r["wall_s"]),
        prompt_words=mean(lambda r: r["prompt_words"]),
        prompt_tokens=mean(lambda r: r["prompt_tokens"]),
        n_failures=sum(sum(record["failed"].values()) for record in records),
        ended=", ".join(k if n == len(records) else f"{k} {n}" for k, n in endings.items()),
    )


def _tokens(record: Record) -> int:
    return sum(s["prompt_tokens"] + s["completion_tokens"] for s in record["spent"].values())


def difference(
    ours: Mapping[int, Record], theirs: Mapping[int, Record], is_same: bool = False
) -> Interval | None:
    """How much higher we score than they do, on the seeds that both have; None: there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    if is_same or not seeds:
        return None
    pairs = [
        np.subtract(ours[seed]["scores"], theirs[seed]["scores"]).astype(float) for seed in seeds
    ]
    if len(seeds) >= ENOUGH_SEEDS:
        return interval([float(gains.mean()) for gains in pairs])
    return interval(np.concatenate(pairs))


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean with its 95 % bootstrap interval (BCa)."""
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    found = bootstrap((np.asarray(values),), np.mean, n_resamples=RESAMPLES, random_state=0)
    low, high = found.confidence_interval
    return Interval(mean, float(low), float(high))


# ---------------------------------------------------------------------- learning curves


@dataclass(frozen=True)
class Reached:
    """LM calls until 90 % of the attainable gain was held; None: it never was."""

    task: str
    optimizer: str
    calls_by_seed: tuple[int | None, ...]

    @property
    def median(self) -> float | None:
        """The median; None where half of the seeds or more never did."""
        calls = sorted(float("inf") if n is None else n for n in self.calls_by_seed)
        middle = statistics.median(calls)
        return None if middle == float("inf") else middle


def reached(records: Sequence[Record]) -> list[Reached]:
    """For each task and optimizer, the quickest first.

    Attainable is the oracle's score, where there is one, or else the best mean of any optimizer.
    A point counts if the program that was held for the best then has the score; the points are
    the noted candidates, and the result at each budget.
    """
    found = []
    for task in dict.fromkeys(record["task"] for record in records):
        of_task = [record for record in records if record["task"] == task]
        by_name = _all_by_optimizer(of_task)
        if "none" not in by_name:
            continue
        for name, of_optimizer in by_name.items():
            if name not in WITHOUT_BUDGET:
                calls = [_calls(of_optimizer[seed], by_name, seed) for seed in sorted(of_optimizer)]
                found.append(Reached(task, name, tuple(calls)))
    return sorted(found, key=lambda r: (r.task, r.median is None, r.median or 0))


def _all_by_optimizer(records: Iterable[Record]) -> dict[str, dict[int, list[Record]]]:
    found: dict[str, dict[int, list[Record]]] = {}
    for record in records:
        found.setdefault(record["optimizer"], {}).setdefault(record["seed"], []).append(record)
    return found


def _calls(
    records: Sequence[Record], by_name: Mapping[str, Mapping[int, list[Record]]], seed: int
) -> int | None:
    if seed not in by_name["none"]:
        return None
    start = by_name["none"][seed][0]["mean"]
    best = by_name.get("oracle", {}).get(seed)
    top = best[0]["mean"] if best else _best_mean(by_name, seed)
    wanted = start + SHARE_TO_REACH * (top - start)
    points = [point for record in records for point in record["curve"]]
    return min((calls for calls, score in points if score >= wanted), default=None)


def _best_mean(by_name: Mapping[str, Mapping[int, list[Record]]], seed: int) -> float:
    return max(record["mean"] for seeds in by_name.values() for record in seeds.get(seed, []))


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
