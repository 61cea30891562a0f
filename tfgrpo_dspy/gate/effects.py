"""What each experience is worth, from rollouts in which it was present or absent at random.

`balanced_presence` says which candidates each rollout is given: a rollout and its complement on the
same example (a fold-over of Hadamard rows; Plackett and Burman, Biometrika 33, 1946), so that every
candidate is present in exactly half of each example's rollouts, whatever the others do, and N
rollouts measure each of K candidates as N/2 against N/2.

`estimate_effects` is a linear regression of the score on presence with the example as block. The
estimand is the mean effect of an experience's presence over random halves of the others (over the
mix in which they were present, where rows come from elsewhere). Standard errors are jackknifed over
blocks (CV3; MacKinnon, Nielsen and Webb, Journal of Applied Econometrics 38, 2023), never below the
classical ones, and stretched by Student's t for few blocks. Estimates are pooled: shrunk to 0 by a
distribution of true effects that is learned from all candidates at once, so that a lucky one among
thirty is not believed. It is a mixture of two normal ones (as in Stephens, Biostatistics 18, 2017):
a share of the candidates has effects of some spread, the others next to none; so a few good ones
are not shrunk like the many useless around them. Share and spread are summed over a grid (the
spread with a half-normal hyperprior; Gelman, Bayesian Analysis 1, 2006; most of the weight on
'all have some').

Where nothing can be said (one block, constant scores, presence that never varies or cannot be told
from another's), the standard error is infinite. A perfect fit is not believed either: the residual
variance is taken to be at least that of one more rollout, of N + 2, gone the other way (Laplace).
"""

import math
import random
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard
from scipy.special import ndtr, ndtri, stdtrit

from tfgrpo_dspy.experience import Effect

Floats = NDArray[np.float64]

MOST_GROUPS = 100
_TOLERANCE = 1e-8
_PRIOR_SCALE = 0.25
"""Scale of the hyperprior on the spread of true effects, in standard deviations of the scores."""
_SPREADS = np.linspace(0.0, 4.0, 41)[1:]
_NEXT_TO_NONE = np.array([0.1])
"""The spread of the effects that are next to none, on the same scale as `_SPREADS`."""
_SHARES = np.array([0.02, 0.05, 0.1, 0.2, 0.999])
"""How many of the candidates have an effect to speak of, as shares; the last: as good as all."""
_SHARE_WEIGHTS = np.array([1.0, 1.0, 1.0, 1.0, 20.0])
"""How likely each share is before anything is measured, up to a factor.

Much weight on 'all', so that intervals of ten candidates with normal effects hold what they say;
the rest lets two good ones among fifty useless stand out (`benchmarks/gates.py` measures both).
"""
_LEVEL = 0.95
"""The one-sided level at which a stretched error is that of Student's t."""


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout: its block (the example), what was present, its score (None: lost)."""

    block: Hashable
    present: frozenset[str]
    score: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """One candidate: `measured` is the regression's effect, `effect` the pooled one.

    The two probabilities are posterior ones, that the effect is above 0, and that it is above
    `-margin` (of `estimate_effects`).
    """

    measured: Effect
    effect: Effect
    p_positive: float
    p_harmless: float

    @property
    def is_known(self) -> bool:
        """Whether the rows say anything about it."""
        return math.isfinite(self.measured.standard_error)

    @property
    def p_unpooled(self) -> float:
        """The probability that the effect is above 0 by the regression alone, with a flat prior."""
        if not self.is_known:
            return 0.5
        return float(ndtr(self.measured.estimate / self.measured.standard_error))


def balanced_presence(n_candidates: int, n_pairs: int, seed: str) -> list[tuple[bool, ...]]:
    """Who is present in the first rollout of each pair; the second gets the complement.

    Over every block of `2 ** k > n_candidates` pairs, each two candidates are together in half of
    them. There are no more distinct rows than that, so prompts repeat and can be cached.

    Raises:
        ValueError: fewer than one candidate, or fewer than no pairs.
    """
    if n_candidates < 1 or n_pairs < 0:
        raise ValueError(
            f"n_candidates={n_candidates}, n_pairs={n_pairs}: pass at least 1 and 0 of them."
        )
    rng = random.Random(f"presence/{seed}")
    size = 1 << n_candidates.bit_length()
    columns = rng.sample(range(1, size), n_candidates)
    rows = [tuple(bool(value > 0) for value in row) for row in hadamard(size)[:, columns]]
    drawn: list[tuple[bool, ...]] = []
    while len(drawn) < n_pairs:
        drawn += rng.sample(rows, len(rows))
    return drawn[:n_pairs]


def estimate_effects(rows: Iterable[Row], margin: float = 0.0) -> dict[str, Estimate]:
    """The effect of everything that is present in one of the rows, by name; pure, order-free.

    `margin` is how much, in score, something may lose and be harmless still.
    """
    scored = [row for row in rows if row.score is not None and math.isfinite(row.score)]
    names = sorted({name for row in scored for name in row.present})
    if not names:
        return {}
    fit = _Fit(*_within(scored, names))
    n_rollouts = fit.n_rollouts()
    values, errors = fit.coefficients(), fit.standard_errors()
    pooled = _pooled(values, errors, _PRIOR_SCALE * fit.spread, margin)
    return {
        name: _estimate(values[k], errors[k], n_rollouts[k], pooled[k])
        for k, name in enumerate(names)
    }


def _within(rows: Sequence[Row], names: Sequence[str]) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Presence and score less their means in the row's block, and each row's block by number."""
    blocks = {block: i for i, block in enumerate(dict.fromkeys(row.block for row in rows))}
    block = np.array([blocks[row.block] for row in rows])
    presence = np.array([[name in row.present for name in names] for row in rows], dtype=float)
    score = np.array([row.score for row in rows], dtype=float)
    return _demeaned(presence, block), _demeaned(score[:, None], block)[:, 0], block


