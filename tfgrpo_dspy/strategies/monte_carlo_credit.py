"""MonteCarloCredit: which step decided a rollout, found by going on from its states."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from tfgrpo_dspy.group import Group
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.scores import MIN_CONTRAST
from tfgrpo_dspy.strategies.arguments import Multiple, strategy
from tfgrpo_dspy.strategies.base import Ask, Credit, GroupContext, Play, Strategy
from tfgrpo_dspy.strategies.state_values import StateValues

SURE = 0.9  # the probability with which the decisive turn is known
THRIFT = 0.3  # how much the LM calls of a rollout weigh against what its score says
LITTLE = 0.002  # nats: so little information is not worth a rollout


@strategy
class MonteCarloCredit(Strategy):
    """Finds the step that decided a rollout, by sampling how it would have gone on.

    In a group with contrast, the rollout whose score is furthest from the mean is looked at. Others
    that share its first steps say what is expected there. Then it is gone on with from the state
    where a further score says most for its LM calls: that halves the steps in question, as in a
    bisection. A state's value is the expected score there; a step's advantage is the change of the
    value. Of the sampled rollouts, the one from the state before the decisive step whose score is
    most unlike that of the rollout stands beside the group: good and bad from the same state.

    **Source.** VinePPO (arXiv 2410.01679).
    **Carried over.** Values of intermediate states by rollouts from there, not by a value network.
    **When to use.** Agents of five or more steps, which end well or badly by one or two of them.

    Args:
        calls: LM calls for a group, as a multiple of what its rollouts have taken; .1 to 10.
    """

    calls: Multiple = 1.0

    async def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The values of the steps of one rollout, and one beside it from the decisive state."""
        group = context.sampled.unaided
        if not group.has_contrast:
            return Credit({})
        looked_at = by_unlikeness(group)[0]
        others = [rollout for rollout in group.rollouts if rollout is not looked_at]
        low, high = min(group.scores), max(group.scores)
        left = self.calls * sum(rollout.usage.n_answers for rollout in group.all_rollouts)
        played: dict[int, Sequence[Rollout]] = {}
        n_asked: Counter[int] = Counter()
        while True:
            more = [rollout for of_state in played.values() for rollout in of_state]
            values = StateValues(looked_at, (*others, *more), low, high)
            state = _next_state(values, left)
            if state is None:
                break
            n_asked[state] += 1
            left -= _cost(looked_at, state)
            played[state] = await play(looked_at, state, n_asked[state])
        return Credit({looked_at.rollout_id: values.values}, _contrary(values, played))


def by_unlikeness(group: Group) -> list[Rollout]:
    """The rollouts, those first whose score is furthest from the mean; of two, the lower one."""
    mean = fmean(group.scores)

    def far(rollout: Rollout) -> tuple[float, float]:
        score = rollout.score or 0.0
        return -round(abs(score - mean), 9), score

    return sorted(group.rollouts, key=far)


def _cost(rollout: Rollout, state: int) -> int:
    """About how many LM calls a rollout takes that goes on from there."""
    return max(1, sum(step.kind == "predictor" for step in rollout.steps[state:]))


def _next_state(values: StateValues, left: float) -> int | None:
    """The state where a further score says most for its calls; None if none is worth a call."""
    rollout = values.rollout
    if max([values.none_decisive, *values.decisive]) >= SURE:
        return None
    worth = {
        state: information / _cost(rollout, state) ** THRIFT
        for state, information in zip(values.states, values.information(), strict=True)
        if state < len(rollout.steps) and _cost(rollout, state) <= left and information >= LITTLE
    }
    return max(worth, key=lambda state: worth[state], default=None)


def _contrary(values: StateValues, played: Mapping[int, Sequence[Rollout]]) -> tuple[Rollout, ...]:
    """From the state before the decisive turn, the rollout whose score is most unlike."""
    means, score = values.means, values.rollout.score or 0.0
    falls = [abs(after - before) for before, after in pairwise(means)]
    before = values.states[falls.index(max(falls))] if falls else 0
    unlike = sorted(played.get(before, ()), key=lambda r: -abs((r.score or 0.0) - score))
    return tuple(r for r in unlike[:1] if abs((r.score or 0.0) - score) > MIN_CONTRAST)
