"""StateTasks: states that failing rollouts have reached become tasks of their own."""

import random
from collections import defaultdict
from dataclasses import replace

from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies.arguments import Least2, strategy
from tfgrpo_dspy.strategies.base import Ask, Credit, GroupContext, Play, Strategy
from tfgrpo_dspy.strategies.choosing import PassRate
from tfgrpo_dspy.strategies.state_values import states, tree_values


@strategy
class StateTasks(Strategy):
    """Goes on from a state of a group that fails throughout, where success may be within reach.

    A task is an example together with the first steps of one of its rollouts. Where all rollouts of
    a group fail alike, `rollouts` further ones go on from one of its states. It is drawn with a
    chance in proportion to the square of its learnability: the expectation of p (1 - p), where p is
    the chance of success from there, by what earlier tasks of this example with as many steps have
    scored. They stand beside the group; if one of them succeeds, the group has contrast, and the
    values of the states say which step decides. No task is kept to be drawn again: its state is one
    of the group that has just failed.

    **Source.** AceGRPO (arXiv 2602.07906): an evolving data buffer turns execution traces into
    tasks that can be trained on again, sampled by learnability potential. `LearningFrontier` is the
    counterpart for whole examples.
    **When to use.** Long agents that fail on most examples, whose tools can be replayed.

    Args:
        rollouts: how many go on from the state, at least 2.
    """

    rollouts: Least2 = 2

    async def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The rollouts that go on from a learnable state, and the values of all states."""
        group = context.sampled.unaided
        scored = [rollout for rollout in group.rollouts if rollout.score is not None]
        source = max(scored, key=lambda rollout: len(rollout.steps), default=None)
        inner = states(source)[1:-1] if source else []
        if source is None or not inner or not context.fails:
            return Credit({})
        rates = _rates(context)
        chance = random.Random(f"{group.example}/{context.sampled.update}/StateTasks")
        (state,) = chance.choices(inner, [rates[n].variance_of_a_rollout ** 2 for n in inner])
        rollouts = await play(source, state, self.rollouts)
        every = (*scored, *rollouts)
        if not replace(group, rollouts=every).has_contrast:
            return Credit({}, tuple(rollouts))  # values that are all alike teach nothing
        return Credit(tree_values(every), tuple(rollouts))


def _rates(context: GroupContext) -> "defaultdict[int, PassRate]":
    """By the number of replayed steps, the chance of success of this example from there."""
    of_example = [s for s in context.past if s.group.example == context.group.example]
    by_id: dict[int, Rollout] = {
        rollout.rollout_id: rollout
        for sampled in of_example
        for rollout in (*sampled.group.rollouts, *sampled.probes)
        if rollout.n_replayed and rollout.score is not None
    }
    scores = [r.score or 0.0 for sampled in context.past for r in sampled.group.rollouts]
    low, high = min(scores, default=0.0), max(scores, default=1.0)
    rates: defaultdict[int, PassRate] = defaultdict(PassRate)
    for rollout in by_id.values():
        share = ((rollout.score or 0.0) - low) / ((high - low) or 1.0)
        share, before = min(max(share, 0.0), 1.0), rates[rollout.n_replayed or 0]
        rates[rollout.n_replayed or 0] = PassRate(
            before.successes + share, before.failures + 1 - share
        )
    return rates
