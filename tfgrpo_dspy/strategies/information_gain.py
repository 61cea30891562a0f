"""InformationGain: how much each turn raises the program's chance of the right answer."""

import math
from collections.abc import Sequence

from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies.arguments import Least1, strategy
from tfgrpo_dspy.strategies.base import Ask, Credit, GroupContext, Play, Strategy
from tfgrpo_dspy.strategies.monte_carlo_credit import most_unlike
from tfgrpo_dspy.strategies.state_values import states


@strategy
class InformationGain(Strategy):
    """Asks for the answer after each turn of a rollout; the gain of a turn is what it adds.

    It looks at the rollout whose score is furthest from the mean of its group, in groups that have
    contrast or have failed throughout. The program's LM is shown the steps so far and asked for the
    outputs at once, under the instructions of the predictor that gives them. The metric scores
    these answers. The value of a state is their expected score: with log-probabilities
    (`dspy.LM(..., logprobs=True)`), each distinct answer counts with its probability, and what is
    not seen with the mean of the samples; else it is that mean. So the turns of a rollout that
    fails have values, too. Nothing is replayed: it works where a program does not repeat its steps.

    **Source.** IGPO (arXiv 2510.14967; information gain-based policy optimization).
    **Carried over.** The gain of a turn is the rise of the probability of the right answer.
    **Not carried over.** The probability of the label under forced decoding, which DSPy's LMs do
    not offer: the answers that were sampled have one.
    **When to use.** Agents that collect information, where an answer can be scored at any time.
    Where the answer is only the end of a row of actions, it says little.

    Args:
        samples: answers in each state, at least 1; one is enough with log-probabilities.

    Raises:
        SettingsError: `samples` is out of range.
    """

    samples: Least1 = 2

    async def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        """The values of the turns of one rollout; at the end it is the score."""
        group = context.sampled.unaided
        if not (group.has_contrast or context.fails):
            return Credit({})
        rollout = most_unlike(group)
        values: list[float | None] = [None] * len(rollout.values)
        for state in states(rollout)[:-1]:
            answers = await play(rollout, state, self.samples, answers_now=True)
            values[state] = expected_score(answers) if answers else None
        values[-1] = rollout.score
        return Credit({rollout.rollout_id: values})


def expected_score(answers: Sequence[Rollout]) -> float:
    """The expected score of an answer, of which these are samples; at least one."""
    scores = [rollout.score or 0.0 for rollout in answers]
    mean = sum(scores) / len(scores)
    chances: dict[str, tuple[float, float]] = {}
    for rollout, score in zip(answers, scores, strict=True):
        if rollout.entropy is not None:  # the mean over the tokens of the answer
            chance = math.exp(-rollout.entropy * max(1, rollout.usage.completion_tokens))
            chances[rollout.answer] = (chance, score)
    total = max(1.0, sum(chance for chance, _ in chances.values()))
    known = sum(chance for chance, _ in chances.values()) / total
    return sum(chance * score for chance, score in chances.values()) / total + (1 - known) * mean
