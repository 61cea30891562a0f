"""The model of `benchmarks/gate_world.py`, and how `benchmarks/gates.py` keeps its rows."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import gates
import pytest
from gate_tables import Cell, alike, best_within, sums
from gate_world import N_UPDATES, Lesson, Outcome, Training, run, world

from tfgrpo_dspy.experience import Effect, ExperienceLibrary
from tfgrpo_dspy.gate import Decision, GroupPlan, NoGate, Trial, TrialEvidence, Trials

FEW = Training(n_groups=2, group_size=3)


@dataclass
class Halves:
    """Keeps all on trial, gives it to the first rollout of each group, exports what it is told."""

    exports: tuple[str, ...] = ()
    metric: Any = None
    plans: list[GroupPlan] = field(default_factory=list)
    seen: list[TrialEvidence] = field(default_factory=list)

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        self.seen.append(evidence)
        library = ExperienceLibrary(
            [
                replace(own, is_on_trial=True, effect=Effect(0.25, 0.1, 9))
                for own in evidence.proposed
            ]
        )
        exported = ExperienceLibrary([own for own in library if own.text in self.exports])
        return Decision(library, "", exported, memory=evidence.update)

    def assign(self, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
        self.plans.append(plan)
        return (plan.library, *[ExperienceLibrary()] * (plan.n_rollouts - 1))


@dataclass
class AsksOnce:
    """Wants each validation example once with what is proposed, then takes it."""

    metric: Any = None

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        trials = tuple(Trial(evidence.proposed, i) for i in range(evidence.n_examples))
        if any(trial not in evidence.scores for trial in trials):
            return Trials(trials)
        return Decision(evidence.proposed, "")


def texts(library):
    return [own.text for own in library]


def test_the_gate_is_told_how_many_rollouts_are_to_come_with_what_it_decides_on():
    gate = Halves()
    run(gate, world(0, 5), [[0.1]] * 5, replace(FEW, staleness=1))
    assert [evidence.n_ahead for evidence in gate.seen] == [18, 12, 6, 0, 0]


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_what_an_update_proposes_is_in_the_groups_of_staleness_and_one_updates_later(staleness):
    gate = Halves()
    run(gate, world(0, 5), [[0.1]] * 4, replace(FEW, staleness=staleness))
    made_with = [texts(evidence.groups[0].libraries[0]) for evidence in gate.seen]
    names = [f"lesson{update}x0" for update in range(4)]
    assert made_with == [names[: max(0, update - staleness)] for update in range(4)]


def test_the_gate_is_told_what_it_left_with_the_library_that_it_is_asked_about():
    gate = Halves()
    run(gate, world(0, 5), [[0.1]] * 4, FEW)
    assert [(plan.update, plan.memory, len(plan.library)) for plan in gate.plans] == [
        (2, 0, 1),
        (2, 0, 1),
        (3, 1, 2),
        (3, 1, 2),
    ]


def test_training_groups_are_made_as_assigned_and_charged_to_nobody():
    gate = Halves()
    outcome = run(gate, world(0, 5), [[0.1]] * 4, FEW)
    group = gate.seen[-1].groups[0]
    assert [len(library) for library in group.libraries] == [2, 0, 0]
    assert len(gate.seen[-1].groups) == 2
    assert all(score in (0.0, 1.0) for score in group.scores)
    assert outcome.n_paid == 0


def test_a_lesson_is_worth_in_a_training_group_what_it_is_worth():
    gate = Halves()
    run(gate, world(0, 5), [[1.0]] * 40, Training(n_groups=5, group_size=4))
    groups = [group for evidence in gate.seen[2:] for group in evidence.groups]
    assert all(group.scores[0] == 1.0 for group in groups)
    rest = [score for group in groups for score in group.scores[1:]]
    assert 0.3 < sum(rest) / len(rest) < 0.5


def test_an_epoch_goes_once_through_the_training_examples():
    place = world(0, 5)
    assert sorted(place.batch(60) + place.batch(40)) == list(range(100))


def test_only_what_is_exported_counts_as_returned():
    outcome = run(Halves(exports=("lesson1x0",)), world(0, 5), [[0.1, 0.0]] * 3, FEW)
    returned = [lesson for lesson in outcome.lessons if lesson.is_returned]
    assert returned == [Lesson(0.1, 1, True, 0.25, 0.1)]
    assert outcome.change == pytest.approx(0.1)


def test_what_a_gate_asks_for_is_charged_once():
    outcome = run(AsksOnce(), world(0, 5), [[0.0]] * 3, FEW)
    assert outcome.n_paid == 15


def test_the_luck_of_trials_is_the_same_with_other_training_groups():
    scores = []
    for training in (FEW, Training(n_groups=20, group_size=9)):
        place = world(3, 30)
        run(AsksOnce(), place, [[0.0]] * 3, training)
        scores.append(list(place.scores.values()))
    assert scores[0] == scores[1]


def test_sums_tell_good_useless_and_early_lessons_apart():
    lessons = (
        Lesson(0.1, 0, True, 0.3, 0.1),
        Lesson(0.1, 9, True),
        Lesson(0.0, 3, False),
        Lesson(-0.1, 11, True),
    )
    counted = sums(Outcome(lessons, -0.03, 24))
    assert (counted["any"], counted["worse"], counted["paid"]) == (1, 1, 24)
    assert (counted["good"], counted["good returned"], counted["good early returned"]) == (2, 2, 1)
    assert (counted["useless"], counted["useless returned"]) == (1, 0)
    assert (counted["bad"], counted["bad returned"], counted["bad early"]) == (1, 1, 0)
    assert (counted["good stated"], counted["good covered"]) == (1, 0)
    assert counted["good off"] == pytest.approx(0.2)


def row(found, false, rollouts):
    return {"found": found, "false": false, "rollouts": rollouts}


def test_a_comparison_takes_the_best_of_ours_that_is_neither_laxer_nor_dearer():
    ours = [row(0.9, 0.2, 10), row(0.8, 0.1, 300), row(0.5, 0.1, 60), row(0.4, 0.0, 5)]
    theirs = row(0.3, 0.1, 64)
    assert best_within(ours, theirs) == 0.5
    assert best_within(ours, theirs, charged=40) == 0.4
    assert best_within(ours, row(0.3, 0.1, 1)) is None


def cell(n_runs):
    settings = {"scores": "bernoulli", "examples": 5, "lessons": 2}
    return Cell("null", "none", NoGate(), settings, alike(0.0, 2), n_runs)


def test_a_row_that_was_stopped_goes_on_and_ends_as_if_it_had_not(tmp_path, monkeypatch):
    monkeypatch.setattr(gates, "CHUNK", 2)
    path = tmp_path / "gates.json"
    assert gates.fill(cell(2), gates.Kept(path), until=float("inf"), pool=None)
    assert gates.fill(cell(5), gates.Kept(path), until=float("inf"), pool=None)
    whole = tmp_path / "whole.json"
    assert gates.fill(cell(5), gates.Kept(whole), until=float("inf"), pool=None)
    rows = [json.loads(each.read_text())["tables"]["null"] for each in (path, whole)]
    for found in rows:
        [figures] = found.values()
        del figures["sums"]["cpu_s"]
    assert rows[0] == rows[1]
    assert rows[0][cell(5).name]["runs"] == 5
    assert rows[0][cell(5).name]["lessons accepted"] == 1.0
    assert rows[0][cell(5).name]["sums"]["useless"] == 5 * 2 * N_UPDATES


def test_no_run_is_begun_when_the_time_is_up(tmp_path):
    kept = gates.Kept(tmp_path / "gates.json")
    assert not gates.fill(cell(5), kept, until=-1.0, pool=None)
    assert kept.tables == {}
