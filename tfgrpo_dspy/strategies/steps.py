"""Strategies that value the steps of rollouts, to find the one that decided.

A state lies before the first turn of a rollout or after one of its turns; a turn is a call of a
predictor, with the calls of tools that follow it.
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Annotated, Any

import dspy
import numpy as np
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import betaln, expit, log_expit

from tfgrpo_dspy.reflection.texts import clip
from tfgrpo_dspy.rollout import MIN_CONTRAST, Group, Rollout, fields_text, trajectory_text
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.sampling.one_rollout import decision
from tfgrpo_dspy.strategies import base
from tfgrpo_dspy.strategies.choosing import variance

Array = np.ndarray[Any, np.dtype[np.float64]]
PRIOR, TOWARDS = 0.5, 1.5
"""Parameters of the Beta priors: of either outcome, and more of the one that is expected."""
NONE = 0.1  # the prior probability that no turn was decisive
SURE = 0.9  # the probability with which the decisive turn is known
THRIFT = 0.3  # how much the LM calls of a rollout weigh against what its score says
LITTLE = 0.002  # nats: so little information is not worth a rollout
RIDGE = 0.3  # how strongly rewards are drawn to 0, in the scale of log-odds
PAIR_TOKENS, GROUP_TOKENS = 1_500, 4_000  # of one attempt of a pair; of all attempts of a group
HIGHEST, BEFORE = 10, 0.5
"""The best mark; and what a state is worth before the first step, when nothing is known."""
PAIRS, EARLIER = 3, 20  # of a group that are compared; earlier groups whose pairs count
WHOLE = 2  # rollouts of a group that branches
FIRST = 2 / 3  # of the steps: earlier branches cost more, later ones differ in less
LINE = re.compile(r"(\d+)\D*?:\s*([\d.,; ]+)")


def states(rollout: Rollout) -> list[int]:
    """The steps made in each state, as numbers: `[0, 2, 4, 5]` for two tool calls and an answer."""
    steps = rollout.steps
    ends = [n for n in range(1, len(steps)) if steps[n].kind == "predictor"]
    return [0, *ends, *([len(steps)] if steps else [])]


def in_states(rollout: Rollout, values: Iterable[float | None]) -> list[float | None]:
    """The values of the states, as `Credit` has them: None after steps that end no turn."""
    by_state = dict(zip(states(rollout), values, strict=False))
    return [by_state.get(n) for n in range(len(rollout.values))]


def tree_values(rollouts: Sequence[Rollout]) -> dict[int, list[float | None]]:
    """By rollout id, for each state the mean score of the rollouts that were in it.

    So rollouts have the same values along a common beginning.
    """
    calls = [[(s.kind, s.name, dict(s.outputs), s.error) for s in r.steps] for r in rollouts]
    scores = [rollout.score or 0.0 for rollout in rollouts]

    def value(mine: Sequence[Any]) -> float:
        pairs = zip(scores, calls, strict=True)
        return fmean(score for score, theirs in pairs if theirs[: len(mine)] == mine)

    return {
        rollout.rollout_id: in_states(rollout, [value(mine[:n]) for n in states(rollout)])
        for rollout, mine in zip(rollouts, calls, strict=True)
    }


def by_unlikeness(group: Group) -> list[Rollout]:
    """The rollouts, those first whose score is furthest from the mean; of two, the lower one."""
    mean = fmean(group.scores or [0.0])
    scored = [(r.score or 0.0, r) for r in group.rollouts]
    ranked = sorted(scored, key=lambda pair: (-round(abs(pair[0] - mean), 9), pair[0]))
    return [rollout for _, rollout in ranked]


def _scored(*groups: SampledGroup) -> list[Rollout]:
    return [r for sampled in groups for r in sampled.unaided.rollouts if r.score is not None]


def _attempt(rollout: Rollout, max_tokens: int) -> str:
    """The trajectory and the outputs, as the reflection LM is shown them."""
    text = f"{trajectory_text(rollout)}\nOutputs:\n{fields_text(rollout.outputs)}"
    return clip(text, max_tokens)


def state_values(
    rollout: Rollout, others: Sequence[Rollout], low: float, high: float
) -> tuple[list[float], list[float], list[float]]:
    """By Bayes' rule from other rollouts of the example, whose scores are `low` to `high`:

    by state, the expected score; by turn, the probability that it decided, and at the end, that
    none did; by state, what one more score from there says of that, in nats.

    Either one of the turns was decisive, all with the same probability, or none was. If one was,
    rollouts that go on from a state after that turn share one chance of success, and the others
    have another one. Both have Beta priors: the first near the score of the rollout, the second far
    from it. Scores are scaled to 0 to 1.
    """
    ends, spread = np.array(states(rollout)), max(MIN_CONTRAST, high - low)
    points = np.array([each.score or 0.0 for each in (rollout, *others)])
    mine, *scores = np.clip((points - low) / spread, 0, 1)
    starts = np.array([other.n_replayed or 0 for other in others])
    is_after = starts[:, None] >= ends[1:]
    near = PRIOR + TOWARDS * np.array([mine, 1 - mine])
    logs_after, after = _beta(scores, is_after, near)
    logs_before, before = _beta(scores, ~is_after, near[::-1])
    logs_none, mean = _beta(scores, np.ones((len(scores), 1)), np.ones(2))
    suspected = np.log((1 - NONE) / max(1, len(ends) - 1))
    logs = np.append(logs_after + logs_before + suspected, logs_none + np.log(NONE))
    chances = np.exp(logs - logs.max())
    chances = chances / chances.sum()
    is_past = np.tri(len(ends), len(chances), -1, dtype=bool)  # by state, the turns before it
    by_state = np.where(is_past, np.append(after, mean), np.append(before, mean))
    expected = by_state @ chances
    information = _entropy(expected) - _entropy(by_state) @ chances
    return [*(low + expected * (high - low))], [*chances], [*information]


def _beta(scores: Any, chosen: Any, prior: Array) -> tuple[Array, Array]:
    """By column of `chosen`: the log-probability of these scores, and the expected next one."""
    shares = np.array(scores)
    won, lost = shares @ chosen + prior[0], (1 - shares) @ chosen + prior[1]
    return betaln(won, lost) - betaln(*prior), won / (won + lost)


def _entropy(chance: Array) -> Array:
    return np.asarray(-chance * np.log(chance) - (1 - chance) * np.log(1 - chance))


@base.strategy
class MonteCarloCredit(base.Strategy):
    """Finds the step that decided a rollout, by sampling how it would have gone on.

    In a group with contrast, the rollout whose score is furthest from the mean is gone on with from
    the state where a further score says most for its LM calls, as in a bisection. Of the sampled
    rollouts, the most unlike one from the state before the decisive step stands beside the group.
    Sources: VinePPO (arXiv 2410.01679); `tasks`: AceGRPO (arXiv 2602.07906).

    Args:
        calls: LM calls for a group, as a multiple of what its rollouts have taken; .1 to 10.
        tasks: rollouts that go on from a state of a group that fails throughout, at least 0. It is
            drawn by the square of the expectation of p (1 - p), where p is the chance to score more
            from there, by earlier ones of this example.
    """

    calls: base.Multiple = 1.0
    tasks: base.Least0 = 0

    def credit(self, context: base.GroupContext, ask: base.Ask, play: base.Play) -> base.Credit:
        group = context.sampled.unaided
        if not group.has_contrast:
            return self._task(context, play) if self.tasks and context.fails else base.Credit({})
        rollout, *others = by_unlikeness(group)
        low, high = min(group.scores), max(group.scores)
        left = self.calls * sum(each.usage.n_answers for each in group.all_rollouts)
        ends = states(rollout)
        costs = {
            end: sum(step.kind == "predictor" for step in rollout.steps[end:]) for end in ends
        }  # about how many LM calls a rollout takes that goes on from there
        played, n_asked = dict[int, Sequence[Rollout]](), Counter[int]()
        while True:
            every = [*others, *itertools.chain(*played.values())]
            means, chances, information = state_values(rollout, every, low, high)
            worth = {
                end: nats / costs[end] ** THRIFT
                for end, nats in zip(ends, information, strict=True)
                if 0 < costs[end] <= left and nats >= LITTLE
            }
            if not worth or max(chances) >= SURE:
                break
            state = max(worth, key=lambda end: worth[end])
            left -= costs[state]
            n_asked[state] += 1
            played[state] = play(rollout, state, n_asked[state])
        falls = [abs(after - before) for before, after in itertools.pairwise(means)]
        before = ends[falls.index(max(falls))] if falls else 0
        gaps = [(abs((r.score or 0.0) - (rollout.score or 0.0)), r) for r in played.get(before, ())]
        gap, beside = max(gaps, key=lambda pair: pair[0], default=(0.0, rollout))
        of_steps = {rollout.rollout_id: in_states(rollout, means)}
        return base.Credit(of_steps, (beside,) if gap > MIN_CONTRAST else ())

    def _task(self, context: base.GroupContext, play: base.Play) -> base.Credit:
        """Rollouts that go on from a state of the group, and the values if one of them differs."""
        group, scored = context.sampled.unaided, _scored(context.sampled)
        source = max(scored, key=lambda rollout: len(rollout.steps))
        if not (inner := states(source)[1:-1]):
            return base.Credit({})
        better, worse = Counter[int](), Counter[int]()
        for sampled in (each for each in context.past if each.group.example == group.example):
            for rollout in (*sampled.group.rollouts, *sampled.probes):
                if rollout.n_replayed and rollout.score is not None:
                    is_better = rollout.score > max(group.scores)
                    (better if is_better else worse)[rollout.n_replayed] += 1
        chance = random.Random(f"{group.example}/{context.sampled.update}/tasks")
        worth = [variance(1 + better[n], 1 + worse[n]) ** 2 for n in inner]
        (state,) = chance.choices(inner, worth)
        played = play(source, state, self.tasks)
        is_unlike = replace(group, rollouts=(*scored, *played)).has_contrast
        return base.Credit(tree_values([*scored, *played]) if is_unlike else {}, tuple(played))


@base.strategy
class InformationGain(base.Strategy):
    """Asks for the answer after each turn of a rollout; the gain of a turn is what it adds.

    It values the rollouts of groups that have contrast or have failed throughout, the most unlike
    the mean first, until the calls are spent. The value is the mean score of answers at once after
    the steps so far; with log-probabilities (`dspy.LM(..., logprobs=True)`), each distinct answer
    counts with exp(mean log-probability of its tokens), and the rest with that mean.
    Source: IGPO (arXiv 2510.14967).

    Args:
        samples: answers in each state, at least 1; one is enough with log-probabilities.
        calls: LM calls for a group, as a multiple of what its rollouts have taken; .1 to 10.
    """

    samples: base.Least1 = 2
    calls: base.Multiple = 1.0

    def credit(self, context: base.GroupContext, ask: base.Ask, play: base.Play) -> base.Credit:
        group, values_of = context.sampled.unaided, dict[int, list[float | None]]()
        left = self.calls * sum(rollout.usage.n_answers for rollout in group.all_rollouts)
        for rollout in by_unlikeness(group) if group.has_contrast or context.fails else ():
            before_end = states(rollout)[:-1]
            left -= self.samples * len(before_end)
            if values_of and left < 0:
                break
            answers = [play(rollout, n, self.samples, answers_now=True) for n in before_end]
            expected = [expected_score(of_state) if of_state else None for of_state in answers]
            values_of[rollout.rollout_id] = in_states(rollout, [*expected, rollout.score])
        return base.Credit(values_of)


def expected_score(answers: Sequence[Rollout]) -> float:
    """The expected score of an answer, of which these are samples; at least one."""
    mean = fmean(rollout.score or 0.0 for rollout in answers)
    distinct = {r.answer: r for r in answers if r.entropy is not None}
    chances = {answer: math.exp(-(r.entropy or 0.0)) for answer, r in distinct.items()}
    total = max(1.0, sum(chances.values()))
    seen = sum(chance * (distinct[answer].score or 0.0) for answer, chance in chances.items())
    return seen / total + (1 - sum(chances.values()) / total) * mean


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


@base.strategy
class ImplicitStepRewards(base.Strategy):
    """Fits a reward for each kind of step to which of two rollouts is better.

    Of a pair of rollouts of an example, the one with the higher score is better; where there is no
    metric, the reflection LM judges. By the model of Bradley and Terry, the log-odds of that are
    the difference of the sums of the rewards of their steps (predictor, decision, place), which
    logistic regression fits to the pairs of this group and of earlier ones. The value of a state is
    the probability that a rollout so far is preferred to the average one of its group.
    Source: iStar (arXiv 2509.19199).
    """

    def credit(self, context: base.GroupContext, ask: base.Ask, play: base.Play) -> base.Credit:
        rows: list[tuple[Rollout, Rollout]] = []
        for sampled in (*context.past[-EARLIER:], context.sampled):
            example = context.examples[sampled.group.example].text
            for first, second in self._pairs(sampled.unaided):
                ahead = (first.score or 0.0) - (second.score or 0.0)
                if first.score is None:  # there is no metric
                    ahead = _preference(example, first, second, ask)
                if abs(ahead) > sampled.group.least_contrast:
                    rows.append((first, second) if ahead > 0 else (second, first))
        group = context.sampled.unaided.rollouts
        if not rows or len(group) < 2:
            return base.Credit({})
        rewards, sums = fitted_rewards(rows), dict[int, Array]()
        for rollout in group:
            of_steps = [sum(rewards.get(n, 0.0) for n in names) for names in _features(rollout)]
            sums[rollout.rollout_id] = np.cumsum([0.0, *of_steps])[states(rollout)]
        usual = fmean(of_states[-1] for of_states in sums.values())
        values = {
            rollout.rollout_id: in_states(rollout, expit(sums[rollout.rollout_id] - usual).tolist())
            for rollout in group
        }
        return base.Credit(values, measure="chance of being preferred")

    def _pairs(self, group: Group) -> list[tuple[Rollout, Rollout]]:
        """Pairs of rollouts that took other steps, in an order by chance."""
        every = itertools.combinations(group.rollouts, 2)
        pairs = [pair for pair in every if _features(pair[0]) != _features(pair[1])]
        chance = random.Random(f"pairs/{[rollout.rollout_id for rollout in group.rollouts]}")
        chosen = chance.sample(pairs, min(PAIRS, len(pairs)))
        return [pair if chance.random() < 0.5 else (pair[1], pair[0]) for pair in chosen]


def fitted_rewards(rows: Sequence[tuple[Rollout, Rollout]]) -> dict[object, float]:
    """The reward of each feature of steps, from pairs of winner and loser."""
    differences = []
    for winner, loser in rows:
        differences.append(Counter(itertools.chain(*_features(winner))))
        differences[-1].subtract(itertools.chain(*_features(loser)))
    names = list(dict.fromkeys(itertools.chain(*differences)))
    design = np.array([[float(each[name]) for name in names] for each in differences])

    def loss(x: Array) -> tuple[float, Array]:
        margins = design @ x
        value = -log_expit(margins).sum() + RIDGE / 2 * (x @ x)
        return float(value), -design.T @ expit(-margins) + RIDGE * x

    fitted = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B").x
    return dict(zip(names, fitted.tolist(), strict=True))


def _features(rollout: Rollout) -> list[list[object]]:
    """Of each step its predictor, its decision, and both with its place; of a tool's none."""
    features = list[list[object]]()
    for index, step in enumerate(rollout.steps):
        decided = (step.name, tuple(sorted(decision(step.outputs).items())))
        features.append([step.name, decided, (*decided, index)] * (step.kind == "predictor"))
    return features


