"""A task of several examples: answer a complaint in the house style of Brightwell, a made-up shop.

Holds 200 complaints (60 to train, 60 to validate, 80 to test), the program to be optimized, and
the metric, which knows five rules of style that the program's instruction does not mention. No LM
judges anything, so scores are exact and free. Calls no LM, reads no file.
"""

import re
from collections.abc import Callable
from typing import Any

import dspy

COMPANY = "Brightwell"
MIN_WORDS, MAX_WORDS = 8, 60

# What was bought, and two things that can go wrong with nothing else.
PRODUCTS = (
    ("kettle", "It leaks from the base.", "It switches off before the water boils."),
    ("desk lamp", "It flickers all evening.", "The arm drops as soon as I let go of it."),
    ("rain jacket", "The zip broke on the first walk.", "Water comes through both shoulders."),
    ("toaster", "It burns one side and leaves the other white.", "The lever does not stay down."),
    ("office chair", "It sinks slowly while I sit on it.", "One of the wheels snapped off."),
    ("coffee grinder", "The motor smells of burning.", "The lid will not close any more."),
    ("garden hose", "It burst at the tap.", "The nozzle drips all the time."),
    ("alarm clock", "It loses ten minutes a night.", "The alarm stays silent."),
    ("backpack", "A shoulder strap tore off.", "The lining is coming apart."),
    ("electric fan", "It rattles at every speed.", "It only blows at the lowest setting."),
    ("frying pan", "The coating peels into the food.", "The handle gets too hot to touch."),
    ("headset", "The left side is dead.", "It loses the connection every minute."),
    ("bookshelf", "The shelves bend under a few books.", "Two holes are in the wrong place."),
    ("blender", "It cannot crush a single ice cube.", "The jug leaks when it is half full."),
    ("phone case", "The corners cracked in my pocket.", "It blocks two of the buttons."),
    ("bath towel set", "The colour ran in the first wash.", "It sheds fluff over everything."),
    ("bicycle pump", "The hose does not fit any valve.", "The gauge is stuck at zero."),
    ("wall clock", "The hands touch each other and stop.", "The ticking can be heard next door."),
    ("suitcase", "The lock jammed with my clothes inside.", "The handle will not slide back in."),
    ("mattress", "There is a hollow in the middle already.", "It still smells of glue."),
    ("hair dryer", "It cuts out after a minute.", "The plug becomes alarmingly hot."),
    ("tent", "A seam opened in light wind.", "One pole is shorter than the others."),
    ("water bottle", "It leaks in my bag.", "The lid tastes of plastic."),
    ("keyboard", "The space bar sticks.", "Half of the letters have rubbed off."),
    ("vacuum cleaner", "It has no suction at all.", "The cord does not wind back in."),
    (
        "ski helmet",
        "The strap tore on the first day.",
        "It is two sizes smaller than the label says.",
    ),
    ("baby monitor", "The picture freezes at night.", "The battery lasts twenty minutes."),
    ("dining table", "One leg is shorter than the rest.", "The varnish is sticky."),
    ("radio", "It finds only one station.", "The volume knob fell off."),
    ("umbrella", "It turned inside out in a breeze.", "It does not open at all."),
    ("kitchen scale", "It shows a different weight each time.", "The display is blank."),
    ("sleeping bag", "The zip catches every time.", "The filling gathers at the bottom."),
    ("printer", "It prints stripes on every page.", "It jams on the second sheet."),
    ("curtain set", "One of the two is far too short.", "The light shines straight through."),
    ("drill", "The battery does not charge.", "The chuck will not hold a bit."),
    ("yoga mat", "It slides over the floor.", "It crumbles at the edges."),
    ("rice cooker", "It burns the bottom every time.", "It never switches to warm."),
    ("watch", "The glass is foggy from inside.", "The strap broke on the second day."),
    ("lawn mower", "It stalls in dry grass.", "The blade arrived bent."),
    ("picture frame", "The glass is scratched.", "The stand does not hold it up."),
)
DELIVERY_FAULTS = (
    "It came with a deep dent and the box had been opened before.",
    "What arrived is not the colour that I chose.",
    "It was meant to come last Tuesday, and nothing has arrived.",
    "A part that the manual shows is missing from the box.",
    "I was charged twice for the same thing.",
    "The parcel was left out in the rain and is soaked through.",
    "It had clearly been used by somebody before me.",
)
OPENINGS = (
    "I bought a {product} from you two weeks ago.",
    "My new {product} has been nothing but trouble.",
    "I saved up for a {product} from Brightwell and I regret it.",
    "Hello, this is about the {product} that I got from your website.",
    "We chose a {product} for my mother's birthday.",
    "This is the second {product} that I have ordered from you.",
    "I am writing about a {product}.",
    "Your advert promised the best {product} in town.",
    "Last month I chose your most expensive {product}.",
    "A friend recommended the Brightwell {product}, so I ordered one.",
    "I needed a {product} quickly and trusted you.",
)
CIRCUMSTANCES = (
    "I called three times and was left waiting on the line.",
    "Nobody has answered my two emails.",
    "I have guests coming on Saturday and really need it.",
    "I work nights, so I cannot keep calling your office.",
    "The man on the phone told me that this was normal, which I do not believe.",
    "I live far from town and cannot just drop by.",
    "It was not cheap, and I am on a small pension.",
    "I was looking forward to it for weeks.",
    "I told your colleague on Monday, and he just laughed.",
    "Your website says that every parcel is checked.",
    "I took a day off work because of this.",
    "My neighbour had the same problem with your shop.",
    "I have all the papers here.",
)
CLOSINGS = (
    "What are you going to do about it?",
    "I am very disappointed.",
    "Please help me.",
    "This is simply not good enough!",
    "I expected better from Brightwell.",
    "I would be glad of a quick answer.",
    "Honestly, I am furious.",
    "Can somebody sort this out?",
    "I do not think that I will shop with you again.",
    "How do we solve this?",
    "I hope that you can put it right.",
    "Is this how you treat loyal customers?",
    "Thank you for looking into it.",
    "I want an explanation.",
    "Surely this cannot be right.",
    "Your service used to be so much better.",
    "I feel cheated.",
)
COMPLAINTS_PER_PRODUCT = 5


