"""A Bayesian model of what each experience, brief and set of demos adds; the race of candidates.

    score of a rollout on example i = level + ease of i + brief + demos
        + sum over its experiences j of (m_j + a_j r_ij) + noise

`m_j` is what experience j adds on every example, `a_j` what it adds besides on those that it is
about, and `r_ij` (0 to 1) says how much example i is one of these.

All terms are normal. The means that experiences have in common are weights of the same regression;
the spreads around them are averaged over a small grid, weighted by marginal likelihood (empirical
Bayes), so that the model expects little of new lessons in a run whose lessons are often wrong. The
posterior has a closed form. Method: Gelman et al., Bayesian Data Analysis, chapters 5 and 14.

Lessons are drawn from groups with low or differing scores. Nothing needs to be corrected for that,
because the scores of those groups are part of the data.

An experience is about the inputs with which its text shares rare character n-grams, in any language
and wording; if it shares too little, about those that look like its sources.

In the race at the end, all candidates are measured on the same validation examples, in rounds; one
that is unlikely to be the best leaves. What training says of its parts is the prior of a
candidate's gain: a gain that both sets show is believed sooner than one on validation alone.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.sparse import csr_array
from scipy.special import ndtr
from threadpoolctl import ThreadpoolController

FIRST_ROUND, ROUND = 10, 5  # examples that are measured in the first round, and in further ones
LEAVE_BELOW = 0.05  # a candidate leaves that is less probably better than the leader
RETURN_ABOVE = 0.92  # one is returned that is so probably better than the student, or more
SURELY = 0.8
"""Of two candidates that surely beat the student, the longer one is returned if it is so probably
better, or if the shorter one saves little and is not the same without doubtful parts."""
SAVES = 0.2  # the least share of its tokens that a shorter candidate saves
MODEL_SD = 0.15  # of the score's: how far the sum of the parts' values may be off
DIFFERENCE_SD, DIFFERENCE_COUNT = 0.5, 4.0
"""Prior of the spread of one example's difference, in the same unit; as sure as 4 examples make."""

Scores = Mapping[tuple[int, int], float | None]
"""By candidate and example; None where the rollout has no score."""


