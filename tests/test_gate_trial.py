"""'Probe, then trial': what it probes, who is given what, what is settled, dropped, exported."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.experience import (
    Add,
    Delete,
    Evidence,
    Experience,
    ExperienceLibrary,
    Keep,
    Limits,
    Modify,
    Operation,
)
from tfgrpo_dspy.gate import (
    Decision,
    GroupEvidence,
    GroupPlan,
    Probe,
    ProbeThenTrial,
    Trial,
    TrialEvidence,
    TrialRule,
    Trials,
)
from tfgrpo_dspy.gate.posterior import Beliefs

OLD = ExperienceLibrary([Experience("E1", "Be brief.")])
ScoreOf = Callable[[Trial], float | None]


def source(example: int = 0, update: int = 0, scores: Sequence[float | None] = (1, 0, 0, 0, 0)):
    """A group that a lesson was drawn from."""
    return Evidence(update, example, (), tuple(scores))


def add(text: str = "polite", *sources: Evidence) -> Add:
    return Add(text, evidence=sources or (source(),))


def asked(
    *operations: Operation,
    library: ExperienceLibrary = OLD,
    concerns: Any = "all",
    **known: Any,
) -> TrialEvidence:
    """What the gate is asked; every experience is thought to concern the examples 0 to 5."""
    update = known.pop("update", 0)
    evidence = TrialEvidence(library, operations, 4, update, n_training=20, **known)
    if concerns == "all":
        concerns = {own.id: frozenset(range(6)) for own in (*library, *evidence.proposed)}
    return replace(evidence, concerns=concerns)


def play(
    evidence: TrialEvidence, score_of: ScoreOf, gate: ProbeThenTrial | None = None
) -> tuple[Decision, list[Trial]]:
    """The decision, and the trials in the order in which they were asked for."""
    tried: list[Trial] = []
    for _ in range(100):
        answer = (gate or ProbeThenTrial()).next(evidence)
        if isinstance(answer, Decision):
            return answer, tried
        new = {trial: score_of(trial) for trial in answer.trials}
        assert not new.keys() & evidence.scores.keys()
        tried += answer.trials
        evidence = replace(evidence, scores={**evidence.scores, **new})
    raise AssertionError(f"no decision from {evidence}")


def by_text(**scores: float | None) -> ScoreOf:
    """A trial's score by the text of the last experience of its library."""
    return lambda trial: scores[list(trial.library)[-1].text]


def group(library: ExperienceLibrary, example: int, id_: str, held: int, *scores: float | None):
    """A training group of which the first rollouts held the experience."""
    rest = ExperienceLibrary([own for own in library if own.id != id_])
    libraries = [library] * held + [rest] * (len(scores) - held)
    return GroupEvidence(example, tuple(libraries), tuple(scores))


def on_trial(update: int = 0, **how: Any) -> Decision:
    """An experience E2 on trial, drawn from example 0."""
    decision, _ = play(asked(add(), update=update, **how), by_text(polite=1.0))
    assert decision.library["E2"].is_on_trial
    return decision


def later(before: Decision, *operations: Operation, update: int = 1, **known: Any) -> TrialEvidence:
    """What the gate is asked at the next update."""
    return asked(*operations, library=before.library, memory=before.memory, update=update, **known)


# ---------------------------------------------------------------------- the probe


def test_a_candidate_is_probed_on_its_source_example_and_one_success_puts_it_on_trial() -> None:
    decision, tried = play(asked(add()), by_text(polite=1.0))
    assert [(t.example, t.on, [own.text for own in t.library]) for t in tried] == [
        (0, "training", ["Be brief.", "polite"])
    ]
    assert decision.library["E2"].is_on_trial
    assert not decision.library["E1"].is_on_trial
    assert decision.reason == "1 settled, 1 on trial"


def test_two_failures_where_three_of_five_succeeded_drop_a_candidate_with_the_reason() -> None:
    candidate = add("rude", source(scores=(1, 1, 1, 0, 0)))
    decision, tried = play(asked(candidate), by_text(rude=0.0))
    assert len(tried) == 2
    assert [own.id for own in decision.library] == ["E1"]
    assert decision.dropped == {
        "E2": "P(helps) 0.15 after 2 rollouts of its source examples",
    }


