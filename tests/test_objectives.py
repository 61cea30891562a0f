"""Several metrics at once: weights, metrics that do not apply, the front, and why a result won."""

from dataclasses import replace
from typing import Any

import dspy
import pytest
from runs import is_polite, learned, optimizer_of, polite_lm, predictor, questions

from tfgrpo_dspy import NoGate, SettingsError, TrainingFreeGRPO
from tfgrpo_dspy.metric import adapt_metric, combined
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.results.records import Candidate, ScoreSummary, front_of

EXAMPLE = dspy.Example(question="q", answer="please").with_inputs("question")


def right(example: Any, pred: Any, _trace: Any = None) -> dspy.Prediction:
    return dspy.Prediction(score=float(pred.answer == example.answer), feedback="Be right.")


def short(_example: Any, pred: Any) -> float | None:
    return None if pred.answer == "" else 1.0 / len(pred.answer)


async def polite(_example: Any, pred: Any) -> dict[str, Any]:
    return {"score": float("please" in pred.answer), "feedback": "Be polite."}


def scored(metric: Any, answer: str) -> Any:
    return adapt_metric(combined(metric))(EXAMPLE, dspy.Prediction(answer=answer), None)


def test_the_score_of_several_metrics_is_their_weighted_mean_and_each_is_an_objective() -> None:
    score = scored({"right": right, "short": (short, 0.5), "polite": (polite, 2)}, "please")
    assert score.value == pytest.approx((1.0 + 0.5 / 6 + 2.0) / 3.5)
    assert score.objectives == {"right": 1.0, "short": 1 / 6, "polite": 1.0}
    assert score.feedback == "right: Be right.\npolite: Be polite."


def test_a_metric_that_does_not_apply_does_not_count_there() -> None:
    score = scored([right, (short, 5)], "")
    assert (score.value, score.objectives) == (0.0, {"right": 0.0})
    with pytest.raises(Exception, match=r"none of the metrics \(short\) applies to the example"):
        scored([short], "")


@pytest.mark.parametrize(
    ("metric", "fault"),
    [
        ([], r"^metric=\[\]: pass at least one metric, or metric=None"),
        ({"right": (right, 0)}, r"'right': pass a metric, or \(metric, weight above 0\)\.$"),
        ({"right": (right, "much")}, "'right'"),
        ([right, 3], "is not callable"),
    ],
)
def test_metrics_that_cannot_be_used_are_refused(metric: Any, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        TrainingFreeGRPO(metric)


@pytest.mark.parametrize("name", ["objectives", "objective_scores"])
def test_objectives_have_our_name_or_that_of_gepa_and_one_that_is_none_is_left_out(
    name: str,
) -> None:
    def metric(_example: Any, _pred: Any) -> dspy.Prediction:
        return dspy.Prediction(score=0.5, **{name: {"a": 1, "b": None}})

    assert adapt_metric(metric)(EXAMPLE, dspy.Prediction(), None).objectives == {"a": 1.0}


def finalist(score: float, n: int = 4, **objectives: float) -> Candidate:
    return Candidate("one", (), 0, ScoreSummary(score, n), 0.5, False, objectives)


def test_the_front_has_who_no_other_beats_in_every_objective() -> None:
    cheap, good = finalist(0.4, a=0.9, b=0.1), finalist(0.6, a=0.2, b=0.8)
    beaten, little = finalist(0.3, a=0.2, b=0.1), finalist(1.0, n=2, a=1.0, b=1.0)
    assert front_of([beaten, cheap, good, little]) == [cheap, good]
    assert front_of([finalist(0.5)]) == []
    failed_once = replace(good, score=ScoreSummary(0.7, 3, n_failed=1))
    assert front_of([cheap, failed_once]) == [cheap, failed_once], "measured on as many"


@pytest.fixture(scope="module")
def several() -> Any:
    """A run on two metrics of which the advice makes one better and the other worse."""
    with dspy.context(lm=polite_lm(), adapter=None, callbacks=[]):
        metric = {"polite": is_polite, "brief": (lambda _, pred: 2.0 / len(pred.answer), 0.1)}
        return optimizer_of(metric=metric, max_lm_calls=200).compile(
            predictor(), trainset=questions(8), valset=questions(12, start=100)
        )


def test_each_program_of_the_front_is_ready_to_use(several: Any) -> None:
    results = several.detailed_results
    assert results.front == front_of(results.candidates)
    assert {one.is_best for one in results.front} == {True, False}
    by_politeness = sorted(results.front, key=lambda one: one.objectives["polite"])
    with dspy.context(lm=polite_lm()):
        assert {one.program()(question="question 1").answer for one in by_politeness} <= {
            "please",
            "no",
        }
    least, *_, most = by_politeness
    assert least.objectives["brief"] > most.objectives["brief"]
    assert least.program().signature.instructions == predictor().signature.instructions


def test_what_is_saved_of_the_results_has_no_programs(several: Any) -> None:
    results = several.detailed_results
    again = RunResults.from_dict(results.to_dict())
    assert (again, again.front) == (results, results.front)
    with pytest.raises(SettingsError, match="results that were saved hold no programs"):
        again.candidates[0].program()


def test_the_result_says_why_it_was_taken(several: Any) -> None:
    results = several.detailed_results
    (best,) = [one for one in results.candidates if one.is_best]
    assert results.taken_because == (
        f"better than the student with probability {best.chance:.2f} (needed: 0.92)"
    )
    assert f"\nTaken: {results.taken_because}\n" in str(results)
    ungated = learned(gate=NoGate()).detailed_results
    assert ungated.taken_because == "the last library, be it better or worse: there is no race"


@pytest.mark.parametrize(("target", "is_reached"), [(1.5, False), (0.9, True), (0.3, True)])
def test_a_target_score_ends_the_training_once_ten_groups_have_it(
    target: float, is_reached: bool
) -> None:
    settings = {"max_lm_calls": 400, "target_score": target, "epochs": 9, "batch_size": 2}
    results = learned(**settings, gate=NoGate()).detailed_results
    assert results.ended_because.startswith(f"target_score={target} is reached: ") is is_reached
    assert not is_reached or "the last 10 groups" in results.ended_because
    groups = [group.scores for update in results.updates for group in update.groups]
    if is_reached:
        means = [sum(map(sum, groups[n - 10 : n])) / 40 for n in range(10, len(groups) + 1, 2)]
        assert max(means) >= target
        assert max(means[:-2], default=0.0) < target  # at most one update was under way
