"""The strategies that choose examples: what they make of groups whose scores are made here."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dspy
import pytest
from small import group_of

from tfgrpo_dspy import ExperienceLibrary
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.examples import Additions, SampledGroup
from tfgrpo_dspy.strategies import (
    BatchPlan,
    DomainBandit,
    HardSampleWeights,
    LearningFrontier,
    Strategy,
)
from tfgrpo_dspy.strategies.attempts import pass_rates, variance

EVERY: tuple[Strategy, ...] = (
    LearningFrontier(),
    LearningFrontier(most=3),
    DomainBandit("domain"),
    HardSampleWeights(),
    HardSampleWeights("domain"),
)
N = 12


def sampled(
    example: int, *scores: float, texts: Sequence[str] = (), hint: str = "", words: str = ""
) -> SampledGroup:
    rollouts = [Rollout(example, k, score=s, feedback=words) for k, s in enumerate(scores)]
    given_ = Additions(ExperienceLibrary.from_texts(texts), hint=hint)
    return group_of(*rollouts, added=given_)


def plan_after(
    past: Sequence[SampledGroup], n: int = 4, under_way: Sequence[int] = (), update: int = 9
) -> BatchPlan:
    trainset = [
        dspy.Example(question=f"{i}", domain="ab"[i % 2]).with_inputs("question") for i in range(N)
    ]
    if not any(each.update for each in past):  # most groups teach nothing, so that choosing pays
        past = [*(sampled(N, 0.0, 0.0) for _ in range(4 * len(past))), *past]
        past = [replace(each, update=place) for place, each in enumerate(past)]
    sizes = dict.fromkeys(range(n), 2)
    return BatchPlan(sizes, tuple(past), tuple(under_way), tuple(range(N)), trainset, 2, update, 0)


MIXED_AND_SURE = [
    *(sampled(i, 1.0, 1.0) for i in (0, 1, 2, 3) for _ in range(2)),
    *(sampled(i, 0.0, 0.0) for i in (4, 5, 6, 7) for _ in range(2)),
    *(sampled(i, 1.0, 0.0) for i in (8, 9, 10, 11) for _ in range(2)),
]
"""Examples 0 to 3 always succeed, 4 to 7 always fail, 8 to 11 have contrast."""


def drawn(
    strategy: Strategy, past: Sequence[SampledGroup], under_way: Sequence[int] = (), n: int = 4
) -> Counter[int]:
    """How often each example is drawn in 100 batches, beside the usual half of the batch."""
    plan = plan_after(past, n, under_way)
    plans = (replace(plan, update=update) for update in range(100))
    return Counter(i for plan in plans for i in [*strategy.choose(plan)][math.ceil(n / 2) :])


def share(often: Counter[int], examples: Sequence[int]) -> float:
    return sum(often[i] for i in examples) / often.total()


def test_the_chance_of_an_example_is_the_square_of_its_learnability() -> None:
    plan = plan_after(MIXED_AND_SURE)
    rates = pass_rates(plan)
    squares = {example: variance(*rates[example]) ** 2 for example in plan.training}
    assert LearningFrontier().weights(plan) == pytest.approx(squares)
    often = drawn(LearningFrontier(), MIXED_AND_SURE)
    assert share(often, [8, 9, 10, 11]) > 0.55  # of those to draw they are .4


@pytest.mark.parametrize("strategy", [*EVERY[:2], EVERY[3]], ids=lambda each: type(each).__name__)
def test_half_of_each_batch_is_that_of_the_usual_schedule(strategy: Strategy) -> None:
    for n in (1, 2, 5, 8):
        assert [*strategy.choose(plan_after(MIXED_AND_SURE, n))][: math.ceil(n / 2)] == [
            *range(math.ceil(n / 2))
        ]
    assert len(drawn(strategy, MIXED_AND_SURE)) >= 5  # also some that hardly teach


@pytest.mark.parametrize("strategy", EVERY, ids=lambda each: type(each).__name__)
def test_a_choice_that_does_not_teach_more_is_switched_off(strategy: Strategy) -> None:
    def batches(usual: Sequence[float], chosen: Sequence[float]) -> list[SampledGroup]:
        return [
            replace(sampled(i, *(usual if i < 6 else chosen)), update=update)
            for update in range(3)
            for i in range(N)
        ]

    as_usual = plan_after(batches((1.0, 0.0), (1.0, 0.0)), n=6)
    assert dict(strategy.choose(as_usual)) == dict(as_usual.sizes)
    chosen = [
        [*strategy.choose(plan_after(batches((1.0, 1.0), (1.0, 0.0)), n=6, update=update))]
        for update in range(9)
    ]
    assert any(set(each) != set(range(6)) for each in chosen)


def test_failures_are_worth_drawing_where_the_metric_says_what_was_wrong() -> None:
    told = [*MIXED_AND_SURE, *(sampled(4, 0.0, 0.0, words="Too long.") for _ in range(2))]
    silent = [*MIXED_AND_SURE, *(sampled(4, 0.0, 0.0) for _ in range(2))]
    failing = [5, 6, 7]
    assert share(drawn(LearningFrontier(), told), failing) > 0.4
    assert share(drawn(LearningFrontier(), silent), failing) < 0.25


def test_an_allocation_gives_rollouts_in_proportion_to_the_spread_of_scores() -> None:
    past = [sampled(i, 0.0, 0.0, 0.0, 0.0) for i in range(N - 1) for _ in range(3)]
    past += [sampled(N - 1, 0.0, 1.0, 0.0, 1.0) for _ in range(3)]
    plans = [plan_after(past, n=6, update=update) for update in range(60)]
    sizes = [LearningFrontier(most=5).choose(plan) for plan in plans]
    assert max(each[N - 1] for each in sizes if N - 1 in each) == 5
    assert all(size == 2 for each in sizes for example, size in each.items() if example < N - 1)
    assert all(sum(each.values()) <= 12 for each in sizes)


def test_the_bandit_tries_a_domain_that_has_no_group_and_examples_that_came_least() -> None:
    past = [sampled(i, 1.0, 0.0) for i in (1, 3, 5, 7, 9) for _ in range(2)]
    assert share(drawn(DomainBandit("domain", exploration=5.0), past, n=2), range(0, N, 2)) > 0.6
    often = drawn(DomainBandit("domain", exploration=0), past, n=2)
    assert often[11] == max(often.values())


def test_examples_that_score_low_are_drawn_more_often_by_the_weight_of_their_loss() -> None:
    past = [sampled(6, 0.0, 0.0), *(sampled(i, 1.0, 1.0) for i in range(N) if i != 6)]
    assert drawn(HardSampleWeights(), past, n=2)[6] > 60  # of 100; one of eleven examples


def test_the_highest_losses_are_set_aside_as_noise_before_weights_are_made() -> None:
    past = [sampled(i, *((0.0, 0.0) if i in (6, 7) else (1.0, 1.0))) for i in range(N)]
    past += [sampled(6, 0.0, 0.0), sampled(6, 0.0, 0.0)]
    often = drawn(HardSampleWeights(), past, n=2)
    assert not often[6]
    assert often[7] == max(often.values())


def test_the_bandit_draws_domains_by_a_softmax_of_what_they_teach() -> None:
    past = [sampled(i, 1.0, 0.0) if i % 2 else sampled(i, 0.0, 0.0) for i in range(N)] * 2

    def of_teaching(temperature: float, domain: Any = "domain") -> float:
        strategy = DomainBandit(domain, exploration=0, temperature=temperature)
        return share(drawn(strategy, past, n=2), range(1, N, 2))

    assert of_teaching(0.1, lambda example: int(example.question) % 2) > 0.9
    assert 0.6 < of_teaching(1.0) < 0.9  # e to 5/6, as the first of six is in the usual half
    assert of_teaching(100.0) < 0.6
