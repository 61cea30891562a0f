"""Hints and teachers for groups that fail throughout, seen through a compile."""

import re
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from runs import ADVICE, Run, library_texts, section
from scripted import EXTRACT, Prompt, Rule, chat, lessons, scripted_lm

from tfgrpo_dspy import ExperienceLibrary, SettingsError
from tfgrpo_dspy.strategies import TeacherRollouts, TieredHints

FAIL = [["0", "0"]]
HINTS = {"concept": "Think of sums.", "plan": "Add both.", "step": "Begin with three."}
AT_ONCE = (TieredHints(after=0),)


def hinting(works: str, **written: str) -> list[Rule]:
    """The reflection LM writes hints; with that one in its prompt the program is right."""
    return [
        ("`concept`", chat(**HINTS | written)),
        (f"A hint for this input: {re.escape(works)}", chat(answer="1")),
        ("A hint for this input", chat(answer="0")),
    ]


def labelled(*labels: str) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"question {i}", answer=label).with_inputs("question")
        for i, label in enumerate(labels)
    ]


def hints_given(run: Run) -> list[str]:
    """The hints in the prompts of the program, in the order of their requests."""
    found = (re.search("A hint for this input: (.*)", p.system) for p in run.prompts("question"))
    return [each[1] for each in found if each]


def aided(run: Run) -> list[tuple[float | None, ...]]:
    return [group.aided_scores for update in run.results.updates for group in update.groups]


def test_hints_go_from_concept_to_step_until_one_works_and_no_further() -> None:
    run = Run(FAIL, *hinting("Add both."), strategies=AT_ONCE)
    assert hints_given(run) == ["Think of sums.", "Add both."]
    assert aided(run) == [(0.0, 1.0)]
    assert run.uses == ["contrast"]
    assert 'with the hint "Add both."' in section(run.prompts(EXTRACT)[0].user, "attempts")


def test_where_no_hint_works_all_are_tried_once_and_nothing_is_learned() -> None:
    run = Run(FAIL, *hinting("Guess."), strategies=AT_ONCE)
    assert hints_given(run) == [*HINTS.values()]
    assert run.uses == ["no contrast"]


def test_an_example_gets_hints_only_after_it_has_stagnated() -> None:
    run = Run(FAIL * 2, *hinting("Think of sums."), strategies=(TieredHints(),), epochs=2,
              max_staleness=0)  # fmt: skip
    assert aided(run) == [(), (), (1.0,), (1.0,)]
    run = Run([["1", "0"]], *hinting("Think of sums."), strategies=AT_ONCE)
    assert aided(run) == [()]


def test_who_writes_hints_sees_label_and_attempt_and_no_hidden_label() -> None:
    trainset = labelled("seven")
    run = Run(FAIL, *hinting("Add both."), strategies=AT_ONCE, trainset=trainset)
    (asked,) = run.prompts("`concept`")
    assert section(asked.user, "expected") == "answer: seven"
    assert section(asked.user, "attempt") == "answer: 0"
    hidden = Run(
        FAIL, *hinting("Add both."), strategies=AT_ONCE, trainset=trainset, use_labels=False
    )
    (asked,) = hidden.prompts("`concept`")
    assert "seven" not in asked.text


def test_a_hint_that_gives_the_answer_away_is_not_given() -> None:
    rules = hinting("Begin with three.", concept="It is SEVEN.", plan="Say  seven, then stop.")
    run = Run(FAIL, *rules, strategies=AT_ONCE, trainset=labelled("seven"))
    assert hints_given(run) == ["Begin with three."]
    assert not [p for p in run.prompts("question") if "seven" in p.system.casefold()]


@pytest.mark.parametrize(
    ("label", "hint", "is_given"),
    [
        ("阳虚证", "此为阳虚证也。", False),
        ("阳虚证", "先看脉象。", True),
        ("seven", "Seventy.", True),
    ],
)
def test_a_label_is_found_in_languages_without_spaces_but_not_in_a_longer_word(
    label: str, hint: str, is_given: bool
) -> None:
    rules = hinting("Guess.", concept=hint)
    run = Run(FAIL, *rules, strategies=AT_ONCE, trainset=labelled(label))
    assert (hint in hints_given(run)) == is_given


LEAK, RULE = "The answer to question 0 is seven.", "Add the parts."