class ReplyToComplaint(dspy.Signature):
    """Reply to the customer's complaint."""

    complaint: str = dspy.InputField()
    reply: str = dspy.OutputField()


def program() -> dspy.Predict:
    """The program to be optimized: one predictor with a bare instruction."""
    return dspy.Predict(ReplyToComplaint)


def load() -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example]]:
    """The training, validation and test examples: 60, 60 and 80, each with the input `complaint`.

    Split by product, so that no product of one set is in another: of every ten products in
    `PRODUCTS` three go to training, three to validation and four to the test. Neighbours within a
    set are about different products, so that any slice of a set is varied.
    """
    trainset: list[dspy.Example] = []
    valset: list[dspy.Example] = []
    testset: list[dspy.Example] = []
    split_by_digit = [trainset] * 3 + [valset] * 3 + [testset] * 4
    for variant in range(COMPLAINTS_PER_PRODUCT):
        for product_index in range(len(PRODUCTS)):
            example = dspy.Example(complaint=_complaint(product_index, variant))
            split_by_digit[product_index % 10].append(example.with_inputs("complaint"))
    return trainset, valset, testset


def _complaint(product_index: int, variant: int) -> str:
    """The complaint number `variant` about a product; the list lengths share no factor."""
    number = product_index * COMPLAINTS_PER_PRODUCT + variant
    product, *own_faults = PRODUCTS[product_index]
    faults = (*own_faults, *DELIVERY_FAULTS)
    fault_index = variant if variant < 2 else 2 + number % len(DELIVERY_FAULTS)
    opening = OPENINGS[number % len(OPENINGS)].format(product=product)
    opening = re.sub(r"\ba(?= [aeiou])", "an", opening)
    return " ".join(
        (
            opening,
            faults[fault_index],
            CIRCUMSTANCES[number % len(CIRCUMSTANCES)],
            CLOSINGS[number % len(CLOSINGS)],
        )
    )


