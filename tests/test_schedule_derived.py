"""The schedule that follows from the budget: what is chosen, what wins, what is refused."""

import logging
import re
from dataclasses import replace
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import predictor, questions
from scripted import chat, scripted_lm

from tfgrpo_dspy import Execution, NoGate, Reflection, SettingsError, TrainingFreeGRPO
from tfgrpo_dspy.settings.checks import prepare
from tfgrpo_dspy.settings.schedule import Schedule, ScheduleInputs


def inputs_of(n_examples: int = 40, **others: Any) -> ScheduleInputs:
    """Those of a labelled trainset that is split."""
    n_validation = min(100, round(n_examples / 3))
    usual: dict[str, Any] = {
        "n_training": n_examples - n_validation,
        "n_validation": n_validation,
        "is_split": True,
        "can_draft": True,
        "can_try_demos": True,
    }
    return ScheduleInputs(**usual | others)


def chosen(*names: str, **given: Any) -> tuple[int, ...]:
    schedule = Schedule.derive(inputs_of(**given))
    return tuple(schedule.values()[name] for name in names)


def needed(schedule: Schedule, calls_per_rollout: float) -> tuple[int, float]:
    """Rollouts and LM calls of one update, the drafts, and what is kept for the end."""
    n_examples = min(schedule.batch_size, schedule.inputs.n_training)
    n_rollouts = n_examples * schedule.group_size
    n_rollouts += schedule.reserve + 2 * schedule.inputs.n_test
    n_drafts = schedule.drafts + 1 if schedule.drafts else 0
    return n_rollouts, n_rollouts * calls_per_rollout + n_examples + 1 + n_drafts


any_inputs = st.builds(
    ScheduleInputs,
    n_training=st.integers(2, 300),
    n_validation=st.integers(0, 100),
    n_test=st.integers(0, 20),
    is_split=st.booleans(),
    can_draft=st.booleans(),
    can_try_demos=st.booleans(),
    calls_per_rollout=st.sampled_from([1.0, 2.0, 4.0, 1.5]),
    n_threads=st.integers(1, 64),
    lm_calls=st.none() | st.integers(1, 5000),
    metric_calls=st.none() | st.integers(1, 5000),
)
any_settings = st.fixed_dictionaries(
    {},
    optional={
        "group_size": st.integers(2, 9),
        "batch_size": st.integers(1, 40),
        "epochs": st.integers(1, 9),
        "max_staleness": st.integers(0, 9),
        "drafts": st.integers(0, 20),
    },
)


def derived(inputs: ScheduleInputs, **given_: int) -> Schedule | None:
    """None: the budget is refused as too small."""
    try:
        return Schedule.derive(inputs, **given_)
    except SettingsError:
        return None


# ---------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("n_examples", "lm_calls", "values"),
    [
        (20, None, (3, 5, 5, 12, 7, 28)),
        (20, 100, (2, 5, 50, 6, 7, 20)),
        (40, 200, (2, 5, 50, 12, 13, 40)),
        (40, 400, (2, 5, 50, 12, 13, 52)),
        (40, 800, (3, 5, 50, 12, 13, 52)),
        (150, 400, (2, 8, 50, 12, 40, 80)),
    ],
)
def test_a_budget_and_the_data_give_the_schedule(
    n_examples: int, lm_calls: int | None, values: tuple[int, ...]
) -> None:
    names = ("group_size", "batch_size", "epochs", "drafts", "n_validation", "reserve")
    assert chosen(*names, n_examples=n_examples, lm_calls=lm_calls) == values


@pytest.mark.parametrize(
    ("inputs", "values"),
    [
        ({"has_budget": True}, {"epochs": 50}),
        ({"runs_rollouts": False}, {"epochs": 1}),
        ({"can_draft": False, "lm_calls": 500}, {"drafts": 0}),
        (
            {"n_validation": 0, "can_try_demos": False, "lm_calls": 500},
            {"reserve": 0, "n_validation": 0, "max_demos": 0},
        ),
        ({"metric_calls": 200}, {"reserve": 52}),
        ({"lm_calls": 400, "calls_per_rollout": 2.0}, {"reserve": 40}),
        # small budgets are fitted to a whole update, and not refused for what is assumed only
        ({"lm_calls": 12, "calls_per_rollout": 9.0}, {"batch_size": 2, "n_validation": 2}),
        ({"calls_for_max_cost": 0.1}, {"group_size": 2, "batch_size": 2, "n_validation": 2}),
        *(
            (
                {"n_examples": 18, "lm_calls": n},
                {"batch_size": batch, "n_validation": kept, "reserve": 2 * kept},
            )
            for n, batch, kept in ((11, 2, 2), (20, 2, 6), (30, 5, 6), (60, 5, 6))
        ),
    ],
)
def test_what_is_known_decides_the_settings(inputs: Any, values: dict[str, int]) -> None:
    assert chosen(*values, **inputs) == tuple(values.values())


