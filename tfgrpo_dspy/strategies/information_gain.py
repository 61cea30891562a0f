"""InformationGain: how much each turn raises the program's chance of the right answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.strategies.base import Ask, Credit, GroupContext, Play, Strategy
from tfgrpo_dspy.strategies.checks import check_whole
from tfgrpo_dspy.strategies.state_values import states

PRIOR = 0.5  # samples of either outcome that are added to those of a state


@dataclass(frozen=True)
class InformationGain(Strategy):
    """Asks for the answer after each turn of a rollout; the gain of a turn is what it adds.

    The program's LM is shown the steps so far and asked for the outputs at once, under the
    instructions of the predictor that gives them. The metric scores these answers. The value of a
    state is their expected score: with log-probabilities (`dspy.LM(..., logprobs=True)`), each
    distinct answer counts with its probability, and what is not seen with the mean of the samples;
    else it is that mean. Turns of a rollout that fails in the end are valued, too. Nothing is
    replayed: it works where a program does not repeat its steps.

    **Source.** IGPO (arXiv 2510.14967; information gain-based policy optimization).
    **Carried over.** The gain of a turn is the rise of the probability of the right answer.
    **Not carried over.** The probability of the label under forced decoding, which DSPy's LMs do
    not offer: the answers that were sampled have one.
    **When to use.** Agents that collect information, where an answer can be scored at any time.
    Where the answer is only the end of a row of actions, it says little.
    **Measured.** Simulated, see docs/strategies.md. (`python benchmarks/credit.py`)

    Args:
        samples: answers in each state, at least 1; one is enough with log-probabilities.
        most: rollouts of a group that are valued, at least 1: the worst first, then the best.

    Raises:
        SettingsError: a setting is out of range.
    """

    samples: int = 2
    most: int = 1

    def __post_init__(self) -> None:
        check_whole("samples", self.samples, 1)
        check_whole("most", self.most, 1)

    async def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The values of the turns of the chosen rollouts; at the end it is the score."""
        group = context.sampled.unaided
        if not group.scores:
            return Credit({})
        values = {}
        for rollout in _chosen(group, self.most):
            of_state: list[float | None] = [None] * len(rollout.values)
            for state in states(rollout)[:-1]:
                answers = await play(rollout, state, self.samples, answers_now=True)
                of_state[state] = expected_score(answers) if answers else None
            of_state[-1] = rollout.score
            values[rollout.rollout_id] = of_state
        return Credit(values)


def expected_score(answers: Sequence[Rollout]) -> float:
    """The expected score of an answer, of which these are samples; at least one."""
    scores = [rollout.score or 0.0 for rollout in answers]
    mean = sum(scores) / len(scores)
    chances: dict[str, tuple[float, float]] = {}
    for rollout, score in zip(answers, scores, strict=True):
        if rollout.entropy is not None:  # the mean over the tokens of the answer
            chance = math.exp(-rollout.entropy * max(1, rollout.usage.completion_tokens))
            chances[rollout.answer] = (chance, score)
    known = min(1.0, sum(chance for chance, _ in chances.values()))
    return sum(chance * score for chance, score in chances.values()) + (1 - known) * mean


def _chosen(group: Group, most: int) -> list[Rollout]:
    ranked = sorted(group.rollouts, key=lambda rollout: rollout.score or 0.0)
    by_turns = [rollout for pair in zip(ranked, reversed(ranked), strict=True) for rollout in pair]
    return list({rollout.rollout_id: rollout for rollout in by_turns}.values())[:most]
