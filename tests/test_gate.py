"""Gates: which trials they ask for, and what they decide from the scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
import pytest
from gate_play import INCUMBENT, ScoreOf, by_text, play, question
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm

from tfgrpo_dspy import (
    Decision,
    ExperienceLibrary,
    GateError,
    NoGate,
    PairedGate,
    TrainingFreeGRPO,
    TrialEvidence,
    Trials,
)
from tfgrpo_dspy.experience import Add, Delete, Effect, Evidence, Keep, Modify
from tfgrpo_dspy.gate import Trial

# ---------------------------------------------------------------------- accept or keep


def test_an_update_that_gains_on_every_example_stays_and_the_reason_says_by_how_much() -> None:
    score_of = by_text(Be=0.25, polite=0.75)
    decision, _ = play(PairedGate(), question(Add("polite"), n_examples=20), score_of)
    assert decision.library.render() == "[E1*] Be brief.\n[E2*] polite"
    assert decision.reason == (
        "+0.500 (standard error 0.000) over 25 pairs of rollouts on 20 validation examples"
    )


@pytest.mark.parametrize("polite", [0.5, 0.25], ids=["tie", "loss"])
def test_a_tie_or_a_loss_keeps_the_incumbent_after_the_first_look(polite: float) -> None:
    score_of = by_text(Be=0.5, polite=polite)
    evidence = replace(question(Add("polite"), n_examples=100), n_updates=12)
    decision, asked = play(PairedGate(), evidence, score_of)
    assert decision.library == INCUMBENT
    assert [len(trials.trials) for trials in asked] == [50]
    assert list(decision.dropped) == ["E2"]


def test_a_gain_on_half_of_ten_examples_is_not_told_from_luck_in_a_run_of_twelve_updates() -> None:
    """Five gains and no loss: one sign flip in 32 does as well, and an update may err in 150."""

    def score_of(trial: Trial) -> float:
        return float(trial.library != INCUMBENT and trial.example < 5)

    evidence = replace(question(Add("polite"), n_examples=10), n_updates=12)
    decision, _ = play(PairedGate(), evidence, score_of)
    assert decision.library == INCUMBENT
    alone, _ = play(PairedGate(), replace(evidence, n_updates=1), score_of)
    assert len(alone.library) == 2


@pytest.mark.parametrize("n_examples", [1, 3, 7])
def test_so_few_examples_that_nothing_could_be_accepted_are_not_tried_at_all(
    n_examples: int,
) -> None:
    evidence = replace(question(Add("polite"), n_examples=n_examples), n_updates=12)
    answer = PairedGate().next(evidence)
    assert isinstance(answer, Decision)
    assert answer.library == INCUMBENT
    assert answer.reason == f"too few trials to tell a gain from luck ({n_examples} examples)"


def test_a_small_validation_set_is_gone_through_again_with_fresh_rollouts() -> None:
    evidence = question(Add("polite"), n_examples=10)
    _, asked = play(PairedGate(futility=0), evidence, by_text(Be=0.5, polite=0.5))
    for trials in asked:
        pairs = {(trial.example, trial.index) for trial in trials.trials}
        assert len(trials.trials) == 2 * len(pairs)
    last = {(trial.example, trial.index) for trial in asked[-1].trials}
    assert last == {(i, 2 * n) for i in range(10) for n in range(10)}


def test_examples_without_a_score_are_left_out_of_the_pairs() -> None:
    def score_of(trial: Trial) -> float | None:
        return None if trial.example in (3, 4) else float(trial.library != INCUMBENT)

    decision, _ = play(PairedGate(), question(Add("polite"), n_examples=20), score_of)
    assert len(decision.library) == 2
    assert "on 18 validation examples" in decision.reason


def test_a_library_without_any_score_does_not_stay() -> None:
    decision, _ = play(
        PairedGate(),
        question(Add("polite"), n_examples=20),
        lambda trial: 0.5 if trial.library == INCUMBENT else None,
    )
    assert decision.library == INCUMBENT
    assert decision.reason == "nothing could be measured"


def test_without_validation_examples_or_operations_the_incumbent_stays_untried() -> None:
    for evidence in (question(Add("polite"), n_examples=0), question(n_examples=10)):
        answer = PairedGate().next(evidence)
        assert isinstance(answer, Decision)
        assert answer.library == INCUMBENT


def test_an_accepted_operation_carries_its_measured_effect() -> None:
    def score_of(trial: Trial) -> float:
        gains = trial.library != INCUMBENT and trial.example % 4 > 0
        return 0.2 + 0.6 * gains

    decision, _ = play(PairedGate(), question(Add("polite"), n_examples=40), score_of)
    effect = decision.library["E2"].effect
    assert isinstance(effect, Effect)
    assert 0.40 < effect.estimate < 0.49
    assert 0.02 < effect.standard_error < 0.1
    assert decision.library["E1"].effect is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"error": 0.0},
        {"error": 1.1},
        {"max_trials": 1},
        {"max_singles": -1},
        {"race_share": 1.0},
        {"futility": 1.0},
        {"max_passes": 0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_paired_gate_refuses_numbers_that_mean_nothing(wrong: dict[str, float]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}: "):
        PairedGate(**wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the error is shared out


def test_a_comparison_that_ends_early_has_spent_all_of_its_error() -> None:
    """It might have gone on to accept, had it looked better."""
    evidence = replace(question(Add("polite"), n_examples=100), n_updates=12)
    first, asked = play(PairedGate(error=0.12), evidence, by_text(Be=0.5, polite=0.5))
    assert len(asked) == 1
    share = 0.12 / 12
    assert first.memory.error_spent == pytest.approx(share)
    assert first.memory.share(replace(evidence, update=1), 0.12) == pytest.approx(share)


def test_an_update_without_a_comparison_leaves_its_error_to_later_ones() -> None:
    evidence = replace(question(n_examples=100), n_updates=12)
    first, _ = play(PairedGate(error=0.12), evidence, by_text(Be=0.5))
    assert first.memory.error_spent == 0
    assert first.memory.share(replace(evidence, update=1), 0.12) == pytest.approx(0.12 / 11)


def test_what_the_incumbent_was_tried_on_before_is_not_asked_for_on_other_examples() -> None:
    evidence = replace(question(Add("polite"), n_examples=100), n_updates=12)
    first, asked = play(PairedGate(), evidence, by_text(Be=0.5, polite=0.5))
    tried = {(t.example, t.index) for t in asked[-1].trials if t.library == INCUMBENT}
    again = replace(
        question(Add("other"), n_examples=100), update=1, n_updates=12, memory=first.memory
    )
    answer = PairedGate().next(again)
    assert isinstance(answer, Trials)
    assert tried <= {(t.example, t.index) for t in answer.trials if t.library == INCUMBENT}


def test_a_gate_that_remembers_nothing_has_spent_the_shares_of_all_updates_before() -> None:
    """Resumed with another gate, say: each update then has its equal share and no more."""
    evidence = replace(question(Add("polite"), n_examples=100), update=6, n_updates=12)
    decision, _ = play(PairedGate(error=0.12), evidence, by_text(Be=0.5, polite=0.5))
    assert decision.memory.error_spent == pytest.approx(0.06 + 0.01)


# ---------------------------------------------------------------------- single operations


def test_a_good_operation_is_found_though_the_update_as_a_whole_loses() -> None:
    update = [Add("bad"), Add("good"), Add("worse")]
    score_of = by_text(Be=0.5, bad=0.0, good=1.0, worse=0.0)
    decision, asked = play(PairedGate(), question(*update, n_examples=40), score_of)
    assert [experience.text for experience in decision.library] == ["Be brief.", "good"]
    assert decision.library["E3"].text == "good"  # the id of the proposed library
    tried = {tuple(e.text for e in trial.library)[1:] for trial in asked[0].trials}
    assert tried == {("bad", "good", "worse"), ("bad",), ("good",), ("worse",)}
    assert set(decision.dropped) == {"E2", "E4"}


def test_of_candidates_that_score_the_same_the_shorter_one_wins() -> None:
    decision, _ = play(
        PairedGate(),
        question(Add("good advice"), Add("better"), n_examples=40),
        lambda trial: float(trial.library != INCUMBENT),
    )
    assert [experience.text for experience in decision.library] == ["Be brief.", "better"]


def test_with_no_single_operations_only_the_whole_update_is_tried() -> None:
    evidence = question(Add("good"), Add("bad"), n_examples=40)
    score_of = by_text(Be=0.5, good=1.0, bad=0.0)
    decision, asked = play(PairedGate(max_singles=0), evidence, score_of)
    assert decision.library == INCUMBENT
    assert {trial.library for trial in asked[0].trials} == {INCUMBENT, evidence.proposed}


def test_of_many_operations_those_with_the_most_evidence_are_tried_alone() -> None:
    seen = [Evidence(update=0, example=i, rollout_ids=(i,), scores=(1.0,)) for i in range(3)]
    update = [
        Add("once", evidence=tuple(seen[:1])),
        Add("never"),
        Add("thrice", evidence=tuple(seen)),
        Add("twice", evidence=tuple(seen[:2])),
    ]
    answer = PairedGate(max_singles=2).next(question(*update, n_examples=40))
    assert isinstance(answer, Trials)
    tried = {tuple(e.text for e in trial.library)[1:] for trial in answer.trials}
    assert tried == {("once", "never", "thrice", "twice"), ("thrice",), ("twice",)}


def test_a_modify_and_a_delete_are_tried_alone_too() -> None:
    update = (Modify("E1", "Polite."), Add("bad"))
    score_of = by_text(Be=0.0, bad=0.0, Polite=1.0)
    decision, _ = play(PairedGate(), question(*update, n_examples=40), score_of)
    assert decision.library.render() == "[E1*] Polite."

    emptied, _ = play(
        PairedGate(),
        question(Delete("E1"), Add("bad"), n_examples=40),
        lambda trial: float(len(trial.library) == 0),
    )
    assert list(emptied.library) == []


def test_evidence_of_a_keep_goes_along_whatever_is_decided() -> None:
    support = Evidence(update=3, example=5, rollout_ids=(1, 2), scores=(0.0, 1.0))
    update = (Keep("E1", evidence=(support,)), Add("good"))
    for good in (1.0, 0.0):
        evidence = question(*update, n_examples=40)
        decision, _ = play(PairedGate(), evidence, by_text(Be=0.5, good=good))
        assert len(decision.library) == 1 + int(good)
        assert decision.library["E1"].evidence == (support,)


def test_the_last_candidate_is_tested_on_other_rollouts_than_those_it_was_chosen_by() -> None:
    update = [Add("one"), Add("two"), Add("three")]
    score_of = by_text(Be=0.0, one=0.2, two=0.4, three=0.9)
    _, asked = play(PairedGate(), question(*update, n_examples=40), score_of)
    race = [trials for trials in asked if all(t.index % 2 for t in trials.trials)]
    test = [trials for trials in asked if not any(t.index % 2 for t in trials.trials)]
    assert race
    assert test
    assert race + test == asked


# ---------------------------------------------------------------------- for all score tables

SCORES = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, -3.0, 250.0]))


@st.composite
def contests(draw: st.DrawFn) -> tuple[PairedGate, TrialEvidence, ScoreOf]:
    """A gate, a question with up to 4 operations, and any scores, or None."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    gate = PairedGate(
        error=draw(st.sampled_from([0.05, 0.5, 1.0])),
        max_trials=draw(st.integers(2, 80)),
        max_singles=draw(st.integers(0, 3)),
    )
    pattern = draw(st.lists(SCORES, min_size=1, max_size=9))
    by_name = {name: draw(st.integers(0, 8)) for name in names}

    def score_of(trial: Trial) -> float | None:
        place = sum(by_name.get(e.text, 0) for e in trial.library)
        return pattern[(place + 3 * trial.example + 5 * trial.index) % len(pattern)]

    evidence = question(*map(Add, names), n_examples=draw(st.integers(0, 12)))
    return gate, replace(evidence, n_updates=draw(st.integers(1, 3))), score_of


