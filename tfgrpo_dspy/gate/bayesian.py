"""Gates, with the values that they take and return. The default one tries by Thompson sampling.

It believes what `model` says. A gate makes no calls, and its answers are pure functions: a run that
is replayed decides the same.
"""

import itertools
import math
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import ndtr

from tfgrpo_dspy import experience as experiences
from tfgrpo_dspy.experience import Advice, Delete, Effect, Experience, ExperienceLibrary, Limits
from tfgrpo_dspy.gate import model
from tfgrpo_dspy.rollout import NO_SCORES
from tfgrpo_dspy.text import letter_groups

MODEL_ERROR = 0.3  # the relative error of an effect that remains however many rollouts there are


@dataclass(frozen=True, slots=True)
class Belief:
    """What a gate believes that one experience, brief or set of demos adds to the score."""

    mean: float  # on examples like the training examples
    sd: float
    chance: float  # that this is worth its tokens
    n_rollouts: int  # that had it
    widest: float = math.inf  # the highest less the lowest score; no stated effect is larger

    @property
    def effect(self) -> Effect | None:
        """The measured effect; None if no rollout was given the experience.

        Its standard error includes that of the model, which guesses from texts only what an
        experience is about.
        """
        if not self.n_rollouts:
            return None
        error = math.hypot(self.sd, MODEL_ERROR * self.mean)
        widest = self.widest if math.isfinite(self.widest) else None
        return Effect(self._stated, error, self.n_rollouts, widest)

    @property
    def _stated(self) -> float:
        return max(-self.widest, min(self.widest, self.mean))

    def in_words(self) -> str:
        """The effect, and how likely it is worth its tokens."""
        measured = f"(standard error {self.sd:.3f}, {self.n_rollouts} rollouts)"
        worth = f"worth its tokens with probability {self.chance:.2f}"
        return f"effect {self._stated:+z.3f} {measured}: {worth}"


@dataclass(frozen=True, slots=True)
class Measured:
    """The score of one rollout with a library on one example."""

    library: ExperienceLibrary
    example: int  # the position in its set
    score: float | None  # None: the rollout has none, for instance because the provider failed
    demo_set: int = 0  # of those of the run, from 1; 0: the program showed no demos
    brief: int = 0  # of those of the run, from 1; 0: the student's instructions


