"""What a contrast says of an experience: does it help, do nothing, or harm? Pure arithmetic.

A contrast is one example's rollouts with the experience and without it. Scores in [0, 1] count as
fractions of a success: of all scores with a given mean, successes and failures vary most, so this
believes fractional scores too little rather than too much. The chance of success without (p0) and
with the experience (p1) is unknown; the likelihood of a hypothesis is its mean over a grid of
both. For 'helps' p1 lies above p0 by `MARGIN` or more, for 'harms' below, else they are equal.
Source of the hypotheses, the discounts and their values: the study named in `gate.trial`.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARGIN = 0.1
"""The least difference of p1 and p0 that counts as an effect."""
N_GRID = 40
LEAST = 1e-300
"""Stands in for a likelihood too small for a float."""
Array = NDArray[np.float64]
Likelihoods = tuple[float, float, float]
"""Of 'helps', 'nothing' and 'harms', up to a common factor."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Rollouts of one example with and without an experience: their numbers, their summed scores.

    `is_selected` says that the rollouts without were taken because their scores differ, as those
    are that a lesson was drawn from; the likelihood corrects for it.
    """

    example: int
    n_with: int
    sum_with: float
    n_without: int
    sum_without: float
    is_selected: bool = False

    def to_list(self) -> list[float | int | bool]:
        """Its fields, as JSON has them."""
        return [getattr(self, name) for name in self.__slots__]

    @property
    def n_rollouts(self) -> int:
        """How many rollouts it counts."""
        return self.n_with + self.n_without

    @property
    def likelihoods(self) -> Likelihoods:
        """Of the three hypotheses; equal where one side is empty: nothing is compared then.

        Raises:
            ValueError: a sum is not one of scores in [0, 1].
        """
        for n, total in ((self.n_with, self.sum_with), (self.n_without, self.sum_without)):
            if not 0 <= total <= n:
                raise ValueError(f"{self}: {total} is no sum of {n} scores in [0, 1]; scale them.")
        if not self.n_with or not self.n_without:
            return (1.0, 1.0, 1.0)
        is_mixed = 0 < self.sum_without < self.n_without and self.n_without > 1
        corrects = self.is_selected and is_mixed
        counts = (self.n_with, self.sum_with, self.n_without, self.sum_without)
        return _likelihoods(*(round(count, 6) for count in counts), corrects)


@dataclass(frozen=True, slots=True)
class Posterior:
    """Probabilities that an experience helps, does nothing, harms; and what its presence adds.

    `gain` is the expected p1 - p0 on an example that it concerns, `error` its standard deviation;
    both from contrasts outside its sources, where there are any.
    """

    helps: float
    nothing: float
    harms: float
    gain: float
    error: float


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What is believed before anything is measured.

    Args:
        helps: prior probability that a lesson helps where it concerns an example.
        harms: prior probability that it harms there.
        leak: probability that a lesson which helps on the examples that it was drawn from only
            gives their answers away: whatever happens there, the odds of 'helps' against the rest
            cannot rise by more than 1 / leak. 0: source examples are as good as any.
        precision: probability that an experience concerns an example that it is thought to
            concern.

    Raises:
        ValueError: one of them is no probability, or nothing is left for 'does nothing'.
    """

    helps: float = 0.5
    harms: float = 0.25
    leak: float = 0.2
    precision: float = 0.7

    def __post_init__(self) -> None:
        for name in ("helps", "harms", "leak", "precision"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: give a probability, from 0 to 1.")
        if min(self.helps, self.harms) <= 0 or self.helps + self.harms > 1 - 1e-9:
            raise ValueError(
                f"helps={self.helps}, harms={self.harms}: give both more than 0, and less than 1 "
                f"together."
            )

    @property
    def prior(self) -> Likelihoods:
        """Of 'helps', 'nothing' and 'harms'."""
        return (self.helps, 1 - self.helps - self.harms, self.harms)

    def posterior(self, contrasts: Iterable[Contrast], sources: Collection[int] = ()) -> Posterior:
        """What is believed after these contrasts; `sources` are the examples it was drawn from.

        All contrasts of the sources share one doubt (does it leak?), those of any other example
        share another (does it concern this one?).
        """
        given = tuple(contrasts)
        by_doubt: dict[int | None, list[Contrast]] = defaultdict(list)
        for contrast in given:
            by_doubt[None if contrast.example in sources else contrast.example].append(contrast)
        logs = np.log(self.prior)
        for example, those in by_doubt.items():
            logs += self._doubted(_joint(those), example is None)
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        outside = tuple(contrast for contrast in given if contrast.example not in sources)
        gain, error = _gain(weights, outside or given)
        helps, nothing, harms = (float(weight) for weight in weights)
        return Posterior(helps, nothing, harms, gain, error)

    def explains(self, posterior: Posterior, contrast: Contrast, is_source: bool) -> float:
        """The probability that the experience has an effect in this very contrast."""
        helps, nothing, harms = np.exp(_joint([contrast]))
        concerned = 1.0 if is_source else self.precision
        effect = concerned * (posterior.helps * helps + posterior.harms * harms)
        without = (1 - concerned * (posterior.helps + posterior.harms)) * nothing
        return float(effect / (effect + without))

    def _doubted(self, logs: Array, is_source: bool) -> Array:
        """Log likelihoods, given that the contrast may not be about the experience's advice."""
        likelihoods = np.exp(logs - logs.max())
        doubt = self.leak if is_source else 1 - self.precision
        instead = likelihoods[0] if is_source else likelihoods[1]
        mixed = (1 - doubt) * likelihoods + doubt * instead
        return np.asarray(np.log(np.maximum(mixed, LEAST)))


def _joint(contrasts: Iterable[Contrast]) -> Array:
    """The log likelihoods of all of them together."""
    return np.asarray(sum(np.log(contrast.likelihoods) for contrast in contrasts))


def _gain(weights: Array, contrasts: tuple[Contrast, ...]) -> tuple[float, float]:
    """Mean and standard deviation of p1 - p0, the counts of all contrasts taken together."""
    used = [contrast for contrast in contrasts if contrast.n_with and contrast.n_without]
    names = ("n_with", "sum_with", "n_without", "sum_without")
    counts = (math.fsum(getattr(contrast, name) for contrast in used) for name in names)
    means, squares = _moments(*(round(count, 6) for count in counts))
    mean = float(weights @ means)
    return mean, math.sqrt(max(float(weights @ squares) - mean**2, 0.0))


@functools.cache
def _grid() -> tuple[Array, Array]:
    """The grid of a probability, and the three priors of (p0, p1) on it, each of sum 1.

    'harms' is 'helps' with the roles of p0 and p1 exchanged, so that nothing depends on which side
    is called 'with'. For 'helps' the mean of two forms is taken, one where p0 and one where p1 is
    uniform as far as the margin allows.
    """
    grid = (np.arange(N_GRID) + 0.5) / N_GRID
    above = (grid[None, :] >= grid[:, None] + MARGIN - 1e-9).astype(float)
    by_row = above / np.maximum(above.sum(axis=1, keepdims=True), 1)
    by_column = above / np.maximum(above.sum(axis=0, keepdims=True), 1)
    helps = (by_row + by_column) / (by_row + by_column).sum()
    return grid, np.stack([helps, np.eye(N_GRID) / N_GRID, helps.T])


def _powers(n: float, total: float) -> Array:
    """p^total (1-p)^(n-total) on the grid, its largest value 1: a common factor changes nothing."""
    grid, _ = _grid()
    logs = total * np.log(grid) + (n - total) * np.log1p(-grid)
    return np.asarray(np.exp(logs - logs.max()))


@functools.lru_cache(maxsize=100_000)
def _likelihoods(
    n_with: float, sum_with: float, n_without: float, sum_without: float, corrects: bool
) -> Likelihoods:
    grid, priors = _grid()
    without = _powers(n_without, sum_without)
    if corrects:
        without = without / (1 - grid**n_without - (1 - grid) ** n_without)
    helps, nothing, harms = np.maximum(without @ priors @ _powers(n_with, sum_with), LEAST)
    return (float(helps), float(nothing), float(harms))


@functools.lru_cache(maxsize=100_000)
def _moments(
    n_with: float, sum_with: float, n_without: float, sum_without: float
) -> tuple[Array, Array]:
    """Mean and mean square of p1 - p0 under each of the hypotheses."""
    grid, priors = _grid()
    difference = grid[None, :] - grid[:, None]
    likelihoods = np.outer(_powers(n_without, sum_without), _powers(n_with, sum_with))
    weights = priors * (likelihoods + LEAST)
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    return (weights * difference).sum(axis=(1, 2)), (weights * difference**2).sum(axis=(1, 2))
