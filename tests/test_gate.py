"""Gates: which trials they ask for, and what they decide from the scores."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm

from tfgrpo_dspy import (
    Decision,
    Experience,
    ExperienceLibrary,
    GateError,
    NoGate,
    PairedGate,
    TrainingFreeGRPO,
    TrialEvidence,
    Trials,
)
from tfgrpo_dspy.experience import Add, Delete, Evidence, Keep, Modify, Operation

INCUMBENT = ExperienceLibrary([Experience(id="E1", text="Be brief.")])

ScoreOf = Callable[[ExperienceLibrary, int], float | None]


def question(*added: Operation, n_examples: int, update: int = 0) -> TrialEvidence:
    """What a gate is asked first: may these operations change the incumbent?"""
    return TrialEvidence(INCUMBENT, added, n_examples, update)


def play(
    gate: Any, evidence: TrialEvidence, score_of: ScoreOf, max_turns: int = 100
) -> tuple[Decision, list[Trials]]:
    """The gate's decision, and the trials that it asked for on the way."""
    asked: list[Trials] = []
    for _ in range(max_turns):
        answer = gate.next(evidence)
        if isinstance(answer, Decision):
            return answer, asked
        asked.append(answer)
        scores = {library: dict(known) for library, known in evidence.scores.items()}
        for library in answer.libraries:
            known = scores.setdefault(library, {})
            known.update({i: score_of(library, i) for i in answer.examples if i not in known})
        evidence = replace(evidence, scores=scores)
    raise AssertionError(f"no decision after {max_turns} turns")


def table(**rows: list[float | None]) -> ScoreOf:
    """Scores by the text of the library's last experience, "incumbent" for the incumbent's own."""

    def score_of(library: ExperienceLibrary, example: int) -> float | None:
        last = list(library)[-1].text
        return rows["incumbent" if library == INCUMBENT else last.split()[0]][example]

    return score_of


# ---------------------------------------------------------------------- accept or keep


def test_an_update_that_scores_higher_on_the_whole_set_stays_and_the_reason_says_by_how_much() -> (
    None
):
    score_of = table(incumbent=[0.0, 0.0, 1.0, 0.0], polite=[1.0, 1.0, 1.0, 1.0])
    decision, _ = play(PairedGate(), question(Add("polite"), n_examples=4), score_of)
    assert decision.library.render() == "[E1*] Be brief.\n[E2*] polite"
    assert decision.reason == "+0.750 (standard error 0.250) on 4 validation examples"


@pytest.mark.parametrize(("min_errors", "stays"), [(0.0, True), (0.9, True), (1.0, False)])
def test_a_gain_stays_only_above_so_many_of_its_standard_errors(
    min_errors: float, stays: bool
) -> None:
    score_of = table(incumbent=[0.0, 0.0, 1.0, 0.0], polite=[1.0, 0.0, 1.0, 0.0])
    gate = PairedGate(min_errors=min_errors)
    decision, _ = play(gate, question(Add("polite"), n_examples=4), score_of)
    assert (len(decision.library) == 2) == stays
    assert decision.reason == "+0.250 (standard error 0.250) on 4 validation examples"


@pytest.mark.parametrize("wrong", [{"min_errors": -0.1}, {"max_singles": -1}, {"screen": 0}])
def test_a_paired_gate_refuses_numbers_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PairedGate(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("proposed", "reason"),
    [
        ([1.0, 0.0, 0.0, 1.0], "+0.000 (standard error 0.408) on 4 validation examples"),
        ([0.0, 0.0, 0.0, 1.0], "-0.250 (standard error 0.250) on 4 validation examples"),
    ],
    ids=["tie", "loss"],
)
def test_a_tie_or_a_loss_keeps_the_incumbent(proposed: list[float | None], reason: str) -> None:
    score_of = table(incumbent=[0.0, 1.0, 0.0, 1.0], polite=proposed)
    decision, _ = play(PairedGate(), question(Add("polite"), n_examples=4), score_of)
    assert decision == Decision(INCUMBENT, reason)


def test_what_wins_on_the_screen_and_loses_on_the_whole_set_does_not_stay() -> None:
    evidence = question(Add("polite"), n_examples=8)
    first = PairedGate(screen=2).next(evidence)
    assert isinstance(first, Trials)

    def score_of(library: ExperienceLibrary, example: int) -> float:
        wins_here = example in first.examples
        return float(wins_here == (library != INCUMBENT))

    decision, asked = play(PairedGate(screen=2), evidence, score_of)
    assert decision.library == INCUMBENT
    assert [len(trials.examples) for trials in asked] == [2, 4, 8]


