"""Strategies that value the steps of rollouts, to find the one that decided.

A state lies before the first turn of a rollout or after one of its turns; a turn is a call of a
predictor, with the calls of tools that follow it.
"""

import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated, Any

import dspy
import numpy as np
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import betaln, expit, log_expit

from tfgrpo_dspy.errors import SettingsError, StrategyError
from tfgrpo_dspy.reflection.texts import UNKNOWN, clip
from tfgrpo_dspy.rollout import MIN_CONTRAST, Group, Rollout, fields_text, trajectory_text
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.sampling.one_rollout import decision
from tfgrpo_dspy.strategies.base import (
    Ask,
    BatchPlan,
    Credit,
    GroupContext,
    Least0,
    Least1,
    Least2,
    Multiple,
    Play,
    Strategy,
    strategy,
)
from tfgrpo_dspy.strategies.choosing import PassRate
from tfgrpo_dspy.wording import alike, letter_groups

Array = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Decisions = tuple[tuple[str, Mapping[str, str]], ...]
PRIOR, TOWARDS = 0.5, 1.5
"""Parameters of the Beta priors: of either outcome, and more of the one that is expected."""
EXCULPATED = 0.2  # how likely a turn is decisive that a rollout with an unlike score took, too
NONE = 0.1  # the prior probability that no turn was decisive
SURE = 0.9  # the probability with which the decisive turn is known
THRIFT = 0.3  # how much the LM calls of a rollout weigh against what its score says
LITTLE = 0.002  # nats: so little information is not worth a rollout
RIDGE = 0.3  # how strongly rewards are drawn to 0, in the scale of log-odds
PAIR_TOKENS, GROUP_TOKENS = 1_500, 4_000  # of one attempt of a pair; of all attempts of a group
HIGHEST, BEFORE = 10, 0.5
"""The best mark; and what a state is worth before the first step, when nothing is known."""
FIRST = 2 / 3  # of the steps: earlier branches cost more, later ones differ in less
TRIES = 0.2  # LM calls for branches that end at once, as a share of those of the whole rollouts
LEAST_WHOLE = 2  # rollouts of an example, which a batch must have at least
LINE = re.compile(r"(\d+)\D*?:\s*([\d.,; ]+)")


def states(rollout: Rollout) -> list[int]:
    """The steps made in each state, as numbers: `[0, 2, 4, 5]` for two tool calls and an answer."""
    steps = rollout.steps
    ends = [n for n in range(1, len(steps)) if steps[n].kind == "predictor"]
    return [0, *ends, *([len(steps)] if steps else [])]


def tree_values(rollouts: Sequence[Rollout]) -> dict[int, list[float | None]]:
    """By rollout id, for each state the mean score of the rollouts that were in it.

    So rollouts have the same values along a common beginning. Steps that end no turn have None.
    """
    calls = [[(s.kind, s.name, dict(s.outputs), s.error) for s in r.steps] for r in rollouts]
    by_rollout = {}
    for rollout, mine in zip(rollouts, calls, strict=True):
        values: list[float | None] = [None] * len(rollout.values)
        for state in states(rollout):
            pairs = zip(rollouts, calls, strict=True)
            scores = [r.score or 0.0 for r, theirs in pairs if theirs[:state] == mine[:state]]
            values[state] = sum(scores) / len(scores)
        by_rollout[rollout.rollout_id] = values
    return by_rollout


def by_unlikeness(group: Group) -> list[Rollout]:
    """The rollouts, those first whose score is furthest from the mean; of two, the lower one."""
    scores = {rollout.rollout_id: rollout.score or 0.0 for rollout in group.rollouts}
    far = {id_: -round(abs(score - fmean(group.scores)), 9) for id_, score in scores.items()}
    return sorted(group.rollouts, key=lambda r: (far[r.rollout_id], scores[r.rollout_id]))


def _attempt(rollout: Rollout, max_tokens: int) -> str:
    """The trajectory and the outputs, as the reflection LM is shown them."""
    text = f"{trajectory_text(rollout)}\nOutputs:\n{fields_text(rollout.outputs)}"
    return clip(text, max_tokens)


