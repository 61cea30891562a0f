"""The schedule that follows from the budget: what is chosen, what wins, what is refused."""

import logging
import re
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import Pair, is_polite, predictor, questions
from scripted import chat, scripted_lm
from small import grouped

from tfgrpo_dspy import NoGate, Reflection, SettingsError, TrainingFreeGRPO
from tfgrpo_dspy.settings import RunData, RunSettings, Settings, derive
from tfgrpo_dspy.settings.preparation import prepare


def settings_of(**given_: Any) -> Settings:
    return Settings(is_polite, **grouped(given_))


def data_of(n_examples: int = 40, **others: Any) -> RunData:
    """Those of a labelled trainset that is split."""
    n_validation = min(100, round(n_examples / 3))
    usual: dict[str, Any] = {
        "n_training": n_examples - n_validation,
        "n_validation": n_validation,
        "n_labelled": n_examples - n_validation,
    }
    return RunData(**usual | others)


def chosen(*names: str, data: RunData, **given_: Any) -> tuple[int, ...]:
    schedule = derive(settings_of(**given_), data).schedule
    return tuple(schedule[name] for name in names)


any_data = st.builds(
    RunData,
    n_training=st.integers(2, 300),
    n_validation=st.integers(0, 100),
    n_test=st.integers(0, 20),
    n_labelled=st.sampled_from([0, 1, 10, 11, 300]),
    calls_per_rollout=st.sampled_from([1, 2, 4]),
)
any_limits = st.fixed_dictionaries(
    {
        "max_lm_calls": st.none() | st.integers(1, 5000),
        "max_metric_calls": st.none() | st.integers(1, 5000),
        "num_threads": st.integers(1, 64),
    },
    optional={"gate": st.just(NoGate())},
)
any_figures = st.fixed_dictionaries(
    {},
    optional={
        "group_size": st.integers(2, 9),
        "batch_size": st.integers(1, 40),
        "epochs": st.integers(1, 9),
        "max_staleness": st.integers(0, 9),
        "drafts": st.integers(0, 20),
    },
)


def derived(data: RunData, **given_: Any) -> RunSettings | None:
    """None: the budget is refused as too small."""
    try:
        return derive(settings_of(**given_), data)
    except SettingsError:
        return None


@pytest.mark.parametrize(
    ("n_examples", "max_lm_calls", "values"),
    [
        (20, None, (3, 5, 5, 12, 7, 28)),
        (20, 100, (2, 5, 50, 6, 7, 20)),
        (40, 200, (2, 5, 50, 12, 13, 40)),
        (40, 404, (2, 5, 50, 12, 13, 52)),
        (40, 405, (3, 5, 50, 12, 13, 52)),
        (150, 400, (2, 8, 50, 12, 40, 80)),
    ],
)
def test_a_budget_and_the_data_give_the_schedule(
    n_examples: int, max_lm_calls: int | None, values: tuple[int, ...]
) -> None:
    names = ("group_size", "batch_size", "epochs", "drafts", "n_validation", "reserve")
    assert chosen(*names, data=data_of(n_examples), max_lm_calls=max_lm_calls) == values


@pytest.mark.parametrize(
    ("data", "arguments", "values"),
    [
        # minutes buy a number of calls that is not known; dollars what a call is assumed to cost
        ({}, {"max_minutes": 2},
         {"epochs": 50, "group_size": 3, "batch_size": 5, "drafts": 12, "reserve": 52}),
        ({"dollars_per_rollout": 0.01}, {"max_cost": 1.0},
         {"epochs": 50, "group_size": 2, "batch_size": 5, "drafts": 6, "groups_per_call": 4}),
        # drafts take what three updates and the final choice leave, but one is made
        *(({"dollars_per_rollout": 0.01, "dollars_per_draft": price}, {"max_cost": 1.0},
           {"drafts": n}) for price, n in ((0.02, 6), (0.05, 3), (0.9, 1))),
        ({"dollars_per_rollout": 0.01}, {"max_cost": 0.01}, {"batch_size": 2, "n_validation": 2}),
        ({"n_labelled": 0}, {"drafts": 3}, {"drafts": 0}),
        # a draft shows ten: of no more there is one set, of eleven there are eleven, and of one
        ({"n_labelled": 10}, {"max_lm_calls": 200}, {"drafts": 1, "groups_per_call": 2}),
        ({"n_labelled": 10}, {"drafts": 3}, {"drafts": 3}),
        ({"n_labelled": 11}, {"max_lm_calls": 200}, {"drafts": 12}),
        ({}, {"use_labels": False}, {"drafts": 0}),
        ({"n_validation": 0}, {"max_lm_calls": 500},
         {"reserve": 0, "n_validation": 0, "max_demos": 0}),
        ({}, {"gate": NoGate(), "max_demos": 2}, {"reserve": 26, "max_demos": 0}),
        ({}, {"max_metric_calls": 200}, {"reserve": 52, "epochs": 50, "max_demos": 16}),
        ({"calls_per_rollout": 2}, {"max_lm_calls": 400}, {"reserve": 40}),
        ({}, {"batch_size": 99}, {"batch_size": 27}), ({"is_recorded": True}, {}, {"epochs": 1}),
        *(({"n_examples": 5100}, limit, {"batch_size": batch})
          for limit, batch in (({}, 79), ({"max_lm_calls": 4000}, 16), ({"max_minutes": 2}, 8))),
        ({"n_test": 50}, {"max_lm_calls": 500}, {"group_size": 2}),
        # small budgets are fitted to a whole update, and not refused for what is assumed only
        ({"calls_per_rollout": 9}, {"max_lm_calls": 12}, {"batch_size": 2, "n_validation": 2}),
        *(({"n_examples": 18}, {"max_lm_calls": n},
           {"batch_size": batch, "n_validation": kept, "reserve": 2 * kept})
          for n, batch, kept in ((11, 2, 2), (20, 2, 6), (30, 5, 6))),
    ],
)  # fmt: skip
def test_what_is_known_decides_the_figures(
    data: Any, arguments: Any, values: dict[str, int]
) -> None:
    assert chosen(*values, data=data_of(**data), **arguments) == tuple(values.values())


