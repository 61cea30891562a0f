"""AutoGate: each operation goes to the gate that can tell what it is worth."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy import Evidence, Experience, ExperienceLibrary
from tfgrpo_dspy.experience import Add, Delete, Keep, Limits, Modify, Operation
from tfgrpo_dspy.gate import (
    AutoGate,
    Decision,
    FactorialGate,
    GroupEvidence,
    GroupPlan,
    ProbeThenTrial,
    Trial,
    TrialEvidence,
    Trials,
    TrialThenConfirm,
)

N_TRAINING, N_VALIDATION = 12, 40
SLATE = "When a case is of kind slate, answer T08."
EXACT = "Be exact."
CONCERNED = frozenset({0, 3, 6, 9})


def group(example: int, *scores: float) -> GroupEvidence:
    return GroupEvidence(example, (ExperienceLibrary(),) * len(scores), scores)


def drawn_from(example: int, *scores: float, update: int = 0) -> tuple[Evidence, ...]:
    return (Evidence(update, example, tuple(range(len(scores))), scores),)


def evidence_of(
    operations: Sequence[Operation],
    incumbent: ExperienceLibrary | None = None,
    concerned: Sequence[str] = (SLATE,),
    **others: Any,
) -> TrialEvidence:
    """Evidence as the pipeline makes it; the texts of `concerned` concern some examples."""
    evidence = TrialEvidence(
        incumbent=ExperienceLibrary() if incumbent is None else incumbent,
        operations=tuple(operations),
        n_examples=N_VALIDATION,
        update=0,
        n_updates=12,
        n_training=N_TRAINING,
        groups=(group(0, 0.0, 1.0, 0.0, 0.0), group(1, 1.0, 0.0, 0.0, 0.0)),
    )
    evidence = replace(evidence, **others)
    known = {own.id: own for own in evidence.incumbent} | {o.id: o for o in evidence.proposed}
    concerns = {id_: CONCERNED for id_, own in known.items() if own.text in concerned}
    return replace(evidence, concerns=concerns)


Scorer = Callable[[Trial], float | None]


def decided(
    gate: AutoGate, evidence: TrialEvidence, score: Scorer
) -> tuple[Decision, list[tuple[Trial, ...]]]:
    """The decision, and what was asked for until then; everything is answered by `score`."""
    asked: list[tuple[Trial, ...]] = []
    while True:
        answer = gate.next(evidence)
        if isinstance(answer, Decision):
            return answer, asked
        new = tuple(trial for trial in answer.trials if trial not in evidence.scores)
        assert new, "the gate asks for what it knows"
        asked.append(new)
        scores = {trial: score(trial) for trial in new}
        evidence = replace(evidence, scores={**evidence.scores, **scores})


def by_texts(**gains: float) -> Scorer:
    """0 or 1; each text that a library holds moves the chance by its gain."""
    texts = {"slate": SLATE, "exact": EXACT, "kind": "Be kind."}

    def score(trial: Trial) -> float:
        held = {own.text for own in trial.library}
        chance = 0.3 + sum(gain for name, gain in gains.items() if texts[name] in held)
        luck = random.Random(f"{trial.on}/{trial.example}/{trial.index}").random()
        return float(luck < chance)

    return score


def texts(library: ExperienceLibrary | None) -> list[str]:
    return [own.text for own in library or ()]


NARROW = Add(SLATE, evidence=drawn_from(0, 0.0, 1.0, 0.0, 0.0))
BROAD = Add(EXACT, evidence=drawn_from(1, 1.0, 0.0, 0.0, 0.0))


# ---------------------------------------------------------------------- who decides what


def test_a_lesson_that_concerns_some_examples_is_tried_on_training_examples_only() -> None:
    _, asked = decided(AutoGate(), evidence_of([NARROW]), by_texts(slate=0.6))
    assert {trial.on for trials in asked for trial in trials} == {"training"}
    assert {trial.example for trials in asked for trial in trials} <= CONCERNED | {0}


def later(gate: AutoGate, before: Decision, score: Scorer, update: int = 1) -> TrialEvidence:
    """Evidence of the update after, without an operation: groups of all training examples."""

    def made(example: int) -> GroupEvidence:
        own = tuple(e for e in before.library if e.text == SLATE and example in CONCERNED)
        libraries = gate.assign(GroupPlan(before.library, example, update, 4, own, before.memory))
        trials = (Trial(library, example, i, "training") for i, library in enumerate(libraries))
        return GroupEvidence(example, libraries, tuple(map(score, trials)))

    return evidence_of(
        [], before.library, memory=before.memory, update=update,
        groups=tuple(map(made, range(N_TRAINING))),
    )  # fmt: skip


def test_a_lesson_of_which_nobody_knows_whom_it_concerns_is_on_trial_and_nobody_is_given_it() -> (
    None
):
    decision, asked = decided(AutoGate(), evidence_of([BROAD]), by_texts(exact=0.6))
    assert asked == []
    assert [(own.text, own.is_on_trial) for own in decision.library] == [(EXACT, True)]
    assert texts(decision.exported) == []


def test_once_groups_show_that_it_helps_it_is_tried_on_the_validation_set() -> None:
    gate, score = AutoGate(), by_texts(exact=0.6)
    before, _ = decided(gate, evidence_of([BROAD]), score)
    decision, asked = decided(gate, later(gate, before, score), score)
    assert {trial.example for ts in asked for trial in ts if trial.on == "validation"}
    assert texts(decision.library) == texts(decision.exported) == [EXACT]
    assert not decision.library["E1"].is_on_trial


def test_of_both_kinds_each_is_tried_where_it_belongs_and_the_others_are_left_as_they_are() -> None:
    gate, score = AutoGate(), by_texts(slate=0.6, exact=0.6)
    first, asked_first = decided(gate, evidence_of([NARROW, BROAD]), score)
    assert {own.text: own.is_on_trial for own in first.library} == {EXACT: True, SLATE: True}
    decision, asked = decided(gate, later(gate, first, score), score)
    held = [
        {(t.on, text) for trials in each for t in trials for text in texts(t.library)}
        for each in (asked_first, asked)
    ]
    assert held[0] == {("training", SLATE)}  # its probe
    assert held[1] == {("training", EXACT), ("validation", EXACT)}  # extra pairs, then the test
    assert not decision.library["E1"].is_on_trial
    assert decision.library["E1"].text == EXACT


def test_in_a_group_each_part_gives_its_own_to_whom_it_wants_to() -> None:
    """What is broad to half of every group, what is narrow to half of those that it concerns."""
    gate = AutoGate()
    decision, _ = decided(gate, evidence_of([NARROW, BROAD]), by_texts(slate=0.6))
    n_held = {
        shown.example: {
            text: sum(text in texts(library) for library in shown.libraries)
            for text in (SLATE, EXACT)
        }
        for shown in later(gate, decision, by_texts()).groups
    }
    assert {counts[EXACT] for counts in n_held.values()} == {2}
    assert {example for example, counts in n_held.items() if counts[SLATE] == 2} == CONCERNED


def test_a_harmful_lesson_of_either_kind_is_dropped_and_its_id_says_why() -> None:
    gate, score = AutoGate(), by_texts(slate=-0.3, exact=-0.3)
    first, _ = decided(gate, evidence_of([NARROW, BROAD]), score)
    assert texts(first.exported) == []
    last, asked = decided(gate, later(gate, first, score), score)
    assert {trial.on for trials in asked for trial in trials} == {"training"}
    assert texts(last.library) == texts(last.exported) == []
    assert first.dropped.keys() | last.dropped.keys() == {"E1", "E2"}
    assert all([*first.dropped.values(), *last.dropped.values()])


def test_what_is_on_trial_stays_with_the_gate_that_has_it_on_trial() -> None:
    known = ExperienceLibrary([Experience("E4", SLATE, is_on_trial=True)])
    change = Modify("E4", "When a case is of kind slate, think.", evidence=NARROW.evidence)
    evidence = evidence_of([change], known, concerned=())
    _, asked = decided(AutoGate(), evidence, by_texts())
    assert {trial.on for trials in asked for trial in trials} == {"training"}


def test_a_delete_of_what_concerns_some_examples_puts_it_on_trial() -> None:
    known = ExperienceLibrary([Experience("E1", SLATE)])
    decision, asked = decided(AutoGate(), evidence_of([Delete("E1")], known), by_texts())
    assert [own.is_on_trial for own in decision.library] == [True]
    assert "E1 is on trial, not deleted at once" in decision.reason
    assert asked == []


@pytest.mark.parametrize("n_ahead", [0, 29])
def test_where_no_groups_are_left_advice_that_helps_is_settled_in_one_decision(
    n_ahead: int,
) -> None:
    decision, asked = decided(
        AutoGate(), evidence_of([BROAD], n_ahead=n_ahead, update=11), by_texts(exact=0.6)
    )
    assert {trial.on for trials in asked for trial in trials} == {"validation"}
    assert texts(decision.library) == texts(decision.exported) == [EXACT]
    assert not decision.library["E1"].is_on_trial
    assert 0 < decision.memory["broad"]["error_spent"] <= TrialThenConfirm().error


def test_at_the_end_what_was_on_trial_and_what_is_new_are_settled_in_one_decision() -> None:
    new = "Be kind."
    gate, score = AutoGate(), by_texts(exact=0.4, kind=0.3)
    before, _ = decided(gate, evidence_of([BROAD]), score)
    evidence = replace(later(gate, before, score), operations=(Add(new),), n_ahead=0)
    decision, _ = decided(gate, evidence, score)
    assert texts(decision.library) == texts(decision.exported) == [EXACT, new]
    assert not any(own.is_on_trial for own in decision.library)
    assert decision.memory["broad"]["tried"] == {}


def test_nothing_to_decide_is_decided_at_once() -> None:
    known = ExperienceLibrary([Experience("E1", SLATE), Experience("E3", EXACT)], next_number=7)
    decision, asked = decided(AutoGate(), evidence_of([], known), by_texts())
    assert asked == []
    assert decision.library == decision.exported == known
    assert dict(decision.dropped) == {}


# ---------------------------------------------------------------------- ids


@pytest.mark.parametrize("operations", [[NARROW, BROAD], [BROAD, NARROW]], ids=["first", "last"])
@pytest.mark.parametrize("gain", [0.6, -0.3])
@pytest.mark.parametrize("broad", [TrialThenConfirm(), FactorialGate()], ids=["in use", "at once"])
def test_no_id_is_tried_with_two_texts(
    operations: list[Operation], gain: float, broad: Any
) -> None:
    gate = AutoGate(broad)
    decision, asked = decided(gate, evidence_of(operations), by_texts(slate=0.6, exact=gain))
    shown = {own for trials in asked for trial in trials for own in trial.library}
    shown |= set(decision.library)
    assert len({own.id for own in shown}) == len({own.text for own in shown}) == 2
    assert decision.library.next_number == 3


def test_a_lesson_is_tried_where_it_concerns_whatever_id_it_comes_to_have() -> None:
    """Proposed it is E1; behind what the other gate has tried it is E2, and still concerns."""
    gate, score = AutoGate(broad=FactorialGate()), by_texts(slate=0.6, exact=-0.3)
    decision, _ = decided(gate, evidence_of([NARROW, BROAD]), score)
    (left,) = decision.library
    assert (left.id, left.text, left.is_on_trial) == ("E2", SLATE, True)
    assert texts(decision.exported) == [SLATE]


# ---------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Counting:
    """A gate that lets everything stay and counts, in its memory, how often it decided."""

    told: list[Any] = field(default_factory=list)
    metric: Any = None

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        self.told.append(evidence.memory)
        return Decision(evidence.proposed, "counted", memory=(evidence.memory or 0) + 1)


def test_each_part_is_told_what_it_left_also_over_an_update_without_work_for_it() -> None:
    broad = Counting()
    gate, library, memory = AutoGate(broad=broad), ExperienceLibrary(), None
    for update, operation in enumerate([BROAD, NARROW, Add("Be brief.")]):
        evidence = evidence_of([operation], library, update=update, memory=memory)
        decision, _ = decided(gate, evidence, by_texts(slate=0.6))
        library, memory = decision.library, decision.memory
    assert broad.told == [None, 1]
    assert [own.text for own in library if own.is_on_trial] == [SLATE]
    assert [r["text"] for r in memory["narrow"]["records"].values()] == [SLATE]  # type: ignore[index]


def test_groups_that_show_it_settle_what_an_update_before_put_on_trial() -> None:
    gate = AutoGate()
    first, _ = decided(gate, evidence_of([NARROW]), by_texts(slate=0.6))
    library, memory = first.library, first.memory
    without = ExperienceLibrary(next_number=library.next_number)
    for update, example in enumerate((3, 6, 9), start=1):
        shown = GroupEvidence(example, (library, without, library, without), (1.0, 0.0, 1.0, 0.0))
        evidence = evidence_of([], library, update=update, memory=memory, groups=(shown,))
        decision, asked = decided(gate, evidence, by_texts())
        assert asked == []
        library, memory = decision.library, decision.memory
    (settled,) = library
    assert not settled.is_on_trial
    assert settled.effect is not None
    assert settled.effect.estimate > 0


def test_trials_of_a_library_that_the_other_gate_has_changed_since_are_not_counted_on() -> None:
    """The next decision would take more than `max_trials` otherwise: they must be made again."""
    scores = by_texts(slate=0.6)
    gate = AutoGate(broad=FactorialGate())
    alone, _ = decided(gate, evidence_of([BROAD]), scores)
    assert texts(alone.library) == []
    assert alone.memory["broad"].n_known > 0
    changed, _ = decided(gate, evidence_of([NARROW, BROAD]), scores)
    assert texts(changed.library) == [SLATE]
    assert changed.memory["broad"].n_known == 0
    assert changed.memory["broad"].error_spent == alone.memory["broad"].error_spent


# ---------------------------------------------------------------------- room


def test_what_is_to_be_deleted_and_on_trial_leaves_the_other_part_no_more_room_than_there_is() -> (
    None
):
    known = ExperienceLibrary([Experience("E1", EXACT)])
    decision, _ = decided(
        AutoGate(), evidence_of([Delete("E1"), NARROW], known, limits=Limits(1, 40)), by_texts()
    )
    assert texts(decision.library) == texts(decision.exported) == [EXACT]
    assert decision.library["E1"].is_on_trial
    assert "an operation is left out: the library is full" in decision.reason


def test_an_add_whose_room_an_experience_on_trial_must_make_is_decided_with_it() -> None:
    known = ExperienceLibrary(
        [Experience("E1", SLATE, is_on_trial=True), Experience("E2", "Be kind.")]
    )
    evidence = evidence_of([Delete("E1"), BROAD], known, limits=Limits(2, 40))
    decision, asked = decided(AutoGate(), evidence, by_texts(exact=0.6))
    assert len(decision.library) <= 2
    assert {trial.on for trials in asked for trial in trials} <= {"training"}


# ---------------------------------------------------------------------- for all


LESSONS = [f"When a case is of kind {kind}, answer {kind[0]}." for kind in ("slate", "amber")]
TEXTS = [*LESSONS, "Be exact.", "Be brief.", "Check twice."]


@st.composite
def updates(draw: st.DrawFn, library: ExperienceLibrary, limits: Limits) -> list[Operation]:
    """Operations that the library takes all together."""
    ids = [own.id for own in library]
    sources = st.sampled_from([(), drawn_from(0, 0.0, 1.0), drawn_from(5, 0.5, 0.5, 0.5)])
    kinds = [st.builds(Add, st.sampled_from(TEXTS), evidence=sources)]
    if ids:
        of_ids = st.sampled_from(ids)
        kinds += [
            st.builds(Delete, of_ids),
            st.builds(Keep, of_ids, evidence=sources),
            st.builds(Modify, of_ids, st.sampled_from(TEXTS), evidence=sources),
        ]
    given_ = draw(st.lists(st.one_of(kinds), max_size=5))
    refused = {refusal.operation for refusal in library.refusals(given_, limits)}
    taken = [operation for operation in given_ if operation not in refused]
    return [] if library.refusals(taken, limits) else taken


@given(st.data(), st.integers(0, 10**6), st.sampled_from([1, 3, 30]))
@settings(max_examples=20, deadline=None)
@pytest.mark.timeout(120)
def test_whatever_it_is_asked_it_ends_within_its_limits_and_exports_a_part_of_its_library(
    data: st.DataObject, luck: int, room: int
) -> None:
    def score(trial: Trial) -> float | None:
        draw = random.Random(f"{luck}/{trial.library!r}/{trial.on}/{trial.example}/{trial.index}")
        return draw.choice([0.0, 1.0, 0.5, None])

    limits, broad, narrow = Limits(room, 40), FactorialGate(max_trials=60), ProbeThenTrial()
    gate = AutoGate(broad, narrow)
    library, memory = ExperienceLibrary(), None
    known: dict[Trial, float | None] = {}
    for update in range(3):
        operations = data.draw(updates(library, limits))
        groups = (group(0, 0.0, 1.0), group(update + 1, 1.0, 0.0))
        evidence = evidence_of(
            operations, library, LESSONS,
            limits=limits, update=update, memory=memory, groups=groups, scores=known,
        )  # fmt: skip
        decision, asked = decided(gate, evidence, score)
        known |= {trial: score(trial) for trials in asked for trial in trials}
        n_asked = {
            on: sum(trial.on == on for trials in asked for trial in trials)
            for on in ("validation", "training")
        }
        assert n_asked["validation"] <= broad.max_trials
        most = max(narrow.probe.max_rollouts, narrow.probe_only.max_rollouts)
        assert n_asked["training"] <= most * len(operations)
        assert decision.exported is not None
        assert len(decision.library) <= room
        assert [own for own in decision.library if own in set(decision.exported)] == [
            *decision.exported
        ]
        assert not {own.id for own in decision.library} & set(decision.dropped)
        assert decision.library.next_number >= library.next_number
        library, memory = decision.library, decision.memory


# ---------------------------------------------------------------------- updates without groups


def drafted(*operations: Operation, **others: Any) -> TrialEvidence:
    """An update that comes from labels: no groups, no rollouts behind its lessons."""
    return evidence_of(operations, groups=(), **others)


GREEN = "When a case is of kind green, answer T09."
BOTH = (Add(SLATE), Add(GREEN))


def test_lessons_without_a_group_are_tried_together_and_on_the_validation_set() -> None:
    _, asked = decided(AutoGate(), drafted(*BOTH), by_texts(slate=0.6))
    held = {tuple(texts(trial.library)) for trials in asked for trial in trials}
    assert held == {(), (SLATE, GREEN)}
    assert {trial.on for trials in asked for trial in trials} == {"validation"}


def test_what_is_accepted_together_is_in_use_and_on_trial_against_its_absence() -> None:
    gate, score = AutoGate(), by_texts(slate=0.6)
    decision, _ = decided(gate, drafted(*BOTH), score)
    assert texts(decision.exported) == [SLATE, GREEN]
    on_trial = {own.text: own.is_on_trial for own in decision.library}
    assert on_trial == {SLATE: True, GREEN: False}  # nobody knows whom GREEN concerns
    shown = later(gate, decision, score)
    counts = {
        group.example: sum(SLATE in texts(library) for library in group.libraries)
        for group in shown.groups
    }
    assert {example for example, n in counts.items() if n == 2} == CONCERNED


def test_one_of_those_accepted_together_that_harms_is_dropped_by_its_own_trial() -> None:
    gate, score = AutoGate(), by_texts(slate=0.6)
    decision, _ = decided(gate, drafted(*BOTH), score)
    harmful = by_texts(slate=-0.3)
    for update in (1, 2, 3):
        evidence = later(gate, decision, harmful, update)
        decision, _ = decided(gate, evidence, harmful)
    assert texts(decision.exported) == [GREEN]


def test_lessons_that_do_not_help_together_are_not_in_the_library() -> None:
    decision, _ = decided(AutoGate(), drafted(*BOTH), by_texts())
    assert texts(decision.library) == texts(decision.exported) == []
    assert set(decision.dropped) == {"E1", "E2"}


def test_advice_on_every_example_that_comes_without_a_group_is_on_trial_as_any_other() -> None:
    decision, _ = decided(AutoGate(), drafted(*BOTH, Add(EXACT)), by_texts(slate=0.6, exact=0.3))
    assert texts(decision.exported) == [SLATE, GREEN]
    assert {own.text for own in decision.library if own.is_on_trial} == {SLATE, EXACT}
    assert [own.id for own in decision.library] == ["E1", "E2", "E3"]


def test_a_new_text_that_is_accepted_together_is_not_tried_against_nothing() -> None:
    known = ExperienceLibrary([Experience("E1", "When it is green, answer T01.")])
    evidence = drafted(Modify("E1", SLATE), Add(GREEN), incumbent=known, concerned=(SLATE, GREEN))
    decision, _ = decided(AutoGate(), evidence, by_texts(slate=0.6))
    assert {own.text: own.is_on_trial for own in decision.library} == {SLATE: False, GREEN: True}


def test_a_lesson_that_needs_the_room_of_a_delete_is_not_tried_together_with_others() -> None:
    known = ExperienceLibrary([Experience("E1", EXACT), Experience("E2", "Be kind.")])
    evidence = drafted(Delete("E1"), Add(SLATE), incumbent=known, limits=Limits(2, 40))
    decision, _ = decided(AutoGate(), evidence, by_texts(slate=0.6))
    assert len(decision.library) <= 2
    assert len(decision.exported or ()) <= 2


def test_what_is_tried_together_is_taken_from_the_allowance_of_the_rest() -> None:
    evidence = drafted(*BOTH, Add(EXACT), max_trials=20, n_ahead=0)
    _, asked = decided(AutoGate(), evidence, by_texts(slate=0.6, exact=0.3))
    assert sum(map(len, asked)) <= 20


def test_lessons_that_come_together_take_no_error_from_later_updates() -> None:
    decision, _ = decided(AutoGate(), drafted(*BOTH), by_texts())
    assert decision.memory["broad"] is None


@given(st.lists(st.sampled_from([SLATE, GREEN, EXACT, "Be kind."]), unique=True, min_size=1),
       st.floats(-0.3, 0.6), st.floats(-0.3, 0.6))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_whatever_comes_without_a_group_what_is_exported_is_part_of_the_library(
    said: list[str], slate: float, exact: float
) -> None:
    evidence = drafted(*map(Add, said))
    decision, asked = decided(AutoGate(), evidence, by_texts(slate=slate, exact=exact))
    exported = list(decision.exported or ())
    assert {own.content for own in exported} <= {own.content for own in decision.library}
    assert len({own.id for own in decision.library}) == len(decision.library)
    assert not {own.id for own in decision.library} & set(decision.dropped)
    assert set(texts(decision.library)) <= set(said)
    assert sum(map(len, asked)) <= 2 * 20
