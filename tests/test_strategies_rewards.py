"""Strategies that change what a rollout counts with; and how unsure an LM was of a rollout."""

from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from dspy import lm15
from hypothesis import given
from hypothesis import strategies as st
from runs import Pair, Run, is_score, predictor
from scripted import ScriptedEngine, chat

from tfgrpo_dspy import RunFailedError, SettingsError
from tfgrpo_dspy.rollout import Rollout, Step, adapt_metric
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, run_rollout
from tfgrpo_dspy.strategies import ClippedDiversity, GlobalConstraint, Objectives, Scored, StepOrder


class UnsureEngine(ScriptedEngine):
    """Says of each answer how likely its tokens were: the first token of its own, the second .5."""

    supported_params = frozenset({"temperature", "max_tokens", "seed", "logprobs"})

    def __init__(self, first: list[float]) -> None:
        super().__init__([("question", chat(answer="1"))])
        self.first = first

    def complete(self, request: lm15.Request) -> lm15.Response:
        response = super().complete(request)
        said = self.first[len(self.prompts) - 1]
        tokens = tuple(lm15.TokenLogprob("a", value) for value in (said, -0.5))
        return lm15.Response(
            id=None, model=response.model, message=response.message, finish_reason="stop",
            usage=response.usage, logprobs=tokens,
        )  # fmt: skip


def one_rollout(first: list[float], program: Any = None, **arguments: Any) -> Rollout:
    lm = dspy.LM("unsure", engine=UnsureEngine(first), cache=False, **arguments)
    example = dspy.Example(question="question 1").with_inputs("question")
    task = RolloutTask(program or predictor(), example, 0, 1, 0.7, adapt_metric(is_score))
    with dspy.context(lm=lm):
        return run_rollout(task)


def test_a_rollout_knows_the_mean_surprise_of_all_tokens_of_its_calls() -> None:
    assert one_rollout([-1.5], logprobs=True).entropy == pytest.approx(1.0)
    assert one_rollout([-1.5, -3.5], Pair(), logprobs=True).entropy == pytest.approx(1.5)


def rollout(example: int = 0, score: float = 0.0, **more: Any) -> Rollout:
    return Rollout(example, more.pop("rollout_id", 0), score=score, **more)


def scored(*rollouts: Rollout, first: Sequence[Rollout] = (), is_training: bool = True) -> Scored:
    return Scored(tuple(rollouts), tuple(first or rollouts), is_training)


def agents(n_helping: int, n: int) -> list[Rollout]:
    return [
        rollout(score=0.5, outputs={"does": "help" if k < n_helping else "keep"}) for k in range(n)
    ]


def helps(each: Rollout) -> float:
    return float(each.outputs["does"] == "help")


@pytest.mark.parametrize(
    ("n_helping", "bonus"), [(0, 0.0), (1, 0.75), (2, 1.0), (3, 0.75), (4, 0.0)]
)
def test_the_global_term_is_strong_at_intermediate_levels_and_nothing_at_the_extremes(
    n_helping: int, bonus: float
) -> None:
    rewards = GlobalConstraint(helps).reward(scored(*agents(n_helping, 4)))
    assert rewards == pytest.approx([0.5 + bonus] * n_helping + [0.5] * (4 - n_helping))


def test_the_global_term_is_in_deviations_of_the_first_scores_and_constant_at_the_end() -> None:
    first = [rollout(score=score, outputs={"does": "keep"}) for score in (0.0, 4.0)]
    training = GlobalConstraint(helps, weight=0.5).reward(scored(*agents(2, 4), first=first))
    assert training[0] == pytest.approx(0.5 + 0.5 * 2.0)
    final = GlobalConstraint(helps, weight=0.5).reward(
        scored(*agents(1, 1), first=first, is_training=False)
    )
    assert final == pytest.approx([0.5 + 0.5 * 2.0 * 2 / 3])


groups = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.none() | st.floats(0, 9)
    ),
    min_size=2,
    max_size=12,
)