# ------------------------------------------------------------------------------- the metric

APOLOGY = re.compile(r"\b(?:sorry|apolog\w+)\b", re.IGNORECASE)
ORDER_NUMBER = re.compile(
    r"\border(?:'s)? (?:number|no\b|id\b|reference|code)|\border #", re.IGNORECASE
)
OWN_ORDER_NUMBER = re.compile(r"\b(?:my|our) order ", re.IGNORECASE)
ASKING = re.compile(
    r"\?|\b(?:please|could|can|would|may|need|share|send|provide|tell|give|let us|let me|reply"
    r"|confirm|include|what)\b",
    re.IGNORECASE,
)
REMEDY = re.compile(r"\b(?:refund\w*|replac(?:e|ed|ement|ements|ing)|money back)\b", re.IGNORECASE)
NO_OFFER = re.compile(
    r"\b(?:no|not|never|cannot|unable|without)\b|n't\b|\bmy (?:money|refund|replacement)\b"
    r"|\bI(?:'d| would)? (?:want|like|demand|expect|need|request|am requesting)\b",
    re.IGNORECASE,
)


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def _asks_for_the_order_number(reply: str) -> bool:
    return any(
        ORDER_NUMBER.search(sentence)
        and ASKING.search(sentence)
        and not OWN_ORDER_NUMBER.search(sentence)
        for sentence in _sentences(reply)
    )


def _offers_a_remedy(reply: str) -> bool:
    return any(
        REMEDY.search(sentence) and not NO_OFFER.search(sentence) for sentence in _sentences(reply)
    )


# Of each rule: what to say when it is kept, what to say when it is broken, and its check.
RULES: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("apologises", "Say sorry for the trouble.", lambda reply: bool(APOLOGY.search(reply))),
    ("asks for the order number", "Ask for the order number.", _asks_for_the_order_number),
    ("offers a refund or a replacement", "Offer a refund or a replacement.", _offers_a_remedy),
    (
        f"is at most {MAX_WORDS} words long",
        f"Use at most {MAX_WORDS} words.",
        lambda reply: len(reply.split()) <= MAX_WORDS,
    ),
    (f"names {COMPANY}", f"Mention {COMPANY}.", lambda reply: COMPANY.lower() in reply.lower()),
)


def house_style(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """The share of the five rules that the reply keeps, with a sentence on each as feedback.

    A reply that keeps four of the five scores 0.8. One that is hardly a sentence, or that mostly
    repeats the complaint, is no reply: it scores 0, however short and however well it names us.

    Returns: `dspy.Prediction(score=, feedback=)`, the score in 0, 0.2, ..., 1.
    """
    reply = str(getattr(pred, "reply", "") or "").strip()
    if len(reply.split()) < MIN_WORDS:
        return dspy.Prediction(score=0.0, feedback=f"Write at least {MIN_WORDS} words.")
    if _repeats(reply, example.complaint):
        return dspy.Prediction(score=0.0, feedback="Answer the complaint in words of your own.")
    kept = [kept for kept, _, check in RULES if check(reply)]
    advice = [broken for _, broken, check in RULES if not check(reply)]
    praise = [f"Good: it {', '.join(kept)}."] if kept else []
    return dspy.Prediction(score=len(kept) / len(RULES), feedback=" ".join(advice + praise))


def _repeats(reply: str, complaint: str, run: int = 4) -> bool:
    """Whether more than half of the reply's runs of four words stand in the complaint."""
    words, source = (re.findall(r"[a-z']+", text.lower()) for text in (reply, complaint))
    runs = [tuple(words[i : i + run]) for i in range(len(words) - run + 1)]
    known = {tuple(source[i : i + run]) for i in range(len(source) - run + 1)}
    return sum(one in known for one in runs) > len(runs) / 2
