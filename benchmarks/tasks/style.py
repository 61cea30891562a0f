"""Replies in a house style that nobody states, on the embedded LM: what scores, and no word of why.

The complaints, data splits and program of `support`; but twelve rules, of which some hold for
products that plug in and others for all the rest, so that advice for one kind spoils the other.
The feedback is the score alone: only comparing better replies with worse ones can find the rules.

By hand, ten validation complaints of seed 0: .32 without a word; .23 to .33 with one line of advice
(an earlier form of one rule); .81 with three demos that keep all rules. Of 16 samples of the bare
student on four complaints, those on one complaint differ by .08 to .33.
Policy and reflection LM are SmolLM2-135M inside the process, as in `support`.
"""

import re
from collections.abc import Callable

import dspy

from tasks import Task, in_gepas_form, plain, support
from tasks.support import support_replies

MIN_WORDS, MAX_WORDS = 8, 60
DEMO_THRESHOLD = 0.4
"""Five rules of the twelve; the bare student keeps three or four of most."""
PLUGS_IN = re.compile(
    r"\b(?:kettle|desk lamp|toaster|coffee grinder|alarm clock|electric fan|headset|blender"
    r"|wall clock|hair dryer|keyboard|vacuum cleaner|baby monitor|radio|kitchen scale|printer"
    r"|drill|rice cooker|watch|lawn mower)\b"
)


def _says(pattern: str) -> Callable[[str], bool]:
    return lambda reply: bool(re.search(pattern, reply, re.IGNORECASE))


def _lacks(pattern: str) -> Callable[[str], bool]:
    return lambda reply: not re.search(pattern, reply, re.IGNORECASE)


ALWAYS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("says sorry", _says(r"\b(?:sorry|apolog\w+)\b")),
    ("says thank you", _says(r"\bthank\w*\b")),
    ("names Brightwell", _says(r"\bbrightwell\b")),
    ("asks for the order number", support_replies._asks_for_the_order_number),  # noqa: SLF001
    (f"has at most {MAX_WORDS} words", lambda reply: len(reply.split()) <= MAX_WORDS),
    ("has no exclamation mark", _lacks("!")),
    ("sends kind regards", _says(r"\bkind regards\b")),
    ("does not call itself a machine", _lacks(r"\bAI\b|\bchatbot\b|\blanguage model\b")),
)
PLUGGED_IN: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("offers a replacement", _says(r"\breplac\w+\b")),
    ("offers no refund", _lacks(r"\brefund\w*\b|\bmoney back\b")),
    ("asks to unplug it", _says(r"\b(?:unplug\w*|plug)\b")),
    ("begins with Hello", _says(r"\A\W*hello\b")),
)
OTHERS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("offers a refund", _says(r"\brefund\w*\b|\bmoney back\b")),
    ("offers no replacement", _lacks(r"\breplac\w+\b")),
    ("asks for a photo", _says(r"\b(?:photo\w*|picture of)\b")),
    ("begins with Dear customer", _says(r"\A\W*dear customer\b")),
)


def rules(complaint: str) -> tuple[tuple[str, Callable[[str], bool]], ...]:
    """The twelve rules that hold for the reply to a complaint."""
    return ALWAYS + (PLUGGED_IN if PLUGS_IN.search(complaint) else OTHERS)


def kept(complaint: str, reply: str) -> list[str]:
    """The rules that a reply keeps; none where it is hardly a sentence or repeats the complaint."""
    if len(reply.split()) < MIN_WORDS or support_replies._repeats(reply, complaint):  # noqa: SLF001
        return []
    return [rule for rule, holds in rules(complaint) if holds(reply)]


@in_gepas_form
def metric(gold: dspy.Example, pred: dspy.Prediction) -> dspy.Prediction:
    """The share of the twelve rules that the reply keeps, without a word of why."""
    reply = str(getattr(pred, "reply", "") or "").strip()
    score = len(kept(gold.complaint, reply)) / len(rules(gold.complaint))
    return dspy.Prediction(score=score, feedback=f"Score {score:.2f}")


def load(seed: int) -> Task:
    """36 complaints to train and 40 to validate, drawn by seed; all 80 of the test, always."""
    like = support.load(seed)
    return Task(
        name="style",
        student=like.student,
        train=like.train,
        val=like.val,
        test=like.test,
        metric=metric,
        plain_metric=plain(metric),
        demo_threshold=DEMO_THRESHOLD,
        make_lm=like.make_lm,
        make_reflection_lm=like.make_reflection_lm,
        notes="The feedback is the score alone; four rules hold for half of the products only.",
    )