def test_examples_without_a_score_are_left_out_of_the_pairs() -> None:
    score_of = table(incumbent=[0.0, None, 1.0, 0.0], polite=[1.0, 1.0, None, 1.0])
    decision, _ = play(PairedGate(), question(Add("polite"), n_examples=4), score_of)
    assert decision.reason == "+1.000 (standard error 0.000) on 2 validation examples"
    assert len(decision.library) == 2


def test_a_library_without_any_score_does_not_stay() -> None:
    score_of = table(incumbent=[0.0] * 4, polite=[None] * 4)
    decision, _ = play(PairedGate(), question(Add("polite"), n_examples=4), score_of)
    assert decision == Decision(INCUMBENT, "behind after 4 examples")


# ---------------------------------------------------------------------- single operations


def test_a_good_operation_is_found_though_the_update_as_a_whole_loses() -> None:
    update = [Add("bad"), Add("good"), Add("worse")]
    score_of = table(incumbent=[0.5] * 4, bad=[0.0] * 4, good=[1.0] * 4, worse=[0.0] * 4)
    decision, asked = play(PairedGate(), question(*update, n_examples=4), score_of)
    assert [experience.text for experience in decision.library] == ["Be brief.", "good"]
    tried = [[experience.text for experience in library] for library in asked[0].libraries]
    assert tried == [
        ["Be brief."],
        ["Be brief.", "bad", "good", "worse"],
        ["Be brief.", "bad"],
        ["Be brief.", "good"],
        ["Be brief.", "worse"],
    ]


def test_the_whole_update_wins_over_its_parts_when_all_are_equally_good() -> None:
    decision, _ = play(
        PairedGate(),
        question(Add("good"), Add("better"), n_examples=4),
        lambda library, _: float(library != INCUMBENT),
    )
    assert [experience.text for experience in decision.library] == ["Be brief.", "good", "better"]


def test_with_no_single_operations_only_the_whole_update_is_tried() -> None:
    score_of = table(incumbent=[0.5] * 4, good=[1.0] * 4, bad=[0.0] * 4)
    evidence = question(Add("good"), Add("bad"), n_examples=4)
    decision, asked = play(PairedGate(max_singles=0), evidence, score_of)
    assert decision.library == INCUMBENT
    assert [len(trials.libraries) for trials in asked] == [2]


def test_of_many_operations_those_with_the_most_evidence_are_tried_alone() -> None:
    seen = [Evidence(update=0, example=i, rollout_ids=(i,), scores=(1.0,)) for i in range(3)]
    update = [
        Add("once", evidence=tuple(seen[:1])),
        Add("never"),
        Add("thrice", evidence=tuple(seen)),
        Add("twice", evidence=tuple(seen[:2])),
    ]
    answer = PairedGate(max_singles=2).next(question(*update, n_examples=4))
    assert isinstance(answer, Trials)
    tried = [[experience.text for experience in library][1:] for library in answer.libraries]
    assert tried == [[], ["once", "never", "thrice", "twice"], ["thrice"], ["twice"]]


def test_a_modify_and_a_delete_are_tried_alone_too() -> None:
    update = (Modify("E1", "Be polite."), Add("bad"))
    score_of = table(incumbent=[0.0] * 4, bad=[0.0] * 4, Be=[1.0] * 4)
    decision, _ = play(PairedGate(), question(*update, n_examples=4), score_of)
    assert decision.library.render() == "[E1*] Be polite."

    emptied, _ = play(
        PairedGate(),
        question(Delete("E1"), Add("bad"), n_examples=4),
        lambda library, _: float(len(library) == 0),
    )
    assert list(emptied.library) == []


def test_evidence_of_a_keep_goes_along_with_whichever_candidate_wins() -> None:
    support = Evidence(update=3, example=5, rollout_ids=(1, 2), scores=(0.0, 1.0))
    update = (Keep("E1", evidence=(support,)), Add("good"), Add("bad"))
    score_of = table(incumbent=[0.5] * 4, good=[1.0] * 4, bad=[0.0] * 4)
    decision, asked = play(PairedGate(), question(*update, n_examples=4), score_of)
    assert decision.library["E1"].evidence == (support,)
    assert len(asked[0].libraries) == 4  # incumbent, whole, good, bad: a KEEP is no candidate


# ---------------------------------------------------------------------- the race


def test_each_round_keeps_the_better_half_and_doubles_the_examples() -> None:
    update = [Add(text) for text in ("one", "two", "three", "four")]
    worth = {"Be": 0.0, "one": 0.1, "two": 0.2, "three": 0.3, "four": 0.4}
    decision, asked = play(
        PairedGate(screen=10),
        question(*update, n_examples=40),
        lambda library, _: worth[list(library)[-1].text.split()[0]],
    )
    assert [(len(trials.libraries), len(trials.examples)) for trials in asked] == [
        (6, 10),
        (4, 20),
        (3, 40),
    ]
    assert [experience.text for experience in decision.library][-1] == "four"


