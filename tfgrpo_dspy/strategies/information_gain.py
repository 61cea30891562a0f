"""InformationGain: how much each turn raises the program's chance of the right answer."""

import math
from collections.abc import Sequence

from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies.arguments import Least1, Multiple, strategy
from tfgrpo_dspy.strategies.base import Ask, Credit, GroupContext, Play, Strategy
from tfgrpo_dspy.strategies.monte_carlo_credit import by_unlikeness
from tfgrpo_dspy.strategies.state_values import states


@strategy
class InformationGain(Strategy):
    """Asks for the answer after each turn of a rollout; the gain of a turn is what it adds.

    It values all rollouts of groups that have contrast or have failed throughout, the most unlike
    the mean of the group first, until the calls are spent. The program's LM is shown the steps so
    far and asked for the outputs at once, under the instructions of the predictor that gives them.
    The metric scores these answers. The value of a state is their expected score: with
    log-probabilities (`dspy.LM(..., logprobs=True)`), each distinct answer counts with exp(mean
    log-probability of its tokens), and the rest of the probability with the mean of the samples;
    else it is that mean. So the turns of a rollout that fails have values, too. Nothing is
    replayed: it works where a program does not repeat its steps.

    **Source.** IGPO (arXiv 2510.14967): the gain of a turn is the rise of the probability of the
    right answer, which is exp of the mean log-probability of its tokens, in each rollout.
    **When to use.** Agents that collect information, where an answer can be scored at any time.
    Where the answer is only the end of a row of actions, it says little.

    Args:
        samples: answers in each state, at least 1; one is enough with log-probabilities.
        calls: LM calls for a group, as a multiple of what its rollouts have taken; .1 to 10.
    """

    samples: Least1 = 2
    calls: Multiple = 1.0

    async def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The values of the turns of the rollouts; at the end a value is the score."""
        group, values_of = context.sampled.unaided, dict[int, list[float | None]]()
        left = self.calls * sum(rollout.usage.n_answers for rollout in group.all_rollouts)
        for rollout in by_unlikeness(group) if group.has_contrast or context.fails else ():
            before_end = states(rollout)[:-1]
            left -= self.samples * len(before_end)
            if values_of and left < 0:
                break
            values: list[float | None] = [None] * len(rollout.values)
            for state in before_end:
                answers = await play(rollout, state, self.samples, answers_now=True)
                values[state] = expected_score(answers) if answers else None
            values[-1] = rollout.score
            values_of[rollout.rollout_id] = values
        return Credit(values_of)


def expected_score(answers: Sequence[Rollout]) -> float:
    """The expected score of an answer, of which these are samples; at least one."""
    scores = [rollout.score or 0.0 for rollout in answers]
    mean = sum(scores) / len(scores)
    chances: dict[str, tuple[float, float]] = {}
    for rollout, score in zip(answers, scores, strict=True):
        if rollout.entropy is not None:  # the mean negative log-probability of its tokens
            chances[rollout.answer] = (math.exp(-rollout.entropy), score)
    total = max(1.0, sum(chance for chance, _ in chances.values()))
    seen = sum(chance for chance, _ in chances.values()) / total
    return sum(chance * score for chance, score in chances.values()) / total + (1 - seen) * mean
