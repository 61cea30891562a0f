"""ClippedDiversity: attempts that agree and fail are followed by others that must differ."""

import bisect
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.reflection.texts import as_input
from tfgrpo_dspy.rollout import REASONING, Rollout, fields_text
from tfgrpo_dspy.scores import MIN_CONTRAST
from tfgrpo_dspy.strategies.arguments import Share, strategy
from tfgrpo_dspy.strategies.base import Ask, Attempt, GroupContext, Scored, Strategy
from tfgrpo_dspy.wording import alike, letter_groups, shortened

GRAM = 3  # characters
SHOWN_BYTES = 400  # of the answer on which the attempts agree
DIFFER = "several attempts agree, and are not right: {answer}. Take another way to another answer."


@strategy
class ClippedDiversity(Strategy):
    """Explores where attempts agree, and lets the unusual one of equal attempts count for more.

    Where all attempts of a group give the same answer and fail, further ones are told that answer,
    and to take another way: `explore` times as many as there were. They are judged by the metric
    alone, stand beside the group as a hinted attempt does, and change no experience's effect. Where
    none of eight such groups is helped, exploring ends.

    In every group, a rollout counts with its score, plus or minus its entropy compared with that of
    the rollouts of the group with the same score. The change is bounded: it is at most `clip` times
    the distance to the next score of the group, so a worse rollout never reaches a better one, the
    means stay, and a group without contrast gets none. Attempts are shown with the best first, so
    of several right ways the rare one leads, and not the one that everybody takes anyway.

    The entropy is `rollout.entropy`, over all that the program's LMs wrote, where all rollouts of
    the group have one (ask for it with `dspy.LM(..., logprobs=True)`). Otherwise it is how unlike
    the others' reasoning a rollout's own is, in groups of three characters, which works in any
    language; without a field for reasoning, all outputs are compared. Student and result are
    compared by the score alone.

    **Source.** EGPO, for function calling (arXiv 2508.05118): the entropy of the reasoning is added
    to the advantage, and clipped to a share of it; the reward is strict.
    **Carried over.** The bounded bonus, which here moves the order in which attempts are read. That
    attempts which agree are followed by others is ours.
    **When to use.** The usual way is wrong on many inputs, and the metric is strict and silent.

    Args:
        clip: the largest change, as a share of the distance to the nearest other score of the
            group; above 0 and below 0.5.
        explore: how many further attempts, as a share of the first ones, above 0 to 1, and at
            least one; 0: none.
        temperature: of these attempts, 0 to 2; where the run's own is higher, or is "own", that
            counts. The default is the highest that all providers take; with 1.5, more attempts of a
            real LM differed.
    """

    clip: Annotated[float, Field(gt=0, lt=0.5)] = 0.25
    explore: Share = 0.5
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0

    async def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
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
        places: dict[int, list[int]] = {}
        for place, rollout in enumerate(scored.rollouts if scored.is_training else ()):
            if not any(scored.aided[place : place + 1]):
                places.setdefault(rollout.example, []).append(place)
        for of_group in places.values():
            changes = self._changes([scored.rollouts[place] for place in of_group])
            for place, change in zip(of_group, changes, strict=True):
                rewards[place] += change
        return rewards

    def _changes(self, group: Sequence[Rollout]) -> list[float]:
        scores = [rollout.score or 0.0 for rollout in group]
        levels = _levels(scores)
        gaps = [high - low for low, high in pairwise(levels)]
        if not gaps:
            return [0.0] * len(group)
        entropies = _entropies(group)
        ranks = [bisect.bisect(levels, score) - 1 for score in scores]
        changes = []
        for rank, entropy in zip(ranks, entropies, strict=True):
            usual = statistics.fmean(e for e, r in zip(entropies, ranks, strict=True) if r == rank)
            room = min(gaps[max(0, rank - 1) : rank + 1])  # distance to the next score, up or down
            changes.append(self.clip * room * (entropy - usual))
        return changes


def _levels(scores: Sequence[float]) -> list[float]:
    """The scores that differ by more than rounding does, in their order."""
    levels: list[float] = []
    for score in sorted(scores):
        if not levels or score - levels[-1] > MIN_CONTRAST:
            levels.append(score)
    return levels


def _entropies(group: Sequence[Rollout]) -> list[float]:
    """From 0 to 1: by log-probabilities, as a share of the highest; or by texts."""
    entropies = [rollout.entropy for rollout in group if rollout.entropy is not None]
    if len(entropies) == len(group):
        return [max(0.0, entropy) / (max(entropies) or 1.0) for entropy in entropies]
    grams = [_grams(rollout) for rollout in group]
    return [
        statistics.fmean(1.0 - alike(gram, other) for j, other in enumerate(grams) if j != i)
        for i, gram in enumerate(grams)
    ]


def _grams(rollout: Rollout) -> frozenset[str]:
    """The groups of letters of its reasoning; where it has none, of all its outputs."""
    outputs = [*(step.outputs for step in rollout.steps), rollout.outputs]
    texts = [(name in REASONING, text) for each in outputs for name, text in each.items()]
    chosen = [text for is_reasoning, text in texts if is_reasoning] or [text for _, text in texts]
    return letter_groups(" ".join(chosen), (GRAM,))
