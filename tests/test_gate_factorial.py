"""The factorial gate: many operations measured at once, confirmed together, pruned."""

import random
from dataclasses import replace

import pytest
from gate_play import INCUMBENT, ScoreOf, by_text, play, question
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.experience import (
    Add,
    Delete,
    Experience,
    ExperienceLibrary,
    Limits,
    Modify,
    Operation,
)
from tfgrpo_dspy.gate import Decision, FactorialGate, Trial, TrialEvidence, Trials


def noisy(base: float, **worth: float) -> ScoreOf:
    """0 or 1, drawn for each trial alone; each experience adds its worth to the mean."""

    def score_of(trial: Trial) -> float:
        texts = [experience.text for experience in trial.library]
        mean = base + sum(worth.get(text, 0.0) for text in texts)
        return float(random.Random(f"{texts}/{trial.example}/{trial.index}").random() < mean)

    return score_of


def of_twelve(*operations: Operation, n_examples: int = 60) -> TrialEvidence:
    return replace(question(*operations, n_examples=n_examples), n_updates=12)


def texts(library: ExperienceLibrary) -> list[str]:
    return [experience.text for experience in library]


# ---------------------------------------------------------------------- what it decides


def test_the_good_ones_stay_and_the_useless_and_harmful_are_dropped_with_what_was_measured() -> (
    None
):
    update = [Add("bad"), Add("good"), Add("idle"), Add("fine")]
    score_of = noisy(0.3, good=0.3, fine=0.3, bad=-0.25)
    decision, _ = play(FactorialGate(max_trials=400), of_twelve(*update), score_of)
    assert texts(decision.library) == ["Be brief.", "good", "fine"]
    assert [experience.id for experience in decision.library] == ["E1", "E3", "E5"]
    assert set(decision.dropped) == {"E2", "E4"}
    assert decision.dropped["E2"].startswith("effect -")
    assert "above 0 with probability" in decision.dropped["E4"]
    assert decision.reason.startswith("2 of 4 operations; the ")


def test_what_stays_carries_its_effect_and_what_was_there_before_keeps_its_own() -> None:
    update = [Add("good"), Add("fine")]
    decision, _ = play(
        FactorialGate(max_trials=400), of_twelve(*update), noisy(0.2, good=0.4, fine=0.2)
    )
    good, fine = (decision.library[id_].effect for id_ in ("E2", "E3"))
    assert good is not None
    assert fine is not None
    assert abs(good.estimate - 0.4) < 2.5 * good.standard_error < 0.3
    assert abs(fine.estimate - 0.2) < 2.5 * fine.standard_error < 0.3
    assert decision.library["E1"].effect is None


def test_lessons_that_do_nothing_keep_the_incumbent() -> None:
    update = [Add(f"idle{k}") for k in range(5)]
    decision, _ = play(FactorialGate(), of_twelve(*update), noisy(0.5))
    assert decision.library == INCUMBENT
    assert set(decision.dropped) == {"E2", "E3", "E4", "E5", "E6"}


def test_lessons_that_help_alone_and_spoil_each_other_do_not_pass_together() -> None:
    """Each seems to help in random halves, and all together are what the incumbent is."""

    def score_of(trial: Trial) -> float:
        n_added = len(trial.library) - 1
        mean = {0: 0.5, 1: 0.9, 2: 0.9}.get(n_added, 0.5)
        return float(random.Random(repr((texts(trial.library), trial))).random() < mean)

    decision, _ = play(FactorialGate(), of_twelve(*map(Add, "abcd")), score_of)
    assert len(decision.library) < 5


def test_a_single_operation_is_confirmed_without_being_chosen_first() -> None:
    decision, asked = play(FactorialGate(), of_twelve(Add("good")), by_text(Be=0.2, good=0.6))
    assert texts(decision.library) == ["Be brief.", "good"]
    assert {t.library for trials in asked for t in trials.trials} == {INCUMBENT, decision.library}


