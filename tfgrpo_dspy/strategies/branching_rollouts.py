"""BranchingRollouts: rollouts that branch where the program is unsure, in place of new ones."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from tfgrpo_dspy.errors import SettingsError, StrategyError
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.strategies.arguments import Least2, strategy
from tfgrpo_dspy.strategies.base import Ask, BatchPlan, Credit, GroupContext, Play, Strategy
from tfgrpo_dspy.strategies.state_values import states, tree_values

FIRST = 2 / 3  # of the steps: earlier branches cost more, later ones differ in less
TRIES = 0.2  # LM calls for branches that end at once, as a share of those of the whole rollouts
LEAST_WHOLE = 2  # rollouts of an example, which a batch must have at least


@strategy
class BranchingRollouts(Strategy):
    """Makes a part of each group by branching rollouts after a step, in place of whole rollouts.

    A rollout branches after results of tools (after any turn, if it calls none), first where the
    entropy of the next answer rises most above that of the first one (ask for it with
    `dspy.LM(..., logprobs=True)`). Where the LM gives no log-probabilities, it branches first after
    two thirds of the steps, then around that. A branch whose first step decides as the rollout did
    says that the program is sure there: it ends after that one call. A program of one turn cannot
    branch: the results count failures of the strategy, and groups become as large as usual. Values
    are the mean scores of all leaves of the tree below a state: so they are shared along a common
    beginning, and apart on the branches.

    **Source.** ARPO (arXiv 2507.19849; agentic reinforced policy optimization).
    **Carried over.** Branches after tool results where entropy rises; shared and apart advantages.
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

    async def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
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
            more = await play(rollout, state, ends_if_same=True)
            branches += more
            n_tries -= not more
        for rollout, state in _places(scored):  # where no place is left that is unsure
            if len(branches) >= wanted:
                break
            ids = {branch.rollout_id for branch in branches}
            branches += [r for r in await play(rollout, state) if r.rollout_id not in ids]
        return Credit(tree_values([*scored, *branches]), tuple(branches))


def _scored(*groups: SampledGroup) -> list[Rollout]:
    return [r for sampled in groups for r in sampled.unaided.rollouts if r.score is not None]


def _places(rollouts: list[Rollout]) -> list[tuple[Rollout, int]]:
    """Where to branch, the most uncertain first; the rollouts take turns."""
    ranked = []
    for rollout in rollouts:
        turns = states(rollout)[1:-1]
        inner = [n for n in turns if rollout.steps[n - 1].kind == "tool"] or turns
        first = rollout.steps[0].entropy if rollout.steps else None
        order = sorted(
            inner, key=lambda n: (-_rise(rollout, n, first), abs(n - FIRST * len(rollout.steps)))
        )
        ranked.append(order)
    longest = max(map(len, ranked), default=0)
    pairs = list(zip(rollouts, ranked, strict=True))
    return [
        (rollout, order[k]) for k in range(longest) for rollout, order in pairs if k < len(order)
    ]


def _rise(rollout: Rollout, state: int, first: float | None) -> float:
    entropy = rollout.steps[state].entropy
    return 0.0 if entropy is None or first is None else entropy - first