def leaking(*labels: str) -> Run:
    return Run(
        FAIL * len(labels),
        *hinting("Add both."),
        (EXTRACT, lessons(LEAK, RULE)),
        ("`operations`", chat(operations="nothing that can be read")),
        strategies=AT_ONCE,
        trainset=labelled(*labels),
    )


def test_a_lesson_of_a_hinted_group_that_gives_its_answer_away_never_reaches_the_library() -> None:
    run = leaking("seven", "nine")
    assert run.uses == ["contrast", "contrast"]
    assert library_texts(run.optimized) == [RULE]
    assert not [p for p in run.prompts("`operations`") if "is seven" in p.user]


def test_a_label_that_several_examples_have_names_a_class_and_may_stand_in_a_lesson() -> None:
    assert library_texts(leaking("seven", "seven").optimized) == [LEAK, RULE]


def test_lessons_of_groups_without_a_hint_are_left_alone() -> None:
    run = Run(
        [["1", "0"], ["0", "0"]],
        *hinting("Guess."),
        (EXTRACT, lessons(LEAK)),
        strategies=AT_ONCE,
        trainset=labelled("seven", "nine"),
        batch_size=2,
    )
    assert any(LEAK in update.lessons for update in run.results.updates)


@pytest.mark.parametrize("works", ["Add both.", "Guess."])
def test_an_answer_without_hints_costs_itself_only(works: str) -> None:
    run = Run(FAIL, ("`concept`", chat(concept="", plan="", step="")), *hinting(works)[1:],
              strategies=AT_ONCE)  # fmt: skip
    assert aided(run) == [()]


def strong(answer: str = "1") -> dspy.LM:
    return scripted_lm([("question", chat(answer=answer))])


def test_a_teacher_joins_only_the_groups_that_fail_with_a_bounded_share() -> None:
    rows = [["0"] * 4, ["1"] * 4, ["1", "0", "0", "0"]]
    run = Run(rows, strategies=(TeacherRollouts(strong(), share=0.5),))
    by_example = {g.example: g for g in run.results.updates[0].groups}
    assert [len(by_example[i].aided_scores) for i in range(3)] == [2, 0, 0]
    assert [len(by_example[i].scores) for i in range(3)] == [4, 4, 4]


def test_a_group_below_the_best_score_so_far_fails_too() -> None:
    rows = [["0.25", "0.25"], ["1", "0"]]
    run = Run(rows, strategies=(TeacherRollouts(strong()),), epochs=2, max_staleness=0)
    by_epoch = [{g.example: g.aided_scores for g in u.groups} for u in run.results.updates]
    assert by_epoch[-1][0] == (1.0,)


class Other(dspy.Module):
    """A teacher of another make; it is polite where it is told to be."""

    def __init__(self) -> None:
        super().__init__()
        self.guess = dspy.Predict("question -> guess")

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=self.guess(question=question).guess)


def guess(prompt: Prompt) -> str:
    return chat(guess="1" if ADVICE in prompt.system else "0")


@pytest.mark.parametrize(("shares", "scores"), [(False, (0.0,)), (True, (1.0,))])
def test_a_teacher_that_shares_the_library_learns_what_the_student_has_learned(
    shares: bool, scores: Sequence[float]
) -> None:
    student = ExperienceLibrary.from_texts([ADVICE]).bake(dspy.Predict("question -> answer"))
    teacher = TeacherRollouts(Other(), shares_library=shares)
    run = Run(FAIL, ("`guess`", guess), strategies=(teacher,), student=student)
    assert aided(run) == [scores]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TieredHints(after=-1), "after=-1"),
        (lambda: TeacherRollouts(strong(), share=2), "share=2"),
        (lambda: TeacherRollouts("gpt-5"), "teacher='gpt-5': pass a dspy.Module, or an LM"),
    ],
)
def test_what_cannot_be_used_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        make()


def test_the_key_of_a_teacher_is_kept_out_of_the_store(tmp_path: Any) -> None:
    key = "sk-very-secret-teacher"
    teacher = dspy.LM("openai/never-called", api_key=key)

    def half(_: dspy.Example, pred: dspy.Prediction) -> float:
        return 0.5 if pred.answer else 0.0

    rules: list[Rule] = [("question", chat(answer=f"The key is {key}."))]
    Run(FAIL, *rules, metric=half, strategies=(TeacherRollouts(teacher),), log_dir=tmp_path)
    stored = (tmp_path / "tfgrpo_store.db").read_bytes()
    assert b"The key is" in stored
    assert b"very-secret" not in stored