def test_what_lies_clearly_behind_on_the_screen_is_not_tried_further() -> None:
    decision, asked = play(
        PairedGate(screen=10),
        question(Add("bad"), n_examples=100),
        lambda library, _: float(library == INCUMBENT),
    )
    assert [len(trials.examples) for trials in asked] == [10]
    assert decision == Decision(INCUMBENT, "behind after 10 examples")


def test_a_loss_within_a_standard_error_is_tried_further() -> None:
    evidence = question(Add("polite"), n_examples=20)
    screened = PairedGate(screen=4).next(evidence)
    assert isinstance(screened, Trials)
    unlucky = screened.examples[0]

    def score_of(library: ExperienceLibrary, example: int) -> float:
        if example == unlucky:
            return float(library == INCUMBENT)
        return float(library != INCUMBENT and example not in screened.examples)

    decision, asked = play(PairedGate(screen=4), evidence, score_of)
    assert [len(trials.examples) for trials in asked] == [4, 8, 16, 20]
    assert decision.reason == "+0.750 (standard error 0.123) on 20 validation examples"


def test_every_round_measures_incumbent_and_candidates_on_the_same_growing_set() -> None:
    update = [Add(text) for text in ("one", "two", "three")]
    _, asked = play(
        PairedGate(screen=3), question(*update, n_examples=20), lambda _, i: float(i % 2)
    )
    assert all(trials.libraries[0] == INCUMBENT for trials in asked)
    for before, after in itertools.pairwise(asked):
        assert set(before.examples) < set(after.examples)
    assert sorted(asked[-1].examples) == list(range(20))


def test_a_candidate_that_was_measured_before_waits_for_the_incumbents_scores() -> None:
    evidence = question(Add("polite"), n_examples=4)
    measured = {evidence.proposed: dict.fromkeys(range(4), 1.0)}
    answer = PairedGate().next(replace(evidence, scores=measured))
    assert isinstance(answer, Trials)
    assert answer.libraries[0] == INCUMBENT
    assert sorted(answer.examples) == [0, 1, 2, 3]


def test_another_update_is_screened_on_other_examples() -> None:
    first = [
        PairedGate().next(question(Add("polite"), n_examples=100, update=update))
        for update in (0, 1)
    ]
    drawn = [trials.examples for trials in first if isinstance(trials, Trials)]
    assert [len(examples) for examples in drawn] == [10, 10]
    assert set(drawn[0]) != set(drawn[1])


def test_a_screen_without_examples_or_a_negative_number_of_singles_is_refused() -> None:
    with pytest.raises(ValueError, match="screen=0: the first round takes at least 1 example"):
        PairedGate(screen=0)
    with pytest.raises(ValueError, match="max_singles=-1: pass 0 or more"):
        PairedGate(max_singles=-1)


# ---------------------------------------------------------------------- for all score tables

QUARTERS = st.one_of(st.none(), st.integers(0, 4).map(lambda n: n / 4))


@st.composite
def races(draw: st.DrawFn) -> tuple[PairedGate, TrialEvidence, ScoreOf]:
    """A gate, a question with up to 4 operations, and scores in quarters, or None."""
    n_examples = draw(st.integers(1, 12))
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    gate = PairedGate(screen=draw(st.integers(1, 6)), max_singles=draw(st.integers(0, 3)))
    rows: dict[ExperienceLibrary, list[float | None]] = {}
    scores = st.lists(QUARTERS, min_size=n_examples, max_size=n_examples)

    def score_of(library: ExperienceLibrary, example: int) -> float | None:
        if library not in rows:
            rows[library] = draw(scores)
        return rows[library][example]

    update = draw(st.integers(0, 3))
    return gate, question(*map(Add, names), n_examples=n_examples, update=update), score_of


@given(races())
@settings(max_examples=150)
def test_it_always_ends_and_accepts_only_what_gains_on_the_whole_set(
    race: tuple[PairedGate, TrialEvidence, ScoreOf],
) -> None:
    gate, evidence, score_of = race
    decision, asked = play(gate, evidence, score_of)
    if decision.library != INCUMBENT:
        assert set(asked[-1].examples) == set(range(evidence.n_examples))
        assert decision.library in asked[-1].libraries
        pairs = [
            (score_of(decision.library, i), score_of(INCUMBENT, i))
            for i in range(evidence.n_examples)
        ]
        assert sum(new - old for new, old in pairs if new is not None and old is not None) > 0


@given(races())
@settings(max_examples=100)
def test_it_never_asks_for_trials_that_it_has_all_the_scores_of(
    race: tuple[PairedGate, TrialEvidence, ScoreOf],
) -> None:
    gate, evidence, score_of = race
    _, asked = play(gate, evidence, score_of)
    have: set[tuple[ExperienceLibrary, int]] = set()
    for trials in asked:
        wanted = {(library, i) for library in trials.libraries for i in trials.examples}
        assert wanted - have
        have |= wanted


