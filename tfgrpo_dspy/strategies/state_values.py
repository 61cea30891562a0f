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
from scipy.special import betaln

from tfgrpo_dspy.rollout import Rollout, Step
from tfgrpo_dspy.sampling.replay import decision
from tfgrpo_dspy.scores import MIN_CONTRAST

Array = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
PRIOR, TOWARDS = 0.5, 1.5
"""Parameters of the Beta priors: of either outcome, and more of the one that is expected."""
EXCULPATED = 0.2  # how likely a turn is decisive that a rollout with an unlike score took, too
NONE = 0.1  # the prior probability that no turn was decisive


def states(rollout: Rollout) -> list[int]:
    """How many steps were made in each state: `[0, 2, 4, 5]` for two tool calls and an answer."""
    steps = rollout.steps
    ends = [n for n in range(1, len(steps)) if steps[n].kind == "predictor"]
    return [0, *ends, *([len(steps)] if steps else [])]


def n_common(rollout: Rollout, other: Rollout) -> int:
    """How many first steps of two rollouts are the same, with the same outputs."""
    n = 0
    for mine, theirs in zip(rollout.steps, other.steps, strict=False):
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
    by_rollout = {}
    for rollout in rollouts:
        common = {id(other): n_common(rollout, other) for other in rollouts}
        values: list[float | None] = [None] * len(rollout.values)
        for state in states(rollout):
            scores = [r.score or 0.0 for r in rollouts if common[id(r)] >= state]
            values[state] = sum(scores) / len(scores)
        by_rollout[rollout.rollout_id] = values
    return by_rollout


@dataclass(frozen=True)
class StateValues:
    """What the values of the states of a rollout may be, by Bayes' rule.

    Either one of its turns was decisive, or none was. If a turn was decisive, rollouts that go on
    from a state after that turn share one chance of success, and the others have another one. Both
    chances have Beta priors: the first one near the score of the rollout, the second one far from
    it. Scores are scaled to 0 to 1. All turns are as likely to be decisive, except that a turn is
    suspected less if a rollout with an unlike score has taken the same decision.

    Args:
        rollout: its states are valued.
        others: rollouts of the same example: whole ones, and those that go on from its states.
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

    def _share(self, rollout: Rollout) -> float:
        share = ((rollout.score or 0.0) - self.low) / max(MIN_CONTRAST, self.high - self.low)
        return min(1.0, max(0.0, share))

    @cached_property
    def _chances(self) -> tuple[Array, Array, Array]:
        """By decisive turn, and at the end for none: its probability, and the expected chance of
        success before the turn and after it."""
        scores = np.array([self._share(other) for other in self.others])
        starts = np.array([other.n_replayed or 0 for other in self.others])
        is_after = starts[:, None] >= np.array(self.states[1:])[None, :]
        share = self._share(self.rollout)
        near = PRIOR + TOWARDS * np.array([share, 1 - share])
        logs_after, after = _beta(scores, is_after, near)
        logs_before, before = _beta(scores, ~is_after, near[::-1])
        everyone = np.ones((len(scores), 1), dtype=bool)
        logs_none, mean = _beta(scores, everyone, np.array([1.0, 1.0]))
        suspected = np.log((1 - NONE) * self._suspicion())
        logs = np.append(logs_after + logs_before + suspected, logs_none + np.log(NONE))
        chances = np.exp(logs - logs.max())
        return chances / chances.sum(), np.append(before, mean), np.append(after, mean)

    def _suspicion(self) -> Array:
        """The prior probability of each turn that it was decisive, if one was."""
        turns, mine = _decisions(self.rollout), self._share(self.rollout)
        unlike = [_decisions(other) for other in self.others
                  if other.n_replayed is None and abs(self._share(other) - mine) > 0.5]  # fmt: skip
        weights = np.array([EXCULPATED if any(_has(theirs, turn, k, turns) for theirs in unlike)
                            else 1.0 for k, turn in enumerate(turns)])  # fmt: skip
        suspicion: Array = weights / weights.sum()
        return suspicion

    @cached_property
    def _by_state(self) -> Array:
        """By state and decisive turn, the expected chance of success."""
        _, before, after = self._chances
        n = len(self.states)
        is_past = np.arange(n)[:, None] > np.arange(len(before))[None, :]
        is_past[:, -1] = False  # none was decisive
        return np.where(is_past, after, before)

    @property
    def means(self) -> list[float]:
        """The expected value of each state, in units of the score."""
        shares = self._by_state @ self._chances[0]
        return [self.low + float(share) * (self.high - self.low) for share in shares]

    @property
    def decisive(self) -> list[float]:
        """The probability of each turn that it was decisive."""
        return [float(chance) for chance in self._chances[0][:-1]]

    @property
    def none_decisive(self) -> float:
        """The probability that no turn was."""
        return float(self._chances[0][-1])

    def information(self) -> list[float]:
        """In nats, what the score of one more rollout from each state says of the decisive turn."""
        chances, by_state = self._chances[0], self._by_state
        return [float(x) for x in _entropy(by_state @ chances) - _entropy(by_state) @ chances]

    @property
    def values(self) -> list[float | None]:
        """The value before the first step and after each; None where no turn ends."""
        by_state: dict[int, float] = dict(zip(self.states, self.means, strict=True))
        return [by_state.get(n) for n in range(len(self.rollout.values))]


Decisions = tuple[tuple[str, Mapping[str, str]], ...]


def _has(
    theirs: Sequence[Decisions], turn: Decisions, place: int, turns: Sequence[Decisions]
) -> bool:
    """Whether a rollout took the decision: anywhere, if it is unusual, else at the same place."""
    return turn in theirs if turns.count(turn) == 1 else theirs[place : place + 1] == [turn]


def _beta(scores: Array, chosen: Mask, prior: Array) -> tuple[Array, Array]:
    """By column of `chosen`: the log-probability of these scores, and the expected next one."""
    won, lost = scores @ chosen + prior[0], (1 - scores) @ chosen + prior[1]
    return betaln(won, lost) - betaln(*prior), won / (won + lost)


def _decisions(rollout: Rollout) -> list[Decisions]:
    """What the predictor of each turn decided, without the reasoning."""
    return [
        tuple((s.name, decision(s.outputs)) for s in rollout.steps[start:end] if s.kind != "tool")
        for start, end in pairwise(states(rollout))
    ]


def _entropy(chance: Array) -> Array:
    entropy: Array = -chance * np.log(chance) - (1 - chance) * np.log(1 - chance)
    return entropy