@pytest.mark.parametrize(
    ("num_threads", "n_examples", "values"),
    [
        *((1, 40, (5, 1)), (8, 40, (5, 1)), (16, 40, (7, 2)), (20, 40, (7, 2)), (64, 40, (7, 4))),
        *((8, 80, (7, 1)), (12, 80, (11, 1)), (16, 80, (14, 1)), (16, 200, (16, 1))),
        *((32, 15, (5, 3)), (64, 300, (17, 2))),
    ],
)
def test_many_threads_have_larger_batches_and_where_these_do_not_suffice_more_that_overlap(
    num_threads: int, n_examples: int, values: tuple[int, int]
) -> None:
    arguments = {"data": data_of(n_examples), "max_lm_calls": 400, "num_threads": num_threads}
    assert chosen("batch_size", "max_staleness", **arguments) == values


@given(any_data, any_limits, any_figures)
def test_one_update_and_the_final_choice_are_within_the_budget_and_what_is_set_is_kept(
    data: RunData, limits: dict[str, Any], figures: dict[str, int]
) -> None:
    own = derived(data, **limits, **figures)
    if own is None:
        return
    is_smallest = (own.drafts, own.n_validation <= 2) == (0, True)
    calls_per_rollout = 1 if is_smallest or figures else data.calls_per_rollout
    n_rollouts = own.batch_size * own.group_size + own.reserve + 2 * data.n_test
    n_calls = n_rollouts * calls_per_rollout + own.batch_size + 1
    n_calls += own.drafts + 1 if own.drafts else 0
    assert own.max_lm_calls is None or n_calls <= own.max_lm_calls
    assert own.max_metric_calls is None or n_rollouts <= own.max_metric_calls
    most = {"batch_size": data.n_training, "drafts": 20 if data.n_labelled else 0}
    kept = {name: min(n, most.get(name, n)) for name, n in figures.items()}
    assert {name: own.schedule[name] for name in figures} == kept


@given(any_data, st.integers(1, 3000), st.integers(1, 500))
def test_a_larger_budget_never_keeps_or_drafts_less(data: RunData, calls: int, more: int) -> None:
    small, large = (derived(data, max_lm_calls=n) for n in (calls, calls + more))
    if small is None:
        return
    assert large is not None
    for name in ("n_validation", "reserve", "group_size", "drafts"):
        assert small.schedule[name] <= large.schedule[name]


@given(any_data, any_limits)
def test_a_refusal_names_the_smallest_budget_that_can_learn(
    data: RunData, limits: dict[str, Any]
) -> None:
    try:
        derive(settings_of(**limits), data)
    except SettingsError as error:
        ((name, enough),) = re.findall(r"Pass (\w+)=(\d+) or more", str(error))
    else:
        return
    unlimited = limits | {"max_lm_calls": None, "max_metric_calls": None}
    assert derived(data, **unlimited | {name: int(enough)}) is not None
    if data.calls_per_rollout == 1:
        assert derived(data, **unlimited | {name: int(enough) - 1}) is None


@pytest.mark.parametrize("price", [0.0, 0.5])
def test_a_budget_must_pay_for_the_dearest_call_beside_the_schedule(price: float) -> None:
    data = data_of(12, dollars_per_rollout=0.01, dollars_of_dearest_call=price)
    figures = {"group_size": 2, "batch_size": 2, "drafts": 0}
    kept = {
        cents: chosen("n_validation", data=data, max_cost=price + cents / 100, **figures)
        for cents in (14, 16)
    }
    assert kept == {14: (3,), 16: (4,)}


