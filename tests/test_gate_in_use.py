"""TrialInUse: advice is tried on training examples, which settle it by themselves."""

from typing import Any

import pytest
from gate_life import GOOD, HARMFUL, N_TRAINING, NEW, SETTLED, USELESS, Life, texts, worth

from tfgrpo_dspy.experience import Add, Delete, Modify
from tfgrpo_dspy.gate import TrialInUse


def life(gate: Any = None, **others: Any) -> Life:
    return Life(gate or TrialInUse(), **others)


def test_a_candidate_is_tried_in_the_update_that_proposes_it_and_settled_if_it_helps() -> None:
    run = life(gate=TrialInUse(max_trials=48))
    decision = run.then(Add(GOOD), Add(HARMFUL), Add(USELESS))
    assert GOOD in texts(decision.exported)
    assert HARMFUL not in texts(decision.library)
    assert "above 0 with probability" in decision.dropped["E2"]
    effect = decision.library["E1"].effect
    assert effect is not None
    assert effect.estimate == pytest.approx(0.5, abs=4 * effect.standard_error)
    assert effect.n_rollouts == 48


def test_no_rollout_is_of_a_validation_example() -> None:
    run = life()
    for _ in range(4):
        run.then(Add(GOOD), Add(USELESS))
    assert run.asked
    assert run.tests == []


def test_the_pairs_of_an_update_are_never_more_than_said_nor_than_the_budget_leaves() -> None:
    for max_trials, left, most in ((20, None, 20), (20, 7, 6), (0, None, 0), (200, None, 48)):
        run = life(gate=TrialInUse(max_trials=max_trials), max_trials=left)
        run.then(Add(GOOD))
        assert len(set(run.asked)) == most == min(most, 2 * N_TRAINING)


def test_without_pairs_the_groups_alone_settle_it_and_drop_it() -> None:
    run = life(gate=TrialInUse(max_trials=0))
    run.then(Add(GOOD), Add(HARMFUL))
    assert run.library["E1"].is_on_trial
    assert run.until_decided("E1").library["E1"].text == GOOD
    run.until_decided("E2")
    assert texts(run.library) == [GOOD]
    assert run.asked == []


def test_what_is_on_trial_when_the_run_is_over_is_dropped_unless_it_is_settled() -> None:
    run = life(gate=TrialInUse(settle_at=0.999, drop_at=0.0), score=worth({GOOD: 0.1}), n_ahead=0)
    run.update = 11
    decision = run.then(Add(GOOD))
    assert texts(decision.library) == []
    assert "E1" in decision.dropped


def test_what_is_on_trial_before_the_last_update_stays_so_though_no_groups_are_to_come() -> None:
    run = life(gate=TrialInUse(settle_at=0.999, drop_at=0.0), score=worth({GOOD: 0.1}), n_ahead=0)
    assert run.then(Add(GOOD)).library["E1"].is_on_trial


def test_a_new_text_takes_the_old_ones_place_only_if_it_is_better() -> None:
    for new, staying in ((NEW, NEW), (HARMFUL, GOOD)):
        run = life(library=SETTLED, score=worth({NEW: 0.9, GOOD: 0.3, HARMFUL: -0.3}, base=0.1))
        run.then(Modify("E1", new))
        if "E1" in run.gate.on_trial(run.memory):
            run.until_decided("E1")
        assert texts(run.decisions[-1].exported) == [staying]


def test_what_is_to_be_deleted_stays_if_it_helps_and_goes_if_it_harms() -> None:
    for gain, staying in ((0.5, [GOOD]), (-0.3, [])):
        run = life(library=SETTLED, score=worth({GOOD: gain}))
        run.then(Delete("E1"))
        if "E1" in run.gate.on_trial(run.memory):
            run.until_decided("E1")
        assert texts(run.library) == staying


def test_the_reason_tells_what_the_groups_decided_too_and_counts_what_went_by_them() -> None:
    run = life(gate=TrialInUse(max_trials=0), library=SETTLED, score=worth({GOOD: 0.5}))
    run.then(Delete("E1"), Add(HARMFUL))
    run.until_decided("E1")
    reasons = [decision.reason for decision in run.decisions]
    assert any("E1 was to be deleted, and stays" in reason for reason in reasons)
    for decision in run.decisions:
        n_on_trial = sum(own.is_on_trial for own in decision.library)
        counts = f"{len(decision.library) - n_on_trial} settled, {n_on_trial} on trial"
        counts += f", {len(decision.dropped)} dropped" if decision.dropped else ""
        assert decision.reason.endswith(counts)


def test_what_is_not_settled_after_an_epoch_is_dropped() -> None:
    gate = TrialInUse(max_trials=0, settle_at=0.999, drop_at=0.0)
    run = life(gate=gate, score=worth({GOOD: 0.1}))
    run.then(Add(GOOD))
    run.then()
    run.then()
    assert "E1" in run.decisions[-1].dropped


def test_of_five_candidates_the_one_that_helps_is_mostly_found_and_few_useless_ones() -> None:
    exported: list[str] = []
    for seed in range(12):
        run = life(gate=TrialInUse(max_trials=40), score=worth({GOOD: 0.2}), seed=seed)
        run.then(Add(GOOD), *(Add(f"Useless advice {k}.") for k in range(4)))
        for _ in range(3):
            run.then()
        exported += texts(run.decisions[-1].exported)
    assert exported.count(GOOD) >= 7
    assert len(exported) - exported.count(GOOD) <= 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_trials", -1), ("settle_at", 1.0), ("settle_at", 0.4), ("drop_at", -0.1),
        ("drop_at", 0.9), ("max_epochs", 0.0), ("max_on_trial", 0),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_with_its_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        TrialInUse(**{name: value})
