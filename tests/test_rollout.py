"""Rollouts, groups, relative advantages, rollout ids, and a trajectory's text form."""

import copy
import dataclasses
import itertools
import json
import math
import pickle
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tfgrpo_dspy.rollout import (
    Failure,
    Group,
    Rollout,
    Step,
    Usage,
    condensed,
    fields_text,
    relative_advantages,
    rollout_id_for,
    trajectory_text,
)

# ---------------------------------------------------------------------- relative advantages


@pytest.mark.parametrize(
    ("scores", "advantages"),
    [
        ((0.0, 1.0), (-1.0, 1.0)),
        ((1.0, 1.0, 0.0, 0.0, 0.0), (1.224745, 1.224745, -0.816497, -0.816497, -0.816497)),
        ((0.2, 0.4, 0.9), (-1.019049, -0.339683, 1.358732)),
        ((3.0, 10.0), (-1.0, 1.0)),
        ((-1.0, 0.0, -1.0, 0.0), (-1.0, 1.0, -1.0, 1.0)),
        ((1e308, -1e308), (1.0, -1.0)),
        ((5e-324, 0.0), (1.0, -1.0)),
        ((1.0, math.nextafter(1.0, 2.0)), (-1.0, 1.0)),
    ],
)
def test_an_advantage_is_the_distance_from_the_mean_in_standard_deviations(
    scores: tuple[float, ...], advantages: tuple[float, ...]
) -> None:
    assert relative_advantages(scores) == pytest.approx(advantages, abs=1e-6)


@pytest.mark.parametrize("scores", [(0.0, 0.0), (0.1, 0.1, 0.1), (-3.0,), (1e308, 1e308), (7, 7)])
def test_equal_scores_give_no_advantage(scores: tuple[float, ...]) -> None:
    assert relative_advantages(scores) == (0.0,) * len(scores)


@pytest.mark.parametrize("scores", [(), (0.0, math.nan), (math.inf, 1.0), (1.0, -math.inf)])
def test_an_advantage_over_what_is_not_a_finite_score_is_refused(scores: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="all finite"):
        relative_advantages(scores)


finite = st.floats(allow_nan=False, allow_infinity=False)


def have_contrast(scores: Sequence[float]) -> bool:
    """Whether they differ by more than what rounding may add to their mean."""
    largest = max(map(abs, scores))
    return largest > 0 and max(scores) / largest - min(scores) / largest > 1e-9


@given(st.lists(finite, min_size=2, max_size=12))
@example([1e308, -1e308, 1e308])
@example([5e-324, 0.0, 0.0])
def test_the_advantages_of_a_group_have_mean_0_and_standard_deviation_1(
    scores: list[float],
) -> None:
    assume(have_contrast(scores))
    advantages = relative_advantages(scores)
    assert statistics.fmean(advantages) == pytest.approx(0.0, abs=1e-5)
    assert statistics.pstdev(advantages) == pytest.approx(1.0, abs=1e-5)


@given(st.lists(finite, min_size=1, max_size=12))
def test_a_better_score_never_has_a_worse_advantage(scores: list[float]) -> None:
    advantages = relative_advantages(scores)
    in_order = [a for _, a in sorted(zip(scores, advantages, strict=True))]
    assert in_order == sorted(advantages)


@given(
    st.lists(st.integers(-100, 100), min_size=2, max_size=8),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e300),
)
def test_advantages_do_not_depend_on_the_scale_of_the_metric(
    scores: list[int], shift: float, scale: float
) -> None:
    expected = pytest.approx(relative_advantages(scores), abs=1e-6)
    assert relative_advantages([score + shift for score in scores]) == expected
    assert relative_advantages([score * scale for score in scores]) == expected


# ---------------------------------------------------------------------- groups


def scored(*scores: float | None) -> list[Rollout]:
    return [Rollout(3, index, {"answer": f"a{index}"}, (), s) for index, s in enumerate(scores)]


def failed(kind: str, rollout_id: int = 99) -> Rollout:
    return Rollout(3, rollout_id, failure=Failure(kind, f"{kind} failed"))  # type: ignore[arg-type]


