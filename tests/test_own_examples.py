"""What people are shown beside a lesson: its own examples, and no better one of equals."""

import dspy
from runs import Run, add
from scripted import EXTRACT, UPDATE, lessons, operations

from tfgrpo_dspy.cli.approval import _compared
from tfgrpo_dspy.results.records import Comparison, RolloutSummary

FRUIT = ["a parcel of cherries", "a parcel of walnuts"]


def test_a_lesson_of_two_groups_in_one_call_is_shown_beside_its_own_example() -> None:
    trainset = [dspy.Example(question=text).with_inputs("question") for text in FRUIT]
    texts = ["When it is a parcel of cherries, cool it.", "When it is a parcel of walnuts, dry it."]
    rules = [
        (EXTRACT, lessons(*texts)),
        (UPDATE, operations(*(add(text, n) for n, text in enumerate(texts, start=1)))),
    ]
    run = Run([["1", "0"]] * 2, *rules, trainset=trainset, groups_per_call=2, batch_size=2)
    (update,) = run.results.updates
    shown = {change.text: [one.inputs for one in change.comparisons] for change in update.changes}
    assert shown == {text: [f"question: {fruit}"] for text, fruit in zip(texts, FRUIT, strict=True)}


def test_of_two_attempts_with_the_same_score_none_is_called_the_best() -> None:
    one, other = RolloutSummary("red", 0.0, "No."), RolloutSummary("blue", 0.0, "No.")
    lines = _compared(Comparison(3, "What colour?", one, other, "Nobody knew it."))
    assert [line.split()[0] for line in lines] == ["example", "one", "other", "says"]
    alike = _compared(Comparison(3, "What colour?", one, one, ""))
    assert [line.split()[0] for line in alike] == ["example", "one", "says"]


def test_the_further_lines_of_an_attempt_stand_below_its_first() -> None:
    steps, other = (
        RolloutSummary("thought: 2 + 2\nanswer: 4", 1.0, ""),
        RolloutSummary("5", 0.0, ""),
    )
    _, best, *_ = _compared(Comparison(3, "What is it?", steps, other, ""))
    first, second = best.split("\n")
    assert first.index("1.00") == second.index("answer")
