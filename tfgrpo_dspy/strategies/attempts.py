"""Strategies that choose examples, add attempts where all fail, or change what attempts count with.

Those that choose draw one half of each batch; the other is the usual schedule's, so that no example
is forgotten, and that it shows whether choosing pays.
"""

import itertools
import math
import random
import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean
from typing import Annotated, Any

import dspy
from pydantic import Field

from tfgrpo_dspy.errors import SettingsError, such_that
from tfgrpo_dspy.reflection.modules import UNKNOWN, as_input
from tfgrpo_dspy.rollout import MIN_CONTRAST, NO_SCORES, Rollout, fields_text
from tfgrpo_dspy.sampling.examples import SampledGroup
from tfgrpo_dspy.strategies import base
from tfgrpo_dspy.text import shortened

Domain = Annotated[str | Callable[[Any], Any], base.NOT_ASYNC]
"""The domain of an example: the name of one of its fields, or a function of the example."""
LATEST, ENOUGH, MORE, OFTEN = 60, 8, 0.05, 1 / 4
"""Choosing stops if, in the latest 60 groups with at least 8 in both halves, the chosen half does
not teach more often by .05, or the usual half teaches in a quarter: then enough groups teach."""
PRIOR_GROUPS, MEMORY = 5, 0.5  # weights: of the prior; of a group, beside one an epoch later
OF_BANDIT, OF_WEIGHTS = 12, 6  # the latest groups of a domain that count for its teaching, its loss
LOSS_SCALE = 0.3  # of weights: the higher, the more equal they are
LEAST = 0.05  # of both parameters of a Beta distribution
LESSONS = 2  # groups of an example that teach, before more of them count less
SMALLEST_GROUP = 2
TRIED, WORSE, NOISE = 2, 0.3, 0.1
"""Groups of an example before it can be noise, by how much it is worse than its domain, and the
most examples that are noise, as a share."""


class Choosing(base.Strategy):
    """Draws half of each batch by `weights`, where that teaches more, and the other half seldom."""

    often = OFTEN

    def choose(self, plan: base.BatchPlan) -> Mapping[int, int]:
        usual = list(plan.sizes)[: math.ceil(len(plan.sizes) / 2)]
        weights = self.weights(plan)
        if not plan.past or self._is_in_vain(plan.past):
            return plan.sizes
        chance = random.Random(f"{plan.seed}/{plan.update}/{type(self).__name__}")
        key = {
            example: (plan.under_way.count(example), chance.expovariate(1.0) / max(1e-9, weight))
            for example, weight in sorted(weights.items())
            if example not in usual
        }
        drawn = sorted(key, key=lambda example: key[example])  # the lowest are a weighted draw
        return self.sizes(plan, [*usual, *drawn][: len(plan.sizes)])

    def weights(self, plan: base.BatchPlan) -> Mapping[int, float]:
        """The weight of each example: how much more often it is drawn than another."""
        raise NotImplementedError

    def sizes(self, plan: base.BatchPlan, chosen: Sequence[int]) -> Mapping[int, int]:
        """The number of rollouts of each of these."""
        return dict(zip(chosen, plan.sizes.values(), strict=False))

    def _is_in_vain(self, past: Sequence[SampledGroup]) -> bool:
        """True if the first halves of the latest batches teach often, or no less than the second"""
        usual, chosen = list[bool](), list[bool]()
        for _, of_update in groupby(past[-LATEST:], key=lambda sampled: sampled.update):
            batch = [_teaches(sampled) for sampled in of_update]
            half = math.ceil(len(batch) / 2)
            usual, chosen = usual + batch[:half], chosen + batch[half:]
        has_enough = min(len(usual), len(chosen)) >= ENOUGH
        return (has_enough and fmean(chosen) < fmean(usual) + MORE) or fmean(usual) >= self.often


def _teaches(sampled: SampledGroup) -> bool:
    group = sampled.unaided
    return group.has_contrast or (group.has_feedback and not group.is_at_best({}))


def variance(won: float, lost: float) -> float:
    """The expectation of p (1 - p), where the chance p is of this Beta distribution.

    1/6 where nothing is known (1, 1), and less at both ends.
    """
    return won * lost / ((won + lost) * (won + lost + 1))


