"""From records to figures: means, dollars, and paired differences with bootstrap intervals.

Differences are paired: the same seed (so the same task and data) and the same test example. With 3
seeds or more the intervals are bootstrapped over seeds, whose mean differences hold the luck of
optimizer, data and LM alike; with fewer, over test examples, which leaves the luck of the
optimizer out: the tables say which.

Dollars are tokens at stated prices; the reflection LM costs so many times the policy LM's price a
token. A simulated LM counts words for tokens. At equal dollars an optimizer has the score between
those of its runs at the budgets around, in proportion; beyond its largest budget, the score there.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

ENOUGH_SEEDS = 3
RESAMPLES = 2000
PRICES = (0.15, 0.60)
"""US dollars for a million prompt and completion tokens of the policy LM."""
RATIOS = (1, 5)
"""Of the reflection LM's price to the policy LM's."""

Record = Mapping[str, Any]
Runs = Mapping[int, Record]
"""The runs of one optimizer by seed."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def dollars(record: Record, ratio: float) -> float:
    """What a run has cost, with a reflection LM at so many times the price."""
    spent = record["spent"]

    def cost(role: str) -> float:
        tokens = (spent[role]["prompt_tokens"], spent[role]["completion_tokens"])
        return sum(n * price for n, price in zip(tokens, PRICES, strict=True)) / 1e6

    return cost("policy") + ratio * cost("reflection")


def n_calls(record: Record) -> int:
    """LM calls of both roles."""
    return sum(spent["calls"] for spent in record["spent"].values())


def by_optimizer(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    """The records by optimizer and seed; of several budgets, the last."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        found.setdefault(record["optimizer"], {})[record["seed"]] = record
    return found


def at_budget(records: Iterable[Record], task: str, budget: int) -> dict[str, dict[int, Record]]:
    """The runs of a task at a budget, and those without budget."""
    return by_optimizer(r for r in records if r["task"] == task and r["budget"] in (0, budget))


def mean(runs: Runs, seeds: Iterable[int] | None = None) -> float:
    """The mean score, of these seeds or of all."""
    return statistics.fmean(runs[s]["mean"] for s in (runs if seeds is None else seeds))


def difference(ours: Runs, theirs: Runs) -> Interval | None:
    """How much higher we score than they do, on the seeds that both have; None: there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    if len(seeds) >= ENOUGH_SEEDS:
        return interval([float(ours[seed]["mean"] - theirs[seed]["mean"]) for seed in seeds])
    pairs = [
        np.subtract(ours[seed]["scores"], theirs[seed]["scores"]).astype(float) for seed in seeds
    ]
    return interval(np.concatenate(pairs))


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean with its 95 % bootstrap interval (BCa)."""
    middle = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(middle, middle, middle)
    found = bootstrap((np.asarray(values),), np.mean, n_resamples=RESAMPLES, random_state=0)
    low, high = found.confidence_interval
    return Interval(middle, float(low), float(high))


def at_dollars(runs: Iterable[Record], wanted: float, ratio: float) -> tuple[float, bool] | None:
    """The score of one optimizer and seed at so many dollars, and whether it has spent as much.

    `runs` are its runs at all budgets, and the student, which costs nothing. None: only that.
    """
    points = sorted((dollars(run, ratio), run["mean"]) for run in runs)
    if len(points) < 2:
        return None
    cost, score = zip(*points, strict=True)
    return float(np.interp(wanted, cost, score)), wanted <= cost[-1]
