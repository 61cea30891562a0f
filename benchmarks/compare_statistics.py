"""From records to figures: means, and paired differences with bootstrap intervals.

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
            here = by_optimizer(r for r in of_task if r["budget"] in (0, budget))
            of_budget = [_row(task, budget, name, here, reference) for name in here]
            found += sorted(of_budget, key=lambda row: -row.held_out)
    return found


def by_optimizer(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    """The records by optimizer and seed; of several budgets, the last."""
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
    if len(seeds) >= ENOUGH_SEEDS:
        return interval([float(ours[seed]["mean"] - theirs[seed]["mean"]) for seed in seeds])
    pairs = [
        np.subtract(ours[seed]["scores"], theirs[seed]["scores"]).astype(float) for seed in seeds
    ]
    return interval(np.concatenate(pairs))


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean with its 95 % bootstrap interval (BCa)."""
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    found = bootstrap((np.asarray(values),), np.mean, n_resamples=RESAMPLES, random_state=0)
    low, high = found.confidence_interval
    return Interval(mean, float(low), float(high))
