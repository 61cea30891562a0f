"""Two tasks with house formats that nobody states: routing of tickets, extraction from invoices."""

import random
from collections.abc import Iterator

import dspy

TOPICS = {
    "FIN": ("my invoice shows the wrong amount", "I was charged twice", "please refund the fee"),
    "LOG": ("the parcel has not arrived", "the delivery went to a neighbour", "where is my order"),
    "RMA": ("the lamp arrived broken", "the screen is scratched", "the box was crushed"),
    "ACC": ("I cannot log in", "my password is refused", "my account is locked"),
}
TIERS = ("gold", "silver", "basic")
EXTRAS = {"": 0.6, " I am going to call my lawyer.": 0.2, " There is no hurry.": 0.2}
ROUTING_ADVICE = """\
Answer with a code of the form TEAM/Pn, such as RMA/P2, and nothing else.
Teams: FIN for money and invoices, LOG for deliveries, RMA for damages, ACC for log-in trouble.
Priority: gold customers P1, silver customers P2, basic customers P3.
Whoever mentions a lawyer gets P0, whatever the tier.
Where there is no hurry, the priority is P4, also for gold customers."""


class Routing:
    """A ticket gets the code of a team and a priority."""

    fields = "tier, ticket -> code"
    instruction = "Route the ticket of a customer of this tier: give the code of its queue."
    advice = ROUTING_ADVICE

    def examples(self, rng: random.Random) -> Iterator[dspy.Example]:
        """Different tickets, in random order, without end."""
        seen = set()
        while True:
            team, tier = rng.choice(list(TOPICS)), rng.choice(TIERS)
            extra = rng.choices(list(EXTRAS), list(EXTRAS.values()))[0]
            order = f"Order {rng.randint(1000, 9999)}: "
            ticket = f"{order}{rng.choice(TOPICS[team])}.{extra}"
            priority = "P0" if "lawyer" in extra else "P4" if extra else f"P{TIERS.index(tier) + 1}"
            if ticket not in seen:
                seen.add(ticket)
                yield dspy.Example(tier=tier, ticket=ticket, code=f"{team}/{priority}")

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """Half a point for the team, half for the priority, none for another form."""
        given = str(pred.code or "").strip()
        team, _, priority = given.partition("/")
        wanted_team, _, wanted_priority = gold.code.partition("/")
        score = 0.5 * (team == wanted_team) + 0.5 * (priority == wanted_priority)
        said = "Right." if score == 1 else f"{given!r} was given, {gold.code!r} is right."
        return score, said


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December")  # fmt: skip
SUPPLIERS = ("Northwind Traders", "Blue Yonder", "Alpine Ski House", "Lucerne Publishing")
EXTRACTION_ADVICE = """\
date: eight digits, year month day, such as 20250317.
amount: the total with tax, in cents, without a currency sign or a point, such as 123450.
supplier: the first letters of its words, in capitals, such as NT.
reference: the digits of the order number alone, filled up with zeros to six digits."""


class Extraction:
    """An invoice's text gets four fields in house formats."""

    fields = "text -> date, amount, supplier, reference"
    instruction = "Extract the fields of the invoice."
    advice = EXTRACTION_ADVICE

    def examples(self, rng: random.Random) -> Iterator[dspy.Example]:
        """Invoices, without end."""
        while True:
            year, month, day = rng.randint(2022, 2025), rng.randint(1, 12), rng.randint(1, 28)
            cents, tax = rng.randint(1000, 99_999), rng.randint(100, 999)
            supplier, number = rng.choice(SUPPLIERS), rng.randint(10, 99_999)
            text = (
                f"{supplier}, invoice of {day} {MONTHS[month - 1]} {year} for order no. {number}. "
                f"Net {cents / 100:,.2f} EUR, tax {tax / 100:.2f} EUR."
            )
            if rng.random() < 0.5:
                text += f" Total {(cents + tax) / 100:,.2f} EUR."
            yield dspy.Example(
                text=text,
                date=f"{year}{month:02}{day:02}",
                amount=str(cents + tax),
                supplier="".join(word[0] for word in supplier.split()),
                reference=f"{number:06}",
            )

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """The share of right fields; and what each wrong one should be."""
        wanted = dict(gold.labels().items())
        wrong = {n: v for n, v in wanted.items() if str(pred.get(n, "") or "").strip() != v}
        said = "; ".join(f"{n}: {pred.get(n)!r} given, {v!r} is right" for n, v in wrong.items())
        return 1 - len(wrong) / len(wanted), said or "Right."
