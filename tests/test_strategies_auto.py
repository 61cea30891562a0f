"""`strategies="auto"`: what it switches on, by what it saw; when a strategy is asked no more."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import pytest
from runs import Run, is_polite, learned, untimed
from scripted import chat
from test_strategies_rescues import aided, hinting

from tfgrpo_dspy import ExperienceLibrary, SettingsError, TrainingFreeGRPO
from tfgrpo_dspy.report import html
from tfgrpo_dspy.rollout import Group, Rollout, Step, Usage
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.strategies import (
    ImplicitStepRewards,
    InformationGain,
    MonteCarloCredit,
    TeacherMarks,
)
from tfgrpo_dspy.strategies.auto import (
    credited_in_vain,
    needs_hints,
    rescued_in_vain,
    unlike_spreads,
)
from tfgrpo_dspy.strategies.base import Ask, Attempt, GroupContext, Strategy

SILENT = 13  # groups of two failures each, of 16
FAILING = [["0", "0"]] * SILENT + [["1", "1"], ["1", "0"], ["1", "0"]]


def sampled(scores: Sequence[float], feedback: str = "") -> SampledGroup:
    rollouts = [Rollout(0, k, score=score, feedback=feedback) for k, score in enumerate(scores)]
    return SampledGroup(
        Group.of(0, rollouts, True), (Additions(ExperienceLibrary()),) * len(scores)
    )


FAIL, GOOD, MIXED, TOLD = sampled([0, 0]), sampled([1, 1]), sampled([0, 1]), sampled([0, 0], "No.")


@pytest.mark.parametrize(
    ("past", "is_needed"),
    [
        ([FAIL] * 12 + [MIXED] * 4, True),
        ([FAIL] * 11 + [MIXED] * 5, False),
        ([FAIL] * 12 + [MIXED] * 3, False),  # too few groups
        ([TOLD] * 12 + [MIXED] * 4, False),  # the metric says why
        ([FAIL] * 16, True),
        ([GOOD] * 16, False),  # one score only, which is no failure
        ([GOOD] * 14 + [FAIL, MIXED], False),
        ([sampled([0.4, 0.4])] * 15 + [GOOD], True),  # all of them below the best
        ([FAIL] * 11 + [MIXED] * 5 + [FAIL] * 90, False),  # the first ones decide
    ],
)
def test_hints_are_needed_where_twelve_of_the_first_sixteen_groups_fail_without_a_word(
    past: list[SampledGroup], is_needed: bool
) -> None:
    assert needs_hints(past) == is_needed


def failing(**arguments: Any) -> Run:
    more = {"epochs": 3, "batch_size": 4, "max_staleness": 0, "strategies": "auto"} | arguments
    return Run(FAILING, *hinting("Think of sums."), **more)


def test_failing_examples_get_hints_from_the_second_epoch_on_and_all_pages_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="tfgrpo_dspy")
    run = failing(num_threads=1)
    assert not any(aided(run)[:16])
    assert sum(map(bool, aided(run)[16:32])) == SILENT
    message = "auto: TieredHints is on: 13 of the first 16 groups failed throughout, without a word"
    assert run.results.switched == (message,)
    assert caplog.text.count(message) == 1
    assert message in str(run.results)
    assert message in html(run.optimized)
    of_others = untimed(failing(num_threads=4).results)
    assert of_others | {"settings": {}} == untimed(run.results) | {"settings": {}}


@pytest.mark.parametrize(("n", "n_epochs"), [(16, 2), (8, 1)])
def test_a_run_that_fails_throughout_goes_on_for_the_hints_if_they_are_needed(
    n: int, n_epochs: int
) -> None:
    unlabelled = [dspy.Example(question=f"question {i}").with_inputs("question") for i in range(n)]
    run = Run(
        [["0", "0"]] * n, *hinting("Nothing."), strategies="auto", epochs=4, batch_size=4,
        max_staleness=0, trainset=unlabelled,
    )  # fmt: skip
    assert len(run.results.updates) == n_epochs * n // 4
    assert sum(map(bool, aided(run))) == 8 * (n_epochs - 1)  # in vain, and then no more


def silent(example: Any, pred: Any, trace: Any = None) -> float:
    return float(is_polite(example, pred, trace).score)


@pytest.mark.parametrize(("seed", "metric"), [(0, silent), (1, is_polite), (2, silent)])
def test_a_run_that_needs_nothing_is_the_same_as_without(seed: int, metric: Any) -> None:
    one, other = (
        learned(metric=metric, seed=seed, epochs=4, strategies=used).detailed_results
        for used in ((), "auto")
    )
    same = untimed(one) | {"switched": [], "settings": {}}
    assert untimed(other) | {"switched": [], "settings": {}} == same


# ---- objectives
def with_objectives(pairs: Sequence[tuple[float, float]], score: Any = None) -> list[Rollout]:
    return [
        Rollout(
            0,
            k,
            score=(right + length) / 2 if score is None else score,
            objectives={"right": right, "length": length},
        )
        for k, (right, length) in enumerate(pairs)
    ]


UNLIKE = [(0.0, -40.0), (1.0, -10.0)] * 4


@pytest.mark.parametrize(
    ("first", "names"),
    [
        (with_objectives(UNLIKE), ["right", "length"]),
        (with_objectives(UNLIKE[:7]), []),  # too few
        (with_objectives(UNLIKE, 0.5), []),  # the metric weighs them itself
        (with_objectives([(0.0, 1.0), (1.0, 0.0)] * 4), []),  # of one scale
        (with_objectives([(0.0, -40.0), (0.0, -10.0)] * 4), []),  # the scale of one is not known
        ([*with_objectives(UNLIKE), Rollout(0, 9, score=1.0)], []),  # not throughout
        ([Rollout(0, k, score=float(k)) for k in range(9)], []),
        ([], []),
    ],
)
def test_objectives_are_scaled_where_their_plain_mean_is_the_score_and_scales_are_unlike(
    first: list[Rollout], names: list[str]
) -> None:
    assert list(unlike_spreads(first)) == names


def test_the_objectives_of_a_run_count_alike_and_the_results_say_so() -> None:
    lengths = itertools.cycle(["0", "1"])

    def metric(_example: Any, pred: Any) -> dspy.Prediction:
        return dspy.Prediction(
            objectives={"right": float(pred.answer), "length": -30.0 * float(pred.answer)}
        )

    rows = [[next(lengths), next(lengths)] for _ in range(6)]
    run, plain = (Run(rows, metric=metric, strategies=used, batch_size=6) for used in ("auto", ()))
    scores = [group.scores for group in run.results.updates[0].groups]
    assert scores == [pytest.approx((0.0, 0.0), abs=1e-9)] * 6  # one up, one down, of one size
    assert plain.results.updates[0].groups[0].scores == (0.0, -14.5)
    assert run.results.switched[1] == (
        "auto: Objectives is on: the objectives' standard deviations are unlike "
        "(right 0.5, length 15)"
    )


def test_another_word_than_auto_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"strategies='on'.*'auto'"):
        TrainingFreeGRPO(is_polite, strategies="on")  # type: ignore[arg-type]


# ---- asked no more
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