def test_two_sources_are_probed_in_turns_and_more_are_not() -> None:
    gate = ProbeThenTrial(probe=Probe(0.99, 0.01, 0.5, max_rollouts=4))
    candidate = add("polite", source(3), source(5), source(7))
    _, tried = play(asked(candidate), by_text(polite=1.0), gate)
    assert [(t.example, t.index) for t in tried] == [(3, 0), (5, 0), (3, 1), (5, 1)]


def test_all_candidates_are_probed_at_once() -> None:
    answer = ProbeThenTrial().next(asked(add("polite"), add("kind"), add("warm")))
    assert isinstance(answer, Trials)
    assert [list(trial.library)[-1].text for trial in answer.trials] == ["polite", "kind", "warm"]
    assert all(len(trial.library) == 2 for trial in answer.trials)


def test_another_update_probes_with_fresh_samples() -> None:
    first, second = (play(asked(add(), update=u), by_text(polite=0.0))[1] for u in (0, 1))
    assert not {t.index for t in first} & {t.index for t in second}


def test_a_probe_is_else_like_the_rollouts_of_its_group_and_so_compares_like_with_like() -> None:
    bare = ExperienceLibrary(next_number=2)
    made = GroupEvidence(0, (bare, OLD), (0.0, 1.0))
    gate = ProbeThenTrial(probe=Probe(0.99, 0.01, 0.5, max_rollouts=2))
    candidate = add("polite", source(scores=(0, 1)))
    _, tried = play(asked(candidate, groups=(made,)), by_text(polite=1.0), gate)
    held = [[own.text for own in trial.library] for trial in tried]
    assert held == [["polite"], ["Be brief.", "polite"]]


def test_a_probe_without_scores_ends_and_leaves_the_candidate_unmeasured() -> None:
    decision, tried = play(asked(add()), by_text(polite=None))
    assert len(tried) == 2
    assert decision.library["E2"].is_on_trial
    decision, _ = play(asked(add(), concerns=None), by_text(polite=None))
    assert "E2" in decision.dropped


def test_an_update_without_candidates_needs_no_trials() -> None:
    decision, tried = play(asked(Keep("E1", evidence=(source(),))), by_text())
    assert (list(decision.library), tried) == (list(OLD), [])
    assert decision.library["E1"].evidence == (source(),)
    assert decision.exported == decision.library


# ---------------------------------------------------------------------- the trial


def test_wins_in_a_group_that_it_concerns_settle_an_experience() -> None:
    before = on_trial()
    won = group(before.library, 1, "E2", 2, 1.0, 1.0, 0.0, 0.0)
    decision, _ = play(later(before, groups=(won,)), by_text())
    assert not decision.library["E2"].is_on_trial
    effect = decision.library["E2"].effect
    assert effect is not None
    assert effect.estimate > 0.3
    assert effect.n_rollouts == 4  # the source's do not count: they were chosen


def test_losses_in_groups_that_it_concerns_drop_it_and_it_is_gone_from_memory() -> None:
    before = on_trial()
    lost = [group(before.library, i, "E2", 2, 0.0, 0.0, 1.0, 1.0) for i in (1, 2)]
    decision, _ = play(later(before, groups=tuple(lost)), by_text())
    assert [own.id for own in decision.library] == ["E1"]
    assert decision.dropped["E2"].startswith("P(helps) 0.")
    assert decision.dropped["E2"].endswith("8 of them not of its sources")
    assert decision.memory["records"] == {}


@given(st.integers(1, 8), st.lists(st.integers(2, 20), max_size=5), st.sampled_from([0.0, 0.2]))
@settings(max_examples=50)
def test_a_lesson_that_only_wins_on_its_own_source_is_never_settled(
    n_sources: int, sizes: list[int], leak: float
) -> None:
    gate = ProbeThenTrial(beliefs=Beliefs(leak=leak))
    candidate = add("polite", *(source(i) for i in range(n_sources)))
    before, _ = play(asked(candidate), by_text(polite=1.0), gate)
    groups = [
        group(before.library, i % n_sources, "E2", size, *[1.0] * size, *[0.0] * size)
        for i, size in enumerate(sizes)
    ]
    decision, _ = play(later(before, groups=tuple(groups)), by_text(), gate)
    assert decision.library["E2"].is_on_trial


def test_after_three_epochs_without_other_evidence_it_is_dropped() -> None:
    decision = on_trial()
    bare = tuple(GroupEvidence(i, (OLD,) * 2, (0.0, 1.0)) for i in range(10, 15))
    for update in range(1, 13):
        assert "E2" in {own.id for own in decision.library}
        decision, _ = play(later(decision, update=update, groups=bare), by_text())
    assert "E2" in decision.dropped
    assert decision.dropped["E2"].endswith("0 of them not of its sources")


