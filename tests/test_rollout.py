"""Rollouts, groups, relative advantages, rollout ids, and a trajectory's text form."""

import dataclasses
from dataclasses import replace

import pytest

from tfgrpo_dspy.rollout import (
    Failure,
    FailureKind,
    Group,
    Rollout,
    ScoreRange,
    Step,
    floored,
    rollout_id_for,
    trajectory_text,
)


def scored(*scores: float | None) -> list[Rollout]:
    return [Rollout(3, index, {"answer": f"a{index}"}, (), s) for index, s in enumerate(scores)]


def failed(kind: str, rollout_id: int = 99) -> Rollout:
    return Rollout(3, rollout_id, failure=Failure(kind, f"{kind} failed"))  # type: ignore[arg-type]


def group_of(*rollouts: Rollout, has_metric: bool = True) -> Group:
    return Group.of(3, rollouts, has_metric)


@pytest.mark.parametrize(
    ("scores", "advantages"),
    [
        ((0.0, 1.0), (-1.0, 1.0)),
        ((1.0, 1.0, 0.0, 0.0, 0.0), (1.224745, 1.224745, -0.816497, -0.816497, -0.816497)),
        ((0.2, 0.4, 0.9), (-1.019049, -0.339683, 1.358732)),
        ((-1.0, 0.0, -1.0, 0.0), (-1.0, 1.0, -1.0, 1.0)),
        ((1e150, -1e150), (1.0, -1.0)),
        ((3.0, 3.001), (-1.0, 1.0)),
        ((1000.0, 1002.0, 1004.0), (-1.224745, 0.0, 1.224745)),
        ((0.1, 0.1, 0.1), (0.0, 0.0, 0.0)),
        ((-3.0,), (0.0,)),
    ],
)
def test_an_advantage_is_the_distance_from_the_mean_in_standard_deviations(
    scores: tuple[float, ...], advantages: tuple[float, ...]
) -> None:
    group = group_of(*scored(*scores))
    assert group.advantages == pytest.approx(advantages, abs=1e-6)
    assert group.has_contrast == any(advantages)


@pytest.mark.parametrize(
    ("rollouts", "scores"),
    [
        ([*scored(0.5, 1.0), failed("program")], (0.5, 1.0, 0.5)),
        ([failed("parse"), *scored(0.5)], (0.0, 0.5)),
        ([failed("parse"), *scored(0.0)], (-1.0, 0.0)),
        ([failed("parse"), *scored(-3.0, -3.0)], (-6.0, -3.0, -3.0)),
        ([*scored(-2.0, -1.0), failed("program")], (-2.0, -1.0, -2.0)),
        ([failed("program"), failed("parse")], (0.0, 0.0)),
        *(([*scored(1.0, 0.5), failed(kind)], (1.0, 0.5))
          for kind in ("provider", "metric", "timeout", "worker")),
    ],
)  # fmt: skip
def test_a_programs_own_failure_scores_the_least_or_less_and_another_failure_is_left_out(
    rollouts: list[Rollout], scores: tuple[float, ...]
) -> None:
    group = group_of(*rollouts)
    assert group.scores == scores
    assert len(group.advantages) == len(group.rollouts) == len(scores)
    assert group.all_rollouts == tuple(rollouts)


def test_a_group_has_feedback_of_the_metric_or_of_the_programs_failure() -> None:
    plain, other = scored(1.0, 1.0)
    assert not group_of(plain, other, failed("provider")).has_feedback
    assert group_of(plain, dataclasses.replace(other, feedback="Too long.")).has_feedback
    assert group_of(plain, failed("program")).has_feedback


@pytest.mark.parametrize(
    ("outputs", "majority"),
    [
        ([{"answer": a} for a in ("4", "New  York", "new york\n")], "answer: New  York"),
        ([{"answer": a} for a in "45546"], "answer: 4"),
        ([{"reasoning": r, "answer": a} for r, a in ("a4", "b5", "c5")], "reasoning: b\nanswer: 5"),
        ([{"reasoning": r} for r in "abb"], "reasoning: b"),
        ([None, None, {"answer": "4"}], "answer: 4"),
        ([None], ""),
    ],
)
def test_the_majority_answer_is_what_most_rollouts_give_however_they_came_to_it(
    outputs: list[dict[str, str] | None], majority: str
) -> None:
    rollouts = [failed("parse") if o is None else Rollout(3, 1, o) for o in outputs]
    assert group_of(*rollouts, has_metric=False).majority_answer == majority


def test_a_rollout_id_is_the_same_in_every_process() -> None:
    assert rollout_id_for(0, 0, 0, 0, "training") == 3087253666723840099
    assert rollout_id_for(7, 2, 41, 4, "trial") == 4055579253092108169


def react(trajectory: str, tool: str) -> Step:
    inputs = {"question": "Where is 7?", "trajectory": trajectory}
    return Step("predictor", "react", inputs, {"tool": tool})


def test_a_trajectory_is_shown_with_every_step_and_what_is_repeated_is_not() -> None:
    steps = (
        react("", "a"),
        Step("tool", "look_up", {"order": "7"}, {"result": "on its way"}),
        react("[tool_0]\na\n[result_0]\non its way", "b"),
        Step("tool", "cancel", {"order": "7"}, {}, error="PermissionError: no"),
        react("[tool_0]\na\n[result_0]\non its way\n\n[tool_1]\nb", "finish"),
        Step("predictor", "extract", {"question": "Where is 7?"}, {"answer": "on its way"}),
    )
    rollout = Rollout(0, 1, steps=steps, failure=Failure("program", "KeyError: 'x'"))
    assert (
        trajectory_text(rollout)
        == """\
Step 1, predictor react
  in question: Where is 7?
  in trajectory: 
  out tool: a
Step 2, tool look_up
  in order: 7
  out result: on its way
Step 3, predictor react
  in question: (as before)
  in trajectory: [tool_0]
a
[result_0]
on its way
  out tool: b
Step 4, tool cancel
  in order: 7
  error: PermissionError: no
Step 5, predictor react
  in question: (as before)
  in trajectory: (as before, and) [tool_1]
b
  out tool: finish
Step 6, predictor extract
  in question: Where is 7?
  out answer: on its way
The program failed: KeyError: 'x'"""  # noqa: W291
    )


@pytest.mark.parametrize("kind", FailureKind)
def test_a_failure_counts_as_the_lowest_score_where_program_or_advice_may_be_to_blame(
    kind: FailureKind,
) -> None:
    without = Rollout(0, 1, failure=Failure(kind, "why"))
    rollouts = [Rollout(0, 0, score=0.5), without, replace(without, score=0.7)]
    is_own = kind in ("program", "parse")
    is_of_advice = kind not in ("provider", "worker", "strategy", "budget")
    known = ScoreRange(0.2, 0.9)
    assert floored(rollouts, known) == [0.5, 0.2 if is_own else None, 0.7]
    of_advice = floored(rollouts, known, for_advice=True)
    assert of_advice == [0.5, 0.2 if is_of_advice else None, 0.7]


def test_a_prompt_that_the_provider_refuses_counts_against_the_advice_in_it() -> None:
    refused = Failure(FailureKind.PROVIDER, "filtered", refuses_prompt=True)
    rollouts = [Rollout(0, 0, score=0.5), Rollout(0, 1, failure=refused)]
    assert floored(rollouts, ScoreRange(0.2, 0.9)) == [0.5, None]
    assert floored(rollouts, ScoreRange(0.2, 0.9), for_advice=True) == [0.5, 0.2]