@dataclass(frozen=True)
class StateValues:
    """The values of the states of a rollout, and of each turn the probability that it decided.

    Either one of its turns was decisive, or none was. If a turn was decisive, rollouts that go on
    from a state after that turn share one chance of success, and the others have another one. Both
    chances have Beta priors: the first one near the score of the rollout, the second one far from
    it. Scores are scaled to 0 to 1. All turns are as likely to be decisive, except that a turn is
    suspected less if a rollout with an unlike score has taken the same decision.

    `information` is, by state, what the score of one more rollout from there says of the decisive
    turn, in nats.
    """

    means: list[float]
    decisive: list[float]
    none_decisive: float
    information: list[float]

    @classmethod
    def of(
        cls, rollout: Rollout, others: Sequence[Rollout], low: float, high: float
    ) -> "StateValues":
        """The values by Bayes' rule from other rollouts of the example; scores: `low` to `high`."""

        def share(scored: Rollout) -> float:
            part = ((scored.score or 0.0) - low) / max(MIN_CONTRAST, high - low)
            return min(1.0, max(0.0, part))

        ends, mine = states(rollout), share(rollout)
        scores = np.array([share(other) for other in others])
        starts = np.array([other.n_replayed or 0 for other in others])
        is_after = starts[:, None] >= np.array(ends[1:])[None, :]
        near = PRIOR + TOWARDS * np.array([mine, 1 - mine])
        logs_after, after = _beta(scores, is_after, near)
        logs_before, before = _beta(scores, ~is_after, near[::-1])
        logs_none, mean = _beta(scores, np.ones((len(scores), 1), dtype=bool), np.ones(2))
        turns = _decisions(rollout)
        unlike = [_decisions(other) for other in others
                  if other.n_replayed is None and abs(share(other) - mine) > 0.5]  # fmt: skip
        is_unlike = [any(turn in theirs if turns.count(turn) == 1 else theirs[k : k + 1] == [turn]
                         for theirs in unlike) for k, turn in enumerate(turns)]  # fmt: skip
        weights = np.where(is_unlike, EXCULPATED, 1.0)
        suspected = np.log((1 - NONE) * (weights / weights.sum()))
        logs = np.append(logs_after + logs_before + suspected, logs_none + np.log(NONE))
        chances = np.exp(logs - logs.max())
        chances = chances / chances.sum()  # of each turn, and at the end of none
        is_past = np.arange(len(ends))[:, None] > np.arange(len(chances))[None, :]
        is_past[:, -1] = False
        by_state = np.where(is_past, np.append(after, mean), np.append(before, mean))
        expected = by_state @ chances
        information = _entropy(expected) - _entropy(by_state) @ chances
        means = [low + float(value) * (high - low) for value in expected]
        *decisive, none_decisive = map(float, chances)
        return cls(means, decisive, none_decisive, [float(nats) for nats in information])


def _beta(scores: Array, chosen: Mask, prior: Array) -> tuple[Array, Array]:
    """By column of `chosen`: the log-probability of these scores, and the expected next one."""
    won, lost = scores @ chosen + prior[0], (1 - scores) @ chosen + prior[1]
    return betaln(won, lost) - betaln(*prior), won / (won + lost)


def _entropy(chance: Array) -> Array:
    entropy: Array = -chance * np.log(chance) - (1 - chance) * np.log(1 - chance)
    return entropy


def _decisions(rollout: Rollout) -> list[Decisions]:
    """The decisions of the predictor of each turn, without the reasoning."""
    return [
        tuple((s.name, decision(s.outputs)) for s in rollout.steps[start:end] if s.kind != "tool")
        for start, end in itertools.pairwise(states(rollout))
    ]


