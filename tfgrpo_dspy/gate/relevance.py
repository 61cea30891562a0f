"""Which training examples an experience is about, estimated from characters only.

An experience is about the inputs with which its text shares rare character n-grams. No word list
and no grammar is used, so that any language and any wording works. An experience whose text shares
too little with every input is about the inputs that look like those that it was learned from.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

LONGEST_GRAM = 4  # bytes; a character of most scripts outside Latin has two or three
MOST_BYTES, LEAST_BYTES = 2_000_000, 40
"""Of all inputs together; of each: of many inputs only the beginning is read."""
HIGHEST_WEIGHT = 6.0
"""The most that one n-gram counts (its squared inverse document frequency): as one that 9 % of the
inputs have."""
LEAST_SHARED = 12.0
"""The weight that a text must share with an input to be about it; twice as much without sources."""
SHARED_BY_SOURCE = 0.6
"""A source must share at least this part of the largest weight that any input shares."""
SHARPNESS = 2  # power of the share: inputs that share a little by accident count little

Vector = NDArray[np.float64]


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
        self._known: dict[tuple[str, tuple[int, ...]], tuple[Vector, bool]] = {}

    def _places(self, text: str) -> list[int]:
        held = _grams(text, self._n_bytes) & self._place.keys()
        return sorted(self._place[gram] for gram in held)

    def relevance(self, text: str, sources: tuple[int, ...]) -> tuple[Vector, bool]:
        """The relevance of an experience to each input, from 0 to 1; whether its text tells."""
        if (text, sources) not in self._known:
            self._known[text, sources] = self._relevance(text, list(sources))
        return self._known[text, sources]

    def _relevance(self, text: str, sources: list[int]) -> tuple[Vector, bool]:
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
        return self._likeness(sources), False

    def _likeness(self, sources: list[int]) -> Vector:
        """The cosine of each input with its nearest source; 0.0 without sources."""
        if not sources:
            return np.zeros(len(self._norm))
        weighted = self._has[sources].multiply(self._weight[None, :]).T
        cosines = (self._has @ weighted).toarray() / self._norm[:, None] / self._norm[sources]
        return np.asarray(cosines.max(axis=1))


@functools.lru_cache(maxsize=4)
def index_of(inputs: tuple[str, ...]) -> InputIndex:
    """The index of these inputs; it is made once for a run."""
    return InputIndex(inputs)
