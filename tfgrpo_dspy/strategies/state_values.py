"""The score that is expected in each state of a rollout, estimated from the scores of others.

A state lies before the first turn of a rollout or after one of its turns; a turn is a call of a
predictor, with the calls of tools that follow it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from tfgrpo_dspy.rollout import MIN_CONTRAST, Rollout, Step
from tfgrpo_dspy.sampling.replay import decision

Array = np.ndarray[Any, np.dtype[np.float64]]
LEVELS = np.linspace(0.05, 0.95, 10)  # of the value of a state, as shares of the range of scores
N_CHANGES = 1.5  # of the value of a rollout, that are expected
EXCULPATED = 0.3  # so much less is a turn suspected that a rollout of another score has taken, too
OUTCOME = 3.0  # the score of a rollout counts as so many samples of its last state


def states(rollout: Rollout) -> list[int]:
    """How many steps were made in each state: `[0, 2, 4, 5]` for two tool calls and an answer."""
    steps = rollout.steps
    ends = [n for n in range(1, len(steps)) if steps[n].kind == "predictor"]
    return [0, *ends, *([len(steps)] if steps else [])]


def n_common(one: Rollout, other: Rollout) -> int:
    """How many first steps of two rollouts are the same, with the same outputs."""
    n = 0
    for mine, theirs in zip(one.steps, other.steps, strict=False):
        if _made(mine) != _made(theirs):
            break
        n += 1
    return n


def _made(step: Step) -> tuple[object, ...]:
    return step.kind, step.name, dict(step.outputs), step.error


def tree_values(rollouts: Sequence[Rollout]) -> dict[int, list[float | None]]:
    """By rollout id, for each state the mean score of the rollouts that were in it.

    So rollouts have the same values along a common beginning. Steps that end no turn have None.
    """
    found = {}
    for rollout in rollouts:
        common = {id(other): n_common(rollout, other) for other in rollouts}
        values: list[float | None] = [None] * len(rollout.values)
        for state in states(rollout):
            scores = [r.score or 0.0 for r in rollouts if common[id(r)] >= state]
            values[state] = sum(scores) / len(scores)
        found[rollout.rollout_id] = values
    return found


@dataclass(frozen=True)
class StateValues:
    """What the values of the states of a rollout may be, by Bayes' rule.

    The value of a state is one of ten levels, all of them as likely. From one state to the next it
    stays or, seldom, changes to any level. The score of a rollout that was in a state, scaled to 0
    to 1, is a draw of a chance with that value. Levels are summed out by the forward-backward
    algorithm for hidden Markov chains (Rabiner 1989).

    Args:
        rollout: its states are valued.
        others: rollouts of the same example. A whole one counts in the last state that it shares;
            one that goes on from a state of the rollout counts there.
        low, high: the range of the scores.
    """

    rollout: Rollout
    others: tuple[Rollout, ...]
    low: float
    high: float

    @cached_property
    def states(self) -> list[int]:
        """The number of steps that were made in each state."""
        return states(self.rollout)

    @cached_property
    def _likelihood(self) -> Array:
        """By state and level."""
        logs = np.zeros((len(self.states), len(LEVELS)))
        logs[-1] += OUTCOME * self._log_chance(self.rollout)
        for other in self.others:
            shared = other.n_replayed  # the states after that were not chosen, but came by chance
            if shared is None:
                shared = n_common(self.rollout, other)
            place = max(k for k, state in enumerate(self.states) if state <= shared)
            logs[place] += self._log_chance(other)
        likelihood: Array = np.exp(logs - logs.max(axis=1, keepdims=True))
        return likelihood

    def _log_chance(self, rollout: Rollout) -> Array:
        share = ((rollout.score or 0.0) - self.low) / max(MIN_CONTRAST, self.high - self.low)
        share = min(1.0, max(0.0, share))
        return share * np.log(LEVELS) + (1 - share) * np.log(1 - LEVELS)

    @cached_property
    def _change(self) -> Array:
        """The prior probability that a turn changes the value."""
        starts, mine, half = self.states[:-1], self.rollout.score or 0.0, (self.high - self.low) / 2
        unlike = [r for r in self.others if abs((r.score or 0.0) - mine) > half]
        taken = [_decisions(r) for r in unlike if r.n_replayed is None]
        turns = _decisions(self.rollout)
        weights = np.array([
            EXCULPATED if any(turn in of_other for of_other in taken) else 1.0 for turn in turns
        ])  # fmt: skip
        return np.minimum(0.5, N_CHANGES * weights / weights.sum()) if starts else weights

    @cached_property
    def _posterior(self) -> tuple[Array, Array]:
        """By state and level the probability; by turn the probability that the value changed."""
        likelihood, change, n = self._likelihood, self._change, len(LEVELS)
        forward, backward = likelihood.copy(), np.ones_like(likelihood)
        forward[0] /= forward[0].sum()
        for k, rho in enumerate(change, start=1):
            forward[k] *= (1 - rho) * forward[k - 1] + rho / n
            forward[k] /= forward[k].sum()
        for k in range(len(change) - 1, -1, -1):
            after = likelihood[k + 1] * backward[k + 1]
            backward[k] = (1 - change[k]) * after + change[k] * after.mean()
            backward[k] /= backward[k].sum()
        levels = forward * backward
        levels /= levels.sum(axis=1, keepdims=True)
        changed = np.empty(len(change))
        for k, rho in enumerate(change):
            after = likelihood[k + 1] * backward[k + 1]
            same = float((forward[k] * after).sum())
            all_ways = (1 - rho) * same + rho / n * float(forward[k].sum() * after.sum())
            changed[k] = 1 - (1 - rho + rho / n) * same / all_ways
        return levels, changed

    @property
    def means(self) -> list[float]:
        """The expected value of each state, in units of the score."""
        shares = self._posterior[0] @ LEVELS
        return [self.low + float(share) * (self.high - self.low) for share in shares]

    @property
    def changed(self) -> list[float]:
        """The probability of each turn that it changed the value."""
        return [float(chance) for chance in self._posterior[1]]

    def information(self) -> list[float]:
        """In nats, what the score of one more rollout from each state is expected to say of it."""
        levels = self._posterior[0]
        return [float(x) for x in _entropy(levels @ LEVELS) - levels @ _entropy(LEVELS)]

    @property
    def values(self) -> list[float | None]:
        """As `tree_values`: before the first step and after each, None where no turn ends."""
        found: dict[int, float] = dict(zip(self.states, self.means, strict=True))
        return [found.get(n) for n in range(len(self.rollout.values))]


def _decisions(rollout: Rollout) -> list[tuple[tuple[str, Mapping[str, str]], ...]]:
    """What each turn decided, without the reasoning."""
    ends = states(rollout)
    made = [(step.name, decision(step.outputs)) for step in rollout.steps]
    return [tuple(made[start:end]) for start, end in pairwise(ends)]


def _entropy(chance: Array) -> Array:
    return -chance * np.log(chance) - (1 - chance) * np.log(1 - chance)