@dataclass(frozen=True, slots=True)
class Race:
    """A race of candidates, the first of which is the student."""

    candidates: tuple[frozenset[Hashable], ...]  # each candidate's parts beyond the student
    parts: Mapping[Any, tuple[float, float]]  # what each may add to the score: mean and sd
    prices: Mapping[Any, float]  # what a part must add to be worth its tokens; of others 0.0
    score_sd: float  # the standard deviation of the scores, as far as it is known
    n_examples: int  # of the validation set; they are measured in the order 0, 1, ...
    n_tokens: tuple[int, ...] = ()  # what each candidate adds to a call; empty: equally much
    first: int = 0  # the rival that the first round measures besides, if it measures three
    doubtful: frozenset[Hashable] = frozenset()  # parts that are probably not worth their tokens

    def next(self, scores: Scores, n_left: int | None) -> list[tuple[int, int]]:
        """The (candidate, example) pairs to measure next, at most `n_left`; none: it is over."""
        n_done = sum(candidate == 0 for candidate, _ in scores)
        running = self.running(scores)
        if n_done == self.n_examples or len(running) < 2:
            return []
        size = min(ROUND if n_done else FIRST_ROUND, self.n_examples - n_done)
        if n_left is not None:
            if not n_done:  # two; three, or those and one more, if they fit; more for half of all
                n = max(2, min(3, n_left // size), n_left // size // 2)
                firsts = [0, self.first] if n > 2 and self.first in running else []
                order = [c for k in [*firsts, *running] for c in (self._without_doubtful(k), k)]
                running = [*dict.fromkeys(order)][:n]
            size = min(size, n_left // len(running))
        return [(c, i) for i in range(n_done, n_done + size) for c in running]

    def running(self, scores: Scores) -> list[int]:
        """The student, and the rivals that may still be the best, by expected improvement on it."""
        counts = Counter(candidate for candidate, _ in scores)
        complete = [c for c in range(1, len(self.candidates)) if counts[c] == counts[0]]
        gains = {c: self._posterior(c, 0, scores) for c in complete}
        rivals = sorted(gains, key=lambda c: -above_zero(*gains[c]))
        leader = max(rivals, key=lambda c: gains[c][0], default=0)
        return [0, *(c for c in rivals if self.chance(c, leader, scores) >= LEAVE_BELOW)]

    def winner(self, scores: Scores) -> int:
        """The best of those that beat the student, surely and in the mean; else the student.

        Of those that are not surely worse than the best one, the shortest. One with doubtful parts
        is taken only if the same without them was measured.
        """
        measured = {candidate for candidate, _ in scores}
        rivals = self.running(scores)[1:]
        better = [c for c in rivals if self._differences(c, 0, scores).sum() > 1e-9]
        sure = (c for c in better if self.chance(c, 0, scores) >= RETURN_ABOVE)
        ahead = [c for c in sure if self._without_doubtful(c) in measured]
        best = ahead[0] if ahead else 0
        for candidate in ahead:
            best = candidate if self.chance(candidate, best, scores) > 0.5 else best
        if not (best and self.n_tokens):
            return best
        most, without = (1 - SAVES) * self.n_tokens[best], self._without_doubtful(best)
        shorter = (c for c in ahead if c == without or self.n_tokens[c] <= most)
        close = (c for c in shorter if self.chance(best, c, scores) < SURELY)
        return min([*close, best], key=lambda c: self.n_tokens[c])

    def _without_doubtful(self, candidate: int) -> int:
        """The largest candidate of the parts of this one that are not doubtful."""
        sure = self.candidates[candidate] - self.doubtful
        among = [c for c, parts in enumerate(self.candidates) if parts <= sure]
        return max(among, key=lambda c: len(self.candidates[c]), default=0)

    def why(self, scores: Scores) -> str:
        """Why the winner is it, in words."""
        best, rivals = self.winner(scores), sorted({c for c, _ in scores} - {0})
        if not rivals:
            what = "was measured" if len(self.candidates) > 1 else "was there"
            return f"the student: no other candidate {what}"
        likeliest = best or max(rivals, key=lambda c: self.chance(c, 0, scores))
        chance, needed = self.chance(likeliest, 0, scores), f"{RETURN_ABOVE:g}"
        if best:
            return f"better than the student with probability {chance:.2f} (needed: {needed})"
        promising = f"the most promising candidate is better with probability {chance:.2f}"
        return f"the student: {promising}, and {needed} and a higher mean are needed"

    def chance(self, candidate: int, other: int, scores: Scores) -> float:
        """The probability that one candidate is better than the other; 0.5 if both are equal."""
        if self.candidates[candidate] == self.candidates[other]:
            return 0.5
        mean, sd = self._posterior(candidate, other, scores)
        return float(ndtr(mean / sd))

    def _differences(self, candidate: int, other: int, scores: Scores) -> np.ndarray:
        every = range(self.n_examples)
        pairs = ((scores.get((candidate, i)), scores.get((other, i))) for i in every)
        return np.array([a - b for a, b in pairs if a is not None and b is not None])

    def _posterior(self, candidate: int, other: int, scores: Scores) -> tuple[float, float]:
        """Mean and standard deviation of what one candidate gains on the other, less its price."""
        of_one, of_other = self.candidates[candidate], self.candidates[other]
        more, less = of_one - of_other, of_other - of_one
        gained, lost = ([self.parts[part][0] for part in parts] for parts in (more, less))
        mean = math.fsum(gained) - math.fsum(lost)  # exact: sets have no order
        variance = math.fsum(self.parts[part][1] ** 2 for part in more | less)
        variance += (MODEL_SD * self.score_sd) ** 2
        prices = [math.fsum(self.prices.get(part, 0.0) for part in of) for of in (of_one, of_other)]
        price = prices[0] - prices[1]
        differences = self._differences(candidate, other, scores)
        n = len(differences)
        if not n:
            return mean - price, math.sqrt(variance)
        expected = DIFFERENCE_COUNT * (DIFFERENCE_SD * self.score_sd) ** 2
        squares = float(((differences - differences.mean()) ** 2).sum())
        spread = (squares + expected) / (n + DIFFERENCE_COUNT)
        precision = 1 / variance + n / spread
        mean = (mean / variance + float(differences.sum()) / spread) / precision
        return mean - price, precision**-0.5


Matrix = NDArray[np.float64]
Flags = NDArray[np.bool_]

# All priors are in standard deviations of the scores. They were chosen on simulated worlds. Pairs
# are a mean and its uncertainty; a spread is how far one experience, set or brief is from another.
LOCAL_MEAN = (0.4, 0.4)  # effect on the examples that the text names: most lessons are right
ALIKE_MEAN = (0.2, 0.4)  # where only the likeness of inputs says what an experience is about
BROAD_MEAN = (-0.1, 0.1)  # on every example, of advice that names none: most of it is useless
LOCAL_SPREADS = (0.2, 0.5, 1.0)
BROAD_SPREADS = (0.01, 0.05, 0.15, 0.3)
TOLD_BROAD_SPREAD = 0.05  # of the effect elsewhere of an experience whose text names its examples
LEAST_LEFT = 0.05  # the least share of the usual effect that is expected of an experience
PRICE, COVERED_PRICE = 0.01, 0.07
"""What an experience must add to be worth its tokens. For advice that names its examples, the
threshold rises to the second as other advice solves these: a further gain is mostly luck."""
DEMOS, DEMOS_PRICE = (0.1, 0.5), 0.05
DEMOS_SPREADS = (0.03, 0.4)  # for some LMs the set hardly matters, for others much
BRIEFS, BRIEFS_SPREAD, BRIEFS_PRICE = (0.2, 0.5), 0.3, 0.05
REVISIONS, REVISIONS_SPREAD = (0.1, 0.1), 0.2  # beyond the brief that they revise
EASE = 0.5  # spread of the ease of examples
NOISE, NOISE_COUNT = 0.8, 5.0  # prior of the noise within an example, as sure as 5 rollouts make
ROOT_2_PI = math.sqrt(2 * math.pi)


@dataclass(frozen=True, slots=True)
class Data:
    """The training rollouts, and what the experiences are about."""

    examples: NDArray[np.int64]  # the example of each rollout, from 0; shape (n,)
    scores: Matrix  # shape (n,)
    present: Flags  # which of the experiences each rollout was given; shape (n, J)
    relevance: Matrix  # of each example for each experience; shape (J, number of examples)
    tells: Flags  # whether an experience's text says what it is about; shape (J,)
    arms: Flags  # which of the K briefs and sets of demos each rollout had; shape (n, K)
    are_briefs: Flags  # which of these are briefs; shape (K,)
    chains: Flags  # for each arm, itself and what it is a revision of; shape (K, K)


Posterior = tuple[Matrix, Matrix, Matrix]
"""Of the value of each experience and each arm, in points of the score: its mean, its standard
deviation, and the probability that it exceeds its price; each of shape (J + K,)."""


def score_sd(scores: Sequence[float] | Matrix) -> float:
    """The standard deviation of the scores; 1.0 where they differ by no more than rounding."""
    spread = float(np.std(scores)) if len(scores) else 0.0
    return spread if spread > 1e-9 else 1.0


def above_zero(mean: float, sd: float) -> float:
    """The mean of what a normal value exceeds zero by; it counts as 0.0 below."""
    return float(mean * ndtr(mean / sd) + sd * math.exp(-0.5 * (mean / sd) ** 2) / ROOT_2_PI)


_libraries = functools.cache(ThreadpoolController)  # with threads; they take a millisecond to find


def posterior(data: Data) -> Posterior:
    """What the rollouts say of the value of each experience, brief and set of demos.

    The value is the mean of `m_j + a_j r_ij` over the examples: what the experience adds on others
    like them. The regression is made twice. The first one tells how much better experiences leave
    to gain; where they leave nothing, little is expected of an experience, and more may be asked.
    """
    with _libraries().limit(limits=1, user_api="blas"):  # small matrices: threads only wait
        sums = _Sums.of(data)
        first, weights = _regression(data, sums, np.ones(len(data.tells)))
        if not len(data.scores):
            return first
        return _regression(data, sums, _left_to_gain(data, sums, weights, first))[0]


def _left_to_gain(data: Data, sums: "_Sums", weights: Matrix, first: Posterior) -> Matrix:
    """The share, from 0 to 1, of what could be gained that better experiences leave; (J,).

    It is a mean over the examples that an experience is about, or over all where that is not known.
    Better are those of a higher value that a program would be given.
    """
    n, top = len(data.tells), float(data.scores.max())
    values, _, chances = (figures[:n] for figures in first)
    missed = sums.scores - sums.rows @ weights
    bare = weights[-1] + missed / (sums.counts + (NOISE / EASE) ** 2)
    is_given = (chances > 0.5)[:, None]
    added = (weights[:n, None] + weights[n : 2 * n, None] * data.relevance) * is_given
    best_first = np.argsort(-values, kind="stable")
    by_better = np.empty_like(added)
    by_better[best_first] = np.cumsum(added[best_first], axis=0) - added[best_first]
    share = np.clip((top - bare - by_better) / np.maximum(top - bare, 1e-9), 0.0, 1.0)
    is_about = data.tells & data.relevance.any(axis=1)  # maybe of validation examples alone
    about = np.where(is_about[:, None], data.relevance, 1.0)
    return np.asarray(np.maximum((share * about).sum(axis=1) / about.sum(axis=1), LEAST_LEFT))


def _regression(data: Data, sums: "_Sums", left: Matrix) -> tuple[Posterior, Matrix]:
    """The posterior, and what rows of `_Sums` are multiplied by to fit scores; `left` is (J,)."""
    n, n_arms = len(data.tells), len(data.are_briefs)
    scale = score_sd(data.scores)
    parts = _parts(data, left)
    gram, projection = parts.T @ sums.gram @ parts, parts.T @ sums.projection
    values = np.zeros((n + n_arms, 2 * n + n_arms + 1))
    values[:n, : 2 * n] = np.hstack([np.eye(n), np.diag(data.relevance.mean(axis=1))])
    values[n:, 2 * n : -1] = data.chains
    values = values @ parts
    means_of_sorts = [BROAD_MEAN, LOCAL_MEAN, ALIKE_MEAN, DEMOS, BRIEFS, REVISIONS, (0.0, 1.0)]
    expected, common = np.array(means_of_sorts).T
    centre = np.concatenate([np.zeros(2 * n + n_arms), expected * scale])
    centre[-1] = float(data.scores.mean()) if len(data.scores) else 0.0
    logs, means, weights, roots = [], [], [], []
    of_demos = (1.0,) if data.are_briefs.all() else DEMOS_SPREADS  # any: there is no set
    for local, broad, of_set in itertools.product(LOCAL_SPREADS, BROAD_SPREADS, of_demos):
        elsewhere = np.where(data.tells, min(TOLD_BROAD_SPREAD, broad), broad)
        of_arms = np.where(data.are_briefs, BRIEFS_SPREAD, of_set)
        of_arms[data.chains.sum(axis=1) > 1] = REVISIONS_SPREAD
        spreads = elsewhere, np.full(n, local), of_arms, common
        sd = np.concatenate(spreads) * scale
        root = cholesky(gram + np.diag(sd**-2.0), lower=True, check_finite=False)
        shifted = projection + centre / sd**2
        mean = cho_solve((root, True), shifted, check_finite=False)
        fit = 0.5 * (shifted @ mean - centre @ (centre / sd**2))
        logs.append(fit - np.log(np.diag(root)).sum() - np.log(sd).sum())
        weights.append(mean)
        means.append(values @ mean)
        roots.append(solve_triangular(root, values.T, lower=True, check_finite=False))
    share = np.exp(np.array(logs) - max(logs))
    share /= share.sum()
    covered = (COVERED_PRICE - PRICE) * data.tells * (1 - left) ** 2
    of_arms = np.where(data.are_briefs, BRIEFS_PRICE, DEMOS_PRICE)
    price = np.append(PRICE + covered, of_arms) * scale
    of_grid = np.array(means)
    mean = share @ of_grid
    variances = np.array([(root**2).sum(axis=0) for root in roots])
    chance = share @ ndtr((of_grid - price) / np.sqrt(np.maximum(variances, 1e-24)))
    spread = np.sqrt(share @ (variances + (of_grid - mean) ** 2))
    return (mean, spread, np.asarray(chance)), parts @ (share @ np.array(weights))


def _parts(data: Data, left: Matrix) -> Any:  # a sparse matrix
    """Which of the weights an effect consists of: its own deviation, and a mean in common.

    The rows are the columns of `_Sums`: the broad effects, the local effects, the arms, and the
    level. The columns are the weights: a deviation for each effect, the common means of the three
    sorts of experiences, of demos, of briefs and of revisions, and the level.
    """
    n, n_effects = len(data.tells), 2 * len(data.tells) + len(data.are_briefs)
    common = np.zeros((n_effects + 1, 7))
    common[:n, 0] = ~data.tells
    common[n : 2 * n, 1], common[n : 2 * n, 2] = left * data.tells, left * ~data.tells
    are_revisions = data.chains.sum(axis=1) > 1
    sorts = ~data.are_briefs, data.are_briefs & ~are_revisions, are_revisions
    common[2 * n : -1, 3:6] = np.column_stack(sorts)
    common[-1, 6] = 1.0
    return csr_array(np.hstack([np.eye(n_effects + 1, n_effects), common]))


@dataclass(frozen=True, slots=True)
class _Sums:
    """The rollouts, summed up. A row x: what it was given, that by its relevance, arms, 1.

    W integrates out noise and the ease of each example; P = 2 J + K + 1.
    """

    gram: Matrix  # X'WX; shape (P, P)
    projection: Matrix  # X'Wy; shape (P,)
    rows: Matrix  # the sum of x, of each example
    scores: Matrix  # the sum of y, of each example
    counts: NDArray[np.int64]  # the number of rollouts of each example

    @classmethod
    def of(cls, data: Data) -> "_Sums":
        n_rollouts, n_examples = len(data.scores), data.relevance.shape[1]
        local = data.present * data.relevance.T[data.examples]
        x = np.column_stack([data.present, local, data.arms @ data.chains, np.ones(n_rollouts)])
        places = data.examples, np.arange(n_rollouts)
        by_example = csr_array((np.ones(n_rollouts), places), (n_examples, n_rollouts))
        rows, scores = by_example @ x, by_example @ data.scores
        counts = np.bincount(data.examples, minlength=n_examples)
        scale = score_sd(data.scores)
        noise = _noise(data, scale)
        ratio = (EASE * scale) ** 2 / noise
        shared = rows.T * (ratio / (counts * ratio + 1))
        gram, projection = x.T @ x - shared @ rows, x.T @ data.scores - shared @ scores
        return cls(gram / noise, projection / noise, rows, scores, counts)


def _noise(data: Data, scale: float) -> float:
    """The variance of the scores of one example with the same experiences."""
    columns = np.column_stack([data.present, data.arms])
    cells = np.column_stack([data.examples, np.packbits(columns, axis=1)])
    number: dict[bytes, int] = {}
    cell = [number.setdefault(each, len(number)) for each in map(bytes, cells)]
    counts = np.bincount(cell)
    sums = np.bincount(cell, weights=data.scores)
    within = float((data.scores**2).sum() - (sums**2 / counts).sum())
    expected = NOISE_COUNT * (NOISE * scale) ** 2
    return (max(within, 0.0) + expected) / (len(data.scores) - len(counts) + NOISE_COUNT)


# ------------------------------------------------------------------ what an experience is about

LONGEST_GRAM = 4  # bytes; a character of most scripts outside Latin has two or three
MOST_BYTES, LEAST_BYTES = 2_000_000, 40  # of all inputs; of each: of many only the beginning
HIGHEST_WEIGHT = 6.0  # of an n-gram (squared inverse document frequency): as if 9 % have it
LEAST_SHARED = 12.0  # weight that a text shares with what it is about; without sources, twice that
SHARED_BY_SOURCE = 0.6  # a source shares at least this part of the most that any input shares
SHARPNESS = 2  # power of the share: inputs that share a little by accident count little


def _grams(text: str, n_bytes: int) -> set[bytes]:
    data = f" {' '.join(text.casefold().split())} ".encode("utf-8", "replace")[:n_bytes]
    sizes = range(1, LONGEST_GRAM + 1)
    grams = {data[k : k + n] for n in sizes for k in range(len(data) - n + 1)}
    return {gram for gram in grams if gram.strip()}


class InputIndex:
    """The n-grams of the training inputs by weight: squared inverse document frequency, or 0."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self._n_bytes = max(LEAST_BYTES, MOST_BYTES // max(len(inputs), 1))
        n = len(inputs)
        counts = Counter(gram for text in inputs for gram in _grams(text, self._n_bytes))
        kept = sorted(gram for gram, k in counts.items() if 2 <= k <= n / 2)
        self._place = {gram: place for place, gram in enumerate(kept)}
        weights = (min(math.log(n / counts[gram]) ** 2, HIGHEST_WEIGHT) for gram in kept)
        self._weight = np.fromiter(weights, float, len(kept))
        del counts  # of a large set, all n-grams take far more memory than the table
        columns = [self._places(text) for text in inputs]
        ends = np.cumsum([0, *map(len, columns)])
        places = np.fromiter(itertools.chain(*columns), np.int32, ends[-1])
        self._has = csr_array((np.ones(ends[-1]), places, ends), shape=(n, len(kept)))
        self._norm = np.sqrt(self._has @ self._weight)
        self._norm[self._norm == 0] = 1.0
        self.relevance = functools.cache(self._relevance)

    def _places(self, text: str) -> list[int]:
        held = _grams(text, self._n_bytes) & self._place.keys()
        return sorted(self._place[gram] for gram in held)

    def _relevance(self, text: str, of: tuple[int, ...]) -> tuple[Matrix, bool]:
        """The relevance of an experience to each input, from 0 to 1; whether its text tells."""
        sources = [*of]  # a tuple would be an index of several dimensions
        shared = np.zeros(len(self._weight))
        shared[self._places(text)] = 1.0
        shared *= self._weight
        everywhere = self._has @ shared
        highest = float(everywhere.max(initial=0.0))
        least, shares, is_about_source = 2 * LEAST_SHARED, everywhere, True
        if sources:
            least = LEAST_SHARED
            is_about_source = everywhere[sources].max() >= SHARED_BY_SOURCE * highest
            of_sources = np.asarray(self._has[sources].sum(axis=0)).ravel() > 0
            shares = self._has @ (shared * of_sources)
        top = float(shares.max(initial=0.0))
        if is_about_source and top >= least:
            return (shares / top) ** SHARPNESS, True
        if not sources:
            return np.zeros(len(self._norm)), False
        weighted = self._has[sources].multiply(self._weight[None, :]).T  # for the nearest source
        cosines = (self._has @ weighted).toarray() / self._norm[:, None] / self._norm[sources]
        return np.asarray(cosines.max(axis=1)), False


@functools.lru_cache(maxsize=4)
def index_of(inputs: tuple[str, ...]) -> InputIndex:
    """The index of these inputs; it is made once for a run."""
    return InputIndex(inputs)