def _preference(example: str, first: Rollout, second: Rollout, ask: base.Ask) -> float:
    """1 where the reflection LM prefers the first, -1 where the second, else 0."""
    texts = [_attempt(rollout, PAIR_TOKENS) for rollout in (first, second)]
    answer = ask(PreferAttempt, example=example, attempt_1=texts[0], attempt_2=texts[1])
    digits = re.findall("[012]", str(answer.get("better", "")))
    return {"1": 1.0, "2": -1.0}.get(digits[0] if digits else "", 0.0)


class MarkSteps(dspy.Signature):
    """Mark each step of each attempt of a program: how likely would you go on to the right result?

    A mark is a number from 0 (all is lost) to 10 (as you would have done it yourself). Judge what
    the steps so far are worth to whoever goes on from there, not how they are worded. Steps that
    undo or repeat others get the mark of the step before.

    Write one line for each attempt, "attempt: marks", such as "1: 6, 6, 2", and nothing else.
    """

    program: str = dspy.InputField(desc="what the program does")
    example: str = dspy.InputField(desc="the input")
    expected: str = dspy.InputField(desc="the right result, where it is known")
    attempts: str = dspy.InputField()
    marks: str = dspy.OutputField(desc='one line for each attempt, such as "1: 6, 6, 2"')


