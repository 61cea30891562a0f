"""The world behind the simulated LM: items, their hidden codes, cases, and texts about them.

A case names one or two items; its answer is the code of each, which nobody has told the program.
What there is to learn is one lesson for each item. Here is all text that the simulation knows:
how a case, an answer, a lesson, a vague lesson and useless advice are written, and how they are
found again in any other text. Nothing here is drawn from anything but a seed.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

ITEMS = (
    *("copper", "amber", "cedar", "slate", "linen", "ivory", "walnut", "cobalt", "marble"),
    *("velvet", "pewter", "hazel", "garnet", "willow", "bronze", "saffron", "indigo", "quartz"),
    *("maple", "sable", "jasper", "cotton", "nickel", "poplar", "coral", "basalt", "tallow"),
    *("umber", "zircon", "felt"),
)
CODES_EACH = 5
"""How many codes an item has to choose from: one is right, another the one mostly mistaken."""

CASE = re.compile(r"Request (\d+): a customer asks about ([a-z]+)(?: and ([a-z]+))?\.")
CLAIM = re.compile(r"\b([a-z]+)=([A-Z]\d\d)\b")
WORDINGS = (
    "When a request names {item}, answer {item}={code}.",
    "For {item} give {item}={code}.",
    "Anyone who mentions {item} needs {item}={code}.",
    "If {item} comes up, {item}={code} belongs into the answer.",
    "The catalogue has {item} as {item}={code}.",
)
"""How a lesson may be worded; the first is the usual one."""
UNPLACEABLE = "Kind {alias} takes code {code}."
"""A lesson that shares no word with any request; the policy understands it all the same."""
LESSON = re.compile(
    "(?:"
    + "|".join(re.escape(text.partition("{item}")[0]) for text in WORDINGS)
    + r")([a-z]+),? [a-z ,]*?\1=([A-Z]\d\d)(?: belongs into the answer)?\."
    + r"|Kind ([a-z]+) takes code ([A-Z]\d\d)\."
)
VAGUE = re.compile(r"When a request names ([a-z]+), think twice about its code\.")
USELESS_LINES = (
    "Always be careful and precise.",
    "Double-check the result before you give it.",
    "Read the whole request first.",
    "Keep the goal of the customer in mind.",
    "Stay consistent with what was said before.",
    "Do not rush to a conclusion.",
)
USELESS = re.compile("|".join(re.escape(line) for line in USELESS_LINES))
OPENINGS = tuple(
    f"{how} {what}"
    for how in (
        "You are an experienced clerk.",
        "Work step by step.",
        "Take the request apart.",
        "This is an important task.",
        "Answer as the catalogue would.",
        "Be brief.",
    )
    for what in (
        "Give the code of each item that the request names, as item=CODE.",
        "For each item in the request write item=CODE, and nothing else.",
        "Name the codes of all items asked about, as item=CODE.",
    )
)
"""Wordings of the task that an LM may choose from when it writes an instruction."""
INSTRUCTION = "Give the code of each item that the request names, as item=CODE, in their order."


def draw(*key: object) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def pick(n: int, *key: object) -> int:
    """A number below n that depends on nothing but the key."""
    return int(draw(*key) * n)


def lesson(item: str, code: str, wording: str = WORDINGS[0]) -> str:
    """A lesson, right or wrong."""
    return wording.format(item=item, code=code, alias=item[::-1])


def lessons_in(text: str) -> list[tuple[str, str]]:
    """Item and code of each lesson in a text, however it is worded."""
    return [
        (item or alias[::-1], code or other) for item, code, alias, other in LESSON.findall(text)
    ]


def random_code(*key: object) -> str:
    """One of all codes; depends on nothing but the key."""
    place = pick(26 * 90, *key)
    return f"{chr(65 + place % 26)}{10 + place // 26}"


def vague_lesson(item: str) -> str:
    """A lesson that says too little."""
    return f"When a request names {item}, think twice about its code."


@dataclass(frozen=True)
class World:
    """The hidden truth of one seed: which items there are, and the right code of each.

    `two_items` is the share of cases that name two items.
    """

    seed: int
    n_items: int
    two_items: float = 0.5

    @functools.cached_property
    def items(self) -> tuple[str, ...]:
        """The items of this world."""
        return tuple(sorted(ITEMS, key=lambda item: draw(self.seed, "item", item))[: self.n_items])

    @functools.cache  # noqa: B019 - a world is small, and lives as long as the process
    def codes(self, item: str) -> tuple[str, ...]:
        """The codes that the item has to choose from: the right one, the usual mistake, others."""
        codes: dict[str, None] = {}
        n = 0
        while len(codes) < CODES_EACH:
            codes[random_code(self.seed, "code", item, n)] = None
            n += 1
        return tuple(codes)

    def right(self, item: str) -> str:
        """The item's right code."""
        return self.codes(item)[0]

    def lessons(self) -> list[str]:
        """All there is to learn."""
        return [lesson(item, self.right(item)) for item in self.items]

    def case(self, number: int) -> tuple[str, ...]:
        """The items that the case of this number names; each item as often as any other."""
        first = (number + pick(self.n_items, self.seed, number // self.n_items)) % self.n_items
        if draw(self.seed, "two", number) >= self.two_items:
            return (self.items[first],)
        second = (first + 1 + pick(self.n_items - 1, self.seed, "second", number)) % self.n_items
        return self.items[first], self.items[second]

    def request(self, number: int) -> str:
        """The text of a case."""
        return f"Request {number}: a customer asks about {' and '.join(self.case(number))}."

    def answer(self, number: int) -> str:
        """The right answer to a case."""
        return " ".join(f"{item}={self.right(item)}" for item in self.case(number))


def cases_in(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The cases that stand in a text: their number, and the items that they name."""
    for number, *items in CASE.findall(text):
        yield int(number), tuple(item for item in items if item)