@given(contests())
@settings(max_examples=150)
def test_it_always_ends_within_its_trials_and_accepts_only_what_gains(
    contest: tuple[PairedGate, TrialEvidence, ScoreOf],
) -> None:
    gate, evidence, score_of = contest
    decision, asked = play(gate, evidence, score_of)
    every = {trial for trials in asked for trial in trials.trials}
    assert len(every) <= gate.most_trials(evidence.n_examples)
    if decision.library != INCUMBENT:
        pairs = [
            (score_of(trial), score_of(replace(trial, library=INCUMBENT)))
            for trial in asked[-1].trials
            if trial.library == decision.library
        ]
        assert sum(new - old for new, old in pairs if new is not None and old is not None) > 0


@given(contests())
@settings(max_examples=50)
def test_it_never_asks_for_trials_that_it_has_all_the_scores_of(
    contest: tuple[PairedGate, TrialEvidence, ScoreOf],
) -> None:
    _, asked = play(*contest)
    have: set[Trial] = set()
    for trials in asked:
        assert set(trials.trials) - have
        have |= set(trials.trials)


@given(contests())
@settings(max_examples=50)
def test_the_same_evidence_gives_the_same_answer_in_whatever_order_the_scores_came(
    contest: tuple[PairedGate, TrialEvidence, ScoreOf],
) -> None:
    gate, evidence, score_of = contest
    decision, asked = play(gate, evidence, score_of)
    assert play(gate, evidence, score_of) == (decision, asked)
    scores = {t: score_of(t) for trials in reversed(asked) for t in reversed(trials.trials)}
    assert replace(gate).next(replace(evidence, scores=scores)) == decision


