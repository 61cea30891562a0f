"""The final choice: which of several candidates is best on the validation set, in few rollouts.

The candidates are the student and programs with more (experiences, demos). All are measured on the
same validation examples, in rounds; a candidate that is unlikely to be the best leaves. What the
training rollouts say of its parts is the prior of a candidate's gain: a gain that both sets show
is believed sooner than one on the validation set alone.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from tfgrpo_dspy.gate.model import above_zero

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
    first: int = 0  # a candidate that the first round measures, if it measures three
    doubtful: frozenset[Hashable] = frozenset()  # parts that are probably not worth their tokens

    def next(self, scores: Scores, n_left: int | None) -> list[tuple[int, int]]:
        """The (candidate, example) pairs to measure next, at most `n_left`; none: it is over."""
        n_done = sum(candidate == 0 for candidate, _ in scores)
        running = self.running(scores)
        if n_done == self.n_examples or len(running) < 2:
            return []
        size = min(ROUND if n_done else FIRST_ROUND, self.n_examples - n_done)
        if n_left is not None:
            if not n_done:  # two, three if they fit, more only for half of what is left
                n_fitting = n_left // size
                n = max(2, min(3, n_fitting), n_fitting // 2)
                firsts = [self.first] if n > 2 and self.first in running else []
                order = [c for k in [0, *firsts, *running] for c in (self._without_doubtful(k), k)]
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