def test_one_that_does_nothing_is_dropped_in_the_end() -> None:
    decision = on_trial()
    for update in range(1, 21):
        if "E2" in decision.dropped:
            break
        even = group(decision.library, 1 + update % 5, "E2", 2, 1.0, 0.0, 1.0, 0.0)
        decision, _ = play(later(decision, groups=(even,), update=update), by_text())
    assert "E2" in decision.dropped


@pytest.mark.parametrize(("held", "is_settled"), [((1.0, 1.0), True), ((1.0, 0.0), False)])
def test_after_three_epochs_it_stays_only_if_examples_outside_its_sources_speak_for_it(
    held: tuple[float, float], is_settled: bool
) -> None:
    before, _ = play(asked(add("polite", source(scores=(1, 1, 0, 0)))), by_text(polite=1.0))
    shown = group(before.library, 1, "E2", 2, *held, 1.0, 0.0, 0.0)
    bare = tuple(GroupEvidence(i, (OLD,) * 2, (0.0, 1.0)) for i in range(58))
    after, _ = play(later(before, groups=(shown, *bare)), by_text())
    assert after.library["E2"].is_on_trial
    last, _ = play(later(after, groups=bare[:1], update=2), by_text())
    assert [own.id for own in last.library if not own.is_on_trial][1:] == ["E2"] * is_settled
    assert ("E2" in last.dropped) is not is_settled


def test_another_group_that_supports_it_is_probed_and_that_may_settle_it() -> None:
    before = on_trial()
    bare = ExperienceLibrary([own for own in before.library if own.id != "E2"])
    supporting = GroupEvidence(4, (bare,) * 5, (0.0, 1.0, 0.0, 0.0, 0.0))
    keep = Keep("E2", evidence=(source(4, 1, supporting.scores),))
    question = later(before, keep, groups=(supporting,))
    decision, tried = play(question, by_text(polite=1.0))
    assert {trial.example for trial in tried} == {4}
    assert not decision.library["E2"].is_on_trial
    decision, tried = play(question, by_text(polite=0.0))
    assert len(tried) == 1
    assert "E2" in decision.dropped or decision.library["E2"].is_on_trial


def test_a_group_that_held_the_experience_is_no_control_for_it() -> None:
    before = on_trial()
    held = GroupEvidence(4, (before.library,) * 5, (0.0, 1.0, 0.0, 0.0, 0.0))
    keep = Keep("E2", evidence=(source(4, 1, held.scores),))
    _, tried = play(later(before, keep, groups=(held,)), by_text(polite=1.0))
    assert tried == []


def test_what_is_expected_to_help_is_exported_while_on_trial_and_the_rest_is_not() -> None:
    before, _ = play(asked(Add("polite")), by_text())  # nothing to probe it on
    assert before.exported is not None
    assert [own.id for own in before.exported] == ["E1", "E2"]
    lost = group(before.library, 1, "E2", 2, 1.0, 0.0, 1.0, 1.0)
    decision, _ = play(later(before, groups=(lost,)), by_text())
    assert decision.library["E2"].is_on_trial
    assert decision.exported is not None
    assert [own.id for own in decision.exported] == ["E1"]


# ---------------------------------------------------------------------- nobody knows


def test_without_any_concern_signal_the_probe_alone_settles_and_is_longer() -> None:
    decision, tried = play(asked(add(), concerns=None), by_text(polite=1.0))
    assert len(tried) > 1
    assert not decision.library["E2"].is_on_trial
    assert decision.library["E2"].effect is not None
    decision, tried = play(asked(add(), concerns=None), by_text(polite=0.0))
    assert "E2" in decision.dropped
    assert len(tried) <= 6


def test_a_candidate_with_nothing_to_probe_it_on_goes_on_trial_or_is_dropped() -> None:
    orphan = Add("polite")
    assert play(asked(orphan), by_text())[0].library["E2"].is_on_trial
    decision, _ = play(asked(orphan, concerns=None), by_text())
    assert decision.dropped == {"E2": "no scored group to probe it on"}


# ---------------------------------------------------------------------- MODIFY and DELETE


