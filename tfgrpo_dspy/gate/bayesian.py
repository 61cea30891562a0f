"""The default gate: it believes what `model` says, and tries experiences by Thompson sampling."""

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr, ndtri

from tfgrpo_dspy.experience import Add, Delete, Experience, ExperienceLibrary, Modify
from tfgrpo_dspy.gate.model import PRICE, Data, above_zero, posterior, score_sd
from tfgrpo_dspy.gate.protocol import (
    Advice,
    Belief,
    Decision,
    Gate,
    GroupPlan,
    RunEvidence,
    advice_of,
)
from tfgrpo_dspy.gate.relevance import index_of

FULL = 0.9
"""The library is kept no fuller than this share, so that new experiences find room."""
DROP_BELOW, SETTLE_ABOVE = 0.03, 0.97
"""An experience leaves when the probability that it is worth its price is below; from the second
one on every rollout is given it."""
LIKELY = 0.5
"""A program is given an experience above this probability; one that the reflection LM wants deleted
leaves below."""
REPLACE_ABOVE = 0.9
"""A new text takes the place of a settled one when it is better with this probability."""
MOST_TRIED = 0.6
"""So many of the rollouts are given an experience on trial at most: without rollouts that lack it,
its effect would not become known."""
N_ALONE = 3
"""So many of the best experiences are compared with the student one by one."""


@dataclass(frozen=True, slots=True)
class BayesianGate(Gate):
    """Keeps the experiences that probably raise the score, by the scores of the training groups.

    A rollout is given an experience on trial with the probability that the experience is worth its
    tokens (Thompson sampling), but no more than `MOST_TRIED` of the rollouts. It costs no call.
    """

    def decide(self, evidence: RunEvidence) -> Decision:
        """The library after an update, by the scores of all training groups so far."""
        library, rivals = _proposed(evidence)
        known = _known(evidence, [*library, *rivals.values()])
        if not known:
            return Decision(library, "no experiences yet")
        values = _Values(evidence, known)
        doubted = {op.id for op in evidence.operations if isinstance(op, Delete)}
        kept: dict[str, Experience] = {}
        dropped: dict[str, str] = {}
        for given in library:
            experience = self._better_text(given, rivals, values)
            least = LIKELY if experience.id in doubted else DROP_BELOW
            belief = values.of_one(experience)
            if belief.chance < least:
                dropped[experience.id] = belief.in_words()
            else:
                is_open = belief.chance < SETTLE_ABOVE or experience.id in rivals
                kept[experience.id] = replace(experience, effect=belief.effect, is_on_trial=is_open)
        room = max(1, int(FULL * evidence.limits.max_experiences))
        by_chance = sorted(kept.values(), key=lambda e: -values.of_one(e).chance)
        for experience in by_chance[room:]:
            belief = values.of_one(kept.pop(experience.id))
            dropped[experience.id] = f"no room: {belief.in_words()}"
        deployable = [e for e in kept.values() if values.of_one(e).chance > LIKELY]
        n_open = sum(e.is_on_trial for e in kept.values())
        return Decision(
            _library(kept.values(), library),
            f"{len(kept) - n_open} settled, {n_open} on trial, {len(dropped)} dropped",
            deployable=_library(deployable, library),
            dropped=dropped,
            beliefs=values.beliefs,
            rivals={id_: rival for id_, rival in rivals.items() if id_ in kept},
            score_sd=values.score_sd,
            is_open=values.gain_of_knowing(kept.values()) > PRICE * values.score_sd,
        )

    def assign(self, plan: GroupPlan) -> Sequence[ExperienceLibrary]:
        """The library of each rollout; of two texts of one id, the one with the better draw."""
        decision, n = plan.decision, plan.n_rollouts
        held: list[list[Experience]] = [[] for _ in range(n)]
        for experience in decision.library:
            chances = [1.0] * n
            if experience.is_on_trial:
                chance = min(decision.beliefs[advice_of(experience)].chance, MOST_TRIED)
                chances = [float(share < chance) for share in _shares(plan, experience)]
            texts = _texts(plan, experience)
            for k in range(n):
                if chances[k]:
                    held[k].append(texts[k])
        return tuple(_library(of_one, decision.library) for of_one in held)

    def finalists(self, decision: Decision) -> Sequence[ExperienceLibrary]:
        """All experiences that a program would be given, halves of them, and the best few alone.

        Experiences that help beside random others may spoil each other, which the model does not
        see; so the best ones are compared on the validation set alone and in nested libraries.
        """
        result = decision.result
        ranked = sorted(result, key=lambda e: -_value(decision, e))
        sizes = [2**k for k in range(1, len(ranked).bit_length() + 1) if 2**k < len(ranked)]
        nested = [{e.id for e in ranked[:size]} for size in reversed(sizes)]
        tried = [e for e in decision.library if decision.beliefs[advice_of(e)].n_rollouts]
        best = sorted(tried, key=lambda e: -_value(decision, e))[:N_ALONE]
        alone = [{e.id} for e in best] if len(ranked) != 1 else []
        mixed = [ids for pair in itertools.zip_longest(alone, nested) for ids in pair if ids]
        return (
            result,
            *(_library([e for e in decision.library if e.id in ids], result) for ids in mixed),
        )

    def _better_text(
        self, experience: Experience, rivals: dict[str, Experience], values: "_Values"
    ) -> Experience:
        """Of the two texts that an id may have, the one to go on with; a bad rival is forgotten."""
        rival = rivals.get(experience.id)
        if rival is None:
            return experience
        is_settled = values.of_one(experience).chance >= SETTLE_ABOVE
        if values.chance_of_more(rival, experience) > (REPLACE_ABOVE if is_settled else 0.5):
            experience, rival = rival, experience
        rivals[experience.id] = rival
        worse = values.chance_of_more(rival, experience)
        if min(worse, values.of_one(rival).chance) < DROP_BELOW:
            del rivals[experience.id]
        return experience


