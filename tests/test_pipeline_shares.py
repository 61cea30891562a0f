"""How a limited budget is shared out: validation, trials, and what the last of it is for."""

import logging
import random
import re
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import EXTRACT, Prompt, chat, lessons, scripted_lm

from tfgrpo_dspy import (
    AddLessons,
    Decision,
    Experience,
    ExperienceLibrary,
    TrainingFreeGRPO,
    TrialEvidence,
    Trials,
)
from tfgrpo_dspy.gate import GroupPlan
from tfgrpo_dspy.pipeline.shares import GATE_SHARE, VALIDATION_SHARE, affordable, order_of
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.settings import LEAST_VALIDATION, Settings

EXACT, SHOUT = "Be exact.", "Shout at everybody."
FIRST_VALIDATION, FIRST_TEST = 200, 700


def cases(n: int, start: int = 0) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"Case {i}", answer=str(i)).with_inputs("question")
        for i in range(start, start + n)
    ]


def is_right(case: dspy.Example, pred: dspy.Prediction, _trace: Any = None) -> float:
    return float(pred.answer == case.answer)


def case_in(prompt: Prompt) -> int:
    return int(re.findall(r"Case (\d+)", prompt.user)[-1])


def answered(prompt: Prompt) -> str:
    """To be exact helps everywhere, to shout does harm."""
    chance = 0.4 + 0.5 * (EXACT in prompt.system) - 0.3 * prompt.system.count(SHOUT)
    luck = random.Random(f"{case_in(prompt)}/{prompt.seed}").random()
    return chat(answer=str(case_in(prompt)) if luck < chance else "unsure")


def world(*advice: str) -> dspy.LM:
    def told(prompt: Prompt) -> str:
        return lessons(advice[case_in(prompt) % len(advice)])

    return scripted_lm([(EXTRACT, told), ("question", answered)])


def inventive_world() -> dspy.LM:
    """One in which no lesson is written twice, so that a gate is asked at every update."""

    def told(prompt: Prompt) -> str:
        return lessons(f"Think of {zlib.crc32(prompt.text.encode())}.")

    return scripted_lm([(EXTRACT, told), ("question", answered)])


def compiled(lm: dspy.LM, *, n_validation: int = 100, testset: Any = None, **settings: Any) -> Any:
    chosen: dict[str, Any] = {
        "group_size": 4,
        "epochs": 6,
        "batch_size": 12,
        "num_threads": 4,
        "progress": False,
        "failure_analysis": False,
        "update_library": AddLessons(),
    }
    with dspy.context(lm=lm):
        return TrainingFreeGRPO(is_right, **(chosen | settings)).compile(
            dspy.Predict("question -> answer"),
            trainset=cases(24),
            valset=cases(n_validation, FIRST_VALIDATION) or None,
            testset=testset,
        )


def texts(program: Any) -> set[str]:
    return {own.text for own in ExperienceLibrary.from_program(program)}


def validated(lm: dspy.LM) -> list[int]:
    numbers = [case_in(p) for p in lm.engine.prompts if "`semantic_advantage`" not in p.text]
    return [number for number in numbers if FIRST_VALIDATION <= number < FIRST_TEST]


# ---------------------------------------------------------------------- what a share pays for


@pytest.mark.parametrize(
    ("limits", "spent", "expected"),
    [
        ({}, Usage(n_lm_calls=10), None),
        ({"max_metric_calls": 400}, Usage(n_lm_calls=10), 20),
        ({"max_lm_calls": 400}, Usage(n_lm_calls=10), 20),
        ({"max_lm_calls": 400}, Usage(n_lm_calls=20), 10),
        ({"max_lm_calls": 400}, Usage(n_cached_calls=20), 10),
        ({"max_lm_calls": 400}, Usage(), None),
        ({"max_cost": 2.0}, Usage(n_lm_calls=10, cost_usd=0.05), 20),
        ({"max_cost": 2.0}, Usage(n_lm_calls=10), None),
        ({"max_metric_calls": 400, "max_lm_calls": 100}, Usage(n_lm_calls=10), 5),
        ({"max_metric_calls": 1}, Usage(n_lm_calls=10), 0),
        ({"max_minutes": 1.0}, Usage(n_lm_calls=10), None),
    ],
)
def test_a_twentieth_of_the_tightest_limit_pays_for_so_many_rollouts_as_the_first_ten_cost(
    limits: dict[str, Any], spent: Usage, expected: int | None
) -> None:
    assert affordable(Settings(is_right, **limits), VALIDATION_SHARE, spent, 10) == expected


