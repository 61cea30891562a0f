"""The strategies that choose examples: what they make of groups whose scores are made here."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import learned

from tfgrpo_dspy import ExperienceLibrary, RunFailedError, SettingsError
from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.strategies import (
    BatchPlan,
    BayesianAllocation,
    DomainBandit,
    HardSampleWeights,
    LearningFrontier,
    Strategy,
)
from tfgrpo_dspy.strategies.pass_rates import PassRate

EVERY: tuple[Strategy, ...] = (
    LearningFrontier(),
    BayesianAllocation(),
    DomainBandit("domain"),
    HardSampleWeights(),
    HardSampleWeights("domain"),
)
N = 12


def sampled(
    example: int, *scores: float, texts: Sequence[str] = (), hint: str = ""
) -> SampledGroup:
    rollouts = [Rollout(example, k, score=score) for k, score in enumerate(scores)]
    given_ = Additions(ExperienceLibrary.from_texts(texts), hint=hint)
    return SampledGroup(Group.of(example, rollouts, True), (given_,) * len(scores))


def plan_after(
    past: Sequence[SampledGroup], n: int = 4, under_way: Sequence[int] = (), update: int = 9
) -> BatchPlan:
    trainset = [
        dspy.Example(question=f"{i}", domain="ab"[i % 2]).with_inputs("question") for i in range(N)
    ]
    sizes = dict.fromkeys(range(n), 2)
    return BatchPlan(sizes, tuple(past), tuple(under_way), tuple(range(N)), trainset, 2, update, 0)


histories = st.lists(
    st.tuples(
        st.integers(0, N - 1), st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=3)
    ),
    max_size=30,
)


@pytest.mark.parametrize("strategy", EVERY, ids=lambda each: type(each).__name__)
@given(
    history=histories, n=st.integers(1, N), under_way=st.lists(st.integers(0, N - 1), max_size=6)
)
def test_every_choice_is_one_that_the_run_takes_and_the_same_for_the_same_plan(
    strategy: Strategy, history: Any, n: int, under_way: list[int]
) -> None:
    plan = plan_after([sampled(example, *scores) for example, scores in history], n, under_way)
    chosen = strategy.choose(plan)
    assert chosen.keys() <= set(plan.training)
    assert min(chosen.values()) >= 2
    assert sum(chosen.values()) <= 2 * n
    assert dict(strategy.choose(plan)) == dict(chosen)


@given(a=st.floats(0.1, 50), b=st.floats(0.1, 50), n=st.integers(2, 8))
def test_a_larger_group_has_contrast_more_often_and_a_sure_example_seldom(
    a: float, b: float, n: int
) -> None:
    rate = PassRate(a, b)
    assert 0 <= rate.chance_of_contrast(n) <= rate.chance_of_contrast(n + 1) <= 1
    assert rate.chance_of_contrast(2) == pytest.approx(2 * rate.variance_of_a_rollout)
    assert PassRate(a + 100, b).variance_of_a_rollout < 0.34


MIXED_AND_SURE = [
    *(sampled(i, 1.0, 1.0) for i in (0, 1, 2, 3) for _ in range(2)),
    *(sampled(i, 0.0, 0.0) for i in (4, 5, 6, 7) for _ in range(2)),
    *(sampled(i, 1.0, 0.0) for i in (8, 9, 10, 11) for _ in range(2)),
]
"""Examples 0 to 3 always succeed, 4 to 7 always fail, 8 to 11 have contrast."""


@pytest.mark.parametrize("strategy", [LearningFrontier(), BayesianAllocation(most=2)])
def test_examples_that_are_neither_too_easy_nor_too_hard_are_preferred(strategy: Strategy) -> None:
    assert set(strategy.choose(plan_after(MIXED_AND_SURE))) == {8, 9, 10, 11}


@pytest.mark.parametrize("strategy", [LearningFrontier(), BayesianAllocation(most=2)])
def test_an_example_that_is_still_being_made_waits(strategy: Strategy) -> None:
    chosen = strategy.choose(plan_after(MIXED_AND_SURE, under_way=[9, 10]))
    assert {8, 11} <= set(chosen)
    assert not {9, 10} & set(chosen)


def test_any_scale_of_scores_will_do() -> None:
    scaled = [
        sampled(each.group.example, *(40 * score for score in each.group.scores))
        for each in MIXED_AND_SURE
    ]
    assert set(LearningFrontier().choose(plan_after(scaled))) == {8, 9, 10, 11}


def test_the_frontier_takes_first_what_has_become_learnable() -> None:
    past = [*MIXED_AND_SURE, sampled(5, 1.0, 0.0)]
    assert next(iter(LearningFrontier().choose(plan_after(past)))) == 5


def test_the_frontier_forgets_old_groups() -> None:
    old = [sampled(8, 0.0, 0.0)] * 3
    since = [*[sampled(10, 1.0, 0.0)] * 40, sampled(9, 0.0, 0.0)]
    only = plan_after([*old, *since], n=N)
    order = list(LearningFrontier(memory=0.01).choose(only))
    assert order.index(8) < order.index(9)
    order = list(LearningFrontier(memory=1.0).choose(only))
    assert order.index(9) < order.index(8)


def test_rollouts_with_a_hint_say_nothing_of_an_example() -> None:
    past = [*MIXED_AND_SURE, *(sampled(4, 1.0, 0.0, hint="Look.") for _ in range(9))]
    assert 4 not in LearningFrontier().choose(plan_after(past))


def test_an_allocation_gives_further_rollouts_where_contrast_is_rare_but_likely() -> None:
    past = [sampled(i, 0.0, 0.0) for i in range(N) for _ in range(3)]
    past += [sampled(3, 0.0, 0.0, 1.0)] * 3
    sizes = BayesianAllocation(most=5).choose(plan_after(past))
    assert sizes[3] == max(sizes.values()) == 5


def test_an_allocation_forgets_when_the_library_has_changed() -> None:
    def chosen(then: str) -> list[int]:
        past = [sampled(i, 1.0, 0.0, texts=[then]) for i in range(4) for _ in range(4)]
        past += [sampled(i, 0.0, 0.0, texts=["Be exact."]) for i in range(4)]
        past += [sampled(4, 1.0, 0.0, texts=["Be exact."])]
        return list(BayesianAllocation(memory=0.0, most=2).choose(plan_after(past, n=4)))

    assert 4 not in chosen("Be exact.")
    assert 4 in chosen("Guess.")


@pytest.mark.parametrize("domain", ["domain", lambda example: int(example.question) % 2])
def test_the_bandit_gives_most_places_to_the_domain_that_teaches(domain: Any) -> None:
    past = [sampled(i, 1.0, 0.0) if i % 2 else sampled(i, 0.0, 0.0) for i in range(N)] * 3
    chosen = DomainBandit(domain, exploration=0.1).choose(plan_after(past, n=6))
    assert [i % 2 for i in chosen] == [1] * 6


def test_the_bandit_tries_a_domain_that_has_no_group_and_examples_that_came_least() -> None:
    past = [sampled(i, 1.0, 0.0) for i in (1, 3, 5, 7, 9) for _ in range(4)]
    chosen = list(DomainBandit("domain").choose(plan_after(past, n=4)))
    assert chosen[0] % 2 == 0
    assert 11 in DomainBandit("domain", exploration=0).choose(plan_after(past[:-4], n=N))
    only_odd = DomainBandit("domain", exploration=0).choose(
        plan_after([*past, *(sampled(i, 0.0, 0.0) for i in range(0, N, 2))], n=2)
    )
    assert next(iter(only_odd)) == 11


def drawn(strategy: Strategy, past: Sequence[SampledGroup]) -> Counter[int]:
    plans = (plan_after(past, n=2, update=update) for update in range(300))
    return Counter(i for plan in plans for i in strategy.choose(plan))


def test_examples_that_score_low_are_drawn_more_often_by_the_weight_of_their_loss() -> None:
    past = [sampled(0, 0.0, 0.0), *(sampled(i, 1.0, 1.0) for i in range(1, N))]
    often = drawn(HardSampleWeights(temperature=0.3), past)
    assert often[0] > 250
    equal = drawn(HardSampleWeights(temperature=100.0), past)
    assert 30 < equal[0] < 75  # two of twelve places, 300 times


def test_a_domain_with_few_examples_has_the_weight_of_the_others() -> None:
    rare = HardSampleWeights(lambda example: example.question == "0", temperature=100.0)
    assert drawn(rare, [])[0] > 200


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearningFrontier(memory=2),
        lambda: LearningFrontier(memory=True),
        lambda: BayesianAllocation(most=1),
        lambda: DomainBandit("domain", exploration=-1),
        lambda: DomainBandit("domain", window=0),
        lambda: DomainBandit("domain", window=1.5),
        lambda: DomainBandit(None),
        lambda: HardSampleWeights(temperature=0),
        lambda: HardSampleWeights(5),
    ],
)
def test_a_setting_out_of_its_range_is_refused_with_its_value(make: Any) -> None:
    with pytest.raises(SettingsError, match=r"\w=.*: it should be"):
        make()


def test_a_domain_that_is_no_field_is_refused_with_the_fields_that_there_are() -> None:
    with pytest.raises(RunFailedError, match=r"domain='topc': example \d+ has the fields question"):
        learned(strategies=(DomainBandit("topc"),))


def test_a_compile_with_all_of_them_learns_what_there_is_to_learn() -> None:
    for strategy in EVERY[:2]:
        optimized = learned(strategies=(strategy,))
        assert optimized.detailed_results.failures.get("strategy", 0) == 0
        assert optimized.detailed_results.best.mean > optimized.detailed_results.student.mean
