"""The benchmark of whole runs: its simulated world does what it says, and nothing is miscounted."""

import random
from collections import Counter
from typing import Any

import dspy
import pytest

pytest.importorskip("rich")

from gate_model import World
from gate_whole import rows, summary
from gate_whole_lm import (
    FIRST_VALIDATION,
    KINDS,
    CaseWorld,
    LessonEngine,
    MeasuredConcern,
    lesson_text,
    program,
)
from gate_whole_run import GATES, WORDS, Noted, Row, Watch, curve_of, run

from tfgrpo_dspy import AutoGate, Evidence, Experience, ExperienceLibrary, NoGate
from tfgrpo_dspy.experience import Add, Limits
from tfgrpo_dspy.gate.concern import condition_of
from tfgrpo_dspy.reflection import ExtractAdvantage, UpdateLibrary
from tfgrpo_dspy.reflection.lessons import Lesson, is_same_lesson
from tfgrpo_dspy.results import GroupRecord, UpdateRecord

KIND, CASE, SIBLING, STRANGER = 3, 13, 23, 14
OF_VALIDATION = FIRST_VALIDATION + 3
WORLD = World(wrong=0.25, signal="measured", group_size=4)


def cases(world: World = WORLD, seed: int = 7) -> CaseWorld:
    return CaseWorld(world, seed)


def library(*names: str) -> ExperienceLibrary:
    adds = [Add(lesson_text(name)) for name in names]
    return ExperienceLibrary().apply(adds, Limits(max_experiences=100))


def lm(engine: LessonEngine) -> dspy.LM:
    return dspy.LM("simulated/lessons", engine=engine, temperature=0.7, cache=False)


def share_right(case: int, *names: str, n: int = 60) -> float:
    """How often the program with these lessons baked in is right on the case."""
    world = cases()
    student = library(*names).bake(program())
    policy = lm(LessonEngine(world))
    [example] = world.examples(1, case)
    n_right = 0
    for seed in range(n):
        with dspy.context(lm=policy.copy(seed=seed, rollout_id=seed)):
            n_right += student(**example.inputs()).answer == example.answer
    return n_right / n


# ---------------------------------------------------------------------- what lessons do


def test_a_right_lesson_in_the_prompt_makes_answers_to_its_kind_right() -> None:
    assert share_right(CASE, f"right {KIND}") > 0.9
    assert share_right(OF_VALIDATION, f"right {KIND}") > 0.9


def test_a_wrong_lesson_in_the_prompt_makes_answers_to_its_kind_wrong() -> None:
    assert share_right(CASE, f"wrong {KIND}") < 0.15
    assert 0.4 < share_right(CASE, f"right {KIND}", f"wrong {KIND}") < 0.8


def test_a_leak_helps_the_case_that_it_was_drawn_from_and_no_other() -> None:
    leak = f"leak {KIND} {CASE}"
    assert share_right(CASE, leak) > 0.9
    assert share_right(SIBLING, leak) < 0.15
    assert share_right(OF_VALIDATION, leak) < 0.15


def test_a_lesson_about_another_kind_changes_no_answer() -> None:
    bare = share_right(STRANGER)
    assert 0.05 < bare < 0.7
    assert share_right(STRANGER, f"right {KIND}") == bare
    assert share_right(STRANGER, f"leak {KIND} {CASE}") == bare


def test_held_out_accuracy_is_that_of_the_model() -> None:
    world = cases()
    everything = library(*(f"right {kind}" for kind in range(10)))
    assert world.held_out(everything) == pytest.approx(0.97)
    assert world.held_out(library()) == pytest.approx(sum(world.lessons.base) / 80)
    assert world.n_harmful(library("right 1", "wrong 2", "leak 3 13")) == 2


def test_all_lessons_are_different_and_have_the_condition_of_their_kind() -> None:
    texts = list(cases().name_of)
    assert len(texts) == 100
    lessons = [Lesson(text) for text in texts]
    pairs = [(a, b) for i, a in enumerate(lessons) for b in lessons[:i]]
    assert not [pair for pair in pairs if is_same_lesson(*pair)]
    conditions = {condition_of(text) for text in texts}
    assert len(conditions) == len(KINDS) and "" not in conditions


