"""Lessons that list the labels of examples: small LMs write them, and no two of them can hold."""

from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import Run
from scripted import EXTRACT, UPDATE, Prompt, chat, operations, scripted_lm

from tfgrpo_dspy.reflection.lessons import Lesson, listed_labels, without_lists

CODES = ["RMA/P2", "ACC/P1", "LOG/P4", "FIN/P0"]
LIST = [f"When the tier is gold, the code is {code}." for code in CODES]
RULE = "A broken item has the code RMA/P2."
EXAMPLES = [
    dspy.Example(question=f"Ticket {n} of a gold customer", answer=CODES[n % 4]).with_inputs(
        "question"
    )
    for n in range(24)
]


def without(
    texts: Sequence[str], earlier: Sequence[str] = (), labels: Sequence[str] = CODES
) -> Any:
    kept, refused = without_lists(map(Lesson, texts), map(Lesson, earlier), listed_labels(labels))
    assert {each.text for each in kept} | {each.operation.text for each in refused} == set(texts)
    return [each.text for each in kept]


def test_lessons_that_give_three_labels_to_the_same_are_refused_and_rules_stay() -> None:
    assert without([*LIST, RULE, "Answer with a code such as RMA/P2 or ACC/P1."]) == [
        RULE,
        "Answer with a code such as RMA/P2 or ACC/P1.",
    ]


def test_one_alone_is_refused_where_earlier_lessons_have_given_others() -> None:
    assert without(LIST[:1], LIST[1:]) == []
    assert without(LIST[:1], LIST[1:2]) == LIST[:1]


def test_quotes_and_letters_of_another_size_make_no_difference() -> None:
    assert without(["the Code is 'rma/p2'", "The code is ACC/P1.", "The code is “LOG/P4”"]) == []


@pytest.mark.parametrize(
    "texts",
    [
        [f"When the mail speaks of {name}, answer {name}." for name in ("tax", "rent", "food")],
        ["A polite mail is positive.", "A polite mail is negative."],
        ["Round to 2 digits.", "Name 3 reasons.", "Give 4 dates."],
        ["Say it once.", "Say it twice.", "Say it thrice."],
    ],
    ids=["a rule for each label", "two answers", "other words", "no labels"],
)
def test_rules_that_name_labels_stay(texts: list[str]) -> None:
    labels = ["tax", "rent", "food", "positive", "negative", "neutral", "2", "3", "4"]
    assert without(texts, labels=labels) == texts


def test_lessons_for_different_predictors_are_no_list() -> None:
    own = [Lesson(text, scope) for text, scope in zip(LIST, "abc", strict=False)]
    assert without_lists(own, (), listed_labels(CODES)) == (own, [])
    same = [Lesson(text, "a") for text in LIST]
    assert without_lists(same, own, listed_labels(CODES))[0] == []


@given(st.lists(st.text(max_size=30), max_size=8), st.lists(st.text(max_size=8), max_size=5))
def test_any_texts_and_labels_can_be_compared(texts: list[str], labels: list[str]) -> None:
    assert set(without(texts, labels=labels)) <= set(texts)
    assert without(texts, labels=[]) == texts


def test_a_run_tries_no_such_list_and_says_why() -> None:
    def answer(prompt: Prompt) -> str:
        return chat(answer=prompt.random("code").choice(CODES))

    rules: list[Any] = [
        (EXTRACT, chat(semantic_advantage="", lessons=[RULE])),
        (r"`lessons`(?s:.)*## examples ##", chat(lessons=LIST)),
        (UPDATE, operations({"op": "ADD", "text": RULE})),
        ("Ticket", answer),
    ]

    def is_right(example: Any, pred: Any, trace: Any = None) -> float:  # noqa: ARG001
        return float(pred.answer == example.answer)

    run = Run(
        [["0"]], metric=is_right, lm=scripted_lm(rules), drafts=3, group_size=2, trainset=EXAMPLES
    )
    first, *others = run.results.updates
    reasons = {operation.text: operation.refused for operation in first.operations}
    assert set(reasons) == set(LIST)
    assert all("lists the labels of examples" in reason for reason in reasons.values())
    assert first.library_size == 0 and any(each.library_size for each in others)
