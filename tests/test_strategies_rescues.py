"""Hints and teachers for groups that fail throughout, seen through a compile."""

import re

import dspy
import pytest
from runs import (
    Run,
    library_texts,
    section,
)
from scripted import EXTRACT, Rule, chat, lessons, scripted_lm

from tfgrpo_dspy import SettingsError
from tfgrpo_dspy.strategies import TeacherRollouts, TieredHints
from tfgrpo_dspy.strategies.hints import gives_away

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


def test_where_no_hint_works_all_are_tried_once_and_the_label_is_what_teaches() -> None:
    run = Run(FAIL, *hinting("Guess."), strategies=AT_ONCE)
    assert hints_given(run) == [*HINTS.values()]
    assert run.uses == ["failure analysis"]


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


def test_no_demo_shows_what_a_teacher_or_a_hinted_rollout_wrote() -> None:
    told = [("A hint for this input", chat(reasoning="The hint says it.", answer="1"))]
    rules = [hinting("")[0], *told, ("question", chat(reasoning="mine", answer="0"))]
    wise = scripted_lm([("question", chat(reasoning="The teacher says it.", answer="1"))])
    for strategy in (TieredHints(after=0), TeacherRollouts(wise)):
        student = dspy.ChainOfThought("question -> answer")
        run = Run(FAIL * 4, *rules, strategies=(strategy,), student=student, epochs=3, max_demos=2)
        assert any(aided(run)), "some rollouts were aided"
        assert not [p for p in run.prompts("`reasoning`") if "says it" in p.user]
        assert not run.optimized.predictors()[0].demos


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


@pytest.mark.parametrize(
    ("label", "text", "is_told"),
    [
        *(("seven", "It is SEVEN.", True), ("seven", "Seventy of them.", False)),
        *(
            ("B", "答案选B。", True),
            ("阳虚证", "此为阳虚证也。", True),
            ("42", "答案是４２。", True),
        ),
        *(("да", "Когда?", False), ("да", "Скажи да.", True), ("Café", "the Cafe\u0301", True)),
        *(("two  words", "Two words.", True), ("", "Nothing.", False)),
        *(("no", "A good answer has no doubt", False), ("no", "The answer is no.", True)),
        *(("A", "Say 'A' here", True), ("A", "Look at a rule in 1 place", False)),
        *(("1", "Look at a rule in 1 place", False), ("1", "Choose: 1", True)),
    ],
)
def test_a_label_is_found_in_any_language_as_a_whole_word_and_a_short_one_as_an_answer(
    label: str, text: str, is_told: bool
) -> None:
    assert gives_away(text, {"answer": label}) == is_told


def strong(answer: str = "1") -> dspy.LM:
    return scripted_lm([("question", chat(answer=answer))])


def test_a_teacher_joins_only_the_groups_that_fail_with_a_bounded_share() -> None:
    rows = [["0"] * 4, ["1"] * 4, ["1", "0", "0", "0"]]
    teacher = TeacherRollouts(strong(), share=0.5)
    run = Run(rows, strategies=(teacher,), trainset=labelled("1", "1", "1"))
    by_example = {g.example: g for g in run.results.updates[0].groups}
    assert [len(by_example[i].aided_scores) for i in range(3)] == [2, 0, 0]
    assert [len(by_example[i].scores) for i in range(3)] == [4, 4, 4]


def test_a_teacher_that_is_no_program_and_no_lm_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"teacher='gpt-5': pass a dspy.Module, or an LM"):
        TeacherRollouts("gpt-5")