def group_of(*rollouts: Rollout, has_metric: bool = True) -> Group:
    return Group.of(3, rollouts, has_metric)


@pytest.mark.parametrize("kind", ["program", "parse"])
def test_a_programs_own_failure_stands_in_its_group_at_0(kind: str) -> None:
    group = group_of(*scored(0.5, 1.0), failed(kind))
    assert group.scores == (0.5, 1.0, 0.0)
    assert group.has_contrast
    assert group.rollouts[2].failure == Failure(kind, f"{kind} failed")  # type: ignore[arg-type]


def test_a_failure_is_never_the_better_rollout() -> None:
    assert group_of(*scored(-2.0, -1.0), failed("program")).scores == (-2.0, -1.0, -2.0)


def test_failures_alone_stand_at_0_and_have_no_contrast() -> None:
    group = group_of(failed("program"), failed("parse"))
    assert group.scores == (0.0, 0.0)
    assert group.advantages == (0.0, 0.0)
    assert not group.has_contrast
    assert group.has_feedback


@pytest.mark.parametrize("kind", ["provider", "metric"])
def test_what_is_not_the_programs_failure_makes_no_contrast(kind: str) -> None:
    rollouts = [*scored(1.0, 1.0), failed(kind)]
    group = group_of(*rollouts)
    assert group.scores == (1.0, 1.0)
    assert not group.has_contrast
    assert not group.has_feedback
    assert group.all_rollouts == tuple(rollouts)


def test_rollouts_stay_in_the_order_in_which_they_were_asked_for() -> None:
    first, second, third = scored(0.1, 0.9, 0.4)
    group = group_of(first, failed("provider"), second, failed("parse"), third)
    assert [rollout.rollout_id for rollout in group.rollouts] == [0, 1, 99, 2]
    assert group.example == 3


def test_without_a_metric_a_group_has_no_scores_but_its_rollouts() -> None:
    group = group_of(*scored(None, None), failed("parse"), failed("provider"), has_metric=False)
    assert len(group.rollouts) == 3
    assert (group.scores, group.advantages) == ((), ())
    assert not group.has_contrast


@pytest.mark.parametrize(
    ("scores", "has_contrast"),
    [
        ((0.0, 1.0), True),
        ((0.5, 0.5), False),
        ((0.5, 0.5 + 1e-12), False),
        ((0.6 - 0.5, 0.4 - 0.3), False),
        ((3.0, 3.001), True),
        ((0.4,), False),
    ],
)
def test_a_group_has_contrast_when_its_scores_differ_by_more_than_rounding(
    scores: tuple[float, ...], has_contrast: bool
) -> None:
    assert group_of(*scored(*scores)).has_contrast is has_contrast


@given(st.lists(st.sampled_from(["ok", "program", "parse", "provider", "metric"]), max_size=8))
def test_a_group_holds_all_rollouts_and_compares_those_that_count(kinds: list[str]) -> None:
    rollouts = [
        Rollout(3, index, score=index / 10) if kind == "ok" else failed(kind, index)
        for index, kind in enumerate(kinds)
    ]
    group = group_of(*rollouts)
    compared = [index for index, kind in enumerate(kinds) if kind in ("ok", "program", "parse")]
    assert [rollout.rollout_id for rollout in group.rollouts] == compared
    assert len(group.scores) == len(group.advantages) == len(compared)
    assert group.all_rollouts == tuple(rollouts)


def test_feedback_of_the_metric_is_feedback_of_the_group() -> None:
    plain, other = scored(1.0, 1.0)
    assert not group_of(plain, other).has_feedback
    assert group_of(plain, dataclasses.replace(other, feedback="Too long.")).has_feedback


# ---------------------------------------------------------------------- majority


def answering(*answers: str, **other_fields: Sequence[str]) -> list[Rollout]:
    return [
        Rollout(0, i, {**{name: v[i] for name, v in other_fields.items()}, "answer": answer})
        for i, answer in enumerate(answers)
    ]


