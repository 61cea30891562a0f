"""The tables of `benchmarks/gates.py`: which gates meet which lessons, and what is shown of it."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gate_rules import GepaRule, MeanRises, SimbaRule
from gate_world import N_UPDATES, TRAINING, Outcome, run, world
from scipy.stats import beta

from tfgrpo_dspy.gate import AutoGate, FactorialGate, NoGate, PairedGate, TrialInUse

EARLY = 8
"""Lessons of so many first updates have training groups after them."""
OURS = {"auto": AutoGate(), "factorial": FactorialGate(), "paired": PairedGate()}
OTHERS = {
    "none": NoGate(),
    "mean rises": MeanRises(),
    "GEPA's rule": GepaRule(),
    "SIMBA's rule": SimbaRule(),
}
IN_USE = {
    0: {24: (0.85, 0.95, 0.99), 48: (0.7, 0.77), 66: (0.85, 0.95, 0.98), 88: (0.67,)},
    4: {100: (0.85, 0.9, 0.95), 190: (0.8, 0.85, 0.9)},
    12: {100: (0.9, 0.95), 190: (0.9,)},
}
"""By the number of useless lessons: rollouts an update that `TrialInUse` may take, about what the
rules of GEPA and SIMBA take here, and the probabilities at which it settles."""
Sums = Mapping[str, float]
Figures = dict[str, Any]
Updates = Callable[[int], Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Cell:
    """A row of a table: so many runs of one gate, and what they show.

    `updates` says, by the number of the run, the worth of each lesson of each update.
    """

    table: str
    gate_name: str
    gate: Any
    settings: Mapping[str, Any]
    updates: Updates
    n_runs: int

    @property
    def name(self) -> str:
        """By which it is asked for, and kept."""
        return ", ".join([self.gate_name, *(f"{key} {own}" for key, own in self.settings.items())])

    def sums_of(self, number: int) -> Counter[str]:
        """One run, as numbers to be added up."""
        place = world(number, self.settings["examples"], self.settings.get("scores", "bernoulli"))
        return sums(run(self.gate, place, self.updates(number)))

    def row(self, counted: Sums) -> Figures:
        """What is shown of the sums."""
        about = {"gate": self.gate_name, **self.settings, "runs": round(counted["runs"])}
        return {**about, **FIGURES[self.table](counted), "rollouts": rollouts(counted)}


def sums(outcome: Outcome) -> Counter[str]:
    """What the tables need of a run."""
    counted: Counter[str] = Counter(
        runs=1, any=bool(outcome.n_returned), worse=outcome.change < -0.02, paid=outcome.n_paid
    )
    for lesson in outcome.lessons:
        kind = "useless" if lesson.worth == 0 else "good" if lesson.worth > 0 else "bad"
        counted[kind] += 1
        counted[f"{kind} returned"] += lesson.is_returned
        if lesson.update < EARLY:
            counted[f"{kind} early"] += 1
            counted[f"{kind} early returned"] += lesson.is_returned
        if lesson.effect is not None and lesson.error is not None:
            off = lesson.effect - lesson.worth
            counted[f"{kind} stated"] += 1
            counted[f"{kind} off"] += off
            counted[f"{kind} covered"] += abs(off) <= 1.6449 * lesson.error
    return counted


def upper_limit(count: float, n: float) -> float:
    """The upper 95 % limit of a share (Clopper and Pearson, one-sided)."""
    return float(beta.ppf(0.95, count + 1, n - count)) if count < n else 1.0


def share(counted: Sums, part: str, whole: str) -> float | None:
    """None where there is nothing to share."""
    n = counted.get(whole, 0)
    return round(counted.get(part, 0) / n, 4) if n else None


def rollouts(counted: Sums) -> float:
    """Those of an update that the gate asked for."""
    return round(counted["paid"] / counted["runs"] / N_UPDATES, 1)


def with_limit(name: str, key: str, counted: Sums) -> Figures:
    """The share of runs, and its upper limit."""
    limit = upper_limit(counted.get(key, 0), counted["runs"])
    return {name: share(counted, key, "runs"), "upper limit": round(limit, 4)}


def accepted(kind: str, counted: Sums) -> Figures:
    """The share of the lessons, and of those that have training groups after them."""
    return {
        "lessons accepted": share(counted, f"{kind} returned", kind),
        "of early ones": share(counted, f"{kind} early returned", f"{kind} early"),
    }


# ---------------------------------------------------------------------- null and harm


def alike(worth: float, n_lessons: int) -> Updates:
    """In each update so many lessons of that worth."""
    return lambda _: [[worth] * n_lessons] * N_UPDATES


def null_figures(counted: Sums) -> Figures:
    return {**with_limit("runs with any", "any", counted), **accepted("useless", counted)}


def null_cell(name: str, gate: Any, n: int, n_lessons: int, scores: str, n_runs: int) -> Cell:
    settings = {"scores": scores, "examples": n, "lessons": n_lessons}
    return Cell("null", name, gate, settings, alike(0.0, n_lessons), n_runs)


def null() -> Iterator[Cell]:
    """Lessons that do nothing. With a single one, factorial and paired gate do the same."""
    for n, n_lessons, scores in itertools.product((20, 50, 200), (1, 4), ("bernoulli", "skewed")):
        yield null_cell("auto", OURS["auto"], n, n_lessons, scores, 1000)
    for n in (20, 50, 200):
        for scores, n_runs in (("bernoulli", 1000), ("rare", 300), ("skewed", 1000)):
            yield null_cell("paired", OURS["paired"], n, 1, scores, n_runs)
        for name in ("paired", "factorial"):
            yield null_cell(name, OURS[name], n, 4, "bernoulli", 400)
        for name, gate in OTHERS.items():
            yield null_cell(name, gate, n, 1, "bernoulli", 100)


def harm_figures(counted: Sums) -> Figures:
    return {**with_limit("worse by > 0.02", "worse", counted), **accepted("bad", counted)}


def harm() -> Iterator[Cell]:
    """Lessons that cost something."""
    ours = [("auto", 1), ("auto", 4), ("paired", 1), ("factorial", 4)]
    gates = [(*own, 300) for own in ours] + [(name, 1, 60) for name in OTHERS]
    for (name, n_lessons, n_runs), n, cost in itertools.product(
        gates, (20, 50, 200), (0.05, 0.1, 0.2)
    ):
        settings = {"examples": n, "cost": cost, "lessons": n_lessons}
        gate = {**OURS, **OTHERS}[name]
        yield Cell("harm", name, gate, settings, alike(-cost, n_lessons), n_runs)


# ---------------------------------------------------------------------- power


def mixed(worth: float, n_useless: int) -> Updates:
    """In 3 of the 12 updates a good lesson among useless ones; in the others, useless ones."""

    def updates(number: int) -> list[list[float]]:
        good = set(np.random.default_rng([2, number]).choice(N_UPDATES, 3, replace=False).tolist())
        return [
            [worth, *[0.0] * n_useless] if update in good else [0.0] * max(n_useless, 1)
            for update in range(N_UPDATES)
        ]

    return updates


def power_gates(n_useless: int) -> dict[str, Any]:
    """Ours as they are, the others' rules as they are and stricter, `TrialInUse` lax and strict."""
    gates: dict[str, Any] = {**OURS, **OTHERS}
    for bar in (1.0, 2.0):
        gates[f"GEPA's rule, > {bar:g} errors"] = GepaRule(min_errors=bar)
        gates[f"SIMBA's rule, > {bar:g} errors"] = SimbaRule(min_errors=bar)
    for max_trials, probabilities in IN_USE[n_useless].items():
        for settle_at in probabilities:
            in_use = TrialInUse(max_trials, settle_at)
            gates[f"in use, {max_trials}, {settle_at}"] = AutoGate(broad=in_use)
    return gates


