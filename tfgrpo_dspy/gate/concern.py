"""Which training examples an experience concerns, as far as its text and theirs can tell.

Precision comes before recall: a trial on examples that an experience has nothing to do with costs
more than a concerned example that is missed. Where the texts give no usable signal, nothing is
said of the experience, and a gate does without. No LM is asked here; `Concern` is what a function
looks like that does better, say with one cheap call for many examples.
"""

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tfgrpo_dspy.experience import Experience

_WORD = re.compile(r"[^\W\d_]+|[^\w\s]", re.UNICODE)
_CONDITION = re.compile(r"^\W*(?:when(?:ever)?|if|where(?:ver)?|for|in case)\b\s*(.+)", re.I | re.S)
_CONDITION_AT_END = re.compile(r"\b(?:when(?:ever)?|if|in case)\s+(.+)", re.I | re.S)
_STEM = 5
"""Words are compared by so many of their first characters: crude, and of no one language."""
_EMPTY_WORDS = """
a about after all also an and another any are as asked asks at be been before between both but
by can contain could do does each either every example few first for from give given gives had
has have he her his how if in include includes input into involve involves is it its last less
like many may mention mentions more most much must no nor not of on one only or other our over
per problem question questions same say says several she should so some such task text than that
the their them then there these they this those to under up user was we were what when where
whether which while who whose will with word words would you your sign
"""
"""Words of conditions and questions that say nothing of what they are about."""
_EMPTY = frozenset(_EMPTY_WORDS.split())


class Concern(Protocol):
    """Says which training examples each experience concerns."""

    def __call__(
        self, experiences: Sequence[Experience], inputs: Sequence[str], domains: Sequence[str] = ()
    ) -> Mapping[str, frozenset[int]]:
        """Positions of training examples by the experience's id; an id is absent if nobody knows.

        `inputs` are the examples' inputs as text, `domains` their domains, where they have one.
        """
        ...


