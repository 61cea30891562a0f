"""ConflictAware: steps that good and bad attempts of a group share are not blamed."""

import math
from collections import Counter
from collections.abc import Sequence

from tfgrpo_dspy.rollout import REASONING, Rollout
from tfgrpo_dspy.strategies.arguments import Magnitude, strategy
from tfgrpo_dspy.strategies.base import Ask, GroupContext, Shown, Strategy
from tfgrpo_dspy.wording import normalized, shortened

THOUGHTS = ("reasoning", "next_thought")
LONGEST, MOST = 200, 8  # bytes of a part that the note names, and how many it names
NOTE = (
    "These parts stand in attempts that scored higher and in attempts that scored lower alike. "
    "They did not make the difference: blame none of them, and write no lesson against them.\n"
)


@strategy
class ConflictAware(Strategy):
    """Says what good and bad attempts of a group share, so that no lesson blames it.

    Above the mean of its group an attempt is good, below it bad. Parts that stand in both are in
    conflict: a step (a call of a predictor or tool with the same outputs) or, in the reasoning and
    in programs of one step, a sentence. The reflection LM reads that they did not make the
    difference; what the good attempts alone have may still be praised. Attempts whose entropy (mean
    negative log-probability of a token, with `dspy.LM(..., logprobs=True)`) is above `max_entropy`
    are not shown, as long as the others still have contrast.

    **Source.** GTPO (arXiv 2508.03772): tokens that completions with positive and with negative
    advantages share get no negative update, and completions whose mean entropy is above ln 2 are
    filtered out.
    **When to use.** Groups of three or more attempts of several steps, of which most are the same.

    Args:
        max_entropy: in nats per token, .01 to 100; the paper proves ln 2.
    """

    max_entropy: Magnitude = math.log(2)

    async def show(self, context: GroupContext, ask: Ask) -> Shown:
        """The attempts of low entropy, and what good and bad ones share."""
        group = context.group
        kept = [r for r in group.rollouts if r.entropy is None or r.entropy <= self.max_entropy]
        scores = [rollout.score or 0.0 for rollout in kept] or [0.0]
        if max(scores) - min(scores) <= group.least_contrast:
            kept = list(group.rollouts)
        shared = _shared(kept) if group.has_contrast else []
        lines = "\n".join(f"- {shortened(part, LONGEST)}" for part in shared[:MOST])
        return Shown(tuple(kept), f"{NOTE}{lines}" if lines else "")


def _shared(rollouts: Sequence[Rollout]) -> list[str]:
    """The steps and sentences that good and bad attempts share, those of most attempts first."""
    mean = sum(rollout.score or 0.0 for rollout in rollouts) / len(rollouts)
    good, bad = (
        [_parts(r) for r in rollouts if ((r.score or 0.0) > mean) == is_good]
        for is_good in (True, False)
    )
    n = Counter(key for parts in (*good, *bad) for key in parts)
    texts = {key: text for parts in good for key, text in parts.items()}
    both = [key for key in texts if any(key in parts for parts in bad)]
    return [texts[key] for key in sorted(both, key=lambda key: -n[key])]


def _parts(rollout: Rollout) -> dict[str, str]:
    """The steps of a rollout and the sentences of its reasoning, by what is compared of them."""
    by_form: dict[str, str] = {}
    for step in rollout.steps if len(rollout.steps) > 1 else ():
        values = [str(v) for name, v in step.outputs.items() if name not in REASONING]
        line = f"{step.kind} {step.name}: {' '.join(values)}"
        by_form[normalized(line)] = line
    for fields in (*(step.outputs for step in rollout.steps), rollout.outputs):
        for name in THOUGHTS:
            sentences = fields.get(name, "").replace("\n", ". ").split(". ")
            by_form |= {normalized(one): one for one in sentences if one.strip()}
    return by_form
