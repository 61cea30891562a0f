"""Strategies that explore: attempts that must differ, branches, and states worth going on from."""

import bisect
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, zip_longest
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.errors import SettingsError, StrategyError
from tfgrpo_dspy.reflection.texts import as_input
from tfgrpo_dspy.rollout import MIN_CONTRAST, REASONING, Rollout, fields_text
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.strategies.base import (
    Ask,
    Attempt,
    BatchPlan,
    Credit,
    GroupContext,
    Least2,
    Play,
    Scored,
    Share,
    Strategy,
    strategy,
)
from tfgrpo_dspy.strategies.choosing import PassRate
from tfgrpo_dspy.strategies.steps import states, tree_values
from tfgrpo_dspy.wording import alike, letter_groups, shortened

GRAM = 3  # characters
SHOWN_BYTES = 400  # of the answer on which the attempts agree
DIFFER = "several attempts agree, and are not right: {answer}. Take another way to another answer."
FIRST = 2 / 3  # of the steps: earlier branches cost more, later ones differ in less
TRIES = 0.2  # LM calls for branches that end at once, as a share of those of the whole rollouts
LEAST_WHOLE = 2  # rollouts of an example, which a batch must have at least


@strategy
class ClippedDiversity(Strategy):
    """Explores where attempts agree, and lets the unusual one of equal attempts count for more.

    Where all attempts of a group give the same answer and fail, further ones are told that answer,
    and to take another way. They stand beside the group as a hinted attempt does.

    In every group, a rollout counts with its score, plus or minus its entropy compared with that of
    the rollouts with the same score: at most `clip` times the distance to the next score of the
    group, so a worse rollout never reaches a better one. So of several right ways the rare one is
    read first. The entropy is `rollout.entropy` where all have one (ask for it with
    `dspy.LM(..., logprobs=True)`); otherwise it is how unlike the others' reasoning, or outputs, a
    rollout's own is, in groups of three characters. Student and result are compared by the score.

    **Source.** EGPO, for function calling (arXiv 2508.05118): the entropy of the reasoning is added
    to the advantage, and clipped to a share of it. That others follow attempts which agree is ours.
    **When to use.** The usual way is wrong on many inputs, and the metric is strict and silent.

    Args:
        clip: the largest change, as a share of the distance to the nearest other score of the
            group; above 0 and below 0.5.
        explore: how many further attempts, as a share of the first ones, above 0 to 1, and at
            least one; 0: none.
        temperature: of these attempts, 0 to 2; where the run's own is higher, or is "own", that
            counts. With 1.5, which not all providers take, more attempts of a real LM differed.
    """

    clip: Annotated[float, Field(gt=0, lt=0.5)] = 0.25
    explore: Share = 0.5
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        """Attempts that must differ from those that agree and fail; once."""
        rollouts, additions = context.sampled.unaided.rollouts, context.sampled.additions
        agree = len({rollout.answer for rollout in rollouts}) == 1 and rollouts[0].answer
        is_done = any(one.aid for one in additions) or not self.explore
        if is_done or not (agree and len(rollouts) > 1 and context.fails):
            return ()
        shown = shortened(as_input(fields_text(rollouts[0].outputs)), SHOWN_BYTES)
        hint = DIFFER.format(answer=as_input(shown))
        n = max(1, int(self.explore * len(rollouts)))
        return [Attempt(hint=hint, temperature=self.temperature)] * n

    def reward(self, scored: Scored) -> Sequence[float]:
        """The scores, changed by less than what sets them apart from others of the group."""
        rewards = [rollout.score or 0.0 for rollout in scored.rollouts]
        groups: dict[int, list[int]] = {}
        for place, rollout in enumerate(scored.rollouts if scored.is_training else ()):
            if not any(scored.aided[place : place + 1]):
                groups.setdefault(rollout.example, []).append(place)
        for places in groups.values():
            levels = list[float]()  # the scores that differ by more than rounding does
            for score in sorted(rewards[place] for place in places):
                if not levels or score - levels[-1] > MIN_CONTRAST:
                    levels.append(score)
            gaps = [high - low for low, high in pairwise(levels)]
            if not gaps:
                continue
            entropies = _entropies([scored.rollouts[place] for place in places])
            ranks = [bisect.bisect(levels, rewards[place]) - 1 for place in places]
            for place, rank, entropy in zip(places, ranks, entropies, strict=True):
                alike_scored = (e for e, r in zip(entropies, ranks, strict=True) if r == rank)
                room = min(gaps[max(0, rank - 1) : rank + 1])  # to the next score, up or down
                rewards[place] += self.clip * room * (entropy - statistics.fmean(alike_scored))
        return rewards


def _entropies(group: Sequence[Rollout]) -> list[float]:
    """From 0 to 1: by log-probabilities, as a share of the highest; or by texts."""
    entropies = [rollout.entropy for rollout in group if rollout.entropy is not None]
    if len(entropies) == len(group):
        return [max(0.0, entropy) / (max(entropies) or 1.0) for entropy in entropies]
    grams = []  # of its reasoning; where it has none, of all its outputs
    for rollout in group:
        fields = [*(step.outputs for step in rollout.steps), rollout.outputs]
        texts = [(name in REASONING, text) for each in fields for name, text in each.items()]
        chosen = [text for is_reasoning, text in texts if is_reasoning] or [t for _, t in texts]
        grams.append(letter_groups(" ".join(chosen), (GRAM,)))
    return [
        statistics.fmean(1.0 - alike(gram, other) for j, other in enumerate(grams) if j != i)
        for i, gram in enumerate(grams)
    ]


@strategy
class BranchingRollouts(Strategy):
    """Makes a part of each group by branching rollouts after a step, in place of whole rollouts.

    A rollout branches after results of tools (after any turn, if it calls none), first where the
    entropy of the next answer rises most above that of the first one (ask for it with
    `dspy.LM(..., logprobs=True)`); without log-probabilities, first after two thirds of the steps.
    A branch whose first step decides as the rollout did ends after that one call. A program of one
    turn cannot branch: that is counted, and groups become as large as usual. Values are the mean
    scores of all leaves of the tree below a state: shared along a common beginning, then apart.

    **Source.** ARPO (arXiv 2507.19849): branches after tool results where entropy rises, shared and
    apart advantages.
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
    return [place for of_turn in zip_longest(*ranked) for place in of_turn if place is not None]


@strategy
class StateTasks(Strategy):
    """Goes on from a state of a group that fails throughout, where success may be within reach.

    Where all rollouts of a group fail alike, `rollouts` further ones go on from one of its states.
    It is drawn with a chance in proportion to the square of its learnability: the expectation of
    p (1 - p), where p is the chance of success from there, by what earlier ones of this example
    with as many steps have scored. They stand beside the group; if one of them succeeds, the group
    has contrast, and the values of the states say which step decides.

    **Source.** AceGRPO (arXiv 2602.07906): an evolving data buffer turns execution traces into
    tasks that can be trained on again, sampled by learnability potential. `LearningFrontier` is the
    counterpart for whole examples.
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