def test_a_world_of_more_kinds_than_there_are_texts_for_is_refused() -> None:
    with pytest.raises(ValueError, match="n_kinds=11: there are texts for 10"):
        CaseWorld(World(n_kinds=11), 0)


# ---------------------------------------------------------------------- the reflection side


def reflected(case: int, world: CaseWorld, seed: int) -> list[str]:
    [example] = world.examples(1, case)
    shown = f"case: {example.case}\nrequest: {example.request}"
    inputs = dict.fromkeys(("program", "objective", "experiences", "expected", "attempts"), "-")
    with dspy.context(lm=lm(LessonEngine(world)).copy(seed=seed, rollout_id=seed)):
        answer = ExtractAdvantage()(**inputs, example=shown, max_words=40)
    assert answer.parse_failures == 0
    return list(answer.lessons)


def test_reflection_writes_right_wrong_and_leaking_lessons_in_the_stated_shares() -> None:
    world = cases(World(wrong=0.25, leaking=0.25))
    lessons = Counter(tuple(reflected(CASE, world, seed)) for seed in range(200))
    names = {None if not key else world.name_of[key[0]]: n for key, n in lessons.items()}
    assert set(names) == {None, "right 3", "wrong 3", "leak 3 13"}
    assert 55 < names[None] < 105  # of 200 by a chance of .4
    assert 35 < names["right 3"] < 85  # .3
    assert 15 < names["wrong 3"] < 47 and 15 < names["leak 3 13"] < 47  # .15


def test_the_library_is_added_every_lesson_that_is_shown() -> None:
    shown = f"1. {lesson_text('right 3')} (from 2 groups)\n2. {lesson_text('leak 4 14')}"
    inputs = dict.fromkeys(("program", "objective", "limits", "experiences"), "-")
    with dspy.context(lm=lm(LessonEngine(cases()))):
        answer = UpdateLibrary()(**inputs, lessons=shown)
    assert [(op.op, op.text, op.lessons) for op in answer.operations] == [
        ("ADD", lesson_text("right 3"), [1]),
        ("ADD", lesson_text("leak 4 14"), [2]),
    ]


def test_concern_is_told_by_id_with_the_model_s_quality_and_not_where_nobody_knows() -> None:
    world = cases()
    source = (Evidence(0, CASE, (), ()),)
    asked = [Experience(f"E{i + 1}", text, evidence=source) for i, text in enumerate(world.name_of)]
    told = MeasuredConcern(world)(asked, ["-"] * 80)
    named = {own.id: Experience(own.id, world.name_of[own.text], evidence=source) for own in asked}
    assert {id_: world.lessons.concerned(named[id_]) for id_ in told} == told
    assert 0 < len(told) < len(asked)
    assert all(not world.lessons.concerned(named[own.id]) for own in asked if own.id not in told)


# ---------------------------------------------------------------------- runs


def test_a_watched_gate_is_of_its_class_and_decides_as_before() -> None:
    gate = Watch(lambda: 0).watched(AutoGate(domain="topic"))
    assert isinstance(gate, AutoGate) and gate.domain == "topic"
    assert isinstance(Watch(lambda: 0).watched(NoGate()), NoGate)


def tiny(gate: str, **changes: Any) -> Row:
    return Row(gate, "wrong 0.25", WORLD, n_calls=300, **changes)


@pytest.mark.parametrize("gate", GATES)
def test_a_run_ends_within_its_budget_and_tells_what_would_be_exported(gate: str) -> None:
    found = run(tiny(gate), 7)
    assert 200 < sum(found.calls.values()) <= 300
    assert found.n_updates == len(found.curve) >= 1
    calls = [point.calls for point in found.curve]
    assert calls == sorted(calls) and calls[-1] <= 300
    assert all(0.0 < point.held_out < 1.0 for point in found.curve)


