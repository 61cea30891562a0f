"""When a strategy is asked no more, because what it does is of no use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from runs import Run
from scripted import chat

from tfgrpo_dspy import ExperienceLibrary
from tfgrpo_dspy.rollout import Group, Rollout, Step, Usage
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.strategies import (
    ImplicitStepRewards,
    InformationGain,
    MonteCarloCredit,
    TeacherMarks,
)
from tfgrpo_dspy.strategies.auto import credited_in_vain, rescued_in_vain
from tfgrpo_dspy.strategies.base import Ask, Attempt, GroupContext, Strategy

EMPTY = ExperienceLibrary()


def rescued(usual: float, extra: float) -> SampledGroup:
    rollouts = [Rollout(0, k, score=score) for k, score in enumerate((usual, usual, extra))]
    given = Additions(EMPTY), Additions(EMPTY), Additions(EMPTY, hint="Look.")
    return SampledGroup(Group.of(0, rollouts, True), given)


def test_rescues_end_after_eight_groups_in_which_no_attempt_was_better() -> None:
    vain, good = rescued(0.0, 0.0), rescued(0.0, 1.0)
    assert rescued_in_vain([vain] * 8)
    assert not rescued_in_vain([vain] * 7)
    assert not rescued_in_vain([good, *[vain] * 7])
    assert not rescued_in_vain([vain] * 20 + [good])
    assert rescued_in_vain([rescued(0.6, 0.6)] * 8)


def credited(fall: float, n_calls: int = 1) -> SampledGroup:
    steps = tuple(Step("predictor", "go", {}, {}, value=value) for value in (0.5, 0.5 - fall))
    whole = [
        Rollout(0, k, score=float(k), steps=steps, start_value=0.5, usage=Usage(10))
        for k in range(2)
    ]
    going_on = Rollout(0, 7, score=0.0, n_replayed=1, usage=Usage(n_calls))
    group = Group.of(0, whole, True)
    return SampledGroup(group, (Additions(EMPTY),) * 2, probes=(going_on,))


def test_credit_ends_where_hardly_any_group_had_a_step_that_decided() -> None:
    assert credited_in_vain([credited(0.0)] * 6)
    assert not credited_in_vain([credited(0.0)] * 5)
    assert not credited_in_vain([credited(0.4), credited(0.0), credited(0.0)] * 3)


@pytest.mark.parametrize(
    "strategy",
    [InformationGain(), MonteCarloCredit(), TeacherMarks(), ImplicitStepRewards()],
)
def test_a_program_of_one_turn_has_no_step_to_value_and_takes_no_call_for_it(
    strategy: Strategy,
) -> None:
    rows = [["1", "0"], ["0", "0"], ["0", "1"]]
    run, usual = (Run(rows, strategies=used) for used in ((strategy,), ()))
    assert run.texts("") == usual.texts("")
    assert run.results.updates == usual.results.updates


@dataclass(frozen=True)
class UselessHint(Strategy):
    """Gives each failing group a hint that changes nothing."""

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:  # noqa: ARG002
        done = len(context.group.all_rollouts) > 2 or context.group.has_contrast
        return () if done else [Attempt(hint="Look again.")]


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_rescue_that_never_helps_is_asked_no_more_and_the_results_say_so(
    num_threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    rules: list[Any] = [("A hint for this input", chat(answer="0"))]
    run = Run(
        [["0", "0"]] * 12 + [["1", "0"]], *rules, strategies=(UselessHint(),), batch_size=4,
        epochs=3, max_staleness=0, num_threads=num_threads,
    )  # fmt: skip
    groups = [group for update in run.results.updates for group in update.groups]
    n_hinted = sum(bool(group.aided_scores) for group in groups)
    assert 8 <= n_hinted <= 12
    assert run.results.failures["strategy switched off"] == 1
    assert "UselessHint.rescue is asked no more" in caplog.text
