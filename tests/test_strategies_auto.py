"""`strategies="auto"`: what it switches on, by what it saw, and that it does nothing elsewhere."""

import itertools
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from runs import Run, is_polite, learned, untimed
from test_strategies_rescues import aided, hinting

from tfgrpo_dspy import ExperienceLibrary, SettingsError, TrainingFreeGRPO
from tfgrpo_dspy.report import html
from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.strategies.auto import needs_hints, unlike_spreads

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