def majority(*rollouts: Rollout) -> str:
    return Group.of(0, rollouts, has_metric=False).majority_answer


def test_the_majority_answer_is_what_most_rollouts_give() -> None:
    assert majority(*answering("4", "5", "5")) == "answer: 5"


def test_answers_agree_whatever_their_case_and_spacing_and_the_first_is_shown() -> None:
    assert majority(*answering("4", "New  York", "new york\n")) == "answer: New  York"


def test_of_several_majorities_the_earliest_counts() -> None:
    assert majority(*answering("4", "5", "5", "4", "6")) == "answer: 4"


def test_rollouts_agree_on_an_answer_however_they_came_to_it() -> None:
    rollouts = answering("4", "5", "5", reasoning=["a", "b", "c"], trajectory=["x", "y", "z"])
    assert majority(*rollouts) == "reasoning: b\ntrajectory: y\nanswer: 5"


def test_where_the_reasoning_is_all_there_is_it_is_the_answer() -> None:
    rollouts = [Rollout(0, i, {"reasoning": text}) for i, text in enumerate("abb")]
    assert majority(*rollouts) == "reasoning: b"


def test_a_rollout_that_failed_gives_no_answer() -> None:
    assert majority(failed("parse"), failed("program"), *answering("4")) == "answer: 4"
    assert majority(failed("parse"), failed("program")) == ""


# ---------------------------------------------------------------------- rollout ids


def test_a_rollout_id_is_the_same_in_every_process() -> None:
    assert rollout_id_for(0, 0, 0, 0, "training") == 3087253666723840099
    assert rollout_id_for(7, 2, 41, 4, "trial") == 4055579253092108169


def test_every_seed_epoch_example_index_and_purpose_has_a_rollout_id_of_its_own() -> None:
    ids = {
        rollout_id_for(seed, epoch, example, index, purpose)
        for seed in (0, 1, 11)
        for epoch in range(5)
        for example in range(40)
        for index in range(5)
        for purpose in ("training", "trial")
    }
    assert len(ids) == 3 * 5 * 40 * 5 * 2


@given(st.tuples(*[st.integers(0, 10**6)] * 4), st.text(st.characters(codec="utf-8")))
def test_a_rollout_id_fits_in_63_bits(numbers: tuple[int, int, int, int], purpose: str) -> None:
    assert 0 <= rollout_id_for(*numbers, purpose) < 2**63


# ---------------------------------------------------------------------- trajectories