def test_a_modify_and_a_delete_are_candidates_too() -> None:
    old = ExperienceLibrary([Experience("E1", "curse"), Experience("E2", "mumble")])
    worth = {"curse": -0.3, "mumble": -0.3, "speak up": 0.3}
    evidence = replace(
        of_twelve(Delete("E1"), Modify("E2", "speak up"), Add("idle")), incumbent=old
    )
    decision, _ = play(FactorialGate(max_trials=400), evidence, noisy(0.6, **worth))
    assert decision.library["E2"].text == "speak up"
    assert "E1" not in {experience.id for experience in decision.library}
    assert set(decision.dropped) >= {"E1"}


def test_the_trials_of_one_experience_have_one_id_whatever_else_is_present() -> None:
    _, asked = play(FactorialGate(), of_twelve(*map(Add, "abcde")), noisy(0.5))
    ids = {e.text: set() for e in of_twelve(*map(Add, "abcde")).proposed}
    for trial in (trial for trials in asked for trial in trials.trials):
        for experience in trial.library:
            ids[experience.text].add(experience.id)
    assert all(len(found) == 1 for found in ids.values())


def test_a_delete_alone_stays_only_if_it_gains() -> None:
    same, _ = play(FactorialGate(), of_twelve(Delete("E1")), lambda _: 1.0)
    assert same.library == INCUMBENT
    assert same.dropped == {}
    better, _ = play(FactorialGate(), of_twelve(Delete("E1")), noisy(0.7, **{"Be brief.": -0.4}))
    assert list(better.library) == []
    assert set(better.dropped) == {"E1"}


def test_a_delete_that_changes_nothing_goes_along_with_what_gains() -> None:
    score_of = by_text(Be=0.25, good=0.75)
    spread = {i: 0.01 * (i % 5) for i in range(60)}
    decision, _ = play(
        FactorialGate(),
        of_twelve(Delete("E1"), Add("good")),
        lambda trial: (score_of(trial) if len(trial.library) else 0.25) + spread[trial.example],
    )
    assert texts(decision.library) == ["good"]


def test_without_trials_for_choosing_and_pruning_the_whole_is_confirmed_or_not() -> None:
    gate = FactorialGate(choose_share=0, prune_share=0)
    decision, asked = play(gate, of_twelve(*map(Add, "ab")), noisy(0.2, a=0.5))
    assert texts(decision.library) == ["Be brief.", "a", "b"]
    assert {t.index % 2 for trials in asked for t in trials.trials} == {0}


def test_an_add_that_needs_the_room_of_a_delete_does_not_stay_without_it() -> None:
    evidence = replace(of_twelve(Delete("E1"), Add("good")), limits=Limits(max_experiences=1))
    score_of = noisy(0.2, **{"good": 0.4, "Be brief.": 0.3})
    decision, _ = play(FactorialGate(max_trials=400), evidence, score_of)
    assert len(decision.library) <= 1


# ---------------------------------------------------------------------- how it tries


def test_every_example_is_tried_with_a_half_and_with_its_complement() -> None:
    evidence = of_twelve(*map(Add, "abcde"))
    answer = FactorialGate().next(evidence)
    assert isinstance(answer, Trials)
    for one, other in zip(answer.trials[::2], answer.trials[1::2], strict=True):
        assert (one.example, one.index) == (other.example, other.index)
        both = sorted(texts(one.library)[1:] + texts(other.library)[1:])
        assert both == list("abcde")


def test_choosing_and_confirming_use_different_rollouts() -> None:
    score_of = noisy(0.2, a=0.5, b=0.5)
    decision, asked = play(FactorialGate(), of_twelve(*map(Add, "abc")), score_of)
    assert len(decision.library) > 1
    parts = [{trial.index % 2 for trial in trials.trials} for trials in asked]
    assert all(len(part) == 1 for part in parts)
    assert parts[0] == {1}
    assert {0} in parts


def test_an_update_in_which_nothing_helps_costs_the_choosing_only() -> None:
    update = [Add(f"bad{k}") for k in range(3)]
    score_of = noisy(0.9, bad0=-0.3, bad1=-0.3, bad2=-0.3)
    decision, asked = play(FactorialGate(), of_twelve(*update), score_of)
    assert decision.library == INCUMBENT
    assert decision.reason == "no operation seems to help"
    assert (
        len({trial for trials in asked for trial in trials.trials})
        <= FactorialGate().choose_share * 200
    )
    assert decision.memory.error_spent == 0