@given(st.integers(1, 40), st.integers(1, 4), st.floats(-5, 5))
@settings(max_examples=50)
def test_constant_scores_are_never_a_reason_to_accept(n: int, k: int, score: float) -> None:
    evidence = question(*(Add(f"lesson {i}") for i in range(k)), n_examples=n)
    decision, _ = play(PairedGate(error=0.5), evidence, lambda _: score)
    assert decision.library == INCUMBENT


def test_no_gate_takes_every_update_and_measures_nothing() -> None:
    answer = NoGate().next(question(Add("polite"), n_examples=10))
    assert isinstance(answer, Decision)
    assert answer.library.render() == "[E1*] Be brief.\n[E2*] polite"


# ---------------------------------------------------------------------- gates in a run


def number_metric(_: dspy.Example, pred: dspy.Prediction) -> float:
    """The answer is its own score."""
    return float(pred.answer)


def examples(n: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"question {i}").with_inputs("question") for i in range(n)]


def learning_lm() -> dspy.LM:
    """Training answers score 0 or 1, answers as deployed 0.25, and 0.75 with the advice."""

    def answer(prompt: Prompt) -> str:
        if prompt.temperature is not None:
            return chat(answer=str((prompt.seed or 0) % 2))
        return chat(answer="0.75" if "Say please." in prompt.system else "0.25")

    return scripted_lm(
        [
            (EXTRACT, lessons("Say please.")),
            (UPDATE, operations({"op": "ADD", "text": "Say please.", "lessons": [1]})),
            ("question", answer),
        ]
    )