def test_a_trajectory_is_shown_with_every_step_and_what_is_repeated_is_not() -> None:
    rollout = Rollout(
        example=0,
        rollout_id=1,
        outputs={"answer": "on its way"},
        steps=(
            Step(
                "predictor", "react", {"question": "Where is 7?", "trajectory": ""}, {"tool": "a"}
            ),
            Step("tool", "look_up", {"order": "7"}, {"result": "on its way"}),
            Step(
                "predictor",
                "react",
                {"question": "Where is 7?", "trajectory": "[tool_0]\na\n[result_0]\non its way"},
                {"tool": "b"},
            ),
            Step("tool", "cancel", {"order": "7"}, {}, error="PermissionError: no"),
            Step(
                "predictor",
                "react",
                {
                    "question": "Where is 7?",
                    "trajectory": "[tool_0]\na\n[result_0]\non its way\n\n[tool_1]\nb",
                },
                {"tool": "finish"},
            ),
            Step("predictor", "extract", {"question": "Where is 7?"}, {"answer": "on its way"}),
        ),
    )
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
  out answer: on its way"""  # noqa: W291
    )


def test_an_input_that_begins_like_an_earlier_one_by_chance_is_shown_whole() -> None:
    steps = tuple(Step("tool", "add", {"n": n}, {}) for n in ("1", "12", "1 2", "12"))
    assert trajectory_text(Rollout(0, 1, steps=steps)) == (
        "Step 1, tool add\n  in n: 1\n"
        "Step 2, tool add\n  in n: 12\n"
        "Step 3, tool add\n  in n: 1 2\n"
        "Step 4, tool add\n  in n: 12"
    )


def test_the_trajectory_of_a_failed_rollout_ends_with_its_error() -> None:
    rollout = Rollout(
        0,
        1,
        steps=(Step("predictor", "solve", {"question": "q"}, {"draft": "d"}),),
        failure=Failure("program", "KeyError: 'x'"),
    )
    assert trajectory_text(rollout) == (
        "Step 1, predictor solve\n  in question: q\n  out draft: d\n"
        "The program failed: KeyError: 'x'"
    )


def test_fields_are_shown_a_line_each() -> None:
    assert fields_text({"answer": "4", "reason": "2 + 2"}) == "answer: 4\nreason: 2 + 2"
    assert fields_text({}) == ""


# ---------------------------------------------------------------------- values


def test_usage_adds_up_field_by_field() -> None:
    assert Usage(1, 2, 3, 4, 5, 6, 0.5) + Usage(10, 20, 30, 40, 50, 60, 0.25) == Usage(
        11, 22, 33, 44, 55, 66, 0.75
    )


def test_a_rollout_copies_and_pickles_as_the_value_it_is() -> None:
    rollout = Rollout(
        3, 4, {"a": "b"}, (Step("tool", "t", {}, {}),), 0.5, "f", Failure("parse", "")
    )
    assert copy.deepcopy(rollout) == rollout
    assert pickle.loads(pickle.dumps(rollout)) == rollout  # noqa: S301


# ---------------------------------------------------------------------- long trajectories


def agent(n_steps: int, question: str = "Where is it? " * 30) -> Rollout:
    """A rollout of an agent that is given its whole history at every step."""
    steps = []
    history = ""
    for number in range(n_steps):
        inputs = {"question": question, "history": history, "n": str(number)}
        steps.append(Step("predictor", "ask", inputs, {"query": f"query {number}"}))
        steps.append(Step("tool", "look_up", {"query": f"query {number}"}, {"result": "no"}))
        history += f"\nquery {number}: " + "nothing was found there, " * 10
    return Rollout(0, 1, steps=tuple(steps))


def test_the_record_of_a_trajectory_grows_with_its_steps_not_with_their_square() -> None:
    sizes = [len(json.dumps(agent(n).to_dict())) for n in (50, 100, 200)]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.05)


def test_a_trajectory_is_shown_alike_before_and_after_it_was_recorded() -> None:
    rollout = agent(20)
    recorded = Rollout.from_dict(json.loads(json.dumps(rollout.to_dict())))
    assert recorded != rollout
    assert trajectory_text(recorded) == trajectory_text(rollout)
    assert Rollout.from_dict(json.loads(json.dumps(recorded.to_dict()))) == recorded


HISTORIES = st.lists(
    st.sampled_from(["", "x" * 199, "x" * 200, "x" * 200 + "\n", "x" * 200 + "\ny", "y" * 300])
)


@given(HISTORIES, HISTORIES, st.booleans())
def test_no_input_of_a_condensed_step_is_lost(
    histories: list[str], others: list[str], is_one_name: bool
) -> None:
    calls = itertools.zip_longest(histories, others, fillvalue="")
    steps = [
        Step("tool", "a" if is_one_name or number % 2 else "b", {"one": one, "other": other}, {})
        for number, (one, other) in enumerate(calls)
    ]
    before: dict[tuple[str, str], str] = {}
    for step, short in zip(steps, condensed(steps), strict=True):
        for name, value in short.inputs.items():
            start = before.get((step.name, name), "") if name in short.continued else ""
            before[step.name, name] = start + value
            assert start + value == step.inputs[name]
    rollout = Rollout(0, 1, steps=tuple(steps))
    recorded = Rollout.from_dict(rollout.to_dict())
    assert trajectory_text(recorded) == trajectory_text(rollout)


def test_a_record_from_before_steps_were_condensed_is_read() -> None:
    record = Rollout(0, 1, steps=(Step("tool", "t", {"a": "b"}, {}),)).to_dict()
    del record["steps"][0]["continued"]
    assert Rollout.from_dict(record).steps == (Step("tool", "t", {"a": "b"}, {}),)