def _proposed(evidence: RunEvidence) -> tuple[ExperienceLibrary, dict[str, Experience]]:
    """The previous library with its new experiences, and the rival texts by id.

    A MODIFY keeps the old text and makes the new one its rival. A DELETE only raises doubt.
    """
    before = evidence.previous.library
    adding = [op for op in evidence.operations if isinstance(op, Add)]
    modifying = [op for op in evidence.operations if isinstance(op, Modify)]
    changed = before.apply(modifying, evidence.limits)
    new = {e.id: e for e in changed if advice_of(e) != advice_of(before[e.id])}
    return before.apply(adding, evidence.limits), {**evidence.previous.rivals, **new}


def _known(evidence: RunEvidence, experiences: Iterable[Experience]) -> dict[Advice, set[int]]:
    """Every advice that the run has tried or is about to try, with its source examples."""
    found: dict[Advice, set[int]] = {}
    given = (e for group in evidence.groups for library in group.libraries for e in library)
    for experience in (*given, *experiences):
        sources = found.setdefault(advice_of(experience), set())
        sources.update(source.example for source in experience.evidence)
    return found


class _Values:
    """The posterior of one decision, asked about by experience."""

    def __init__(self, evidence: RunEvidence, known: Mapping[Advice, set[int]]) -> None:
        self._numbers = {advice: j for j, advice in enumerate(known)}
        data = _data(evidence, known, self._numbers)
        found = self._found = posterior(data)
        self.score_sd = score_sd(data.scores)
        counts = data.present.sum(axis=0)
        self.beliefs = {
            advice: Belief(
                float(found.mean[j]), float(found.sd[j]), float(found.chance[j]), int(counts[j])
            )
            for advice, j in self._numbers.items()
        }

    def of_one(self, experience: Experience) -> Belief:
        """What is believed of an experience."""
        return self.beliefs[advice_of(experience)]

    def chance_of_more(self, one: Experience, other: Experience) -> float:
        """The probability that one experience adds more than the other."""
        j, k = self._numbers[advice_of(one)], self._numbers[advice_of(other)]
        covariance = self._found.covariance
        variance = covariance[j, j] + covariance[k, k] - 2 * covariance[j, k]
        difference = self._found.mean[j] - self._found.mean[k]
        return float(ndtr(difference / math.sqrt(max(variance, 1e-18))))

    def gain_of_knowing(self, experiences: Iterable[Experience]) -> float:
        """By how much the score is expected to rise if every effect on trial became known."""
        tried = [self.of_one(e) for e in experiences if e.is_on_trial]
        price = PRICE * self.score_sd
        return sum(above_zero(b.mean - price, b.sd) - max(b.mean - price, 0.0) for b in tried)


def _data(
    evidence: RunEvidence, known: Mapping[Advice, set[int]], numbers: Mapping[Advice, int]
) -> Data:
    """The scored rollouts of all groups, and what each advice is about."""
    training = evidence.training
    place = {example: k for k, example in enumerate(training)}
    index = index_of(evidence.texts)
    near, tells = [], []
    for (text, _), sources in known.items():
        relevance, does_tell = index.relevance(text, tuple(sorted(sources)))
        near.append(relevance[list(training)])
        tells.append(does_tell)
    rows = [
        (place[group.example], held, score)
        for group in evidence.groups
        if group.example in place
        for held, score in zip(group.libraries, group.scores, strict=True)
        if score is not None
    ]
    present = np.zeros((len(rows), len(known)), dtype=bool)
    for row, (_, held, _) in enumerate(rows):
        present[row, [numbers[advice_of(e)] for e in held]] = True
    return Data(
        examples=np.array([example for example, _, _ in rows], dtype=np.int64),
        scores=np.array([score for _, _, score in rows], dtype=float),
        present=present,
        relevance=np.array(near),
        tells=np.array(tells, dtype=bool),
    )


def _shares(plan: GroupPlan, experience: Experience) -> list[float]:
    """A number from 0 to 1 for each rollout of the group, one in each n-th part of that range."""
    n = plan.n_rollouts
    rng = random.Random(f"{plan.update}/{plan.example}/{advice_of(experience)}")
    order, start = rng.sample(range(n), n), rng.random()
    return [(k + start) / n for k in order]


def _texts(plan: GroupPlan, experience: Experience) -> list[Experience]:
    """The text for each rollout: where an id has two, the one whose value is drawn higher."""
    rival = plan.decision.rivals.get(experience.id)
    if rival is None:
        return [experience] * plan.n_rollouts
    drawn = []
    for text in (experience, rival):
        belief = plan.decision.beliefs[advice_of(text)]
        shares = _shares(plan, text)
        drawn.append([belief.mean + belief.sd * float(ndtri(share)) for share in shares])
    return [rival if b > a else experience for a, b in zip(*drawn, strict=True)]


def _value(decision: Decision, experience: Experience) -> float:
    return decision.beliefs[advice_of(experience)].mean


def _library(experiences: Iterable[Experience], like: ExperienceLibrary) -> ExperienceLibrary:
    """A library of these experiences, with the next free id of another."""
    return ExperienceLibrary(experiences, next_number=like.next_number)