@strategy
class MonteCarloCredit(Strategy):
    """Finds the step that decided a rollout, by sampling how it would have gone on.

    In a group with contrast, the rollout whose score is furthest from the mean is gone on with from
    the state where a further score says most for its LM calls: that halves the steps in question,
    as in a bisection. A state's value is the expected score there. Of the sampled rollouts, the one
    from the state before the decisive step whose score is most unlike stands beside the group: good
    and bad from the same state.

    **Source.** VinePPO (arXiv 2410.01679).
    **When to use.** Agents of five or more steps, which end well or badly by one or two of them.

    Args:
        calls: LM calls for a group, as a multiple of what its rollouts have taken; .1 to 10.
    """

    calls: Multiple = 1.0

    def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The values of the steps of one rollout, and one beside it from the decisive state."""
        group = context.sampled.unaided
        if not group.has_contrast:
            return Credit({})
        rollout, *others = by_unlikeness(group)
        others.sort(key=group.rollouts.index)
        low, high = min(group.scores), max(group.scores)
        left = self.calls * sum(each.usage.n_answers for each in group.all_rollouts)
        ends, n_steps = states(rollout), len(rollout.steps)
        costs = {  # about how many LM calls a rollout takes that goes on from there
            state: max(1, sum(step.kind == "predictor" for step in rollout.steps[state:]))
            for state in ends
        }
        played: dict[int, Sequence[Rollout]] = {}
        n_asked: Counter[int] = Counter()
        while True:
            more = itertools.chain(*played.values())
            values = StateValues.of(rollout, (*others, *more), low, high)
            worth = {
                state: nats / costs[state] ** THRIFT
                for state, nats in zip(ends, values.information, strict=True)
                if state < n_steps and costs[state] <= left and nats >= LITTLE
            }
            if not worth or max([values.none_decisive, *values.decisive]) >= SURE:
                break
            state = max(worth, key=lambda state: worth[state])
            n_asked[state] += 1
            left -= costs[state]
            played[state] = play(rollout, state, n_asked[state])
        falls = [abs(after - before) for before, after in itertools.pairwise(values.means)]
        before = ends[falls.index(max(falls))] if falls else 0
        score = rollout.score or 0.0
        unlike = sorted(played.get(before, ()), key=lambda r: -abs((r.score or 0.0) - score))
        beside = [r for r in unlike[:1] if abs((r.score or 0.0) - score) > MIN_CONTRAST]
        by_end: dict[int, float] = dict(zip(ends, values.means, strict=True))
        of_steps = [by_end.get(n) for n in range(len(rollout.values))]
        return Credit({rollout.rollout_id: of_steps}, tuple(beside))


@strategy
class InformationGain(Strategy):
    """Asks for the answer after each turn of a rollout; the gain of a turn is what it adds.

    It values the rollouts of groups that have contrast or have failed throughout, the most unlike
    the mean first, until the calls are spent. The program's LM is shown the steps so far and asked
    for the outputs at once; the metric scores these answers. The value of a state is their expected
    score: with log-probabilities (`dspy.LM(..., logprobs=True)`), each distinct answer counts with
    exp(mean log-probability of its tokens), and the rest with the mean of the samples; else it is
    that mean. Nothing is replayed: it works where a program does not repeat its steps.

    **Source.** IGPO (arXiv 2510.14967).
    **When to use.** Agents that collect information, where an answer can be scored at any time.
    Where the answer is only the end of a row of actions, it says little.

    Args:
        samples: answers in each state, at least 1; one is enough with log-probabilities.
        calls: LM calls for a group, as a multiple of what its rollouts have taken; .1 to 10.
    """

    samples: Least1 = 2
    calls: Multiple = 1.0

    def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The values of the turns of the rollouts; at the end a value is the score."""
        group, values_of = context.sampled.unaided, dict[int, list[float | None]]()
        left = self.calls * sum(rollout.usage.n_answers for rollout in group.all_rollouts)
        for rollout in by_unlikeness(group) if group.has_contrast or context.fails else ():
            before_end = states(rollout)[:-1]
            left -= self.samples * len(before_end)
            if values_of and left < 0:
                break
            values: list[float | None] = [None] * len(rollout.values)
            for state in before_end:
                answers = play(rollout, state, self.samples, answers_now=True)
                values[state] = expected_score(answers) if answers else None
            values[-1] = rollout.score
            values_of[rollout.rollout_id] = values
        return Credit(values_of)


