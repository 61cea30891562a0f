"""An agent with a house rule that nobody states: how many pieces of an item a shop can still sell.

The agent is `dspy.ReAct` with two tools. The shop means the pieces in stock less those that are
reserved, and writes them with their unit.
"""

import random
from collections.abc import Iterator

import dspy

ITEMS = ("bolts", "brackets", "clamps", "gaskets", "hinges", "hooks", "nails", "nuts", "pins",
         "rivets", "screws", "seals", "springs", "valves", "washers")  # fmt: skip
FORMS = (
    "How many {} do we have?",
    "How many {} are there?",
    "A customer asks for {}. How many?",
    "What is our number of {}?",
)


def stock(item: str) -> int:
    """How many pieces of the item lie in the shop. Takes the plural, such as "bolts"."""
    return _figures(item)[0]


def reserved(item: str) -> int:
    """How many of those pieces are reserved. Takes the plural, such as "bolts"."""
    return _figures(item)[1]


def _figures(item: str) -> tuple[int, int]:
    name = item.strip().lower()
    if name not in ITEMS:
        raise ValueError(f"{item!r} is no item. The items are {', '.join(ITEMS)}.")
    rng = random.Random(name)
    return rng.randint(50, 99), 10 * rng.randint(1, 4)


class Stock:
    """The task's parts, as `real_tasks.py` puts them together; a rollout takes several calls."""

    fields = "question -> answer"
    instruction = "Answer the question of somebody who works in a hardware shop."
    advice = """\
Call stock and reserved with the name of the item, then finish.
The answer is the stock less what is reserved, written with its unit: 42 pcs, and nothing else."""
    sizes = (16, 8, 16)
    adapter = dspy.JSONAdapter

    @staticmethod
    def student(signature: type[dspy.Signature]) -> dspy.Module:
        """An agent with both tools, of at most four turns."""
        return dspy.ReAct(signature, tools=[stock, reserved], max_iters=4)

    def examples(self, rng: random.Random) -> Iterator[dspy.Example]:
        """Different questions, in random order, until there are no more."""
        questions = [(form, item) for form in FORMS for item in ITEMS]
        rng.shuffle(questions)
        for form, item in questions:
            free = stock(item) - reserved(item)
            yield dspy.Example(question=form.format(item), answer=f"{free} pcs")

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """Half a point for the number, half for the form of the answer."""
        answer = str(pred.answer or "").strip()
        number, _, unit = answer.partition(" ")
        is_right, has_form = number == gold.answer.split()[0], unit == "pcs" and number.isdigit()
        score = 0.5 * is_right + 0.5 * has_form
        text = "Right." if score == 1 else f"{answer!r} was given, {gold.answer!r} is right."
        return score, text