def power_figures(counted: Sums) -> Figures:
    return {
        "found": share(counted, "good returned", "good"),
        "found of early": share(counted, "good early returned", "good early"),
        "false": share(counted, "useless returned", "useless"),
        "effect off by": share(counted, "good off", "good stated"),
        "90 % covers": share(counted, "good covered", "good stated"),
    }


def power() -> Iterator[Cell]:
    """Lessons that are worth something."""
    for n_useless, worth in itertools.product((0, 4, 12), (0.05, 0.1, 0.2)):
        settings = {"examples": 50, "worth": worth, "useless": n_useless}
        for name, gate in power_gates(n_useless).items():
            n_runs = {0: 200, 4: 150, 12: 40}[n_useless]
            yield Cell("power", name, gate, settings, mixed(worth, n_useless), n_runs)


def compare_power(rows: Iterable[Figures]) -> None:
    """Beside each other rule: the most that ours find with no more useless ones and no more cost.

    Once with the rollouts that gates ask for; once with ours charged for all training groups, too,
    and the others for none.
    """
    cells: dict[tuple[float, int], list[Figures]] = {}
    for row in rows:
        cells.setdefault((row["worth"], row["useless"]), []).append(row)
    for cell in cells.values():
        ours = [row for row in cell if row["gate"].startswith("in use") or row["gate"] in OURS]
        for row in cell:
            if row not in ours:
                row["ours"] = best_within(ours, row)
                row["ours, groups charged"] = best_within(ours, row, TRAINING.n_rollouts)


def best_within(ours: Iterable[Figures], row: Figures, charged: int = 0) -> float | None:
    """The most that ours find with no more useless lessons and 5 % more rollouts than this one."""
    fair = [
        mine["found"]
        for mine in ours
        if mine["false"] <= row["false"] + 0.002
        and mine["rollouts"] + charged <= 1.05 * row["rollouts"]
    ]
    return max(fair, default=None)


FIGURES: dict[str, Callable[[Sums], Figures]] = {
    "null": null_figures,
    "harm": harm_figures,
    "power": power_figures,
}
CELLS: dict[str, Callable[[], Iterator[Cell]]] = {"null": null, "harm": harm, "power": power}