@base.strategy
class TeacherMarks(base.Strategy):
    """Lets the reflection LM mark the student's own rollouts, step by step, beside the metric.

    One question for each group that differs or fails shows it all attempts. The mark after a turn,
    as a share of ten, is the value of that state: the lesson writer reads where it fell. So groups
    that fail throughout teach, too. Source: CoDistill-GRPO (arXiv 2605.08873).
    """

    def credit(self, context: base.GroupContext, ask: base.Ask, play: base.Play) -> base.Credit:
        group = context.sampled.unaided
        if not group.rollouts or not (group.has_contrast or context.fails or not group.scores):
            return base.Credit({})
        share = GROUP_TOKENS // len(group.rollouts)
        shown = [f"Attempt {n}\n{_attempt(r, share)}" for n, r in enumerate(group.rollouts, 1)]
        answer = ask(
            MarkSteps,
            example=context.example.text,
            expected=context.shown_labels(context.example),
            attempts="\n\n".join(shown),
        )
        lines, values = dict(LINE.findall(str(answer.get("marks", "")))), {}
        for number, rollout in enumerate(group.rollouts, 1):
            written = re.findall(r"\d+(?:\.\d+)?", lines.get(str(number), ""))
            marks, ends = list(map(float, written)), states(rollout)[1:]
            if len(marks) >= len(rollout.steps):  # of its steps; else of its turns
                marks = [marks[end - 1] for end in ends]
            if ends and len(marks) >= len(ends) and max(marks) <= HIGHEST:
                shares = (mark / HIGHEST for mark in marks)
                values[rollout.rollout_id] = in_states(rollout, [BEFORE, *shares])
        return base.Credit(values, measure="mark of the teacher")