def success_shares(past: Sequence[SampledGroup]) -> list[list[float]]:
    """The scores of each group, as shares (0 to 1) of the range of all scores; 0 of no range."""
    of_run = NO_SCORES.including(s for sampled in past for s in sampled.unaided.scores)
    spread = 1.0 if of_run.is_flat else of_run.highest - of_run.lowest
    return [[(score - of_run.lowest) / spread for score in each.unaided.scores] for each in past]


def pass_rates(plan: base.BatchPlan) -> dict[int, tuple[float, float]]:
    """The Beta distribution of the chance that a rollout of each training example succeeds.

    A group counts half of what one does that is an epoch (of usual size) later. The prior is the
    Beta distribution of the examples' chances, by the moments of all groups: where most have no
    contrast, its mass lies at both ends. Its correlation within a group is 1/3, that of equal
    chances from 0 to 1, with the weight of `PRIOR_GROUPS` groups.
    """
    all_shares, n_past, n_examples = success_shares(plan.past), len(plan.past), len(plan.training)
    groups = [shares for shares in all_shares if len(shares) > 1]
    every = [share for group in groups for share in group]
    mean = (sum(every) + 1) / (len(every) + 2)
    within = [len(g) / (len(g) - 1) * fmean(g) * (1 - fmean(g)) for g in groups]
    alike_within = [1 - min(1.0, each / (mean * (1 - mean))) for each in within]
    size = (len(groups) + PRIOR_GROUPS) / (sum(alike_within) + PRIOR_GROUPS / 3) - 1
    usual = max(mean * size, LEAST), max((1 - mean) * size, LEAST)
    rates = dict.fromkeys(plan.training, usual)
    for k, (sampled, shares) in enumerate(zip(plan.past, all_shares, strict=True)):
        (won, lost), n = rates.get(sampled.group.example, usual), sum(shares)
        weight = MEMORY ** ((n_past - 1 - k) / n_examples)
        rates[sampled.group.example] = won + weight * n, lost + weight * (len(shares) - n)
    return rates


def _domains(plan: base.BatchPlan, domain: Domain | None) -> Mapping[int, Hashable]:
    """The domain of each example that may be chosen; None: each is its own."""
    examples = {index: plan.trainset[index] for index in plan.training}
    if domain is None:
        return {index: index for index in examples}
    if not isinstance(domain, str):
        return {index: domain(example) for index, example in examples.items()}
    return {index: example[domain] for index, example in examples.items()}


@base.strategy
class LearningFrontier(Choosing):
    """Draws examples by how much can still be learned of them, as the library grows.

    The chance of an example is proportional to the square of its learnability: the expectation of
    p (1 - p), where p is its pass rate under the latest library, of a Beta posterior; where
    failures come with feedback, also that of (1 - p)^2. From the third group on that taught, it is
    divided by their number. Sources: AceGRPO (arXiv 2602.07906); `most`: CurES (arXiv 2510.01037).

    Args:
        most: rollouts of one example, at least 2: those drawn have rollouts in proportion to the
            root of the expectation of p (1 - p); None: as many as usual.
    """

    most: base.Least2 | None = None

    def weights(self, plan: base.BatchPlan) -> Mapping[int, float]:
        rates = pass_rates(plan)
        failing = [s.unaided for s in plan.past if not s.unaided.has_contrast]
        has_words = any(group.has_feedback and not group.is_at_best({}) for group in failing)
        taught = Counter(sampled.group.example for sampled in plan.past if _teaches(sampled))
        worth = {}
        for example in plan.training:
            (won, lost), n_more = rates[example], max(0, taught[example] - LESSONS)
            of_both = variance(won, lost)
            of_failing = lost / (won + lost) - of_both  # the expectation of (1 - p)^2
            worth[example] = (of_both + has_words * of_failing) ** 2 / (1 + n_more)
        return worth

    def sizes(self, plan: base.BatchPlan, chosen: Sequence[int]) -> Mapping[int, int]:
        if self.most is None:
            return super().sizes(plan, chosen)
        half, left = math.ceil(len(plan.sizes) / 2), sum(plan.sizes.values())
        rates, sizes = pass_rates(plan), dict[int, int]()
        spreads = {
            e: math.sqrt(variance(won, lost)) for e in chosen[half:] for won, lost in [rates[e]]
        }
        for example in chosen:
            size = plan.group_size
            if example in spreads:
                wanted = round(size * spreads[example] / fmean(spreads.values()))
                size = min(max(SMALLEST_GROUP, wanted), max(self.most, size))
            if min(size, left) < SMALLEST_GROUP:
                break
            sizes[example] = min(size, left)
            left -= sizes[example]
        return sizes