@given(races())
@settings(max_examples=100)
def test_the_same_evidence_gives_the_same_answer_whatever_the_gate_was_asked_before(
    race: tuple[PairedGate, TrialEvidence, ScoreOf],
) -> None:
    gate, evidence, score_of = race
    decision, asked = play(gate, evidence, score_of)
    again, asked_again = play(gate, evidence, score_of)
    assert (decision, asked) == (again, asked_again)

    measured: dict[ExperienceLibrary, dict[int, float | None]] = {}
    for trials in asked:
        for library in trials.libraries:
            measured.setdefault(library, {}).update(
                {i: score_of(library, i) for i in trials.examples}
            )
    reversed_scores = {
        library: dict(reversed(known.items())) for library, known in reversed(measured.items())
    }
    fresh = PairedGate(screen=gate.screen, max_singles=gate.max_singles)
    assert fresh.next(replace(evidence, scores=reversed_scores)) == decision


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
    seen: list[Mapping[ExperienceLibrary, Mapping[int, float | None]]] = field(default_factory=list)

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        self.seen.append(evidence.scores)
        first = range(3)
        if not evidence.has_tried(evidence.proposed, first):
            return Trials((evidence.incumbent, evidence.proposed), tuple(first))
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
    student = dict.fromkeys(range(6), 0.25)  # measured before the first update
    assert [list(scores.values()) for scores in gate.seen] == [
        [student],
        [student, {0: 0.75, 1: 0.75, 2: 0.75}],
    ]


def test_a_library_that_the_users_gate_refused_is_not_returned_after_all() -> None:
    @dataclass
    class Refusing(DemandingGate):
        def next(self, evidence: TrialEvidence) -> Trials | Decision:
            every = tuple(range(evidence.n_examples))
            if not evidence.has_tried(evidence.proposed, every):
                return Trials((evidence.incumbent, evidence.proposed), every)
            return Decision(evidence.incumbent, "a person said no")

    optimized = run(Refusing(least=1.0))
    assert list(ExperienceLibrary.from_program(optimized)) == []
    assert optimized.detailed_results.updates[0].reason == "a person said no"


def test_a_gate_with_a_metric_of_its_own_measures_where_the_optimizer_has_none() -> None:
    optimized = run(PairedGate(metric=number_metric, min_errors=0.0), metric=None)
    results = optimized.detailed_results
    assert (results.student.mean, results.best.mean) == (0.25, 0.75)
    assert results.updates[0].groups[0].used_as == "no ground truth"
    assert ExperienceLibrary.from_program(optimized).render() == "[E1*] Say please."


def test_the_gates_own_metric_wins_over_the_optimizers_for_trials_only() -> None:
    def reversed_metric(_: dspy.Example, pred: dspy.Prediction) -> float:
        return -float(pred.answer)

    results = run(PairedGate(metric=reversed_metric)).detailed_results
    assert results.student.mean == -0.25
    assert results.updates[0].reason == "behind after 6 examples"
    assert set(results.updates[0].groups[0].scores) <= {0.0, 1.0}


class Answering:
    """A gate that gives one answer, whatever the evidence."""

    def __init__(self, answer: Callable[[TrialEvidence], Any]) -> None:
        self.answer = answer

    def next(self, evidence: TrialEvidence) -> Any:
        return self.answer(evidence)


def test_a_gate_that_asks_again_for_what_it_has_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(GateError, match="asks again for trials that it has the scores of"):
        run(Answering(lambda evidence: Trials((evidence.incumbent,), (0, 1))))


def test_a_gate_that_asks_for_nothing_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(GateError, match="asks again for trials that it has the scores of"):
        run(Answering(lambda _: Trials((), (0, 1))))


@pytest.mark.parametrize("answer", [None, True, "accept"], ids=str)
def test_a_gate_that_answers_neither_trials_nor_a_decision_is_an_error(answer: object) -> None:
    with pytest.raises(GateError, match=rf"answered {answer!r}; return Trials or a Decision"):
        run(Answering(lambda _: answer))


def test_a_decision_that_holds_no_library_is_an_error() -> None:
    with pytest.raises(GateError, match="True"):
        run(Answering(lambda _: Decision(True, "accepted")))  # type: ignore[arg-type]


@pytest.mark.parametrize("example", [6, -1])
def test_trials_on_an_example_that_does_not_exist_are_an_error(example: int) -> None:
    with pytest.raises(GateError, match=rf"asks for trials on examples \[{example}\]"):
        run(Answering(lambda evidence: Trials((evidence.proposed,), (example,))))