def test_a_new_text_that_fails_its_probe_leaves_the_old_one() -> None:
    change = Modify("E1", "Ramble.", evidence=(source(scores=(1, 1, 1, 0, 0)),))
    decision, _ = play(asked(change), lambda _: 0.0)
    assert decision.library == OLD
    assert not decision.library["E1"].is_on_trial
    assert decision.dropped == {}
    assert decision.reason.startswith("1 settled, 0 on trial; E1 keeps its text")


def test_a_new_text_on_trial_that_loses_gives_the_old_one_back() -> None:
    change = Modify("E1", "Be kind.", evidence=(source(),))
    before, _ = play(asked(change), lambda _: 1.0)
    assert (before.library["E1"].text, before.library["E1"].is_on_trial) == ("Be kind.", True)
    lost = [group(before.library, i, "E1", 2, 0.0, 0.0, 1.0, 1.0) for i in (1, 2)]
    decision, _ = play(later(before, groups=tuple(lost)), by_text())
    assert (decision.library["E1"].text, decision.library["E1"].is_on_trial) == ("Be brief.", False)
    assert before.library["E1"].effect is not None
    assert decision.library["E1"].effect is None  # that was the new one's
    assert decision.dropped == {}


def test_what_was_measured_of_another_text_does_not_count() -> None:
    before = on_trial()
    won = group(before.library, 1, "E2", 2, 1.0, 1.0, 0.0, 0.0)
    change = Modify("E2", "courteous", evidence=(source(0, 1),))
    decision, tried = play(later(before, change, groups=(won,)), by_text(courteous=1.0))
    assert tried
    assert decision.library["E2"].is_on_trial
    effect = decision.library["E2"].effect
    assert effect is not None
    assert effect.n_rollouts == 6  # one of the probe, and the five of its source's group


def test_a_delete_puts_a_settled_experience_on_trial_and_its_rollouts_decide() -> None:
    before, _ = play(asked(Delete("E1")), by_text())
    assert before.library["E1"].is_on_trial
    lost = [group(before.library, i, "E1", 2, 0.0, 0.0, 1.0, 1.0) for i in (1, 2)]
    decision, _ = play(later(before, groups=tuple(lost)), by_text())
    assert list(decision.library) == []
    assert decision.library.next_number == 2


def test_what_was_in_use_before_its_trial_is_in_use_until_it_is_dropped() -> None:
    before, _ = play(asked(Delete("E1")), by_text())
    lost = (group(before.library, 1, "E1", 1, 0.0, 1.0),)
    after, _ = play(later(before, groups=lost), by_text())
    assert after.library["E1"].is_on_trial
    assert after.library["E1"].effect is not None and after.library["E1"].effect.estimate < 0
    assert [own.id for own in after.exported or ()] == ["E1"]


def test_what_was_in_use_before_its_trial_stays_where_nothing_speaks_against_it() -> None:
    decision, _ = play(asked(Delete("E1")), by_text())
    bare = tuple(GroupEvidence(i, (OLD,) * 2, (0.0, 1.0)) for i in range(60))
    decision, _ = play(later(decision, groups=bare), by_text())
    assert [own.is_on_trial for own in decision.library] == [False]


def test_without_a_concern_signal_a_delete_takes_what_was_not_measured_only() -> None:
    decision, _ = play(asked(Delete("E1"), concerns=None), by_text())
    assert decision.dropped == {"E1": "deleted by an operation; it was not measured"}
    settled, _ = play(asked(add(), concerns=None), by_text(polite=1.0))
    decision, _ = play(later(settled, Delete("E2"), concerns=None), by_text())
    assert "E2" in {own.id for own in decision.library}


def test_deletes_make_room_in_a_full_library() -> None:
    question = asked(Delete("E1"), add(), limits=Limits(max_experiences=1))
    decision, _ = play(question, by_text(polite=1.0))
    assert [own.id for own in decision.library] == ["E2"]
    assert decision.dropped == {"E1": "deleted by an operation; the library is full"}


# ---------------------------------------------------------------------- who is given what

TRIED = ExperienceLibrary(
    [Experience("E1", "settled"), *(Experience(f"E{i}", f"{i}", is_on_trial=True) for i in (2, 3))]
)


@given(st.integers(1, 16), st.integers(0, 50), st.integers(0, 50), st.sampled_from([2, 3]))
def test_an_experience_on_trial_is_given_to_half_of_the_rollouts(
    n_rollouts: int, example: int, update: int, number: int
) -> None:
    plan = GroupPlan(TRIED, example, update, n_rollouts, (TRIED[f"E{number}"],))
    libraries = ProbeThenTrial().assign(plan)
    counts = Counter(own.id for library in libraries for own in library)
    assert len(libraries) == n_rollouts
    assert counts["E1"] == n_rollouts
    assert abs(2 * counts[f"E{number}"] - n_rollouts) <= 1
    assert counts[f"E{5 - number}"] == 0
    assert all(library.next_number == TRIED.next_number for library in libraries)
    assert libraries == ProbeThenTrial().assign(plan)


