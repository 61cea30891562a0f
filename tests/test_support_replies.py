"""The quickstart's task: what a reply must do to score, and that the splits share nothing."""

import importlib.util
import sys
from pathlib import Path

import dspy
import pytest

PATH = Path(__file__).parents[1] / "examples" / "support_replies.py"


def _load_module():
    spec = importlib.util.spec_from_file_location("support_replies", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["support_replies"] = module
    spec.loader.exec_module(module)
    return module


task = _load_module()

COMPLAINT = "I bought a kettle from you two weeks ago. It leaks from the base. I feel cheated."
PERFECT = (
    "We are sorry about your kettle. Please tell us your order number, and Brightwell will send "
    "you a replacement."
)


def judge(reply):
    example = dspy.Example(complaint=COMPLAINT).with_inputs("complaint")
    return task.house_style(example, dspy.Prediction(reply=reply))


def test_there_are_60_complaints_to_train_60_to_validate_and_80_to_test():
    assert [len(split) for split in task.load()] == [60, 60, 80]


def test_no_complaint_appears_twice_in_any_split():
    complaints = [example.complaint for split in task.load() for example in split]
    assert len(set(complaints)) == 200


def test_no_product_is_in_two_splits():
    products = [name for name, *_ in task.PRODUCTS]
    seen = [
        {name for name in products if any(f"{name} " in f"{_plain(e)} " for e in split)}
        for split in task.load()
    ]
    assert [len(names) for names in seen] == [12, 12, 16]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def _plain(example):
    """The opening sentence, which is where a product is named, without its punctuation."""
    return example.complaint.split(". ")[0].replace(",", "").replace(".", "")


def test_loading_twice_gives_the_same_complaints():
    assert [e.complaint for e in task.load()[2]] == [e.complaint for e in task.load()[2]]


def test_every_complaint_has_20_to_60_words_and_names_no_rule_of_the_house():
    for example in (e for split in task.load() for e in split):
        assert 20 <= len(example.complaint.split()) <= 60
        assert not any(
            word in example.complaint for word in ("sorry", "refund", "replac", "number")
        )


def test_only_the_complaint_is_an_input():
    assert set(task.load()[0][0].inputs().keys()) == {"complaint"}


def test_the_bare_program_is_told_none_of_the_rules():
    assert task.program().signature.instructions == "Reply to the customer's complaint."


def test_a_reply_that_keeps_all_rules_scores_1_and_is_given_no_advice():
    judged = judge(PERFECT)
    assert judged.score == 1.0
    assert judged.feedback == (
        "Good: it apologises, asks for the order number, offers a refund or a replacement, "
        "is at most 60 words long, names Brightwell."
    )


def test_feedback_says_how_to_keep_each_broken_rule_and_then_which_are_kept():
    judged = judge("We are sorry to hear that your kettle is leaking from the base.")
    assert judged.score == pytest.approx(0.4)
    assert judged.feedback == (
        "Ask for the order number. Offer a refund or a replacement. Mention Brightwell. "
        "Good: it apologises, is at most 60 words long."
    )


@pytest.mark.parametrize(
    ("old", "new", "advice"),
    [
        ("We are sorry about", "We have looked into", "Say sorry for the trouble."),
        ("order number", "postal address", "Ask for the order number."),
        ("send you a replacement", "look into it", "Offer a refund or a replacement."),
        ("Brightwell will", "we will", "Mention Brightwell."),
        ("We are sorry", "We really mean it. " * 20 + "We are sorry", "Use at most 60 words."),
    ],
)
def test_each_broken_rule_costs_a_fifth(old, new, advice):
    judged = judge(PERFECT.replace(old, new))
    assert judged.score == pytest.approx(0.8)
    assert judged.feedback.startswith(advice + " Good:")


@pytest.mark.parametrize("reply", [None, "", "   ", "Brightwell is sorry.", 7])
def test_what_is_hardly_a_sentence_scores_0_although_it_is_short(reply):
    assert judge(reply).score == 0.0
    assert judge(reply).feedback == "Write at least 8 words."


def test_a_prediction_without_a_reply_scores_0():
    assert task.house_style(dspy.Example(complaint=COMPLAINT), dspy.Prediction()).score == 0.0


def test_the_complaint_given_back_scores_0():
    assert judge(COMPLAINT).score == 0.0
    assert judge("Sorry, Brightwell. " + COMPLAINT).feedback == (
        "Answer the complaint in words of your own."
    )


@pytest.mark.parametrize(
    "sentence",
    [
        "What is your order number?",
        "Please send us the order number.",
        "Could you share your order ID with us?",
        "We need your Order Number to help you.",
    ],
)
def test_asking_for_the_order_number_may_be_put_in_many_ways(sentence):
    assert "asks for the order number" in judge(f"Thank you for writing to us. {sentence}").feedback


@pytest.mark.parametrize(
    "sentence",
    [
        "Your order number is 12.",
        "Please find my order number 12 below.",
        "In order to help, please number the parts.",
    ],
)
def test_naming_an_order_number_is_not_asking_for_it(sentence):
    judged = judge(f"Thank you for writing to us. {sentence}")
    assert "Ask for the order number." in judged.feedback


@pytest.mark.parametrize(
    "sentence",
    [
        "We will refund you in full.",
        "We can replace it at once.",
        "You may have your money back.",
        "Would you like a refund or a replacement?",
    ],
)
def test_a_remedy_may_be_offered_in_many_ways(sentence):
    assert "offers a refund" in judge(f"Thank you for writing to us. {sentence}").feedback


@pytest.mark.parametrize(
    "sentence",
    [
        "We cannot refund you.",
        "We don't offer a replacement.",
        "I would like a refund.",
        "I want my money back now.",
    ],
)
def test_refusing_or_demanding_a_refund_is_not_offering_it(sentence):
    judged = judge(f"Thank you for writing to us. {sentence}")
    assert "Offer a refund or a replacement." in judged.feedback