def run(gate: Any, metric: Any = number_metric, **arguments: Any) -> Any:
    optimizer = TrainingFreeGRPO(
        metric, gate=gate, epochs=1, batch_size=4, num_threads=2, progress=False, **arguments
    )
    with dspy.context(lm=learning_lm()):
        return optimizer.compile(
            dspy.Predict("question -> answer"), trainset=examples(4), valset=examples(10)[4:]
        )


@dataclass
class DemandingGate:
    """A user's own gate: the whole update, on the first three examples, for a gain of `least`."""

    least: float
    seen: list[Mapping[Trial, float | None]] = field(default_factory=list)
    metric: Callable[..., Any] | None = None

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        self.seen.append(evidence.scores)
        first = range(3)
        if not evidence.has_tried(evidence.proposed, first):
            return Trials.of((evidence.incumbent, evidence.proposed), first)
        gains = evidence.gains(evidence.proposed, first)
        if sum(gains) / len(gains) >= self.least:
            return Decision(evidence.proposed, "enough")
        return Decision(evidence.incumbent, "not enough")


def test_a_gate_of_the_users_own_needs_one_method_and_is_asked_until_it_decides() -> None:
    gate = DemandingGate(least=0.5)
    optimized = run(gate)
    update = optimized.detailed_results.updates[0]
    assert (update.accepted, update.reason) == (True, "enough")
    assert ExperienceLibrary.from_program(optimized).render() == "[E1*] Say please."
    student = {(i, 0): 0.25 for i in range(6)}  # measured before the first update
    learned = {(i, 1): 0.75 for i in range(3)}
    seen = [
        {(trial.example, len(trial.library)): score for trial, score in scores.items()}
        for scores in gate.seen
    ]
    assert seen == [student, student | learned]


