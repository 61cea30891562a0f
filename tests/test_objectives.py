"""Several objectives at once: the front, a target, and why a result won."""

from dataclasses import replace
from typing import Any

import dspy
import pytest
from runs import is_polite, learned, optimizer_of, polite_lm, predictor, questions

from tfgrpo_dspy import NoGate, SettingsError
from tfgrpo_dspy.results import Candidate, RunResults, ScoreSummary, front_of
from tfgrpo_dspy.rollout import adapt_metric

EXAMPLE = dspy.Example(question="q", answer="please").with_inputs("question")


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


def polite_and_brief(example: Any, pred: Any) -> dspy.Prediction:
    polite, brief = is_polite(example, pred), 2.0 / len(pred.answer)
    return dspy.Prediction(
        score=(polite + 0.1 * brief) / 1.1, objectives={"polite": polite, "brief": brief}
    )


@pytest.fixture(scope="module")
def several() -> Any:
    """A run on two metrics of which the advice makes one better and the other worse."""
    with dspy.context(lm=polite_lm(), adapter=None, callbacks=[]):
        return optimizer_of(metric=polite_and_brief, max_lm_calls=200).compile(
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