def _demeaned(values: Floats, block: NDArray[np.intp]) -> Floats:
    n = np.bincount(block)
    sums = np.zeros((len(n), values.shape[1]))
    np.add.at(sums, block, values)
    return np.asarray(values - (sums / n[:, None])[block])


class _Fit:
    """Least squares within blocks, and what it leaves unexplained."""

    def __init__(self, presence: Floats, score: Floats, block: NDArray[np.intp]) -> None:
        self._x, self._y, self._block = presence, score, block
        self._gram = presence.T @ presence
        self._inverse = np.linalg.pinv(self._gram, hermitian=True, rcond=_TOLERANCE)
        self._varies = np.abs(presence) > _TOLERANCE
        self._values = self._inverse @ (presence.T @ score)

    @property
    def spread(self) -> float:
        """The standard deviation of scores within blocks."""
        degrees = len(self._y) - self._block.max() - 1
        return math.sqrt(float(self._y @ self._y) / degrees) if degrees > 0 else 0.0

    def n_rollouts(self) -> list[int]:
        """Of each candidate: in how many rows it could make a difference."""
        return [int(n) for n in self._varies.sum(axis=0)]

    def coefficients(self) -> Floats:
        return np.asarray(self._values)

    def standard_errors(self) -> Floats:
        """Infinite where nothing can be said."""
        n_blocks = np.array([len(np.unique(self._block[column])) for column in self._varies.T])
        error = np.maximum(self._classical(), self._jackknifed())
        known = self._is_identified(self._gram, self._inverse) & (n_blocks > 1)
        stretch = stdtrit(np.maximum(n_blocks - 1, 1), _LEVEL) / ndtri(_LEVEL)
        return np.where(known & (self.spread > _TOLERANCE), error * stretch, math.inf)

    def _classical(self) -> Floats:
        """With one variance for all rows, no smaller than one more rollout would make it."""
        residual = self._y - self._x @ self._values
        rank = int(np.linalg.matrix_rank(self._gram, tol=_TOLERANCE, hermitian=True))
        degrees = len(self._y) - int(self._block.max()) - 1 - rank
        if degrees <= 0:
            return np.full(len(self._values), math.inf)
        floor = (self._y.max() - self._y.min()) ** 2 / (len(self._y) + 2)
        variance = max(float(residual @ residual) / degrees, float(floor))
        return np.asarray(np.sqrt(variance * np.maximum(np.diag(self._inverse), 0.0)))

    def _jackknifed(self) -> Floats:
        """From the coefficients without each block in turn; infinite where one is needed."""
        grams, sums = self._by_block()
        n = len(grams)
        if n < 2:
            return np.full(len(self._values), math.inf)
        left, right = self._gram - grams, sums.sum(axis=0) - sums
        if np.linalg.eigvalsh(left)[:, 0].min() > _TOLERANCE * np.trace(self._gram):
            without = np.linalg.solve(left, right[:, :, None])[:, :, 0]
            identified = np.ones(len(self._values), dtype=np.bool_)
        else:
            inverse = np.linalg.pinv(left, hermitian=True, rcond=_TOLERANCE)
            without = (inverse @ right[:, :, None])[:, :, 0]
            identified = np.all(self._is_identified(left, inverse), axis=0)
        variance = (n - 1) / n * ((without - self._values) ** 2).sum(axis=0)
        return np.where(identified, np.sqrt(variance), math.inf)

    def _by_block(self) -> tuple[Floats, Floats]:
        """The parts of the normal equations that each block brings, of those that bring any.

        Of many blocks, several are left out together (the delete-a-group jackknife; Kott, Journal
        of Official Statistics 17, 2001): more than `MOST_GROUPS` tell hardly more.
        """
        group = self._block % MOST_GROUPS
        parts = [(self._x[rows], self._y[rows]) for rows in _rows_of(group)]
        grams = np.array([x.T @ x for x, _ in parts])
        sums = np.array([x.T @ y for x, y in parts])
        telling = np.trace(grams, axis1=1, axis2=2) > _TOLERANCE
        return grams[telling], sums[telling]

    @staticmethod
    def _is_identified(gram: Any, inverse: Any) -> NDArray[np.bool_]:
        """Whether each coefficient is the same in every solution of the normal equations."""
        unit = np.eye(gram.shape[-1])
        return np.asarray(np.abs(gram @ inverse - unit).max(axis=-1) < 1e-6)