def test_three_examples_are_not_tried_and_the_reason_says_why() -> None:
    answer = FactorialGate().next(of_twelve(*map(Add, "abc"), n_examples=3))
    assert isinstance(answer, Decision)
    assert answer.library == INCUMBENT
    assert answer.reason == "too few trials to tell a gain from luck (3 examples)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"error": 0.0},
        {"max_trials": 1},
        {"choose_share": 1.0},
        {"prune_share": -0.1},
        {"choose_share": 0.5, "prune_share": 0.5},
        {"min_probability": 0.4},
        {"futility": -0.1},
        {"margin": -0.1},
        {"max_passes": 0},
    ],
    ids=lambda wrong: "+".join(wrong),
)
def test_a_factorial_gate_refuses_numbers_that_mean_nothing(wrong: dict[str, float]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        FactorialGate(**wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- for all scores

SCORES = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, -3.0, 250.0]))


@st.composite
def contests(draw: st.DrawFn) -> tuple[FactorialGate, TrialEvidence, ScoreOf]:
    """A gate, a question with up to 5 operations, and any scores, or None."""
    names = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=5, unique=True))
    operations: list[Operation] = [Add(name) for name in names]
    operations += draw(st.sampled_from([[], [Delete("E1")], [Modify("E1", "Be long.")]]))
    gate = FactorialGate(
        error=draw(st.sampled_from([0.05, 0.5, 1.0])),
        max_trials=draw(st.integers(2, 90)),
        choose_share=draw(st.sampled_from([0.0, 0.3])),
        prune_share=draw(st.sampled_from([0.0, 0.4])),
    )
    pattern = draw(st.lists(SCORES, min_size=1, max_size=9))
    by_name = {name: draw(st.integers(0, 8)) for name in [*names, "Be brief.", "Be long."]}

    def score_of(trial: Trial) -> float | None:
        place = sum(by_name[experience.text] for experience in trial.library)
        return pattern[(place + 3 * trial.example + 5 * trial.index) % len(pattern)]

    evidence = question(*operations, n_examples=draw(st.integers(0, 12)))
    return gate, replace(evidence, n_updates=draw(st.integers(1, 3))), score_of


@given(contests())
@settings(max_examples=120, deadline=None)
def test_it_always_ends_within_its_trials_and_never_asks_twice(
    contest: tuple[FactorialGate, TrialEvidence, ScoreOf],
) -> None:
    gate, evidence, score_of = contest
    decision, asked = play(gate, evidence, score_of)
    have: set[Trial] = set()
    for trials in asked:
        assert set(trials.trials) - have
        have |= set(trials.trials)
    assert len(have) <= gate.most_trials(evidence.n_examples)
    ids = {experience.id for experience in decision.library}
    changed = {"E1"} if isinstance(evidence.operations[-1], Modify) else set()
    assert not ids & decision.dropped.keys() - changed


@given(contests())
@settings(max_examples=40, deadline=None)
def test_the_same_evidence_gives_the_same_answer_in_whatever_order_the_scores_came(
    contest: tuple[FactorialGate, TrialEvidence, ScoreOf],
) -> None:
    gate, evidence, score_of = contest
    decision, asked = play(gate, evidence, score_of)
    assert play(gate, evidence, score_of) == (decision, asked)
    scores = {t: score_of(t) for trials in reversed(asked) for t in reversed(trials.trials)}
    again = replace(gate).next(replace(evidence, scores=scores))
    assert isinstance(again, Decision)
    assert again.library == decision.library


@given(st.integers(1, 40), st.integers(1, 5), st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_constant_scores_are_never_a_reason_to_accept(n: int, k: int, score: float) -> None:
    evidence = question(*(Add(f"lesson {i}") for i in range(k)), n_examples=n)
    decision, _ = play(FactorialGate(error=0.5), evidence, lambda _: score)
    assert decision.library == INCUMBENT
