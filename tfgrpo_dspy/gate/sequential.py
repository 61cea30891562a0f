"""Is one library better than another? A paired test that may be looked at while it runs.

Both libraries are tried on the same examples, with the same indices. What is tested is the sum of
an example's gains, and its sign is flipped as a whole: so however often one example is used, it
counts as one piece of evidence. The test at each look is exact for lessons that do nothing
(Fisher's sign-flip randomisation test: no assumption on how scores are distributed); the looks
share out the error by alpha spending (Lan and DeMets, Biometrika 70, 1983; power family of Kim and
DeMets, Biometrika 74, 1987), with levels from the recursion of Armitage, McPherson and Rowe
(JRSS A 132, 1969). It ends early, too, where the conditional power (Lan and Wittes, Biometrics 44,
1988) says that more trials would hardly change the answer; that only ever lowers the error.

Betting and other anytime-valid tests (Waudby-Smith and Ramdas, JRSS B 86, 2024) need no number of
looks fixed before and no symmetry, but known bounds of the scores, and more pairs for the same
power. The price of ours: of a lesson that does harm by rare, large losses which no trial has met,
it says what the trials say.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate.protocol import Trial, TrialEvidence, Trials

Floats = NDArray[np.float64]

SPENDING_POWER = 2.0
"""Of the error, the share `fraction ** SPENDING_POWER` is spent when that fraction is measured."""
MIN_TRIALS = 2
"""A comparison takes this many rollouts at least."""
MIN_FIRST_LOOK = 8
"""Fewer pairs are not looked at: no sign-flip test of them can say anything."""
_CELLS = 1000
"""Sums of gains are rounded to this many cells of their total, so that all flips are counted."""
_GRID = np.linspace(-7.0, 7.0, 701)


def check_settings(error: float, max_trials: int, futility: float, max_passes: int) -> None:
    """Refuse what means nothing.

    Raises:
        ValueError: which value, and what to pass.
    """
    if not 0 < error <= 1:
        raise ValueError(f"error={error}: pass a probability above 0, such as 0.1.")
    if max_trials < MIN_TRIALS:
        raise ValueError(
            f"max_trials={max_trials}: a comparison takes at least {MIN_TRIALS} rollouts."
        )
    if not 0 <= futility < 1:
        raise ValueError(f"futility={futility}: pass a probability below 1; 0: never give up.")
    if max_passes < 1:
        raise ValueError(f"max_passes={max_passes}: an example is used at least once.")


def sign_flip_p(sums: Sequence[float]) -> float:
    """The share of all sign flips of these numbers whose total is at least the one observed.

    `(1, 1, 1) -> 0.125`, and 1.0 where all are 0. Computed for all `2 ** n` flips at once.
    """
    values = np.asarray([value for value in sums if value], dtype=float)
    if not len(values):
        return 1.0
    sizes = np.abs(values)
    whole = sizes.min() >= 1 and np.abs(sizes - np.rint(sizes)).max() < 1e-9
    if not whole or sizes.sum() > _CELLS:
        sizes = sizes / sizes.max()  # so that no sum is too small to be divided by
        sizes = sizes * _CELLS / sizes.sum()
    steps = np.rint(sizes).astype(int)
    share = np.zeros(int(steps.sum()) + 1)
    share[0] = 1.0
    for step in steps[steps > 0]:
        moved = 0.5 * share
        share = moved.copy()
        share[step:] += moved[: len(share) - step]
    return float(share[int(steps[values > 0].sum()) :].sum())


@lru_cache(maxsize=1024)
def look_levels(fractions: tuple[float, ...], error: float) -> tuple[float, ...]:
    """The p-value at which each look may reject, so that all looks together err at most `error`.

    `fractions` are the shares of the planned pairs that the looks have seen, the last one 1.
    """
    density, seen, spent = np.zeros(len(_GRID)), 0.0, 0.0
    levels: list[float] = []
    for fraction in fractions:
        density = _diffused(density, seen, fraction)
        target = error * fraction**SPENDING_POWER - spent
        bound = _upper_quantile(density, target)
        levels.append(float(ndtr(-bound / math.sqrt(fraction))))
        density[bound <= _GRID] = 0.0
        seen, spent = fraction, spent + target
    return tuple(levels)


def _diffused(density: Floats, seen: float, fraction: float) -> Floats:
    """The density of a Brownian motion at `fraction`, from that at `seen`, without what stopped."""
    if not seen:
        return _normal(_GRID, fraction)
    return _kernel(round(fraction - seen, 9)) @ density


@lru_cache(maxsize=16)
def _kernel(variance: float) -> Floats:
    step = float(_GRID[1] - _GRID[0])
    return _normal(_GRID[:, None] - _GRID[None, :], variance) * step


def _normal(x: Floats, variance: float) -> Floats:
    return np.asarray(np.exp(-(x**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance))


def _upper_quantile(density: Floats, target: float) -> float:
    """Above which the density holds `target`; 7 where it holds less."""
    step = float(_GRID[1] - _GRID[0])
    tail = np.cumsum(density[::-1]) * step
    return float(np.interp(target, tail, _GRID[::-1] - step / 2))


def slots(order: Sequence[int], n: int, first: int = 0) -> list[tuple[int, int]]:
    """Example and index of `n` rollouts: every example once, then every one once more, ...

    The order (of examples) is that of the whole run, so what the incumbent was tried on in one
    update serves the next. Indices go up in steps of two from `first`: even ones are for tests, odd
    ones for choosing what is tested, so that no test sees the scores that its candidate was chosen
    by.
    """
    return [(order[slot % len(order)], first + 2 * (slot // len(order))) for slot in range(n)]


@dataclass(frozen=True, slots=True)
class Plan:
    """At most `n_pairs` pairs, looked at `n_looks` times, erring with probability `error`.

    `futility`: it ends when the chance that the trend so far leads to acceptance falls below it.
    """

    n_pairs: int
    error: float
    n_looks: int = 4
    futility: float = 0.02

    @property
    def looks(self) -> tuple[int, ...]:
        """How many pairs each look has seen."""
        even = (math.ceil(self.n_pairs * k / self.n_looks) for k in range(1, self.n_looks + 1))
        return tuple(dict.fromkeys(max(n, min(MIN_FIRST_LOOK, self.n_pairs)) for n in even))

    @property
    def levels(self) -> tuple[float, ...]:
        """The p-value at which each look accepts."""
        return look_levels(tuple(n / self.n_pairs for n in self.looks), self.error)

    def is_hopeless(self, n_examples: int) -> bool:
        """Even if every example gained, no look would accept: there are too few of them."""
        if self.n_pairs < 1 or self.error <= 0:
            return True
        return 0.5 ** min(self.n_pairs, n_examples) > max(self.levels)


@dataclass(frozen=True, slots=True)
class Account:
    """What a gate remembers: the error that its run has spent, and what the incumbent has shown.

    A comparison spends all that it was given, also where it ends early: that it might have gone on
    to accept was what the error was for. What was never begun leaves it to later updates. The
    incumbent's first `n_known` slots need not be paid for again.
    """

    error_spent: float = 0.0
    n_known: int = 0

    @classmethod
    def of(cls, evidence: TrialEvidence, error: float) -> "Account":
        """What was remembered; where nothing was, every update before has spent its whole share."""
        if isinstance(evidence.memory, Account):
            return evidence.memory
        return cls(error * min(1.0, evidence.update / max(evidence.n_updates, 1)))

    def share(self, evidence: TrialEvidence, error: float) -> float:
        """How much of the error this update may spend: an equal part of what is left."""
        return max(error - self.error_spent, 0.0) / max(evidence.n_updates - evidence.update, 1)

    def n_pairs(self, n_trials: int) -> int:
        """How many pairs so many rollouts make."""
        return n_trials if self.n_known >= n_trials else (n_trials + self.n_known) // 2

    def after(self, verdict: "Verdict", keeps_known: bool = True) -> "Account":
        """What is remembered after a comparison; `keeps_known`: what was tested is what stands."""
        seen = verdict.n_slots
        known = max(self.n_known, seen) if not verdict.is_better else seen * keeps_known
        return Account(self.error_spent + verdict.error_spent, known)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a comparison ended: the mean gain over `n_pairs`, and the error that it has spent."""

    is_better: bool
    gain: float
    standard_error: float
    n_pairs: int
    n_examples: int
    error_spent: float
    n_slots: int = 0

    def __str__(self) -> str:
        if not self.n_pairs:
            return "nothing could be measured"
        return (
            f"{self.gain:+.3f} (standard error {self.standard_error:.3f}) over {self.n_pairs} "
            f"pairs of rollouts on {self.n_examples} validation examples"
        )