def test_halves_are_drawn_anew_for_each_experience_example_and_update() -> None:
    both = (TRIED["E2"], TRIED["E3"])

    def held(example: int, update: int) -> list[frozenset[str]]:
        plan = GroupPlan(TRIED, example, update, 4, both)
        return [frozenset(own.id for own in lib) for lib in ProbeThenTrial().assign(plan)]

    drawn = {tuple(held(example, update)) for example in range(5) for update in range(5)}
    assert len(drawn) > 10
    cells = Counter(cell for example in range(200) for cell in held(example, 0))
    assert all(150 < cells[frozenset(cell)] < 250 for cell in (["E1"], ["E1", "E2", "E3"]))


def n_given_elsewhere(library: ExperienceLibrary) -> int:
    """How many rollouts of a group that E2 does not concern are given it."""
    libraries = ProbeThenTrial().assign(GroupPlan(library, 9, 2, 4))
    return sum("E2" in {own.id for own in each} for each in libraries)


def test_elsewhere_an_experience_on_trial_is_given_as_long_as_it_seems_to_help() -> None:
    before = on_trial()
    assert n_given_elsewhere(before.library) == 4
    lost = group(before.library, 1, "E2", 2, 0.0, 0.0, 1.0, 1.0)
    after, _ = play(later(before, groups=(lost,)), by_text())
    assert after.library["E2"].is_on_trial
    assert n_given_elsewhere(after.library) == 0


@pytest.mark.parametrize("concerns", [{}, {"E2": frozenset([0])}])
def test_one_that_no_other_example_is_said_to_test_is_kept_from_the_groups_that_would(
    concerns: dict[str, frozenset[int]],
) -> None:
    before = on_trial(concerns=concerns)
    assert before.library["E2"].effect is None
    assert n_given_elsewhere(before.library) == 0


# ---------------------------------------------------------------------- what to reflect on


def test_groups_that_are_mostly_solved_teach_nothing() -> None:
    gate = ProbeThenTrial()
    assert gate.skips(GroupEvidence(0, (OLD,) * 4, (1.0, 1.0, 1.0, 0.0)), None) == (
        "solved by 3 of 4 rollouts"
    )
    assert gate.skips(GroupEvidence(0, (OLD,) * 4, (1.0, 1.0, 0.0, None)), None) == ""
    assert gate.skips(GroupEvidence(0, (OLD,) * 4, (0.9, 0.9, 0.9, 0.2)), None) == ""


def test_a_contrast_that_an_experience_on_trial_explains_teaches_nothing() -> None:
    before = on_trial()
    clear = group(before.library, 1, "E2", 2, 1.0, 1.0, 0.0, 0.0)
    reversed_ = group(before.library, 1, "E2", 2, 1.0, 0.0, 1.0, 0.0)
    assert ProbeThenTrial().skips(clear, before.memory).startswith("explained by E2")
    assert ProbeThenTrial().skips(reversed_, before.memory) == ""
    settled, _ = play(later(before, groups=(clear,)), by_text())
    assert ProbeThenTrial().skips(clear, settled.memory) == ""


# ---------------------------------------------------------------------- degenerate scores


def test_scores_of_another_range_are_judged_by_the_range_that_was_seen() -> None:
    candidate = add("polite", source(scores=(100, 0, 0, 0, 0)))
    decision, tried = play(asked(candidate), by_text(polite=100.0))
    assert len(tried) == 1
    won = group(decision.library, 1, "E2", 2, 100.0, 100.0, 0.0, 0.0)
    decision, _ = play(later(decision, groups=(won,)), by_text())
    effect = decision.library["E2"].effect
    assert effect is not None
    assert 30 < effect.estimate < 90


def test_constant_scores_settle_nothing() -> None:
    decision, _ = play(asked(add("polite", source(scores=(5, 5, 5)))), by_text(polite=5.0))
    same = group(decision.library, 1, "E2", 2, 5.0, 5.0, 5.0, 5.0)
    decision, _ = play(later(decision, groups=(same,)), by_text())
    assert not [own for own in decision.library if own.id == "E2" and not own.is_on_trial]