def prepared(
    program: Any = None, n: int = 30, make: Any = TrainingFreeGRPO, testset: Any = None,
    **arguments: Any,
) -> Any:  # fmt: skip
    settings = make(is_polite, **arguments).settings
    with dspy.context(lm=scripted_lm([])):
        sets = {"testset": testset}
        return prepare(settings, program or predictor(), questions(n), **sets).settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"max_lm_calls": 10},
            "max_lm_calls=10 is too small. The smallest run needs 8 rollouts and 3 reflection "
            "calls. Pass max_lm_calls=11 or more.",
        ),
        (
            {"max_lm_calls": 20, "group_size": 10, "reflection": Reflection(drafts=2)},
            "needs 24 rollouts and 6 reflection calls",
        ),
        ({"max_lm_calls": 20, "paper": True}, "needs 60 rollouts and 73 reflection calls"),
    ],
    ids=["few calls", "large groups", "the paper's schedule"],
)
def test_a_budget_that_cannot_learn_is_refused_before_the_first_call(
    given: dict[str, Any], message: str
) -> None:
    lm = scripted_lm([("", chat(answer="yes"))])
    kind = TrainingFreeGRPO.paper if given.pop("paper", False) else TrainingFreeGRPO
    with dspy.context(lm=lm), pytest.raises(SettingsError) as refusal:
        kind(is_polite, **given).compile(predictor(), trainset=questions(12))
    assert message in str(refusal.value)
    assert lm.engine.n_calls() == 0


def test_the_papers_schedule_is_not_derived() -> None:
    own = prepared(make=TrainingFreeGRPO.paper, max_lm_calls=5000)
    assert (own.group_size, own.batch_size, own.epochs, own.max_staleness) == (5, 30, 3, 0)
    assert (own.drafts, own.max_demos, own.temperature) == (0, 0, 0.7)


@pytest.mark.parametrize(
    ("given", "max_lm_calls"),
    [
        *(({"auto": a, "n": 18}, n) for a, n in (("light", 100), ("medium", 200), ("heavy", 400))),
        *(({"auto": a, "n": 150}, n) for a, n in (("light", 500), ("medium", 1200))),
        ({"auto": "light", "n": 150, "program": Pair()}, 1000),
        ({"auto": "heavy", "max_lm_calls": 150}, 150),
    ],
)
def test_auto_is_a_number_of_lm_calls_that_fits_the_data_where_none_is_given(
    given: dict[str, Any], max_lm_calls: int
) -> None:
    assert prepared(**given).max_lm_calls == max_lm_calls


@pytest.mark.parametrize(
    ("program", "n_calls"), [(predictor(), 1), (Pair(), 2)], ids=["one", "two"]
)
@pytest.mark.parametrize("auto", ["light", "heavy"])
def test_auto_pays_for_the_test_set_besides(auto: str, program: Any, n_calls: int) -> None:
    given: dict[str, Any] = {"auto": auto, "n": 60, "program": program}
    alone, own = prepared(**given), prepared(**given, testset=questions(25, start=500))
    assert own.max_lm_calls == alone.max_lm_calls + 2 * 25 * n_calls
    assert own.schedule == alone.schedule


def test_the_plan_of_the_page_of_settings_is_what_estimate_gives() -> None:
    data = {"trainset": questions(60), "valset": questions(40, start=60)}
    with dspy.context(lm=scripted_lm([])):
        plan = TrainingFreeGRPO(is_polite, max_lm_calls=500).estimate(predictor(), **data)
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text("utf-8")
    assert f"```text\n{plan}\n```" in page


def test_the_plan_is_logged_and_the_schedule_stands_in_the_result(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings: dict[str, Any] = {"epochs": 1, "max_lm_calls": 80, "progress": False}
    optimizer = TrainingFreeGRPO(is_polite, gate=NoGate(), **settings)
    rules = [("question", chat(answer="yes")), ("", chat(lessons=[], operations=[]))]
    with dspy.context(lm=scripted_lm(rules)), caplog.at_level(logging.INFO, "tfgrpo_dspy"):
        results = optimizer.compile(predictor(), trainset=questions(9)).detailed_results
    assert "training rollouts" in caplog.text
    assert "epochs               1\n" in caplog.text
    assert dict(results.schedule) == {
        **{"group_size": 2, "batch_size": 5, "epochs": 1, "max_staleness": 1, "drafts": 1},
        **{"groups_per_call": 2, "reserve": 0, "n_validation": 0, "max_demos": 0},
    }
    assert {name: results.settings[name] for name in results.schedule} == results.schedule


@pytest.mark.parametrize(
    ("budget", "calls_per_rollout", "most"),
    [(200, 1, 16), (800, 1, 16), (1500, 1, 30), (1500, 4, 16), (6000, 4, 30), (None, 1, 16)],
)
def test_a_budget_of_more_than_800_rollouts_tests_more_experiences_at_once(
    budget: int | None, calls_per_rollout: int, most: int
) -> None:
    data = data_of(calls_per_rollout=calls_per_rollout)
    assert derive(settings_of(max_lm_calls=budget), data).most_on_trial == most