def expected_score(answers: Sequence[Rollout]) -> float:
    """The expected score of an answer, of which these are samples; at least one."""
    scores = [rollout.score or 0.0 for rollout in answers]
    mean = sum(scores) / len(scores)
    chances: dict[str, tuple[float, float]] = {}
    for rollout, score in zip(answers, scores, strict=True):
        if rollout.entropy is not None:  # the mean negative log-probability of its tokens
            chances[rollout.answer] = (math.exp(-rollout.entropy), score)
    total = max(1.0, sum(chance for chance, _ in chances.values()))
    seen = sum(chance for chance, _ in chances.values()) / total
    return sum(chance * score for chance, score in chances.values()) / total + (1 - seen) * mean


class PreferAttempt(dspy.Signature):
    """Two attempts of a program at the same input. Which of them does what the program is for?

    Judge each step: is it needed, right and well founded? Then write 1 or 2, the number of the
    better attempt, or 0 if they are equally good.
    """

    program: str = dspy.InputField(desc="what the program does")
    example: str = dspy.InputField(desc="the input")
    attempt_1: str = dspy.InputField()
    attempt_2: str = dspy.InputField()
    reason: str = dspy.OutputField(desc="in one sentence")
    better: str = dspy.OutputField(desc="1, 2 or 0")