def test_one_huge_score_settles_nothing() -> None:
    before = on_trial()
    huge = group(before.library, 1, "E2", 2, 1e9, 0.5, 0.5, 0.5)
    decision, _ = play(later(before, groups=(huge,)), by_text())
    assert decision.library["E2"].is_on_trial


# ---------------------------------------------------------------------- for all courses


@st.composite
def courses(draw: st.DrawFn) -> list[tuple[TrialEvidence, Decision]]:
    """Some updates with operations, groups and scores as they come; what was asked, and decided."""
    library, memory = OLD, None
    gate, turns = ProbeThenTrial(), []
    told = draw(st.booleans())
    for update in range(draw(st.integers(1, 5))):
        operations: list[Operation] = [
            add(f"text {update}.{i}", source(draw(st.integers(0, 5)), update))
            for i in range(draw(st.integers(0, 2)))
        ]
        for own in library:
            kind = draw(st.sampled_from(["", "", "delete", "modify", "keep"]))
            evidence = (source(draw(st.integers(0, 5)), update),)
            if kind == "delete":
                operations.append(Delete(own.id))
            elif kind == "modify":
                operations.append(Modify(own.id, f"{own.text} {update}", evidence=evidence))
            elif kind == "keep":
                operations.append(Keep(own.id, evidence=evidence))
        scores = st.one_of(st.none(), st.sampled_from([0.0, 0.3, 1.0]))
        groups = []
        for example in range(draw(st.integers(0, 3))):
            plan = GroupPlan(library, example, update, 4, tuple(library) if told else ())
            libraries = gate.assign(plan)
            groups.append(GroupEvidence(example, libraries, tuple(draw(scores) for _ in libraries)))
        question = asked(
            *operations,
            library=library,
            memory=memory,
            update=update,
            groups=tuple(groups),
            concerns="all" if told else None,
        )
        decision, _ = play(question, lambda _, any_=scores: draw(any_), gate)
        turns.append((question, decision))
        library, memory = decision.library, decision.memory
    return turns


@given(courses())
@settings(max_examples=60, deadline=None)
def test_ids_that_were_dropped_never_come_back(
    turns: list[tuple[TrialEvidence, Decision]],
) -> None:
    gone: set[str] = set()
    for question, decision in turns:
        ids = {own.id for own in decision.library}
        assert not gone & ids
        assert not ids & decision.dropped.keys()
        known = {own.id for own in (*question.incumbent, *question.proposed)}
        assert known - ids == decision.dropped.keys()
        gone |= known - ids


@given(courses())
@settings(max_examples=60, deadline=None)
def test_the_exported_library_is_part_of_the_library_and_holds_all_that_is_settled(
    turns: list[tuple[TrialEvidence, Decision]],
) -> None:
    for _, decision in turns:
        assert decision.exported is not None
        kept = [own for own in decision.library if own in set(decision.exported)]
        assert kept == list(decision.exported)
        settled = {own.id for own in decision.library if not own.is_on_trial}
        assert settled <= {own.id for own in decision.exported}


@given(courses())
@settings(max_examples=60, deadline=None)
def test_memory_is_json_and_the_same_evidence_gives_the_same_decision(
    turns: list[tuple[TrialEvidence, Decision]],
) -> None:
    for question, decision in turns:
        assert json.loads(json.dumps(decision.memory)) == decision.memory
        again = replace(question, memory=json.loads(json.dumps(question.memory)))
        first, second = ProbeThenTrial().next(question), ProbeThenTrial().next(again)
        assert first == second


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Probe(0.5, 0.6, 0.7, 1), "drop_at <= pass_at_end <= pass_at"),
        (lambda: Probe(0.9, 0.1, 0.5, 0), "max_rollouts=0: a probe takes at least 1"),
        (lambda: TrialRule(settle_at=1.2), "settle_at=1.2: give more than 0"),
        (lambda: TrialRule(drop_at=0.7), "drop_at=0.7: must be below"),
        (lambda: TrialRule(max_epochs=0), "max_epochs=0: give more than 0"),
        (lambda: ProbeThenTrial(solved=0), "solved=0: give more than 0"),
        (lambda: ProbeThenTrial(max_sources=0), "max_sources=0: give 1 or more"),
        (lambda: ProbeThenTrial(max_confirmations=-1), "max_confirmations=-1: give 0 or more"),
    ],
)
def test_what_no_gate_can_do_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
