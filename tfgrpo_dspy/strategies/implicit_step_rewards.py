"""ImplicitStepRewards: step rewards that explain which of two rollouts is better."""

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import dspy
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from tfgrpo_dspy.group import Group
from tfgrpo_dspy.reflection.texts import clip
from tfgrpo_dspy.rollout import Rollout, fields_text, trajectory_text
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.sampling.examples import Example
from tfgrpo_dspy.sampling.replay import decision
from tfgrpo_dspy.strategies.arguments import Least0, Least1, strategy
from tfgrpo_dspy.strategies.base import Ask, Credit, GroupContext, Play, Strategy
from tfgrpo_dspy.strategies.state_values import states
from tfgrpo_dspy.wording import alike, letter_groups

RIDGE = 0.3  # how strongly rewards are drawn to 0, in the scale of log-odds
SHOWN_TOKENS = 1_500  # of a trajectory
Array = np.ndarray[Any, np.dtype[np.float64]]
Pair = tuple[Rollout, Rollout]


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
    the difference of the sums of the rewards of their steps; the rewards are fitted to the pairs of
    this group and of earlier ones, by logistic regression with a ridge. Earlier groups count less,
    the less their inputs are like those of this one, and the more the library has changed since: so
    the rewards follow what the program does now. A step is known by its predictor, by what it
    decides, and by its place. The value of a state is the probability that a rollout with these
    steps so far is preferred to the average one of its group.

    **Source.** iStar (arXiv 2509.19199): an implicit process reward model, trained by a
    trajectory-based DPO objective on pairs by outcome, gives step rewards beside those of the
    outcome, and is trained anew with the policy.
    **When to use.** Tasks that no metric can verify (`metric=None`); with a metric it costs no
    call.

    Args:
        pairs: how many pairs of a group are compared, at least 1.
        groups: how many earlier groups count, at least 0.
    """

    pairs: Least1 = 3
    groups: Least0 = 20

    async def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The value of each turn of each rollout that was compared."""
        now = context.sampled.advice
        past = context.past[len(context.past) - self.groups :] if self.groups else ()
        rows: list[tuple[Rollout, Rollout, float]] = []
        for sampled in (*past, context.sampled):
            likeness = alike(_grams(context, sampled), _grams(context, context.sampled))
            weight = alike(sampled.advice, now) * likeness
            for pair in _pairs(sampled.unaided, self.pairs) if weight > 0 else ():
                winner = _better(pair, sampled.group.least_contrast)
                if pair[0].score is None:  # there is no metric
                    winner = await _preferred(context.examples[sampled.group.example], pair, ask)
                if winner is not None:
                    loser = pair[0] if winner is pair[1] else pair[1]
                    rows.append((winner, loser, weight))
        group = context.sampled.unaided.rollouts
        if not rows or len(group) < 2:
            return Credit({})
        rewards = fitted_rewards(rows)
        sums = {r.rollout_id: np.cumsum([0.0, *_rewards(r, rewards)]) for r in group}
        usual = float(np.mean([each[-1] for each in sums.values()]))
        ends = {rollout.rollout_id: set(states(rollout)) for rollout in group}
        values = {
            id_: [float(expit(x - usual)) if n in ends[id_] else None for n, x in enumerate(each)]
            for id_, each in sums.items()
        }
        return Credit(values, measure="chance of being preferred")


def fitted_rewards(rows: Sequence[tuple[Rollout, Rollout, float]]) -> dict[object, float]:
    """The reward of each feature of steps, from pairs of winner and loser with weights."""
    rollouts = (rollout for *pair, _ in rows for rollout in pair)
    names = list(dict.fromkeys(itertools.chain(*map(_features, rollouts))))
    place = {name: k for k, name in enumerate(names)}
    design = np.zeros((len(rows), len(names)))
    for row, (winner, loser, _) in enumerate(rows):
        for rollout, sign in ((winner, 1.0), (loser, -1.0)):
            for name in _features(rollout):
                design[row, place[name]] += sign
    weights = np.array([weight for *_, weight in rows])

    def loss(x: Array) -> tuple[float, Array]:
        margins = design @ x
        slopes = -weights * expit(-margins)
        value = -(weights * log_expit(margins)).sum() + RIDGE / 2 * (x @ x)
        return float(value), design.T @ slopes + RIDGE * x

    weights = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B").x
    return {name: float(x) for name, x in zip(names, weights, strict=True)}


def _step_features(rollout: Rollout, index: int) -> list[object]:
    """The features of a step: its predictor, its decision, and both with its place."""
    step = rollout.steps[index]
    if step.kind == "tool":
        return []  # its predictor's step chose it
    decided = (step.name, tuple(sorted(decision(step.outputs).items())))
    return [step.name, decided, (*decided, index)]


def _features(rollout: Rollout) -> Iterable[object]:
    return itertools.chain(*(_step_features(rollout, k) for k in range(len(rollout.steps))))


def _rewards(rollout: Rollout, rewards: dict[object, float]) -> list[float]:
    return [
        sum(rewards.get(name, 0.0) for name in _step_features(rollout, k))
        for k in range(len(rollout.steps))
    ]


def _pairs(group: Group, most: int) -> list[Pair]:
    """Pairs of rollouts that answer differently or took other steps, in an order by chance."""
    pairs = [
        pair for pair in itertools.combinations(group.rollouts, 2)
        if list(_features(pair[0])) != list(_features(pair[1]))
    ]  # fmt: skip
    chance = random.Random(f"pairs/{[rollout.rollout_id for rollout in group.rollouts]}")
    chosen = chance.sample(pairs, min(most, len(pairs)))
    return [pair if chance.random() < 0.5 else (pair[1], pair[0]) for pair in chosen]


def _better(pair: Pair, least_contrast: float) -> Rollout | None:
    """The rollout with the higher score; None: the scores do not differ."""
    difference = (pair[0].score or 0.0) - (pair[1].score or 0.0)
    return pair[difference < 0] if abs(difference) > least_contrast else None


async def _preferred(example: Example, pair: Pair, ask: Ask) -> Rollout | None:
    texts = [
        clip(f"{trajectory_text(rollout)}\nOutputs:\n{fields_text(rollout.outputs)}", SHOWN_TOKENS)
        for rollout in pair
    ]
    answer = await ask(PreferAttempt, example=example.text, attempt_1=texts[0], attempt_2=texts[1])
    digits = [digit for digit in str(answer.get("better", "")) if digit in "012"]
    return pair[int(digits[0]) - 1] if digits and digits[0] != "0" else None


def _grams(context: GroupContext, sampled: SampledGroup) -> frozenset[str]:
    """Groups of four characters of the inputs."""
    return letter_groups(context.examples[sampled.group.example].text, (4,))