def test_validation_examples_are_mixed_by_seed_where_the_budget_may_reach_for_a_part_of_them() -> (
    None
):
    assert order_of(50, Settings(is_right)) is None
    first, again, other = (
        order_of(50, Settings(is_right, max_lm_calls=9, seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert sorted(first or ()) == sorted(other or ()) == list(range(50))


@given(st.integers(1, 10**4), st.integers(1, 10**4), st.integers(1, 100), st.floats(0.01, 1))
def test_what_is_affordable_does_not_cost_more_than_its_share(
    max_lm_calls: int, n_calls: int, n_rollouts: int, share: float
) -> None:
    settings = Settings(is_right, max_lm_calls=max_lm_calls)
    n = affordable(settings, share, Usage(n_lm_calls=n_calls), n_rollouts)
    assert n is not None
    assert n * n_calls / n_rollouts <= share * max_lm_calls + 1e-6


# ---------------------------------------------------------------------- the validation set


@pytest.mark.parametrize(
    ("budget", "n"),
    [
        ({"max_metric_calls": 600}, 30),
        ({"max_lm_calls": 600}, 30),
        ({"max_metric_calls": 150}, LEAST_VALIDATION),
    ],
    ids=str,
)
def test_of_a_large_validation_set_a_twentieth_of_the_budget_is_used_at_least_ten(
    budget: dict[str, int], n: int, caplog: pytest.LogCaptureFixture
) -> None:
    lm = world(EXACT)
    with caplog.at_level(logging.INFO, logger="tfgrpo_dspy"):
        results = compiled(lm, **budget).detailed_results
    assert (results.student.n, results.best.n, results.gain.n) == (n, n, n)
    assert f"the budget reaches for {n} of 100 validation examples" in caplog.messages
    used = set(validated(lm))
    assert len(used) >= n
    assert used != set(range(FIRST_VALIDATION, FIRST_VALIDATION + n))
    assert results.metric_calls <= budget.get("max_metric_calls", 10**9)


@pytest.mark.parametrize("n_validation", [3, 8, 10, 30])
def test_a_validation_set_that_the_budget_reaches_for_is_used_whole_and_nothing_is_said(
    n_validation: int, caplog: pytest.LogCaptureFixture
) -> None:
    """At least ten are used however small the budget: of a set of eight nothing is left out."""
    most = 600 if n_validation > LEAST_VALIDATION else 150
    with caplog.at_level(logging.INFO, logger="tfgrpo_dspy"):
        program = compiled(world(EXACT), n_validation=n_validation, max_metric_calls=most)
    assert program.detailed_results.student.n == n_validation
    assert "the budget reaches for" not in caplog.text


def test_without_a_limit_all_of_it_is_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tfgrpo_dspy"):
        program = compiled(world(EXACT), epochs=1)
    assert program.detailed_results.student.n == 100
    assert "the budget reaches for" not in caplog.text


# ---------------------------------------------------------------------- the gate's trials


@dataclass
class Told:
    """Lets everything stay, and keeps what it was told."""

    metric: Any = None
    told: list[TrialEvidence] = field(default_factory=list)

    def next(self, evidence: TrialEvidence) -> Decision:
        self.told.append(evidence)
        return Decision(evidence.proposed, "stays")


@pytest.mark.parametrize("name", ["max_metric_calls", "max_lm_calls"])
def test_a_gate_is_told_what_is_left_of_half_of_the_budget(name: str) -> None:
    gate = Told()
    compiled(world(EXACT, SHOUT), gate=gate, epochs=1, **{name: 600})
    assert [evidence.max_trials for evidence in gate.told] == [int(GATE_SHARE * 600) - 30]
    assert gate.told[0].n_examples == 100


def test_without_a_limit_a_gate_is_told_of_none() -> None:
    gate = Told()
    compiled(world(EXACT), gate=gate, epochs=1)
    assert [evidence.max_trials for evidence in gate.told] == [None]


@dataclass
class Asking(Told):
    """The same, after a dozen trials of what is proposed."""

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        trials = Trials.of([evidence.proposed], range(12))
        if any(trial not in evidence.scores for trial in trials.trials):
            return trials
        return super().next(evidence)


def told_over_a_run(gate: Told | None = None, **settings: Any) -> list[TrialEvidence]:
    gate = gate or Told()
    compiled(inventive_world(), gate=gate, max_experiences=1000, n_validation=30, **settings)
    return gate.told


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_metric_calls": 600},
        {"max_lm_calls": 700},
        {"max_metric_calls": 700, "gate": Asking},
        {"max_lm_calls": 900, "testset": cases(60, FIRST_TEST)},
        {"max_lm_calls": 2000, "gate": Asking, "summarize_always": True},
    ],
    ids=["metric calls", "LM calls", "trials", "test set", "trials and summaries"],
)
@pytest.mark.timeout(60)
def test_a_gate_is_told_how_many_training_rollouts_the_budget_has_room_for(
    settings: dict[str, Any], staleness: int
) -> None:
    gate = settings.get("gate", Told)()
    told = told_over_a_run(epochs=50, max_staleness=staleness, **{**settings, "gate": gate})
    told = told[1:]  # of the first nobody knows yet what its trials will take
    n_made = [sum(len(group.scores) for group in evidence.groups) for evidence in told]
    off = 48 * (1 + staleness)  # a batch; and those under way when the budget ends, by chance
    for k, evidence in enumerate(told):
        to_come = sum(n_made[k + 1 + staleness :])
        assert evidence.n_ahead == pytest.approx(to_come, abs=off)
    assert len(told) > 5
    assert told[-1].n_ahead == 0


def test_a_gate_is_told_which_examples_are_for_training_and_no_held_out_one_is_among_them() -> None:
    gate, lm = Told(), inventive_world()
    compiled(lm, n_validation=0, gate=gate, epochs=1, batch_size=4, max_experiences=1000)
    first = gate.told[0]
    assert first.n_examples + first.n_training == 24
    assert len(first.training) == first.n_training == len(first.training_examples) < 24
    sampled = {group.example for evidence in gate.told for group in evidence.groups}
    assert sampled == set(first.training)


@pytest.mark.parametrize("limit", [{}, {"max_metric_calls": 10**6}], ids=str)
def test_where_the_budget_is_ample_these_are_the_rollouts_that_are_planned(
    limit: dict[str, int],
) -> None:
    told = told_over_a_run(epochs=2, max_staleness=1, **limit)
    assert [evidence.n_ahead for evidence in told] == [96, 48, 0, 0]


@pytest.mark.timeout(60)
def test_what_a_gate_is_told_of_them_is_the_same_whatever_the_number_of_threads() -> None:
    runs = [
        told_over_a_run(epochs=50, max_lm_calls=500, max_staleness=2, num_threads=n_threads)
        for n_threads in (1, 2, 8)
    ]
    told = [[evidence.n_ahead for evidence in run] for run in runs]
    n_alike = min(map(len, told))
    assert n_alike > 3
    assert told[0][:n_alike] == told[1][:n_alike] == told[2][:n_alike]


@pytest.mark.parametrize("most", [150, 300, 600])
@pytest.mark.timeout(120)
def test_trials_take_no_more_than_half_of_the_budget(most: int) -> None:
    lm = world(EXACT, SHOUT, "Be kind.", "Be brief.")
    results = compiled(lm, max_metric_calls=most, epochs=9).detailed_results
    assert results.metric_calls <= most
    n_last = results.best.n
    assert len(validated(lm)) <= GATE_SHARE * most + n_last


@pytest.mark.timeout(120)
def test_with_a_limit_too_what_helps_is_confirmed_and_what_harms_is_not() -> None:
    results = (program := compiled(world(EXACT, SHOUT), max_metric_calls=600)).detailed_results
    assert texts(program) == {EXACT}
    assert any("tested E" in update.reason for update in results.updates)
    assert results.gain.mean > 0.3


# ---------------------------------------------------------------------- the end


GOOD = Experience("E1", EXACT)
UNPROVEN = Experience("E2", SHOUT, is_on_trial=True)


@dataclass(frozen=True)
class Exports:
    """Lets everything stay, and exports something of its own."""

    exported: tuple[Experience, ...]
    metric: Any = None

    def next(self, evidence: TrialEvidence) -> Decision:
        return Decision(evidence.proposed, "stays", ExperienceLibrary(self.exported, next_number=9))


@dataclass(frozen=True)
class HasTrials(Exports):
    """The same, as a gate that gives what is on trial to some rollouts."""

    def assign(self, plan: GroupPlan) -> list[ExperienceLibrary]:
        return [plan.library] * plan.n_rollouts


@pytest.mark.parametrize("budget", [{}, {"max_metric_calls": 300}, {"max_lm_calls": 300}], ids=str)
@pytest.mark.timeout(60)
def test_where_something_on_trial_spoils_the_last_library_what_is_settled_is_returned(
    budget: dict[str, int],
) -> None:
    """Where the budget has ended the run, too: what that takes is kept back."""
    lm = world("Be kind.")
    gate = HasTrials((GOOD, replace(UNPROVEN, text=f"{SHOUT} {SHOUT} {SHOUT}")))
    program = compiled(lm, gate=gate, n_validation=15, epochs=9 if budget else 1, **budget)
    results = program.detailed_results
    assert results.ended_because.startswith("max_" if budget else "")
    assert texts(program) == {EXACT}
    assert results.best.mean > results.student.mean + 0.3
    assert len(validated(lm)) == 3 * 15


def test_where_it_does_no_harm_the_last_library_is_returned_and_nothing_else_is_measured() -> None:
    lm = world("Be kind.")
    unproven = Experience("E2", "Be brief.", is_on_trial=True)
    program = compiled(lm, gate=Exports((GOOD, unproven)), n_validation=20, epochs=1)
    assert texts(program) == {EXACT, "Be brief."}
    assert len(validated(lm)) == 2 * 20


def test_where_nothing_is_settled_the_student_is_not_measured_twice() -> None:
    lm = world("Be kind.")
    program = compiled(lm, gate=Exports((UNPROVEN,)), n_validation=20, epochs=1)
    assert texts(program) == set()
    assert len(validated(lm)) == 2 * 20


@pytest.mark.parametrize("budget", [{"max_metric_calls": 150}, {"max_lm_calls": 190}], ids=str)
def test_of_what_is_kept_back_for_the_test_set_the_settled_part_takes_nothing(
    budget: dict[str, int],
) -> None:
    gate = Exports((Experience("E1", "Be kind."), UNPROVEN))
    program = compiled(
        world("Be brief."), gate=gate, n_validation=20, epochs=9, batch_size=2,
        testset=cases(20, FIRST_TEST), **budget,
    )  # fmt: skip
    results = program.detailed_results
    assert results.ended_because.startswith("max_")
    assert results.test is not None
    assert (results.test.student.n, results.test.best.n) == (20, 20)