@given(made=groups)
def test_diversity_never_turns_the_order_of_scores_in_a_group(made: Any) -> None:
    rollouts = [rollout(example, score, entropy=entropy) for example, score, entropy in made]
    rewards = ClippedDiversity().reward(scored(*rollouts))
    for one, own in zip(rollouts, rewards, strict=True):
        same = [o.score for o in rollouts if o.example == one.example]
        if len(set(same)) == 1:
            assert own == one.score
        for other, its in zip(rollouts, rewards, strict=True):
            if one.example == other.example and (one.score or 0) < (other.score or 0):
                assert own < its


def test_of_rollouts_that_score_the_same_the_unsure_one_counts_for_more() -> None:
    made = [rollout(score=1.0, entropy=e) for e in (0.1, 0.9)]
    rewards = ClippedDiversity().reward(scored(*made, rollout(score=0.0, entropy=0.5)))
    assert rewards[1] > 1.0 > rewards[0]


def test_diversity_moves_a_score_by_a_quarter_of_the_distance_to_the_nearest_other() -> None:
    scores = [0.0, 0.0, 0.1, 0.1, 1.0, 1.0]
    made = [rollout(score=score, entropy=9.0 * (k % 2)) for k, score in enumerate(scores)]
    rewards = ClippedDiversity().reward(scored(*made))
    assert rewards == pytest.approx([-0.0125, 0.0125, 0.0875, 0.1125, 0.8875, 1.1125])


def valued(score: float = 0.0, **objectives: float) -> Rollout:
    return rollout(score=score, objectives=objectives)


FIRST = [valued(right=1.0, short=-100.0), valued(right=0.0, short=-500.0)]


def test_objectives_are_divided_by_their_spread_in_the_first_batch_and_weighted() -> None:
    mixed = Objectives({"right": 1.0, "short": 1.0})
    rewards = mixed.reward(scored(valued(right=1.0, short=-300.0), first=FIRST))
    assert rewards == pytest.approx([(1.0 / 0.5 - 300 / 200) / 2])
    less = Objectives({"right": 3.0, "short": 1.0})
    first = [valued(right=1.0, short=-4.0), valued(right=1.0, short=-4.0)]
    rewards = less.reward(scored(valued(right=1.0, short=-2.0), first=first))
    assert rewards == pytest.approx([(3.0 - 2.0) / 4]), "what does not vary is divided by one"


def test_a_bound_decides_in_the_final_choice_and_leaves_training_alone() -> None:
    mixed = Objectives({"right": 1.0, "short": 1.0}, never_below={"right": 1.0})
    good, brief = valued(right=1.0, short=-500.0), valued(right=0.0, short=1500.0)
    first, second = mixed.reward(scored(good, brief, first=FIRST, is_training=False))
    assert first > second
    first, second = mixed.reward(scored(good, brief, first=FIRST))
    assert first < second


def test_an_objective_that_the_metric_does_not_give_is_named() -> None:
    with pytest.raises(RunFailedError, match=r"objective 'fair': the metric gave \[\]; return"):
        Run([["1", "0"]], strategies=(Objectives({"fair": 1.0}),))
    with pytest.raises(SettingsError, match=r"objective 'fair': the metric gave \['right'\]"):
        Objectives({"fair": 1.0}).reward(scored(valued(right=1.0), first=[valued(right=1.0)]))


@pytest.mark.parametrize(
    ("moves", "order"),
    [
        *(("a b c d", 1.0), ("d c b a", -1.0), ("b a c d", 2 / 3)),
        *(("a x", 0.0), ("", 0.0), ("a b a c d", 1.0)),
    ],
)
def test_the_order_of_steps_is_their_rank_correlation_with_the_reference(
    moves: str, order: float
) -> None:
    strategy = StepOrder(lambda _: "abcd", lambda each: each.outputs["moves"].split())
    assert strategy.order(rollout(outputs={"moves": moves})) == pytest.approx(order)


def test_by_default_the_steps_are_the_names_of_predictors_and_tools() -> None:
    steps = tuple(Step("predictor", name, {}, {}) for name in ("plan", "write"))
    strategy = StepOrder(lambda _: ["plan", "write"])
    assert strategy.order(rollout(steps=steps)) == 1.0
    assert strategy.order(rollout(steps=steps[::-1])) == -1.0
    rewards = strategy.reward(scored(rollout(steps=steps), rollout(steps=steps[::-1])))
    assert rewards[0] > rewards[1], "though both have the same score"