@base.strategy
class DomainBandit(Choosing):
    """Samples domains by a softmax over an upper confidence bound of how much they teach.

    The bound of a domain is L + exploration * sqrt(2 ln(n + 1) / (n_d + 1)), its chance in
    proportion to exp(bound / temperature): L is the mean absolute advantage of its latest groups,
    n_d the number of its groups, n that of all. In a domain, the examples that came least often
    come first. Source: DUMP (arXiv 2504.09710).

    Args:
        domain: the name of the field, or the function of an example, that gives its domain.
        exploration: factor of the confidence bound, 0 to 100; 0 takes what taught most.
        temperature: .01 to 100; the lower, the more the best domain gets.
    """

    domain: Domain
    exploration: Annotated[float, Field(ge=0, le=100)] = 0.5
    temperature: base.Magnitude = 0.1

    def weights(self, plan: base.BatchPlan) -> Mapping[int, float]:
        domain_of = _domains(plan, self.domain)
        taught: defaultdict[Hashable, list[float]] = defaultdict(list)
        times = Counter([*plan.under_way, *(sampled.group.example for sampled in plan.past)])
        for sampled in plan.past:
            advantages = sampled.unaided.advantages
            if sampled.group.example in domain_of and advantages:
                taught[domain_of[sampled.group.example]].append(fmean(map(abs, advantages)))
        unsure = 2 * math.log(sum(map(len, taught.values())) + 1)
        bounds = {
            domain: fmean(taught[domain][-OF_BANDIT:] or [0.0])
            + self.exploration * math.sqrt(unsure / (len(taught[domain]) + 1))
            for domain in domain_of.values()
        }
        highest = max(bounds.values(), default=0.0)
        share = {example: 4.0 ** -times[example] for example in domain_of}
        whole: defaultdict[Hashable, float] = defaultdict(float)
        for example, domain in domain_of.items():
            whole[domain] += share[example]
        return {
            example: math.exp((bounds[domain] - highest) / self.temperature)
            * (share[example] / whole[domain])
            for example, domain in domain_of.items()
        }


@base.strategy
class HardSampleWeights(Choosing):
    """Samples examples with weights exp(loss / 0.3), without those that look like noise.

    The loss is 1 minus the mean score of its domain, as a share of the range of all scores. First
    a tenth of the examples, those of the highest losses beside their domain (or all examples), is
    set aside as noise, of those that had two groups or more. Source: instance-reweighted
    distributionally robust optimization (arXiv 2402.14270).

    Args:
        domain: as for `DomainBandit`; None: every example is its own.
    """

    often = math.inf  # it looks for what scores low, not for what teaches
    domain: Domain | None = None

    def weights(self, plan: base.BatchPlan) -> Mapping[int, float]:
        domain_of = _domains(plan, self.domain)
        scores: defaultdict[Hashable, list[float]] = defaultdict(list)
        of_example: defaultdict[int, list[float]] = defaultdict(list)
        for sampled, shares in zip(plan.past, success_shares(plan.past), strict=True):
            if sampled.group.example in domain_of and shares:
                scores[domain_of[sampled.group.example]].append(fmean(shares))
                of_example[sampled.group.example].append(fmean(shares))
        losses = {name: 1 - fmean(of_one[-OF_WEIGHTS:]) for name, of_one in scores.items()}
        usual = fmean(losses.values()) if losses else 0.0
        excess = {
            e: 1 - fmean(of_one) - (usual if self.domain is None else losses[domain_of[e]])
            for e, of_one in of_example.items()
        }
        worse = [e for e, n in of_example.items() if len(n) >= TRIED and excess[e] > WORSE]
        ranked = sorted(worse, key=lambda e: (-excess[e], -len(of_example[e]), e))
        noise = set(ranked[: int(NOISE * len(domain_of))])
        sizes = Counter(domain_of.values())
        return {
            example: math.exp(losses.get(domain, usual) / LOSS_SCALE) / sizes[domain]
            for example, domain in domain_of.items()
            if example not in noise
        }