@pytest.mark.parametrize(
    ("n_threads", "n_examples", "values"),
    [
        *((1, 40, (5, 1)), (8, 40, (5, 1)), (16, 40, (7, 1)), (20, 40, (7, 2)), (64, 40, (7, 4))),
        *((8, 80, (7, 1)), (12, 80, (11, 1)), (16, 80, (14, 1)), (16, 200, (16, 1))),
        (32, 15, (5, 3)),
    ],
)
def test_many_threads_have_larger_batches_and_where_these_do_not_suffice_more_that_overlap(
    n_threads: int, n_examples: int, values: tuple[int, int]
) -> None:
    inputs = {"n_threads": n_threads, "n_examples": n_examples, "lm_calls": 200}
    assert chosen("batch_size", "max_staleness", **inputs) == values


def test_the_table_says_in_one_line_what_was_chosen_and_why() -> None:
    lines = str(Schedule.derive(inputs_of(lm_calls=200), batch_size=4)).splitlines()
    assert lines[0] == "group_size           2  7.4 LM calls per training example, below 15"
    assert lines[1] == "batch_size           4  set by you"
    assert len(lines) == 8
    lines = str(Schedule.derive(inputs_of(lm_calls=20), max_demos=1)).splitlines()
    reduced = [line.split()[0] for line in lines if "reduced, because the budget is small" in line]
    assert reduced == ["batch_size", "drafts", "reserve", "n_validation"]
    assert lines[-1] == "max_demos            1  set by you"


# ---------------------------------------------------------------------- promises


@given(any_inputs, any_settings)
def test_one_update_and_the_final_choice_are_within_the_budget(
    inputs: ScheduleInputs, values: dict[str, int]
) -> None:
    schedule = derived(inputs, **values)
    if schedule is None:
        return
    is_smallest = (schedule.drafts, schedule.n_validation <= 2) == (0, True) and not values
    calls_per_rollout = 1.0 if is_smallest or values else inputs.calls_per_rollout
    n_rollouts, n_calls = needed(schedule, calls_per_rollout)
    assert inputs.lm_calls is None or n_calls <= inputs.lm_calls
    assert inputs.metric_calls is None or n_rollouts <= inputs.metric_calls
    assert schedule.n_updates(calls_per_rollout) >= 1


@given(any_inputs, any_settings)
def test_what_the_user_sets_is_never_changed(
    inputs: ScheduleInputs, values: dict[str, int]
) -> None:
    schedule = derived(inputs, **values)
    if schedule is not None:
        assert {name: schedule.values()[name] for name in values} == values


@given(any_inputs)
def test_every_setting_is_one_that_a_run_can_use(inputs: ScheduleInputs) -> None:
    schedule = derived(inputs)
    if schedule is None:
        return
    assert schedule.group_size >= 2
    assert schedule.batch_size >= 2
    assert schedule.epochs >= 1
    assert 1 <= schedule.max_staleness <= 4
    assert 0 <= schedule.drafts <= 12
    assert 0 <= schedule.n_validation <= inputs.n_validation
    assert schedule.n_validation <= schedule.reserve <= 8 * inputs.n_validation


@given(any_inputs, st.integers(1, 3000), st.integers(1, 500))
def test_a_larger_budget_never_keeps_or_drafts_less(
    inputs: ScheduleInputs, calls: int, more: int
) -> None:
    small, large = (
        derived(replace(inputs, metric_calls=None, lm_calls=n)) for n in (calls, calls + more)
    )
    if small is None:
        return
    assert large is not None
    for name in ("n_validation", "reserve", "group_size", "drafts"):
        assert getattr(small, name) <= getattr(large, name)


# ---------------------------------------------------------------------- small budgets


@given(any_inputs)
def test_a_refusal_names_the_smallest_budget_that_can_learn(inputs: ScheduleInputs) -> None:
    try:
        Schedule.derive(inputs)
    except SettingsError as error:
        ((name, enough),) = re.findall(r"Pass (\w+)=(\d+) or more", str(error))
    else:
        return
    field = {"max_lm_calls": "lm_calls", "max_metric_calls": "metric_calls"}[name]
    unlimited = replace(inputs, lm_calls=None, metric_calls=None)
    assert derived(replace(unlimited, **{field: int(enough)})) is not None
    if inputs.calls_per_rollout == 1:
        assert derived(replace(unlimited, **{field: int(enough) - 1})) is None


# ---------------------------------------------------------------------- in the optimizer


def metric(example: dspy.Example, pred: dspy.Prediction) -> float:
    return float(example.answer == pred.answer)


