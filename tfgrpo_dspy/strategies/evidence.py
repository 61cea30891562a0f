"""Strategies that decide what lessons are drawn from: decisive steps, notes, further operations.

To value the steps of rollouts: a state lies before the first turn of a rollout or after one of its
turns; a turn is a call of a predictor, with the calls of tools that follow it.
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

from tfgrpo_dspy import rollout as records
from tfgrpo_dspy.experience import Add, Experience, Modify
from tfgrpo_dspy.reflection.lessons import Lesson, read_lesson, read_lessons, sources_of
from tfgrpo_dspy.reflection.modules import NO_EXPERIENCES, by_example, clip
from tfgrpo_dspy.rollout import MIN_CONTRAST, Group, Rollout, fields_text, trajectory_text
from tfgrpo_dspy.sampling.examples import SampledGroup
from tfgrpo_dspy.sampling.one_rollout import decision
from tfgrpo_dspy.strategies import base
from tfgrpo_dspy.strategies.attempts import variance
from tfgrpo_dspy.text import normalized, shortened

Array = np.ndarray[Any, np.dtype[np.float64]]
PRIOR, TOWARDS = 0.5, 1.5
"""Parameters of the Beta priors: of either outcome, and more of the one that is expected."""
NONE = 0.1  # the prior probability that no turn was decisive
SURE = 0.9  # the probability with which the decisive turn is known
THRIFT = 0.3  # how much the LM calls of a rollout weigh against what its score says
LITTLE = 0.002  # nats: so little information is not worth a rollout
RIDGE = 0.3  # how strongly rewards are drawn to 0, in the scale of log-odds
GROUP_TOKENS = 4_000  # of all attempts of a group
HIGHEST, BEFORE = 10, 0.5
"""The best mark; and what a state is worth before the first step, when nothing is known."""
PAIRS, EARLIER = 3, 20  # of a group that are compared; earlier groups whose pairs count
SAMPLES = 2  # answers in each state
WHOLE = 2  # rollouts of a group that branches
FIRST = 2 / 3  # of the steps: earlier branches cost more, later ones differ in less
CREDITED, AT_ONCE = 6, 3  # until 6 groups were credited, at most 3 of a batch are
CREDIT_SHARE = 0.5
"""LM calls of rollouts that go on from a step, beside those of whole rollouts."""
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


def may_be_credited(group: Group, past: Sequence[SampledGroup], place: int) -> bool:
    """True if the steps of this group, at this place of its batch, are valued.

    Where no rollout has more than one turn, no step decided more than the outcome.
    """
    has_turns = any(len(states(rollout)) > 2 for rollout in group.rollouts)
    rollouts = [r for s in past for r in (*s.group.all_rollouts, *s.probes)]
    going_on = sum(r.usage.n_lm_calls for r in rollouts if r.n_replayed is not None)
    whole = sum(r.usage.n_lm_calls for r in rollouts if r.n_replayed is None)
    n_credited = sum(any(rollout.changes for rollout in s.group.rollouts) for s in past)
    is_tried = n_credited >= CREDITED or place < AT_ONCE
    return has_turns and is_tried and going_on <= CREDIT_SHARE * whole


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
    the mean first, until the calls are spent. The value is the mean score of two answers after
    the steps so far; with log-probabilities (`dspy.LM(..., logprobs=True)`), each distinct answer
    counts with exp(mean log-probability of its tokens), and the rest with that mean.
    Source: IGPO (arXiv 2510.14967).

    Args:
        calls: LM calls for a group, as a multiple of what its rollouts have taken; .1 to 10.
    """

    calls: base.Multiple = 1.0

    def credit(self, context: base.GroupContext, ask: base.Ask, play: base.Play) -> base.Credit:
        group, values_of = context.sampled.unaided, dict[int, list[float | None]]()
        left = self.calls * sum(rollout.usage.n_answers for rollout in group.all_rollouts)
        for rollout in by_unlikeness(group) if group.has_contrast or context.fails else ():
            before_end = states(rollout)[:-1]
            left -= SAMPLES * len(before_end)
            if values_of and left < 0:
                break
            answers = [play(rollout, n, SAMPLES, answers_now=True) for n in before_end]
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