@strategy
class ImplicitStepRewards(Strategy):
    """Fits a reward for each kind of step to which of two rollouts is better.

    Of a pair of rollouts of an example, the one with the higher score is better; where there is no
    metric, the reflection LM judges. By the model of Bradley and Terry, the log-odds of that are
    the difference of the sums of the rewards of their steps, which logistic regression fits to the
    pairs of this group and of earlier ones; these count less, the less their inputs are like those
    of this one, and the more the library has changed since. A step is known by its predictor, its
    decision, and its place. The value of a state is the probability that a rollout with these steps
    so far is preferred to the average one of its group.

    **Source.** iStar (arXiv 2509.19199).
    **When to use.** Tasks that no metric can verify (`metric=None`); with a metric it costs no
    call.

    Args:
        pairs: how many pairs of a group are compared, at least 1.
        groups: how many earlier groups count, at least 0.
    """

    pairs: Least1 = 3
    groups: Least0 = 20

    def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The value of each turn of each rollout that was compared."""
        past = context.past[len(context.past) - self.groups :] if self.groups else ()
        here = letter_groups(context.example.text, (4,))
        rows: list[tuple[Rollout, Rollout, float]] = []
        for sampled in (*past, context.sampled):
            example = context.examples[sampled.group.example]
            weight = alike(sampled.advice, context.sampled.advice)
            weight *= alike(letter_groups(example.text, (4,)), here)
            for first, second in self._pairs(sampled.unaided) if weight > 0 else ():
                ahead = (first.score or 0.0) - (second.score or 0.0)
                if first.score is None:  # there is no metric
                    ahead = _preference(example.text, first, second, ask)
                if abs(ahead) > sampled.group.least_contrast:
                    winner, loser = (first, second) if ahead > 0 else (second, first)
                    rows.append((winner, loser, weight))
        group = context.sampled.unaided.rollouts
        if not rows or len(group) < 2:
            return Credit({})
        rewards = fitted_rewards(rows)
        sums = {
            r.rollout_id: np.cumsum([0.0, *(
                sum(rewards.get(name, 0.0) for name in of_step) for of_step in _features(r)
            )])
            for r in group
        }  # fmt: skip
        usual = float(np.mean([each[-1] for each in sums.values()]))
        ends = {rollout.rollout_id: set(states(rollout)) for rollout in group}
        values = {
            id_: [float(expit(x - usual)) if n in ends[id_] else None for n, x in enumerate(each)]
            for id_, each in sums.items()
        }
        return Credit(values, measure="chance of being preferred")

    def _pairs(self, group: Group) -> list[tuple[Rollout, Rollout]]:
        """Pairs of rollouts that answer differently or took other steps, in an order by chance."""
        features = {r.rollout_id: [*filter(None, _features(r))] for r in group.rollouts}
        every = itertools.combinations(group.rollouts, 2)
        pairs = [p for p in every if features[p[0].rollout_id] != features[p[1].rollout_id]]
        chance = random.Random(f"pairs/{[rollout.rollout_id for rollout in group.rollouts]}")
        chosen = chance.sample(pairs, min(self.pairs, len(pairs)))
        return [pair if chance.random() < 0.5 else (pair[1], pair[0]) for pair in chosen]


def fitted_rewards(rows: Sequence[tuple[Rollout, Rollout, float]]) -> dict[object, float]:
    """The reward of each feature of steps, from pairs of winner and loser with weights."""
    features = [[[*itertools.chain(*_features(rollout))] for rollout in pair] for *pair, _ in rows]
    names = list(dict.fromkeys(itertools.chain(*itertools.chain(*features))))
    place = {name: k for k, name in enumerate(names)}
    design = np.zeros((len(rows), len(names)))
    for row, pair in enumerate(features):
        for of_rollout, sign in zip(pair, (1.0, -1.0), strict=True):
            for name in of_rollout:
                design[row, place[name]] += sign
    weights = np.array([weight for *_, weight in rows])

    def loss(x: Array) -> tuple[float, Array]:
        margins = design @ x
        slopes = -weights * expit(-margins)
        value = -(weights * log_expit(margins)).sum() + RIDGE / 2 * (x @ x)
        return float(value), design.T @ slopes + RIDGE * x

    fitted = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B").x
    return {name: float(x) for name, x in zip(names, fitted, strict=True)}


def _features(rollout: Rollout) -> list[list[object]]:
    """Of each step its predictor, its decision, and both with its place; a tool's step has none.

    The step of its predictor chose it.
    """
    features = list[list[object]]()
    for index, step in enumerate(rollout.steps):
        decided = (step.name, tuple(sorted(decision(step.outputs).items())))
        is_chosen = step.kind == "tool"
        features.append([] if is_chosen else [step.name, decided, (*decided, index)])
    return features


def _preference(example: str, first: Rollout, second: Rollout, ask: Ask) -> float:
    """1 where the reflection LM prefers the first, -1 where the second, else 0."""
    texts = [_attempt(rollout, PAIR_TOKENS) for rollout in (first, second)]
    answer = ask(PreferAttempt, example=example, attempt_1=texts[0], attempt_2=texts[1])
    digits = [digit for digit in str(answer.get("better", "")) if digit in "012"]
    return {"1": 1.0, "2": -1.0}.get(digits[0] if digits else "", 0.0)


class MarkSteps(dspy.Signature):
    """Mark each step of each attempt of a program: how likely would you go on to the right result?

    A mark is a number from 0 (all is lost) to 10 (as you would have done it yourself). Judge what
    the steps so far are worth to whoever goes on from there, not how they are worded. Steps that
    undo or repeat others get the mark of the step before. Earlier marks of yours stand beside the
    scores that the attempts had in the end: where they were too high or too low, learn from it.

    Write one line for each attempt, "attempt: marks", such as "1: 6, 6, 2", and nothing else.
    """

    program: str = dspy.InputField(desc="what the program does")
    example: str = dspy.InputField(desc="the input")
    expected: str = dspy.InputField(desc="the right result, where it is known")
    earlier: str = dspy.InputField(desc="last marks of earlier attempts, and their scores")
    attempts: str = dspy.InputField()
    marks: str = dspy.OutputField(desc='one line for each attempt, such as "1: 6, 6, 2"')


@strategy
class TeacherMarks(Strategy):
    """Lets the reflection LM mark the student's own rollouts, step by step, beside the metric.

    One question for each group that differs or fails shows it all attempts. The mark after a turn,
    as a share of ten, is the value of that state: the lesson writer reads where it fell, and
    lessons are for the predictor of that step. So groups that fail throughout teach, too, although
    the metric is silent. The teacher learns from the student's rollouts in turn: it is shown how
    its last marks of earlier attempts compare with the scores that the metric gave these.

    **Source.** CoDistill-GRPO (arXiv 2605.08873).
    **When to use.** Programs of several steps with a silent metric, where the reflection LM could
    do the task itself. `TeacherRollouts` is for teachers that shall run in the student's place.

    Args:
        earlier: of how many earlier attempts marks and scores are shown; 0: of none.
    """

    earlier: Least0 = 8

    def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The marks of each turn of each rollout, as shares of ten."""
        group = context.sampled.unaided
        if not group.rollouts or not (group.has_contrast or context.fails or not group.scores):
            return Credit({})
        share = GROUP_TOKENS // len(group.rollouts)
        shown = [f"Attempt {n}\n{_attempt(r, share)}" for n, r in enumerate(group.rollouts, 1)]
        labels = context.example.labels_text if context.shows_labels else ""
        answer = ask(
            MarkSteps,
            example=context.example.text,
            expected=labels or UNKNOWN,
            earlier=self._earlier(context) or "(none)",
            attempts="\n\n".join(shown),
        )
        lines = dict(LINE.findall(str(answer.get("marks", ""))))
        values = {}
        for n, rollout in enumerate(group.rollouts, 1):
            marks = [float(mark) for mark in re.findall(r"\d+(?:\.\d+)?", lines.get(str(n), ""))]
            ends = states(rollout)[1:]
            if len(marks) >= len(rollout.steps):  # of its steps; else of its turns
                marks = [marks[end - 1] for end in ends]
            if ends and len(marks) >= len(ends) and max(marks) <= HIGHEST:
                by_end = {end: mark / HIGHEST for end, mark in zip(ends, marks, strict=False)}
                later = (by_end.get(n) for n in range(1, len(rollout.values)))
                values[rollout.rollout_id] = [BEFORE, *later]
        return Credit(values, measure="mark of the teacher")

    def _earlier(self, context: GroupContext) -> str:
        by_metric = [rollout for sampled in context.past for rollout in sampled.by_metric.rollouts]
        scores = {rollout.rollout_id: rollout.score for rollout in by_metric}
        marked = [
            f"mark {rollout.values[-1] * HIGHEST:.0f}, score {score:.3g}"
            for sampled in context.past
            for rollout in sampled.unaided.rollouts
            if rollout.values[-1] is not None
            and (score := scores.get(rollout.rollout_id)) is not None
        ]
        return "\n".join(marked[len(marked) - self.earlier :] if self.earlier else [])