@dataclass(frozen=True, slots=True)
class WordConcern:
    """By domain, by the words that the condition shares with its sources, or by their likeness.

    The sources are the training examples that the experience was drawn from. Of the words of the
    condition, those count that a source's inputs have, each by how rare it is among all inputs (its
    inverse document frequency); an example is concerned that has `least` of this weight. Without
    such words, those examples are concerned whose inputs are like a source's: a cosine of at
    least `least_alike` of all words, weighed in the same way. Where there are domains, an example
    must be of a domain of the sources; that takes the place of the likeness. An experience without
    sources, such as one drawn from labels, concerns the examples that have `least` of the weight of
    its condition.

    Nothing is said of an experience whose signal finds no other example, or not its own sources,
    or more than `most_found` of all. Defaults: `benchmarks/concern.py`.

    Args:
        least: share of the weight of the condition's words that an example must have.
        least_told: share of the weight of the condition's words that the sources must have; words
            that no input has do not count.
        least_alike: the cosine from which on inputs count as alike.
        most_common: words that more than this share of the inputs have tell nothing.
        most_found: share of the examples above which what is found tells nothing.

    Raises:
        ValueError: one of the shares is not above 0 and at most 1.
    """

    least: float = 0.8
    least_told: float = 0.3
    least_alike: float = 0.3
    most_common: float = 0.4
    most_found: float = 0.6

    def __post_init__(self) -> None:
        for name in ("least", "least_told", "least_alike", "most_common", "most_found"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give more than 0, at most 1.")

    def __call__(
        self, experiences: Sequence[Experience], inputs: Sequence[str], domains: Sequence[str] = ()
    ) -> dict[str, frozenset[int]]:
        """Positions of training examples by the experience's id; absent: nobody knows.

        Raises:
            ValueError: there are domains, but not one for each input.
        """
        if domains and len(domains) != len(inputs):
            raise ValueError(f"{len(domains)} domains for {len(inputs)} inputs: give one for each.")
        bags = [_stems(text) for text in inputs]
        found = {
            experience.id: self._concerned(experience, bags, domains) for experience in experiences
        }
        return {id_: concerned for id_, concerned in found.items() if concerned}

    def _concerned(
        self, experience: Experience, bags: Sequence[frozenset[str]], domains: Sequence[str]
    ) -> frozenset[int]:
        """The examples that it concerns; none: nobody knows."""
        sources = {group.example for group in experience.evidence}
        condition = _stems(condition_of(experience.text))
        if not sources:
            return self._by_condition(condition, dict(enumerate(bags)))
        if max(sources) >= len(bags):
            return frozenset()
        own = {domains[source] for source in sources} if domains else set()
        within = {i: bag for i, bag in enumerate(bags) if not domains or domains[i] in own}
        readings = (
            self._by_words(condition, sources, within),
            frozenset(within) if domains else self._alike(sources, within),
        )
        most = self.most_found * len(bags)
        tells = (found for found in readings if sources < found and len(found) <= most)
        return next(tells, frozenset())

    def _by_words(
        self, condition: frozenset[str], sources: set[int], bags: Mapping[int, frozenset[str]]
    ) -> frozenset[int]:
        rarity = self._telling(condition, bags)
        n_sources = Counter(stem for i in sources for stem in bags[i] & rarity.keys())
        weights = {stem: rarity[stem] * n / len(sources) for stem, n in n_sources.items()}
        total = sum(weights.values())
        if total == 0 or total < self.least_told * sum(rarity.values()):
            return frozenset()
        least = self.least * total - 1e-9
        found = {
            i for i, bag in bags.items() if sum(weights[s] for s in bag & weights.keys()) >= least
        }
        return frozenset(found | sources) if found & sources else frozenset()

    def _by_condition(
        self, condition: frozenset[str], bags: Mapping[int, frozenset[str]]
    ) -> frozenset[int]:
        """Of what has no sources: the examples with nearly all words of the condition that tell."""
        rarity = self._telling(condition, bags)
        least = self.least * sum(rarity.values()) - 1e-9
        found = {
            i for i, bag in bags.items() if sum(rarity[s] for s in bag & rarity.keys()) >= least
        }
        is_told = rarity and len(found) <= self.most_found * len(bags)
        return frozenset(found) if is_told else frozenset()

    def _telling(
        self, condition: frozenset[str], bags: Mapping[int, frozenset[str]]
    ) -> dict[str, float]:
        """How rare the words of the condition are, those that are rare enough to tell something."""
        return {
            stem: weight
            for stem, weight in _rarity(bags).items()
            if stem in condition and weight >= -math.log(self.most_common)
        }

    def _alike(self, sources: set[int], bags: Mapping[int, frozenset[str]]) -> frozenset[int]:
        rarity = _rarity(bags)
        norms = {i: math.sqrt(sum(rarity[stem] ** 2 for stem in bag)) for i, bag in bags.items()}

        def cosine(one: int, other: int) -> float:
            shared = sum(rarity[stem] ** 2 for stem in bags[one] & bags[other])
            return shared / (norms[one] * norms[other]) if shared else 0.0

        found = {i for i in bags if max(cosine(i, j) for j in sources) >= self.least_alike}
        return frozenset(found | sources)


def _rarity(bags: Mapping[int, frozenset[str]]) -> dict[str, float]:
    """The inverse document frequency of each stem: 0 for one that all have."""
    n_having = Counter(stem for bag in bags.values() for stem in bag)
    return {stem: math.log(len(bags) / n) for stem, n in n_having.items()}


def condition_of(text: str) -> str:
    """The condition of 'When <condition>, <advice>', or of '<advice> when <condition>'; else ""."""
    start = _CONDITION.match(text)
    if start is None:
        end = _CONDITION_AT_END.search(text)
        return end[1].strip(" .") if end else ""
    parts = start[1].split(",")
    n_taken = 1
    while n_taken < len(parts) - 1 and _continues(parts[n_taken]):
        n_taken += 1
    return ",".join(parts[:n_taken]).strip() if len(parts) > 1 else ""


def _continues(part: str) -> bool:
    """Whether the part behind a comma goes on with an enumeration: 'hours, minutes or days'."""
    words = part.split()
    return len(words) <= 2 or words[0].casefold() in ("and", "or")


@functools.lru_cache(maxsize=10_000)
def _stems(text: str) -> frozenset[str]:
    """The words of the text by their first characters; a sign counts as the words of its name."""
    words: list[str] = []
    for token in _WORD.findall(unicodedata.normalize("NFKC", text)):
        is_sign = not token.isalnum()
        words += unicodedata.name(token, "").split() if is_sign else [token]
    return frozenset(_stem(word) for word in map(str.casefold, words) if word not in _EMPTY)


def _stem(word: str) -> str:
    is_plural = len(word) > 3 and word.endswith("s")
    return (word[:-1] if is_plural else word)[:_STEM]
