"""The task of replies to complaints: what a reply must do to score; the splits share nothing."""

import re

import dspy
import pytest
import support_replies as task

COMPLAINT = "I bought a kettle from you two weeks ago. It leaks from the base. I feel cheated."
PERFECT = (
    "We are sorry about your kettle. Please tell us your order number, and Brightwell will send "
    "you a replacement."
)


def judge(reply):
    example = dspy.Example(complaint=COMPLAINT).with_inputs("complaint")
    return task.house_style(example, dspy.Prediction(reply=reply))


def test_the_splits_share_no_complaint_and_no_product():
    splits = task.load()
    assert [len(split) for split in splits] == [60, 60, 80]
    assert len({example.complaint for split in splits for example in split}) == 200
    openings = [[example.complaint.split(". ")[0] for example in split] for split in splits]
    products = [name for name, *_ in task.PRODUCTS]
    named = [{p for p in products for t in texts if re.search(rf"{p}\b", t)} for texts in openings]
    assert [len(names) for names in named] == [12, 12, 16]
    assert len(set.union(*named)) == 40


def test_every_complaint_has_20_to_60_words_and_names_no_rule_of_the_house():
    for example in (e for split in task.load() for e in split):
        assert 20 <= len(example.complaint.split()) <= 60
        assert not re.search("sorry|refund|replac|number", example.complaint)


def test_feedback_says_how_to_keep_each_broken_rule_and_then_which_are_kept():
    judged = judge("We are sorry to hear that your kettle is leaking from the base.")
    assert judged.score == pytest.approx(0.4)
    assert judged.feedback == (
        "Ask for the order number. Offer a refund or a replacement. Mention Brightwell. "
        "Good: it apologises, is at most 60 words long."
    )
    assert judge(PERFECT).score == 1.0
    assert judge(PERFECT).feedback == (
        "Good: it apologises, asks for the order number, offers a refund or a replacement, "
        "is at most 60 words long, names Brightwell."
    )