@dataclass(frozen=True, slots=True)
class Decision:
    """The library after an update."""

    library: ExperienceLibrary  # the experiences that stay; the uncertain ones are on trial
    reason: str  # in words, for people
    deployable: ExperienceLibrary | None = None  # `result`, where that is not the whole library
    dropped: Mapping[str, str] = field(default_factory=dict)
    """By id, why an experience is not in the library any more."""
    beliefs: Mapping[Advice, Belief] = field(default_factory=dict)
    """Of each advice that the run has tried, or will try."""
    rivals: Mapping[str, Experience] = field(default_factory=dict)
    """By id, the other text of an experience, while it is undecided which of the two is better."""
    places: Mapping[str, str] = field(default_factory=dict)
    """By id, the experience about the same case that is likely better: a rollout, and a result, has
    at most one of the two."""
    is_open: bool = False  # whether further rollouts could still change what a program is given
    demos: tuple[Belief, ...] = ()  # of each of the run's sets of demos; empty: nothing
    briefs: tuple[Belief, ...] = ()

    @property
    def result(self) -> ExperienceLibrary:
        """The library that a program would be given if the run ended here."""
        return self.library if self.deployable is None else self.deployable

    @property
    def consistent(self) -> ExperienceLibrary:
        """The library without those of `places`."""
        return self.library.holding(e for e in self.library if e.id not in self.places)


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """Everything that a gate knows when an update is to be decided."""

    previous: Decision  # on the update before; at first one with the student's library
    operations: tuple[experiences.Operation, ...] = ()  # that the previous library would accept
    rollouts: tuple[Measured, ...] = ()  # of training so far, in the order of their updates
    texts: tuple[str, ...] = ()  # of each training example: its inputs, and its labels if known
    training: tuple[int, ...] = ()  # the positions of the examples that are trained on
    limits: Limits = field(default_factory=Limits)
    n_demo_sets: int = 0  # that the run may show
    parents: tuple[int, ...] = ()  # for each brief, the number of the one that it revises; 0: none

    @property
    def proposed(self) -> ExperienceLibrary:
        """The previous library with all operations applied."""
        return self.previous.library.apply(self.operations, self.limits)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A training group that is about to be made: `n_rollouts` of one example."""

    decision: Decision  # the latest one made in time for the group
    example: int
    update: int  # from 0
    n_rollouts: int
    n_demo_sets: int = 0  # that the rollouts may show
    n_briefs: int = 0  # that they may have


class Gate:
    """Decides on the updates of a run; a subclass overrides the methods that decide differently.

    `measures` says whether student and results are compared on a validation set.
    """

    measures: bool = True

    def decide(self, evidence: RunEvidence) -> Decision:
        """The library after an update; by default every operation is applied."""
        return Decision(evidence.proposed, "every operation is applied")

    def assign(self, plan: GroupPlan) -> Sequence[ExperienceLibrary]:
        """The library of each rollout of a group; by default the whole library."""
        return (plan.decision.library,) * plan.n_rollouts

    def demo_sets(self, plan: GroupPlan) -> Sequence[int]:
        """Which set of demos each rollout of a group shows, from 1; by default 0: none."""
        return (0,) * plan.n_rollouts

    def briefs(self, plan: GroupPlan) -> Sequence[int]:
        """Which brief each rollout of a group has, from 1; by default 0: the instructions."""
        return (0,) * plan.n_rollouts

    def finalists(self, decision: Decision) -> Sequence[ExperienceLibrary]:
        """The libraries that are compared with the student at the end, the most promising first."""
        return (decision.result,)


@dataclass(frozen=True, slots=True)
class NoGate(Gate):
    """Applies every operation, as in the paper; the last library is always returned."""

    measures = False


FULL = 0.9  # the library is kept no fuller than this share, so that new experiences find room
DROP_BELOW, SETTLE_ABOVE = 0.03, 0.97
"""By the probability that an experience is worth its price it leaves, or every rollout has it."""
RETRY_ABOVE = 0.1  # advice that was tried and has left comes back above this probability
DEMOS_BELOW = 0.1  # demos are not tried any more below this probability
LIKELY = 0.5  # a program is given what is above; what the reflection LM wants deleted leaves below
REPLACE_ABOVE = 0.9  # a new text replaces a settled one that it so probably beats
MOST_TRIED = 0.75  # of the rollouts have an experience on trial: others show what it adds
FEWEST_WITHOUT = 16
"""An experience settles once so many rollouts lacked it that were given all settled ones: where
some help only together, it is credited with what the others add until these tell them apart."""
OPEN_ABOVE = 0.02  # standard deviations; the run may end when less is expected
BRIEF_ABOVE, BRIEF_TRIALS = 0.9, 6
"""A brief takes the place of the student's instructions in training above this probability; below,
it is tried in so many rollouts only: where one says little, lines are learned better without it."""
UNTRIED = Belief(0.0, 1.0, 0.5, 0)
N_ALONE = 3  # how many of the best experiences are also compared with the student one by one
SAME_INPUTS, SAME_CASE, RARE_LETTERS = 0.5, 1.05, 0.6
"""Two lines are about the same case if what they are about correlates so much, and so large is the
sum of this and of the share of their letter groups that is the same; where the text of one names no
inputs, so alike must their rarer letters be."""


@dataclass(frozen=True, slots=True)
class BayesianGate(Gate):
    """Keeps the experiences that probably raise the score, by the scores of the training groups.

    An experience on trial is given to as many of the rollouts as it is likely to be worth its price
    (Thompson sampling), but to no more than `MOST_TRIED`. It costs no call.
    """

    def decide(self, evidence: RunEvidence) -> Decision:
        """The library after an update, by the scores of all training rollouts so far."""
        library, rivals = _proposed(evidence)
        sources: dict[Advice, set[int]] = {}
        # Many rollouts are given the same experience: each is looked at once.
        tried = {id(e): e for rollout in evidence.rollouts for e in rollout.library.experiences}
        for each in (*tried.values(), *library, *rivals.values()):
            about = sources.setdefault(each.advice, set())
            about.update(source.example for source in each.evidence)
        data = _data(evidence, sources, tried)
        counts = np.append(data.present.sum(axis=0), data.arms.sum(axis=0))
        scale = NO_SCORES.including(data.scores.tolist())
        widest = math.inf if scale.is_flat else scale.highest - scale.lowest
        columns = (*model.posterior(data), counts, np.full(len(counts), widest))
        figures = zip(*(column.tolist() for column in columns), strict=True)
        sd, every = model.score_sd(data.scores), [*itertools.starmap(Belief, figures)]
        beliefs = dict(zip(sources, every, strict=False))
        doubted = {op.id for op in evidence.operations if isinstance(op, Delete)}
        likely = [e for e in library if beliefs[e.advice].chance >= SETTLE_ABOVE]
        settled = {e.advice for e in likely if not e.is_on_trial}  # every rollout is given it
        column = {advice: j for j, advice in enumerate(beliefs)}
        for e in sorted(likely, key=lambda e: (-beliefs[e.advice].chance, -column[e.advice])):
            with_all = data.present[:, [column[advice] for advice in settled]].all(axis=1)
            if (with_all & ~data.present[:, column[e.advice]]).sum() >= FEWEST_WITHOUT:
                settled.add(e.advice)
        kept: dict[str, Experience] = {}
        dropped: dict[str, str] = {}
        for held in library:
            experience = _better_text(held, rivals, beliefs)
            belief = beliefs[experience.advice]
            least = LIKELY if experience.id in doubted else DROP_BELOW
            if belief.n_rollouts and held.id not in evidence.previous.library:
                least = max(least, RETRY_ABOVE)
            if belief.chance < least:
                dropped[experience.id] = belief.in_words()
            else:
                is_open = experience.advice not in settled or experience.id in rivals
                kept[experience.id] = replace(experience, effect=belief.effect, is_on_trial=is_open)
        places = _places(kept, beliefs, settled, data)
        for id_, leader in [*places.items()]:
            belief, ahead = beliefs[kept[id_].advice], beliefs[kept[leader].advice]
            if _chance_of_more(belief, ahead) < DROP_BELOW:
                del kept[id_], places[id_]
                dropped[id_] = f"{leader} is about the same case, and better: {belief.in_words()}"
            else:
                kept[id_] = replace(kept[id_], is_on_trial=True)
        room = max(1, int(FULL * evidence.limits.max_experiences))
        by_chance = sorted(kept.values(), key=lambda e: -beliefs[e.advice].chance)
        for experience in by_chance[room:]:
            belief = beliefs[kept.pop(experience.id).advice]
            dropped[experience.id] = f"no room: {belief.in_words()}"
        places = {id_: kept[at].id for id_, at in places.items() if {id_, at} <= kept.keys()}
        worthy = (e for e in kept.values() if beliefs[e.advice].chance > LIKELY)
        deployable = [e for e in worthy if e.id not in places]
        on_trial = [beliefs[e.advice] for e in kept.values() if e.is_on_trial]
        n, price = len(on_trial), model.PRICE * sd
        briefs = every[len(beliefs) + evidence.n_demo_sets :]
        gain = sum(model.above_zero(-abs(b.mean - price), b.sd) for b in (*on_trial, *briefs))
        return Decision(
            library.holding(kept.values()),
            f"{len(kept) - n} settled, {n} on trial, {len(dropped)} dropped",
            deployable=library.holding(deployable),
            dropped=dropped,
            beliefs=beliefs,
            rivals={id_: rival for id_, rival in rivals.items() if id_ in kept},
            places=places,
            is_open=gain > OPEN_ABOVE * sd,  # what is expected of knowing every effect on trial
            demos=tuple(every[len(beliefs) :][: evidence.n_demo_sets]),
            briefs=tuple(briefs),
        )

    def assign(self, plan: GroupPlan) -> Sequence[ExperienceLibrary]:
        """The library of each rollout of the group."""
        decision, n = plan.decision, plan.n_rollouts
        held: list[list[Experience]] = [[] for _ in range(n)]
        for experience in decision.consistent:
            lines = [experience] * n  # of those about a case, each as often as likely the best
            for id_ in [id_ for id_, at in decision.places.items() if at == experience.id]:
                other = decision.library[id_]
                lines = _mixed(plan, lines, experience, other, (*other.advice, experience.id))
            for k, share in enumerate(_shares(plan, experience.advice)):
                line, chance = lines[k], 1.0
                if line.is_on_trial:
                    chance = min(decision.beliefs[line.advice].chance, MOST_TRIED)
                if share < chance:
                    rival = decision.rivals.get(line.id)
                    texts = [line] * n
                    if rival is not None:
                        texts = _mixed(plan, texts, line, rival, rival.advice)
                    held[k].append(texts[k])
        return tuple(decision.library.holding(of_one) for of_one in held)

    def demo_sets(self, plan: GroupPlan) -> Sequence[int]:
        """A set of demos is tried like an experience: by what is believed of the likeliest one.

        Which set it is, is drawn by what is believed of each (Thompson sampling).
        """
        beliefs = plan.decision.demos
        chance = float(ndtr((model.DEMOS[0] - model.DEMOS_PRICE) / model.DEMOS[1]))
        if beliefs:
            chance = max(belief.chance for belief in beliefs)
        settled = 1.0 if chance >= SETTLE_ABOVE else min(chance, MOST_TRIED)
        chance = settled if chance >= DEMOS_BELOW else 0.0
        rng = random.Random(f"{plan.update}/{plan.example}/sets of demos")
        figures = [(b.mean, b.sd) for b in beliefs] or [(0.0, 1.0)] * plan.n_demo_sets
        sets = []
        for share in _shares(plan, "demos"):
            drawn = [rng.gauss(mean, sd) for mean, sd in figures]
            sets.append(1 + drawn.index(max(drawn)) if share < chance else 0)
        return tuple(sets)

    def briefs(self, plan: GroupPlan) -> Sequence[int]:
        """The rollouts of a group differ in their brief, each the likeliest best one of those left.

        Once a brief is surely better than the student's own instructions, only such ones are drawn;
        until then these, and briefs that were hardly tried.
        """
        beliefs = plan.decision.briefs or (UNTRIED,) * plan.n_briefs
        better = [k for k, belief in enumerate(beliefs, 1) if belief.chance >= BRIEF_ABOVE]
        new = [k for k, belief in enumerate(beliefs, 1) if belief.n_rollouts < BRIEF_TRIALS]
        arms = list(dict.fromkeys([*(better or [0]), *new]))
        rng = random.Random(f"{plan.update}/{plan.example}/briefs")
        chosen: list[int] = []
        while len(chosen) < plan.n_rollouts:
            figures = [(0, 0), *((belief.mean, belief.sd) for belief in beliefs)]
            drawn = [(rng.gauss(*figures[arm]), arm) for arm in arms]
            order = [arm for _, arm in sorted(drawn, reverse=True)]
            chosen.append(next((arm for arm in order if arm not in chosen), order[0]))
        return tuple(rng.sample(chosen, len(chosen)))

    def finalists(self, decision: Decision) -> Sequence[ExperienceLibrary]:
        """All that a program would be given, the whole library, the best 2, 4, 8, ..., three alone.

        Experiences that help beside random others may spoil each other, which the model does not
        see; so the best ones are compared on the validation set alone and in nested libraries.
        """
        result, every = decision.result, decision.consistent
        beliefs = [(e.id, decision.beliefs.get(e.advice)) for e in every]
        tried = {id_: belief.mean for id_, belief in beliefs if belief and belief.n_rollouts}
        best = sorted(tried, key=lambda id_: -tried[id_])
        likely = [id_ for id_ in best if id_ in result]
        sizes = [2**k for k in range(1, len(likely).bit_length()) if 2**k < len(likely)]
        nested = [set(likely[:size]) for size in reversed(sizes)]
        alone = [{id_} for id_ in best[:N_ALONE]]
        mixed = [ids for pair in itertools.zip_longest(alone, nested) for ids in pair if ids]
        parts = (result.holding(e for e in every if e.id in ids) for ids in mixed)
        return (result, every, *parts)


def _places(
    kept: Mapping[str, Experience],
    beliefs: Mapping[Advice, Belief],
    settled: set[Advice],
    data: model.Data,
) -> dict[str, str]:
    """By id, the strongest line about the same case, where that is another one.

    A settled line is the strongest until another one is better with `REPLACE_ABOVE`.
    """
    column = {advice: j for j, advice in enumerate(beliefs)}
    have_same_case = _same_cases([text for text, _ in beliefs], data.relevance, data.tells)

    def are_same(experience: Experience, other: Experience) -> bool:
        if len({experience.scope, other.scope} - {experiences.ALL}) > 1:
            return False
        return have_same_case(column[experience.advice], column[other.advice])

    leaders: list[Experience] = []
    places: dict[str, str] = {}
    for experience in sorted(kept.values(), key=lambda e: -beliefs[e.advice].mean):
        at = next((k for k, e in enumerate(leaders) if are_same(e, experience)), None)
        if at is None:
            leaders.append(experience)
            continue
        advice, leading = experience.advice, leaders[at].advice
        ahead = _chance_of_more(beliefs[leading], beliefs[advice])
        if advice in settled and leading not in settled and ahead <= REPLACE_ABOVE:
            places |= {id_: experience.id for id_, of in places.items() if of == leaders[at].id}
            experience, leaders[at] = leaders[at], experience
        places[experience.id] = leaders[at].id
    return places


def _same_cases(
    texts: Sequence[str], relevance: model.Matrix, tells: model.Flags
) -> Callable[[int, int], bool]:
    """Whether two of the texts, by place, are about the same case: by their characters alone."""
    about = relevance - relevance.mean(axis=1, keepdims=True)
    sizes = np.sqrt((about**2).sum(axis=1, keepdims=True))
    about /= np.where(sizes > 0, sizes, 1.0)

    def are_same(j: int, k: int) -> bool:
        alikeness = about[j] @ about[k]  # 0.0 of what is about all inputs, or none, alike
        if alikeness < SAME_INPUTS:
            return False
        if tells[j] and tells[k]:
            mine, others = letter_groups(texts[j]), letter_groups(texts[k])
            return bool(alikeness + len(mine & others) / len(mine | others) >= SAME_CASE)
        index = model.index_of(tuple(texts))
        return bool(index.relevance("", (j,))[0][k] >= RARE_LETTERS)

    return are_same


def uncovered(
    brief: str, held: Sequence[Experience], inputs: tuple[str, ...], fields: Container[str]
) -> str:
    """The brief without its lines about the same case as an experience, which was tried by itself.

    Lines below the name of a field stay: they are values in worked examples.
    """
    lines, n, index = brief.split("\n"), len(held), model.index_of(inputs)
    texts = [(e.text, tuple(sorted({source.example for source in e.evidence}))) for e in held]
    texts += [(line, ()) for line in lines]
    relevance, tells = zip(*(index.relevance(*each) for each in texts), strict=True)
    are_same = _same_cases([text for text, _ in texts], np.array(relevance), np.array(tells))
    return "\n".join(
        line
        for k, line in enumerate(lines)
        if (k and lines[k - 1].strip(" :*`") in fields)
        or not any(are_same(j, n + k) for j in range(n))
    )


def _better_text(
    experience: Experience, rivals: dict[str, Experience], beliefs: Mapping[Advice, Belief]
) -> Experience:
    """Of the two texts that an id may have, the one to go on with; a bad rival is forgotten."""
    rival = rivals.get(experience.id)
    if rival is None:
        return experience
    belief, of_rival = beliefs[experience.advice], beliefs[rival.advice]
    needed = REPLACE_ABOVE if belief.chance >= SETTLE_ABOVE else LIKELY
    if _chance_of_more(of_rival, belief) > needed:
        experience, rival, belief, of_rival = rival, experience, of_rival, belief
    rivals[experience.id] = rival
    if min(_chance_of_more(of_rival, belief), of_rival.chance) < DROP_BELOW:
        del rivals[experience.id]
    return experience


def _proposed(evidence: RunEvidence) -> tuple[ExperienceLibrary, dict[str, Experience]]:
    """The previous library with its new experiences, and the rival texts by id.

    A MODIFY keeps the old text and makes the new one its rival, unless that is a text or a rival of
    another experience: a predictor could be told both. A DELETE only raises doubt.
    """
    before, operations = evidence.previous.library, evidence.operations
    modifying = [op for op in operations if isinstance(op, experiences.Modify)]
    changed = before.apply(modifying, evidence.limits)
    taken = [*before, *evidence.previous.rivals.values()]
    is_repeated, new = experiences.is_repeated, dict[str, Experience]()
    for e in (e for e in changed if e.advice != before[e.id].advice):
        if not any(is_repeated(e.text, e.scope, other) for other in taken if other.id != e.id):
            new[e.id] = e
    rivals = {**evidence.previous.rivals, **new}
    adding = [
        op
        for op in operations
        if isinstance(op, experiences.Add)
        and not any(is_repeated(op.text, op.scope, rival) for rival in rivals.values())
    ]
    # Until it is decided what leaves, those that are to be deleted and the new ones are both here.
    n = evidence.limits.max_experiences + sum(isinstance(op, Delete) for op in operations)
    return before.apply(adding, replace(evidence.limits, max_experiences=n)), rivals


def _chance_of_more(belief: Belief, other: Belief) -> float:
    return float(ndtr((belief.mean - other.mean) / max(math.hypot(belief.sd, other.sd), 1e-9)))


def _data(
    evidence: RunEvidence, sources: Mapping[Advice, set[int]], tried: Mapping[int, Experience]
) -> model.Data:
    training = np.array(evidence.training, dtype=np.int64)
    place = {example: k for k, example in enumerate(evidence.training)}
    index = model.index_of(evidence.texts)
    near = [index.relevance(text, tuple(sorted(of))) for (text, _), of in sources.items()]
    scored = [rollout for rollout in evidence.rollouts if rollout.score is not None]
    number = {advice: j for j, advice in enumerate(sources)}
    column = {key: number[experience.advice] for key, experience in tried.items()}
    present = np.zeros((len(scored), len(sources)), dtype=bool)
    libraries = [rollout.library.experiences for rollout in scored]
    rows = np.repeat(np.arange(len(scored)), [*map(len, libraries)])
    ids = map(id, itertools.chain.from_iterable(libraries))
    present[rows, [*map(column.__getitem__, ids)]] = True
    figures = [(place[r.example], r.score, r.demo_set, r.brief) for r in scored]
    examples, scores, *had = np.array(figures, dtype=float).reshape(-1, 4).T
    n_sets, n_briefs = counts = evidence.n_demo_sets, len(evidence.parents)
    arms = [of[:, None] == np.arange(1, n + 1) for of, n in zip(had, counts, strict=True)]
    chains = np.eye(n_sets + n_briefs, dtype=bool)
    for row, parent in enumerate(evidence.parents, start=n_sets):
        if parent:
            chains[row] |= chains[n_sets + parent - 1]
    return model.Data(
        examples=examples.astype(np.int64),
        scores=scores,
        present=present,
        relevance=np.array([r[training] for r, _ in near]).reshape(len(sources), len(training)),
        tells=np.array([tells for _, tells in near], dtype=bool),
        arms=np.hstack(arms),
        are_briefs=np.repeat([False, True], counts),
        chains=chains,
    )


def _shares(plan: GroupPlan, tried: tuple[str, ...] | str) -> list[float]:
    """A number from 0 to 1 for each rollout of the group, one in each n-th part of that range."""
    n = plan.n_rollouts
    rng = random.Random(f"{plan.update}/{plan.example}/{tried}")
    order, start = rng.sample(range(n), n), rng.random()
    return [(k + start) / n for k in order]


def _mixed(
    plan: GroupPlan,
    lines: Sequence[Experience],
    experience: Experience,
    other: Experience,
    tried: tuple[str, ...],
) -> list[Experience]:
    """The lines, with the other one as often as it is likely better than the experience."""
    beliefs = plan.decision.beliefs
    chance = _chance_of_more(beliefs[other.advice], beliefs[experience.advice])
    shares = zip(_shares(plan, tried), lines, strict=True)
    return [other if share < chance else line for share, line in shares]