def _rows_of(group: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The positions of the rows of each group."""
    order = np.argsort(group, kind="stable")
    return list(np.split(order, np.flatnonzero(np.diff(group[order])) + 1))


def _pooled(values: Floats, errors: Floats, scale: float, margin: float) -> Floats:
    """Of each effect: mean, standard deviation, probability above 0, probability above -margin."""
    pooled = np.tile([0.0, math.inf, 0.5, 0.5], (len(values), 1))
    known = np.isfinite(errors)
    if known.any() and scale:
        pooled[known] = _Mixture(values[known], errors[known], scale, margin).believed()
    return pooled


class _Mixture:
    """Measured effects, some of them of candidates that do something, the others of next to none.

    Axes: candidate, spread of those that do something, their share of all.
    """

    def __init__(self, values: Floats, errors: Floats, scale: float, margin: float) -> None:
        value, variance = values[:, None], errors[:, None] ** 2
        self._telling = _Shrunk.of(value, variance, scale * _SPREADS, margin)
        self._others = _Shrunk.of(value, variance, scale * _NEXT_TO_NONE, margin)
        log_telling = self._telling.log_likelihood[:, :, None] + np.log(_SHARES)
        log_others = self._others.log_likelihood[:, :, None] + np.log1p(-_SHARES)
        log_either = np.logaddexp(log_telling, log_others)
        log_prior = np.log(_SHARE_WEIGHTS) - 0.5 * _SPREADS[:, None] ** 2
        log_weight = log_either.sum(axis=0) + log_prior
        weight = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()
        self._p_telling = (np.exp(log_telling - log_either) * weight).sum(axis=2)
        self._p_other = 1.0 - self._p_telling.sum(axis=1)

    def believed(self) -> Floats:
        """What `_pooled` says of each candidate, a row for each."""
        mean, square, *probabilities = (
            (self._p_telling * of_telling).sum(axis=1) + self._p_other * of_others[:, 0]
            for of_telling, of_others in zip(
                self._telling.beliefs, self._others.beliefs, strict=True
            )
        )
        sd = np.sqrt(np.maximum(square - mean**2, 0.0))
        return np.stack([mean, sd, *np.clip(probabilities, 0.0, 1.0)], axis=1)


@dataclass(frozen=True, slots=True)
class _Shrunk:
    """What is believed of each candidate (rows) if true effects have each spread (columns).

    `beliefs` are mean, mean square, probability above 0, probability above -margin.
    """

    log_likelihood: Floats
    beliefs: tuple[Floats, Floats, Floats, Floats]

    @classmethod
    def of(cls, value: Floats, variance: Floats, spreads: Floats, margin: float) -> "_Shrunk":
        """By a normal distribution of true effects, around 0."""
        total = variance + spreads**2
        share = spreads**2 / total
        mean, sd = share * value, np.sqrt(share * variance)
        log_likelihood = -0.5 * (value**2 / total + np.log(total))
        above = (ndtr(mean / sd), ndtr((mean + margin) / sd))
        return cls(log_likelihood, (mean, sd**2 + mean**2, *above))


def _estimate(value: float, error: float, n_rollouts: int, pooled: Floats) -> Estimate:
    is_known = math.isfinite(error)
    measured = Effect(float(value) if is_known else 0.0, float(error), n_rollouts)
    mean, sd, p_positive, p_harmless = map(float, pooled)
    return Estimate(measured, Effect(mean, sd, n_rollouts), p_positive, p_harmless)