def test_the_real_concern_signal_can_be_had_too() -> None:
    row = Row("auto", "wrong 0.25", World(wrong=0.25, signal=WORDS, group_size=4), n_calls=200)
    assert run(row, 7).n_updates >= 1


def test_every_gate_has_a_row_for_every_kind_of_lessons_and_no_two_have_one_name() -> None:
    all_rows = list(rows())
    assert len({row.name for row in all_rows}) == len(all_rows)
    kinds = {"wrong 0.0", "wrong 0.25", "wrong 0.5", "leaking 0.25"}
    assert {(row.gate, row.lessons) for row in all_rows} == {(g, k) for g in GATES for k in kinds}
    assert {row.staleness for row in all_rows if row.gate == "auto"} == {0, 1}


def test_two_runs_of_a_seed_learn_the_same_in_as_many_calls() -> None:
    """What the last calls go to, of a batch that the budget cuts off, depends on timing."""
    one, other = (run(tiny("auto"), 7) for _ in range(2))
    assert one.curve == other.curve
    assert (one.returned, one.n_harmful) == (other.returned, other.n_harmful)
    assert sum(one.calls.values()) == sum(other.calls.values())


def test_the_lm_answers_as_many_calls_as_the_run_s_ledger_counts() -> None:
    found = run(Row("trial", "wrong 0.25", WORLD, n_calls=2000, epochs=1), 7)
    calls, answered, last = found.calls, found.answered, found.curve[-1]
    assert found.ended_because == "all epochs are done"
    assert sum(answered.values()) == sum(calls.values())
    assert answered["policy"] == calls["rollout"] + calls["gate"]
    assert (answered["lesson"], answered["update"]) == (calls["lesson"], calls["update"])
    n_after = sum(calls.values()) - last.calls
    assert n_after in (0, 40)  # the result on the validation set, unless it is the student
    n_tried = calls["gate"] - 40 - n_after
    assert last.as_model == calls["rollout"] + n_tried + 6 * calls["lesson"] + found.n_updates


def test_the_recount_is_one_a_rollout_and_a_trial_g_plus_2_a_reflection_one_an_update() -> None:
    def record(update: int, *uses: str) -> UpdateRecord:
        groups = tuple(GroupRecord(i, (0.0, 1.0, 1.0, 1.0), (), use) for i, use in enumerate(uses))
        nothing: Any = ()
        return UpdateRecord(update, 0, groups, nothing, nothing, nothing, True, "", 0, None)

    class Results:
        updates = (record(0, "contrast", "no contrast"), record(1, "contrast", "skipped: solved"))

    noted = {0: Noted(53, 3, library("right 1")), 1: Noted(70, 5, library("right 1", "right 2"))}
    first, second = curve_of(Results(), noted, cases())
    assert (first.calls, first.as_model) == (53, 8 + 3 + 6 + 1)
    assert (second.calls, second.as_model) == (70, 16 + 5 + 12 + 2)
    assert first.held_out < second.held_out


def test_a_row_has_the_model_beside_it() -> None:
    row = summary(tiny("trial"), range(7, 9))
    assert row["seeds"] == [7, 8] and len(row["hits"]) == 2
    assert row["model"]["updates"] >= 1
    assert 0.0 <= row["model"]["reach"] <= 1.0


def test_luck_is_that_of_case_and_seed_whatever_the_library() -> None:
    """Trials of two libraries with one rollout id are a pair."""
    seeds = random.Random(0).sample(range(10_000), 30)
    world = cases()
    policy = lm(LessonEngine(world))
    [example] = world.examples(1, CASE)
    right: dict[str, list[bool]] = {}
    for name in ("wrong", "right"):
        student = library(f"{name} {KIND}").bake(program())
        right[name] = []
        for seed in seeds:
            with dspy.context(lm=policy.copy(seed=seed, rollout_id=seed)):
                right[name].append(student(**example.inputs()).answer == example.answer)
    assert not [1 for worse, better in zip(*right.values(), strict=True) if worse and not better]
