"""A lesson is shown beside its own examples."""

import dspy
from runs import Run, add
from scripted import EXTRACT, UPDATE, lessons, operations

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