@base.strategy
class BranchingRollouts(base.Strategy):
    """Makes a part of each group by branching rollouts after a step, in place of whole rollouts.

    A rollout branches after results of tools (after any turn, if it calls none), first where the
    entropy of the next answer rises most above that of the first one (`dspy.LM(...,
    logprobs=True)`); without it, first after two thirds of the steps. Values are the mean scores of
    all leaves of the tree below a state. Branches count for no experience, so the gate learns from
    fewer rollouts. Source: ARPO (arXiv 2507.19849).

    Args:
        leaves: rollouts of a group, branches included, at least 3; no more than the group size.
    """

    leaves: Annotated[int, Field(ge=3)] = 5

    def choose(self, plan: base.BatchPlan) -> Mapping[int, int]:
        if plan.past and not _places(_scored(*plan.past)):
            return plan.sizes
        return {example: min(WHOLE, size) for example, size in plan.sizes.items()}

    def credit(self, context: base.GroupContext, ask: base.Ask, play: base.Play) -> base.Credit:
        scored = _scored(context.sampled)
        wanted = min(self.leaves, context.group_size or self.leaves) - len(scored)
        branches: list[Rollout] = []
        for rollout, state in _places(scored):
            if len(branches) < wanted:
                branches += play(rollout, state)
        return base.Credit(tree_values([*scored, *branches]), tuple(branches))


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
    return [place for turn in itertools.zip_longest(*ranked) for place in turn if place is not None]