class Two(dspy.Module):
    """Two predictors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = predictor(), predictor()


def prepared(program: Any = None, n: int = 30, **arguments: Any) -> Any:
    settings = TrainingFreeGRPO(metric, **arguments).settings
    with dspy.context(lm=scripted_lm([])):
        return prepare(settings, program or predictor(), questions(n), None)[0]


def test_a_run_reads_plain_numbers_and_what_the_user_set() -> None:
    settings = prepared(max_lm_calls=200, epochs=2, reflection=Reflection(drafts=1))
    assert (settings.group_size, settings.batch_size, settings.epochs) == (2, 5, 2)
    assert (settings.max_demos, settings.reflection.drafts) == (4, 1)
    assert settings.execution.max_staleness == 1
    assert settings.temperature == 0.7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"max_lm_calls": 10},
            "max_lm_calls=10 is too small. The smallest run needs 8 rollouts and 3 reflection "
            "calls. Pass max_lm_calls=11 or more.",
        ),
        ({"max_lm_calls": 20, "group_size": 10}, "needs 24 rollouts and 3 reflection calls"),
        ({"max_lm_calls": 20, "paper": True}, "needs 60 rollouts and 13 reflection calls"),
    ],
    ids=["few calls", "large groups", "the paper's schedule"],
)
def test_a_budget_that_cannot_learn_is_refused_before_the_first_call(
    given: dict[str, Any], message: str
) -> None:
    lm = scripted_lm([("", chat(answer="yes"))])
    kind = TrainingFreeGRPO.paper if given.pop("paper", False) else TrainingFreeGRPO
    with dspy.context(lm=lm), pytest.raises(SettingsError) as refusal:
        kind(metric, **given).compile(predictor(), trainset=questions(12))
    assert message in str(refusal.value)
    assert lm.engine.n_calls() == 0


def test_the_papers_schedule_is_not_derived() -> None:
    settings = TrainingFreeGRPO.paper(metric, max_lm_calls=5000).settings
    with dspy.context(lm=scripted_lm([])):
        run, _, _ = prepare(settings, predictor(), questions(30), None)
    assert (run.group_size, run.epochs, run.reflection.drafts, run.max_demos) == (5, 3, 0, 0)
    assert run.execution.max_staleness == 0
    assert run.batch_size >= 30


@pytest.mark.parametrize(
    ("given", "max_lm_calls"),
    [
        *(({"auto": a, "n": 18}, n) for a, n in (("light", 100), ("medium", 200), ("heavy", 400))),
        *(
            ({"auto": a, "n": 150}, n)
            for a, n in (("light", 500), ("medium", 1200), ("heavy", 3000))
        ),
        ({"auto": "light", "n": 150, "program": Two()}, 1000),
        ({"auto": "heavy", "max_lm_calls": 150}, 150),
    ],
)
def test_auto_is_a_number_of_lm_calls_that_fits_the_data_where_none_is_given(
    given: dict[str, Any], max_lm_calls: int
) -> None:
    assert prepared(**given).max_lm_calls == max_lm_calls


def test_dollars_are_turned_into_calls_by_what_one_is_assumed_to_cost() -> None:
    prices = Execution(prices={"scripted": (1.0, 2.0)})
    lm = scripted_lm([], max_tokens=100)
    few, many = [
        TrainingFreeGRPO(metric, max_cost=dollars, execution=prices).settings
        for dollars in (0.05, 5.0)
    ]
    with dspy.context(lm=lm):
        lm.model = "scripted"
        schedules = [
            prepare(own, predictor(), questions(90), None)[0].schedule for own in (few, many)
        ]
    assert schedules[0].reserve < schedules[1].reserve
    assert schedules[0].group_size == 2


def test_estimate_stays_within_the_budget_and_shows_the_schedule() -> None:
    with dspy.context(lm=scripted_lm([])):
        plan = TrainingFreeGRPO(metric, max_lm_calls=300).estimate(
            predictor(), trainset=questions(40)
        )
    assert 200 <= plan.n_lm_calls <= 300
    assert "group_size           2" in str(plan)


def test_the_schedule_is_logged_and_stands_in_the_result(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = TrainingFreeGRPO(metric, gate=NoGate(), epochs=1, max_lm_calls=80, progress=False)
    rules = [("question", chat(answer="yes")), ("", chat(lessons=[], operations=[]))]
    with dspy.context(lm=scripted_lm(rules)), caplog.at_level(logging.INFO, "tfgrpo_dspy"):
        results = optimizer.compile(predictor(), trainset=questions(9)).detailed_results
    assert "epochs               1  set by you" in caplog.text
    assert results.settings["batch_size"] == 5
    assert results.schedule["epochs"] == {"value": 1, "reason": "set by you"}
    assert results.schedule["group_size"]["value"] == 2