@strategy
class BranchingRollouts(Strategy):
    """Makes a part of each group by branching rollouts after a step, in place of whole rollouts.

    A rollout branches after results of tools (after any turn, if it calls none), first where the
    entropy of the next answer rises most above that of the first one (ask for it with
    `dspy.LM(..., logprobs=True)`); without log-probabilities, first after two thirds of the steps.
    A branch whose first step decides as the rollout did ends after that one call. A program of one
    turn cannot branch: that is counted, and groups become as large as usual. Values are the mean
    scores of all leaves of the tree below a state: shared along a common beginning, then apart.

    **Source.** ARPO (arXiv 2507.19849).
    **When to use.** Long agents whose groups are dear. Branches count for no experience, so the
    gate learns from fewer rollouts.

    Args:
        leaves: rollouts of a group, branches included, at least 3; no more than the group size.
        whole: how many of these are whole rollouts, at least 2, below `leaves`.
    """

    leaves: Annotated[int, Field(ge=LEAST_WHOLE + 1)] = 5
    whole: Least2 = 2

    def __post_init__(self) -> None:
        if self.whole >= self.leaves:
            raise SettingsError(f"whole={self.whole!r}: pass less than leaves={self.leaves!r}.")

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        """Fewer whole rollouts of each example, unless none so far could branch."""
        if plan.past and not _places(_scored(*plan.past)):
            return plan.sizes
        return {example: min(self.whole, size) for example, size in plan.sizes.items()}

    def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """Branches beside the whole rollouts, and the values of the tree."""
        scored = _scored(context.sampled)
        if not _places([*scored, *_scored(*context.past)]):
            raise StrategyError(
                f"no rollout of example {context.sampled.group.example} with a score has more than "
                f"one turn, so none can branch, and the group stays small; leave the strategy out."
            )
        if 0 < context.group_size <= self.whole:
            raise StrategyError(
                f"group_size={context.group_size}: a group of so few rollouts is made of whole "
                f"ones; pass group_size={self.leaves}, or leave the strategy out."
            )
        wanted = min(self.leaves, context.group_size or self.leaves) - len(scored)
        n_tries = TRIES * sum(rollout.usage.n_answers for rollout in scored)
        branches: list[Rollout] = []
        for rollout, state in _places(scored):
            if len(branches) >= wanted or n_tries < 0:
                break
            more = play(rollout, state, ends_if_same=True)
            branches += more
            n_tries -= not more
        for rollout, state in _places(scored):  # where no place is left that is unsure
            if len(branches) >= wanted:
                break
            ids = {branch.rollout_id for branch in branches}
            branches += [r for r in play(rollout, state) if r.rollout_id not in ids]
        return Credit(tree_values([*scored, *branches]), tuple(branches))