@base.strategy
class ImplicitStepRewards(base.Strategy):
    """Fits a reward for each kind of step to which of two rollouts is better.

    Of a pair of rollouts of an example, the one with the higher score is better. By the model of
    Bradley and Terry, the log-odds of that are the difference of the sums of the rewards of their
    steps (predictor, decision, place), which logistic regression fits to the pairs of this group
    and of earlier ones. The value of a state is the probability that a rollout so far is preferred
    to the average one of its group.
    Source: iStar (arXiv 2509.19199).
    """

    def credit(self, context: base.GroupContext, ask: base.Ask, play: base.Play) -> base.Credit:
        rows: list[tuple[Rollout, Rollout]] = []
        for sampled in (*context.past[-EARLIER:], context.sampled):
            for first, second in _pairs(sampled.unaided):
                ahead = (first.score or 0.0) - (second.score or 0.0)
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


def _pairs(group: Group) -> list[tuple[Rollout, Rollout]]:
    every = itertools.combinations(group.rollouts, 2)
    pairs = [pair for pair in every if _features(pair[0]) != _features(pair[1])]
    chance = random.Random(f"pairs/{[rollout.rollout_id for rollout in group.rollouts]}")
    return chance.sample(pairs, min(PAIRS, len(pairs)))


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
        parts = ((trajectory_text(r), fields_text(r.outputs)) for r in group.rollouts)
        texts = [clip(f"{steps}\nOutputs:\n{outputs}", share) for steps, outputs in parts]
        answer = ask(
            MarkSteps,
            example=context.example.text,
            expected=context.shown_labels(context.example),
            attempts="\n\n".join(f"Attempt {n}\n{text}" for n, text in enumerate(texts, 1)),
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


THOUGHTS = ("reasoning", "next_thought")
LONGEST, MOST = 200, 8  # bytes of a part that the note names, and how many it names
SHARED = (
    "These parts stand in attempts that scored higher and in attempts that scored lower alike. "
    "They did not make the difference: blame none of them, and write no lesson against them.\n"
)
N_CANDIDATES = 3  # of one answer
FEWEST_TEXTS = 2  # that came to stay: one alone has no direction
_ID = re.compile(r"\[(E[1-9]\d*)\*?\]:?")
_NAMED = re.compile(r"\W*(E[1-9]\d*)\W+(\w.*)")  # the id of an experience, and its new text
N_EXAMPLES = 6  # of the training set, in the question what matters
FIELD_BYTES = 1050  # of the inputs of each example that is shown, and of its labels
MATTERS = (
    "Somebody who has not seen the program run says what matters; heed it unless the facts differ: "
)


@base.strategy
class ConflictAware(base.Strategy):
    """Says what good and bad attempts of a group share, so that no lesson blames it.

    Above the mean of its group an attempt is good, below it bad. Parts that stand in both are in
    conflict: a step (a call of a predictor or tool with the same outputs) or, in the reasoning and
    in programs of one step, a sentence. The reflection LM reads that they did not make the
    difference; what the good attempts alone have may still be praised.
    Source: GTPO (arXiv 2508.03772).
    """

    def show(self, context: base.GroupContext, ask: base.Ask) -> base.Shown:
        rollouts = context.group.rollouts
        if not context.group.has_contrast:
            return base.Shown(rollouts)
        mean = fmean(context.group.scores)
        good = [_parts(rollout) for rollout in rollouts if (rollout.score or 0.0) > mean]
        bad = [_parts(rollout) for rollout in rollouts if not (rollout.score or 0.0) > mean]
        n = Counter(key for parts in (*good, *bad) for key in parts)
        texts = {key: text for parts in good for key, text in parts.items()}
        both = [key for key in texts if any(key in parts for parts in bad)]
        both.sort(key=lambda key: -n[key])
        lines = "\n".join(f"- {shortened(texts[key], LONGEST)}" for key in both[:MOST])
        return base.Shown(rollouts, f"{SHARED}{lines}" if lines else "")


def _parts(rollout: Rollout) -> dict[str, str]:
    """The steps of a rollout and the sentences of its reasoning, by what is compared of them."""
    by_form: dict[str, str] = {}
    for step in rollout.steps if len(rollout.steps) > 1 else ():
        values = [str(v) for name, v in step.outputs.items() if name not in records.REASONING]
        line = f"{step.kind} {step.name}: {' '.join(values)}"
        by_form[normalized(line)] = line
    for fields in (*(step.outputs for step in rollout.steps), rollout.outputs):
        for name in THOUGHTS:
            sentences = fields.get(name, "").replace("\n", ". ").split(". ")
            by_form |= {normalized(one): one for one in sentences if one.strip()}
    return by_form


def _lines(experiences: Iterable[Experience]) -> str:
    return "\n".join(map(str, experiences)) or NO_EXPERIENCES


class FindRules(dspy.Signature):
    """Write advice for a program that goes further the way its advice has been changing.

    Lines of advice were tried in the program's prompt. Some came to stay, some went again; beside
    a line stands its measured effect on the score, where there is one. What do the lines that stay
    have in common that those that went lack? Which rule is behind several of them, and what does
    it say of inputs that none of them names? How would the best of them read if they were clearer,
    more exact, or held for more inputs?

    Write at most max_candidates lines, the most useful first, and nothing else:
    - "When <condition>, <advice>.", or only the advice if it always applies, for a new line.
    - "E3: " and the new text, for a better text of line E3.
    Only what the changes suggest. Write None if they suggest nothing.
    """

    program: str = dspy.InputField(desc="what the program does")
    max_words: int = dspy.InputField(desc="the most words that one line may have")
    max_candidates: int = dspy.InputField()
    before: str = dspy.InputField(desc="the advice that the program began with")
    came: str = dspy.InputField(desc="lines that are there now, with their effects")
    went: str = dspy.InputField(desc="lines that were tried and are gone, or were worded so before")
    candidates: str = dspy.OutputField(desc="one line each, or the word None")


@base.strategy
class Induction(base.Strategy):
    """Proposes rules behind single lines, and better texts of them, by induction over the library.

    Every few updates the reflection LM is shown the library that the student began with, what came
    since, what went or was worded otherwise, and the measured effects. It proposes lines that go
    further that way: a rule behind several of them, a better text of one. The gate judges these
    like any other candidate, which rest on what they resemble. Better = now + (now - before), in
    words, is ExPO (arXiv 2404.16792).

    Args:
        every: how many updates lie between two questions, at least 1.
    """

    every: base.Least1 = 10

    def propose(self, context: base.UpdateContext, ask: base.Ask) -> base.Proposed:
        start, library = context.libraries[0], context.libraries[-1]
        of_start, now = ({experience.advice for experience in each} for each in (start, library))
        came = [experience for experience in library if experience.advice not in of_start]
        if not context.update or context.update % self.every or len(came) < FEWEST_TEXTS:
            return base.Proposed(context.lessons)
        every = itertools.chain(*context.libraries)
        went = {one.advice: one for one in every if one.advice not in now}
        answer = ask(
            FindRules,
            max_candidates=N_CANDIDATES,
            before=_lines(start),
            came=_lines(came),
            went=_lines(went.values()),
        )
        learned = [Lesson(each.text, each.scope, each.evidence) for each in came]
        operations = list[Add | Modify]()
        for line in read_lessons(_ID.sub(r"\1:", answer.get("candidates", "None")))[:N_CANDIDATES]:
            named = _NAMED.fullmatch(line)
            text, scope = read_lesson(named[2] if named else line, context.predictors)
            evidence = tuple(e for source in sources_of(text, learned) for e in source.evidence)
            if named and named[1] in library:
                operations.append(Modify(named[1], text, evidence=evidence))
            else:
                operations.append(Add(text, scope, evidence=evidence))
        return base.Proposed(context.lessons, tuple(operations))


class SayWhatMatters(dspy.Signature):
    """Say which input fields, and which properties of the inputs, decide what the right answer is.

    The program has not been run yet. Use what you know of the world and of tasks like this one;
    in few examples much agrees by accident with the labels, so do not rely on them alone.

    In at most three sentences, say which fields or properties of the inputs the right answer
    depends on, the most important first, and which do not matter although one might think so.
    """

    program: str = dspy.InputField(desc="what the program does")
    examples: str = dspy.InputField(desc="inputs and, where they are known, labels")
    matters: str = dspy.OutputField(desc="at most three sentences, or the word None")


@base.strategy
class AttributionPrior(base.Strategy):
    """Learns from the reflection LM what matters in the inputs, without a rollout.

    One question shows it the program and a few examples. What it says decides the answer is told
    it again whenever it writes lessons: for few examples, where much agrees with the labels by
    accident. Source: attribution regularizers (arXiv 2502.20268).
    """

    def show(self, context: base.GroupContext, ask: base.Ask) -> base.Shown:
        n, parts = min(N_EXAMPLES, len(context.training)), []
        for position in random.Random("attribution").sample(sorted(context.training), n):
            example = context.examples[position]
            texts = (example.text, "Labels:", context.shown_labels(example))
            parts.append("\n".join(shortened(text, FIELD_BYTES) for text in texts))
        answer = ask(SayWhatMatters, examples=by_example(parts))  # always the same question
        matters = shortened(answer.get("matters", ""), FIELD_BYTES)
        note = f"{MATTERS}{matters}" if read_lessons(matters) else ""
        return base.Shown(context.group.rollouts, note)