CLIP = 0.25  # of the distance to the nearest other score of a group: the most for diversity
PENALTY = 10.0
"""Factor of the distance by which a rollout misses a bound, in standard deviations."""
MEAN_STRENGTH = 2 / 3  # of 4 * level * (1 - level), over all levels from 0 to 1
OfRollout = Annotated[Callable[[Rollout], float], base.NOT_ASYNC]
Steps = Annotated[Callable[[Rollout], Sequence[Hashable]], base.NOT_ASYNC]
LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A letter or digit of a script that sets spaces between words."""
SHOWN_BYTES = 400  # of the answer on which the attempts agree
DIFFER = "several attempts agree, and are not right: {answer}. Take another way to another answer."
SHORT = 3  # letters: "A", "no", "1" stand in many sentences that do not give them as the answer
STATED = (
    r"(?:\b(?:is|be|say|answer|choose|pick|write|output|option|label)\W*|[=:\"'(\u201c]\W*"
    r"|(?<=[\u0e00-\uffff]))"
)


class WriteHints(dspy.Signature):
    """A program fails on this input. Write three hints, each of which helps more than the last.

    None of them may contain the expected answer, a part of it, or another way to say it: the
    program has to find the answer itself. Each is one sentence.
    """

    program: str = dspy.InputField(desc="what the program does")
    example: str = dspy.InputField(desc="the input on which the program fails")
    expected: str = dspy.InputField(desc="the right answer, where it is known")
    attempt: str = dspy.InputField(desc="what the program answered, and the feedback on it")
    concept: str = dspy.OutputField(desc="the idea, rule or fact that is needed here")
    plan: str = dspy.OutputField(desc="the steps to take, in their order")
    step: str = dspy.OutputField(desc="the first step, carried out; still without the answer")


@base.strategy
class TieredHints(base.Strategy):
    """Tries a failing example with a concept, then a plan, then a concrete step, until it succeeds.

    The reflection LM writes the hints from the label and the feedback; a hint with the example's
    label in it is not given. No score with a hint counts for any experience.
    Source: Scaf-GRPO (arXiv 2510.19807).

    Args:
        after: how many of the latest groups of the example must have failed, at least 0.
    """

    after: base.Least0 = 1

    def rescue(self, context: base.GroupContext, ask: base.Ask) -> Sequence[base.Attempt]:
        earlier, failed = context.earlier, context.sampled.unaided.rollouts
        latest = earlier[len(earlier) - self.after :]
        is_stuck = len(earlier) >= self.after and all(map(context.has_failed, latest))
        if not (context.fails and is_stuck and failed):
            return ()
        every = context.example.labels
        outputs = {name for rollout in context.group.all_rollouts for name in rollout.outputs}
        labels = {name: text for name, text in every.items() if name in outputs} or every
        answer = ask(
            WriteHints,
            example=context.example.text,
            expected=(context.shows_labels and fields_text(labels)) or UNKNOWN,
            attempt=f"{fields_text(failed[0].outputs)}\n{failed[0].words}".strip() or "(no answer)",
        )
        tried = {"", *(additions.hint for additions in context.sampled.additions)}
        hints = (
            as_input(" ".join(str(answer.get(tier, "")).split()))
            for tier in ("concept", "plan", "step")
        )
        usable = (hint for hint in hints if hint not in tried and not gives_away(hint, labels))
        return [base.Attempt(hint=hint) for hint in usable][:1]


def gives_away(text: str, labels: Mapping[str, Any]) -> bool:
    """True if one of these labels stands in the text as whole words, in any case and spacing.

    A label of at most `SHORT` letters must stand there as an answer: behind a word such as "is" or
    "answer", a colon or a quotation mark.
    """
    plain, *of_labels = (
        " ".join(unicodedata.normalize("NFKC", str(each)).casefold().split())
        for each in (text, *labels.values())
    )
    for label in filter(None, of_labels):
        before = STATED if len(label) <= SHORT and label.isascii() else f"(?<!{LETTER})"
        if re.search(f"{before}{re.escape(label)}(?!{LETTER})", plain):
            return True
    return False


@base.strategy
class TeacherRollouts(base.Strategy):
    """Adds rollouts of a teacher to the groups in which the student fails throughout.

    The reflection LM compares them with the student's, and writes lessons for the student. No score
    of the teacher counts for any experience.

    Args:
        teacher: a program, which runs in place of the student, or an LM, on which the student runs.
        share: how many rollouts the teacher adds, as a share of the student's in the group, .01
            to 1; at least one.
    """

    teacher: Annotated[Any, base.IS_TEACHER]
    share: Annotated[float, Field(ge=0.01, le=1)] = 0.5

    def rescue(self, context: base.GroupContext, ask: base.Ask) -> Sequence[base.Attempt]:
        every = context.sampled.additions
        if not context.fails or any(additions.teacher is not None for additions in every):
            return ()
        n_student = sum(not additions.aid for additions in every)
        return [base.Attempt(teacher=self.teacher)] * max(1, int(self.share * n_student))


@base.strategy
class ClippedDiversity(base.Strategy):
    """Explores where attempts agree, and lets the unusual one of equal attempts count for more.

    Where all attempts of a group give the same answer and fail, further ones are told to find
    another. A rollout counts with its score, plus or minus its entropy compared with that of the
    group's rollouts with the same score, where all have one (`dspy.LM(..., logprobs=True)`), and
    never reaches a better one. Student and result are compared by the score.
    Source: EGPO (arXiv 2508.05118).

    Args:
        temperature: the least of these attempts, 0 to 2. With 1.5 more attempts of an LM differed.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0

    def rescue(self, context: base.GroupContext, ask: base.Ask) -> Sequence[base.Attempt]:
        rollouts, additions = context.sampled.unaided.rollouts, context.sampled.additions
        agree = len({rollout.answer for rollout in rollouts}) == 1 and rollouts[0].answer
        is_done = any(one.aid for one in additions)
        if is_done or not (agree and len(rollouts) > 1 and context.fails):
            return ()
        shown = shortened(as_input(fields_text(rollouts[0].outputs)), SHOWN_BYTES)
        hint = DIFFER.format(answer=as_input(shown))
        n = max(1, len(rollouts) // 2)
        return [base.Attempt(hint=hint, temperature=self.temperature)] * n

    def reward(self, scored: base.Scored) -> Sequence[float]:
        scores = [rollout.score or 0.0 for rollout in scored.rollouts]
        rewards, groups = list(scores), dict[int, list[int]]()
        for place, rollout in enumerate(scored.rollouts if scored.is_training else ()):
            if not any(scored.aided[place : place + 1]):
                groups.setdefault(rollout.example, []).append(place)
        for places in groups.values():
            surprise = {place: scored.rollouts[place].entropy for place in places}
            entropies = {p: max(0.0, entropy) for p, entropy in surprise.items() if entropy}
            if None in surprise.values() or not (highest := max(entropies.values(), default=0.0)):
                continue
            for place in places:
                gaps = {other: abs(scores[place] - scores[other]) for other in places}
                mates = [entropies.get(p, 0.0) for p, gap in gaps.items() if gap <= MIN_CONTRAST]
                room = min((gap for gap in gaps.values() if gap > MIN_CONTRAST), default=0.0)
                unusual = entropies.get(place, 0.0) - statistics.fmean(mates)
                rewards[place] += CLIP * room * unusual / highest
        return rewards


def _spread(numbers: Sequence[float]) -> float:
    spread = statistics.pstdev(numbers or [0.0])
    return spread if spread > MIN_CONTRAST else 1.0


@base.strategy
class Objectives(base.Strategy):
    """Rewards the weighted mean of several objectives, each in its standard deviations.

    The metric returns `dspy.Prediction(objectives={name: value}, feedback=...)`. Each objective is
    divided by its standard deviation in the first batch (by 1 where it is the same throughout). A
    rollout that lacks an objective has no score; all scores of the results are these rewards.
    Sources: multi-reward GRPO (arXiv 2511.06023), mixed rewards (arXiv 2512.04277).

    Args:
        weights: by name, 0 or more; of each objective, more is better. "score" is the metric's.
        never_below: what some objectives should have at least in every rollout, by name: in the
            final choice, what a rollout lacks to that counts ten times.
        computed: further objectives, as functions of a rollout (such as `StepOrder(...).order`).
    """

    weights: Annotated[
        Mapping[str, Annotated[float, Field(ge=0, le=1e150)]],
        such_that(lambda weights: any(weights.values()), "pass a weight that is not 0"),
    ]
    never_below: Mapping[str, Annotated[float, Field(ge=-1e150, le=1e150)]] = field(
        default_factory=dict
    )
    computed: Mapping[str, OfRollout] = field(default_factory=dict)

    def reward(self, scored: base.Scored) -> Sequence[float | None]:
        names = dict.fromkeys([*self.weights, *self.never_below])
        scale: dict[str, float] = {}
        for name in names:
            values = [self._value(name, rollout) for rollout in scored.first]
            numbers = [value for value in values if value is not None]
            if values and not numbers:
                raise SettingsError(
                    f"objective {name!r}: the metric gave {sorted(scored.first[0].objectives)}; "
                    f"return dspy.Prediction(objectives={{{name!r}: ...}}), or leave the name out."
                )
            scale[name] = _spread(numbers)
        bounds = {} if scored.is_training else self.never_below

        def reward(rollout: Rollout) -> float | None:
            values = {n: x for n in names if (x := self._value(n, rollout)) is not None}
            if len(values) < len(names):
                return None
            mean = sum(w * values[name] / scale[name] for name, w in self.weights.items())
            lacking = (max(0.0, low - values[n]) / scale[n] for n, low in bounds.items())
            return mean / sum(self.weights.values()) - PENALTY * sum(lacking)

        return list(map(reward, scored.rollouts))

    def _value(self, name: str, rollout: Rollout) -> float | None:
        if name in self.computed:
            return float(self.computed[name](rollout))
        return (rollout.score or 0.0) if name == "score" else rollout.objectives.get(name)


@base.strategy
class StepOrder(base.Strategy):
    """Adds the rank correlation of a rollout's steps with a reference order to its score.

    `order(rollout)` is Kendall's tau (-1 to 1) of the steps that both have, by their first
    occurrence; 0.0 where they share fewer than two. `Objectives(..., computed={"order":
    StepOrder(reference).order})` mixes it with others. Source: arXiv 2512.04277.

    Args:
        reference: the right order of steps, as a function of the rollout.
        steps: the order that the rollout took; default: the names of its predictors and tools.
        weight: of the order, beside 1 for the score; 0 to 10.
    """

    reference: Steps
    steps: Steps = lambda rollout: [step.name for step in rollout.steps]
    weight: Annotated[float, Field(ge=0, le=10)] = 0.3

    def order(self, rollout: Rollout) -> float:
        taken = {step: place for place, step in reversed([*enumerate(self.steps(rollout))])}
        wanted = [step for step in dict.fromkeys(self.reference(rollout)) if step in taken]
        pairs = itertools.combinations([taken[step] for step in wanted], 2)
        signs = [1.0 if first < second else -1.0 for first, second in pairs]
        return statistics.fmean(signs or [0.0])

    def reward(self, scored: base.Scored) -> Sequence[float | None]:
        mixed = Objectives({"score": 1.0, "order": self.weight}, computed={"order": self.order})
        return mixed.reward(scored)


@base.strategy
class GlobalConstraint(base.Strategy):
    """Adds a reward for a quantity of the whole, such as how many agents cooperate.

    A rollout counts with `score + weight * spread * 4 * level * (1 - level) * quantity(rollout)`;
    the level is the mean quantity of its training batch, `spread` the standard deviation of the
    first batch's scores (1 where they are the same). At the end, `4 * level * (1 - level)` is 2/3,
    its mean over all levels. Source: GRPO-GCC (arXiv 2510.08607).

    Args:
        quantity: what a rollout contributes, from 0 to 1; a function of a rollout alone, such as
            `lambda rollout: rollout.outputs["decision"] == "cooperate"`.
        weight: how many standard deviations of the score it is worth at most; .01 to 100.
    """

    quantity: OfRollout
    weight: base.Magnitude = 1.0

    def reward(self, scored: base.Scored) -> Sequence[float]:
        contributed = [float(self.quantity(rollout)) for rollout in scored.rollouts]
        for quantity in contributed:
            if not 0 <= quantity <= 1:
                raise ValueError(f"quantity(rollout)={quantity!r}; return a number from 0 to 1")
        strength = MEAN_STRENGTH
        if scored.is_training and contributed:
            level = statistics.fmean(contributed)
            strength = 4 * level * (1 - level)
        spread = _spread([rollout.score or 0.0 for rollout in scored.first])
        worth = self.weight * strength * spread
        pairs = zip(scored.rollouts, contributed, strict=True)
        return [(rollout.score or 0.0) + worth * contribution for rollout, contribution in pairs]


# ------------------------------------------------------------------ where they are not needed

GROUPS, FAILING = 16, 12
"""Hints need 12 of the first 16 groups that failed throughout without feedback. By chance alone, a
program that is right in a third of its rollouts does so in one run of a hundred."""
ROLLOUTS, UNLIKE = 8, 3.0
"""The factor by which the objectives' standard deviations in the first 8 rollouts must differ."""


@dataclass(frozen=True)
class Auto(base.Strategy):
    """`TieredHints` where the first groups fail in silence; `Objectives` where scales differ."""

    def rescue(self, context: base.GroupContext, ask: base.Ask) -> Sequence[base.Attempt]:
        is_needed = context.shows_labels and needs_hints(context.past)
        return TieredHints().rescue(context, ask) if is_needed else ()

    def reward(self, scored: base.Scored) -> Sequence[float | None]:
        spreads = unlike_spreads(scored.first)
        mixed = Objectives(dict.fromkeys(spreads, 1.0)) if spreads else base.Strategy()
        return mixed.reward(scored)


def needs_hints(past: Sequence[SampledGroup]) -> bool:
    """True if most of the first groups had no contrast, no feedback, and not the best score.

    Where they had one score only, it is a failure if it is 0 or less.
    """
    groups = [sampled.by_metric for sampled in past[:GROUPS]]
    scores = NO_SCORES.including(score for group in groups for score in group.scores)
    best = scores.highest - scores.least_contrast
    if scores.is_flat:
        best = math.inf if scores.highest <= 0 else -math.inf
    silent = (g for g in groups if g.scores and not (g.has_contrast or g.has_feedback))
    return len(past) >= GROUPS and sum(max(group.scores) < best for group in silent) >= FAILING


def unlike_spreads(first: Sequence[Rollout]) -> dict[str, float]:
    """The standard deviations of the objectives, if these must be scaled; else none.

    They must where the score is their plain mean throughout, and their scales are far from alike.
    An objective that is the same in all rollouts says nothing of its scale.
    """
    names = list(first[0].objectives) if first else []
    is_plain = len(first) >= ROLLOUTS and len(names) > 1 and all(
        sorted(r.objectives) == sorted(names)
        and abs(statistics.fmean(r.objectives.values()) - (r.score or 0.0)) <= MIN_CONTRAST
        for r in first
    )  # fmt: skip
    spreads = {n: statistics.pstdev(r.objectives[n] for r in first) for n in names * is_plain}
    scales = [spread for spread in spreads.values() if spread > MIN_CONTRAST]
    return spreads if len(scales) > 1 and max(scales) > UNLIKE * min(scales) else {}


def may_rescue(strategies: Sequence[base.Strategy], past: Sequence[SampledGroup]) -> bool:
    """True if a strategy may help groups that fail throughout, after these."""
    rescuing = [one for one in strategies if base.overrides(one, "rescue")]
    return any(not isinstance(one, Auto) or needs_hints(past) for one in rescuing)
