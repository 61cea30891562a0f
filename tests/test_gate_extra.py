"""ExtraPairs: training examples, each rolled out with a half of what is on trial and the other."""

from dataclasses import replace
from typing import Any

import pytest
from gate_play import play
from hypothesis import given
from hypothesis import strategies as st

from tfgrpo_dspy import Experience, ExperienceLibrary
from tfgrpo_dspy.experience import Add
from tfgrpo_dspy.gate import Trial, TrialEvidence, Trials, TrialThenConfirm
from tfgrpo_dspy.gate.extra import ExtraPairs
from tfgrpo_dspy.gate.on_trial import OnTrial

SETTLED = Experience("E1", "Be kind.")


def on_trial(n_new: int, n_changed: int = 0, n_deleted: int = 0) -> tuple[OnTrial, Any]:
    """A settled one, and of each kind so many on trial: the state, and the library."""
    state, library, number = OnTrial(), [SETTLED], 2
    for kind in ["new"] * n_new + ["changed"] * n_changed + ["deleted"] * n_deleted:
        own = Experience(f"E{number}", f"Advice {number}.", is_on_trial=True)
        before = Experience(own.id, f"Old {number}.") if kind == "changed" else None
        state = state.having_begun(own, before=before, is_delete=kind == "deleted")
        library.append(own)
        number += 1
    return state, ExperienceLibrary(library)


def asked_of(state: OnTrial, library: ExperienceLibrary, **others: Any) -> TrialEvidence:
    told: dict[str, Any] = {"n_examples": 60, "update": 3, "n_training": 24, "n_updates": 12}
    return TrialEvidence(library, (), memory=state.to_memory(), **(told | others))


counts = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))


@given(counts, st.integers(0, 40), st.integers(0, 60), st.integers(0, 10**6))
def test_the_two_of_a_pair_are_one_training_example_and_each_on_trial_is_in_one_of_them(
    how_many: tuple[int, int, int], n_pairs: int, n_training: int, update: int
) -> None:
    state, library = on_trial(*how_many)
    training = tuple(range(7, 7 + 2 * n_training, 2))
    evidence = asked_of(state, library, n_training=n_training, training=training, update=update)
    trials = ExtraPairs.of(state, evidence, n_pairs).trials
    assert len(trials) == (2 * min(n_pairs, n_training) if sum(how_many) else 0)
    pairs = list(zip(trials[::2], trials[1::2], strict=True))
    for (one, in_one), (other, in_other) in pairs:
        assert (one.on, one.example, one.index) == (other.on, other.example, other.index)
        assert one.on == "training"
        assert one.example in training
        assert in_one | in_other == state.tried.keys()
        assert not in_one & in_other
        held = [{own.id: own.text for own in trial.library} for trial in (one, other)]
        assert held[0]["E1"] == held[1]["E1"] == "Be kind."
        for id_, tried in state.tried.items():
            without = tried.before and tried.before[0]
            texts = [texts.get(id_) for texts in held]
            expected = [tried.said[0], without]
            assert texts == (expected if id_ in in_one else expected[::-1])
    assert len({one.example for (one, _), _ in pairs}) == len(pairs)


@given(counts, st.integers(0, 10**6))
def test_the_same_evidence_gets_the_same_pairs_whatever_the_order_of_who_is_on_trial(
    how_many: tuple[int, int, int], update: int
) -> None:
    state, library = on_trial(*how_many)
    turned = replace(state, tried=dict(reversed(state.tried.items())))
    evidence = asked_of(state, library, update=update)
    first, again = (ExtraPairs.of(each, evidence, 20) for each in (state, turned))
    assert first == again


def test_each_update_draws_other_examples() -> None:
    state, library = on_trial(2)
    drawn = {
        tuple(
            trial.example
            for trial, _ in ExtraPairs.of(state, asked_of(state, library, update=u), 8).trials
        )
        for u in range(6)
    }
    assert len(drawn) == 6


@pytest.mark.parametrize("n_training", [4, 24])
def test_the_gate_asks_for_them_first_and_counts_them_as_evidence(n_training: int) -> None:
    """A tenth of 400 rollouts: 20 pairs, or as many as there are training examples."""
    state, library = on_trial(1)
    evidence = asked_of(state, library, n_training=n_training)
    first = TrialThenConfirm().next(evidence)
    assert isinstance(first, Trials)
    assert len(first.trials) == len(set(first.trials)) == 2 * min(20, n_training)
    assert {trial.on for trial in first.trials} == {"training"}
    scores = {trial: float(trial.example % 2) for trial in first.trials}
    decision = TrialThenConfirm().next(replace(evidence, scores=scores))
    rows = decision.memory["rows"]  # type: ignore[union-attr]
    assert len(rows) == 2 * min(20, n_training)
    assert {block for block, _, _ in rows} == {f"3+{t.example}" for t in first.trials}


def test_they_alone_can_show_that_one_helps_and_the_test_that_follows_settles_it() -> None:
    def score(trial: Trial) -> float:
        lucky = trial.example % 4 == 0
        return float(lucky or "Advice 2." in {own.text for own in trial.library})

    state, library = on_trial(1)
    decision, asked = play(TrialThenConfirm(), asked_of(state, library), score)
    assert [{trial.on for trial in trials.trials} for trials in asked][:2] == [
        {"training"}, {"validation"},
    ]  # fmt: skip
    assert [own.text for own in decision.exported or ()] == ["Be kind.", "Advice 2."]


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        (TrialThenConfirm(), {"max_trials": 10**6}),
        (TrialThenConfirm(), {"max_trials": 0}),
        (TrialThenConfirm(extra_share=0.0), {}),
        (TrialThenConfirm(), {"n_training": 0}),
        (TrialThenConfirm(), {"n_examples": 3}),
    ],
    ids=["a budget", "nothing left", "no share", "no training examples", "no test can follow"],
)
def test_there_are_none(gate: TrialThenConfirm, told: dict[str, int]) -> None:
    state, library = on_trial(2)
    _, asked = play(gate, asked_of(state, library, **told), lambda _trial: 1.0)
    assert asked == []


def test_there_are_none_where_nothing_is_on_trial() -> None:
    evidence = asked_of(OnTrial(), ExperienceLibrary([SETTLED]))
    evidence = replace(evidence, operations=(Add("Be exact."),))
    assert play(TrialThenConfirm(), evidence, lambda _trial: 1.0)[1] == []


@pytest.mark.parametrize("n_rollouts", [0, 1])
def test_a_pair_that_has_lost_rollouts_tells_nothing(n_rollouts: int) -> None:
    """Where of each pair only the first has a score, or none, no effect is known."""
    state, library = on_trial(1)
    evidence = asked_of(state, library)
    first = TrialThenConfirm().next(evidence)
    assert isinstance(first, Trials)
    scores = {
        trial: 1.0 if place % 2 < n_rollouts else None for place, trial in enumerate(first.trials)
    }
    decision = TrialThenConfirm().next(replace(evidence, scores=scores))
    assert not isinstance(decision, Trials)
    assert decision.library["E2"].effect is None
    assert decision.reason == "1 settled, 1 on trial"