def test_a_library_that_the_users_gate_refused_is_not_returned_after_all() -> None:
    @dataclass
    class Refusing(DemandingGate):
        def next(self, evidence: TrialEvidence) -> Trials | Decision:
            every = tuple(range(evidence.n_examples))
            if not evidence.has_tried(evidence.proposed, every):
                return Trials.of((evidence.incumbent, evidence.proposed), every)
            return Decision(evidence.incumbent, "a person said no")

    optimized = run(Refusing(least=1.0))
    assert list(ExperienceLibrary.from_program(optimized)) == []
    assert optimized.detailed_results.updates[0].reason == "a person said no"


def test_a_gate_with_a_metric_of_its_own_measures_where_the_optimizer_has_none() -> None:
    optimized = run(PairedGate(metric=number_metric), metric=None)
    results = optimized.detailed_results
    assert (results.student.mean, results.best.mean) == (0.25, 0.75)
    assert results.updates[0].groups[0].used_as == "no ground truth"
    assert ExperienceLibrary.from_program(optimized).render() == "[E1*] Say please."


def test_the_gates_own_metric_wins_over_the_optimizers_for_trials_only() -> None:
    def reversed_metric(_: dspy.Example, pred: dspy.Prediction) -> float:
        return -float(pred.answer)

    results = run(PairedGate(metric=reversed_metric)).detailed_results
    assert results.student.mean == -0.25
    assert not results.updates[0].accepted
    assert set(results.updates[0].groups[0].scores) <= {0.0, 1.0}


class Answering:
    """A gate that gives one answer, whatever the evidence."""

    def __init__(self, answer: Callable[[TrialEvidence], Any]) -> None:
        self.answer = answer

    def next(self, evidence: TrialEvidence) -> Any:
        return self.answer(evidence)


def test_a_gate_that_asks_again_for_what_it_has_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(GateError, match="asks again for trials that it has the scores of"):
        run(Answering(lambda evidence: Trials.of((evidence.incumbent,), (0, 1))))


def test_a_gate_that_asks_for_nothing_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(GateError, match="asks again for trials that it has the scores of"):
        run(Answering(lambda _: Trials(())))


@pytest.mark.parametrize("answer", [None, True, "accept"], ids=str)
def test_a_gate_that_answers_neither_trials_nor_a_decision_is_an_error(answer: object) -> None:
    with pytest.raises(GateError, match=rf"answered {answer!r}; return Trials or a Decision"):
        run(Answering(lambda _: answer))


def test_a_decision_that_holds_no_library_is_an_error() -> None:
    with pytest.raises(GateError, match="True"):
        run(Answering(lambda _: Decision(True, "accepted")))  # type: ignore[arg-type]


@pytest.mark.parametrize("example", [6, -1])
def test_trials_on_an_example_that_does_not_exist_are_an_error(example: int) -> None:
    with pytest.raises(GateError, match=rf"asks for a trial on validation example {example};"):
        run(Answering(lambda evidence: Trials.of((evidence.proposed,), (example,))))