def _scored(*groups: SampledGroup) -> list[Rollout]:
    return [r for sampled in groups for r in sampled.unaided.rollouts if r.score is not None]


def _places(rollouts: Sequence[Rollout]) -> list[tuple[Rollout, int]]:
    """Where to branch, the most uncertain first; the rollouts take turns."""
    ranked = []
    for rollout in rollouts:
        steps, turns = rollout.steps, states(rollout)[1:-1]
        first = steps[0].entropy if steps else None
        order = list[tuple[float, float, int]]()
        for n in [n for n in turns if steps[n - 1].kind == "tool"] or turns:
            entropy = steps[n].entropy
            rise = 0.0 if entropy is None or first is None else entropy - first
            order.append((-rise, abs(n - FIRST * len(steps)), n))
        ranked.append([(rollout, n) for *_, n in sorted(order)])
    return [
        place
        for of_turn in itertools.zip_longest(*ranked)
        for place in of_turn
        if place is not None
    ]


@strategy
class StateTasks(Strategy):
    """Goes on from a state of a group that fails throughout, where success may be within reach.

    Where all rollouts of a group fail alike, `rollouts` further ones go on from one of its states.
    It is drawn with a chance in proportion to the square of its learnability: the expectation of
    p (1 - p), where p is the chance of success from there, by what earlier ones of this example
    with as many steps have scored. They stand beside the group; if one of them succeeds, the group
    has contrast, and the values of the states say which step decides.

    **Source.** AceGRPO (arXiv 2602.07906).
    **When to use.** Long agents that fail on most examples, whose tools can be replayed.

    Args:
        rollouts: how many go on from the state, at least 2.
    """

    rollouts: Least2 = 2

    def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The rollouts that go on from a learnable state, and the values of all states."""
        group = context.sampled.unaided
        scored = _scored(context.sampled)
        source = max(scored, key=lambda rollout: len(rollout.steps), default=None)
        inner = states(source)[1:-1] if source else []
        if source is None or not inner or not context.fails:
            return Credit({})
        rates = _rates(context)
        chance = random.Random(f"{group.example}/{context.sampled.update}/StateTasks")
        (state,) = chance.choices(inner, [rates[n].variance_of_a_rollout ** 2 for n in inner])
        rollouts = play(source, state, self.rollouts)
        every = (*scored, *rollouts)
        if not replace(group, rollouts=every).has_contrast:
            return Credit({}, tuple(rollouts))  # values that are all alike teach nothing
        return Credit(tree_values(every), tuple(rollouts))


def _rates(context: GroupContext) -> "defaultdict[int, PassRate]":
    """By the number of replayed steps, the chance of success of this example from there."""
    scores = [r.score or 0.0 for sampled in context.past for r in sampled.group.rollouts]
    low, high = min(scores, default=0.0), max(scores, default=1.0)
    by_id: dict[int, Rollout] = {
        rollout.rollout_id: rollout
        for sampled in context.past
        if sampled.group.example == context.group.example
        for rollout in (*sampled.group.rollouts, *sampled.probes)
        if rollout.n_replayed and rollout.score is not None
    }
    rates: defaultdict[int, PassRate] = defaultdict(PassRate)
    for rollout in by_id.values():
        share = ((rollout.score or 0.0) - low) / ((high - low) or 1.0)
        n = rollout.n_replayed or 0
        rates[n] = rates[n].after([min(max(share, 0.0), 1.0)])
    return rates