def compare(evidence: TrialEvidence, library: ExperienceLibrary, plan: Plan) -> Trials | Verdict:
    """The trials of the next look at library against incumbent, or how the comparison ended."""
    levels = plan.levels
    for n_seen, level in zip(plan.looks, levels, strict=True):
        wanted = slots(evidence.validation_order, n_seen)
        trials = tuple(
            Trial(lib, example, index)
            for lib in (evidence.incumbent, library)
            for example, index in wanted
        )
        if any(trial not in evidence.scores for trial in trials):
            return Trials(trials)
        verdict, z = _look(evidence, trials, plan, level, n_seen)
        if verdict.is_better or n_seen == plan.n_pairs or _is_futile(z, n_seen, plan, levels[-1]):
            return verdict
    return _NOTHING


def _look(
    evidence: TrialEvidence, trials: Sequence[Trial], plan: Plan, level: float, n_seen: int
) -> tuple[Verdict, float]:
    """What is known after this look, and its standardised total."""
    gains: dict[int, list[float]] = {}
    half = len(trials) // 2
    for old, new in zip(trials[:half], trials[half:], strict=True):
        before, after = evidence.scores[old], evidence.scores[new]
        if before is not None and after is not None:
            gains.setdefault(old.example, []).append(after - before)
    sums = [math.fsum(values) for values in gains.values()]
    total, length = math.fsum(sums), math.sqrt(math.fsum(value * value for value in sums))
    counts = [len(values) for values in gains.values()]
    n_pairs = sum(counts)
    mean = total / n_pairs if n_pairs else 0.0
    verdict = Verdict(
        is_better=total > 0 and sign_flip_p(sums) <= level,
        gain=mean,
        standard_error=_standard_error(sums, counts, mean),
        n_pairs=n_pairs,
        n_examples=len(sums),
        error_spent=plan.error,
        n_slots=n_seen,
    )
    return verdict, total / length if length else 0.0


def _standard_error(sums: Sequence[float], counts: Sequence[int], mean: float) -> float:
    """That of a mean over all pairs, with the examples as clusters; infinite for one example."""
    n = len(sums)
    if n < 2:
        return math.inf
    apart = math.fsum((s - mean * count) ** 2 for s, count in zip(sums, counts, strict=True))
    return math.sqrt(n / (n - 1) * apart) / sum(counts)


def _is_futile(z: float, n_seen: int, plan: Plan, last_level: float) -> bool:
    """The trend so far leads to acceptance with less than that probability."""
    fraction = n_seen / plan.n_pairs
    bound = -ndtri(last_level)
    ahead = (z / math.sqrt(fraction) - bound) / math.sqrt(1 - fraction)
    return bool(ndtr(ahead) < plan.futility)


_NOTHING = Verdict(False, 0.0, math.inf, 0, 0, 0.0)
