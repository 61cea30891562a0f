"""How well is it known which examples a lesson concerns? Precision and recall of `WordConcern`.

    python benchmarks/concern.py --data FOLDER     # gsm8k_*.jsonl and bbh_*.jsonl

Lessons are written by hand, 'When <condition>, <advice>', before any result was seen. What they
truly concern is said by rules that go by other signs than the condition's words where that can be
(`Lesson.truth`), and by the task or intent an example was made from. Each lesson is given to the
signal with one and with two source examples, drawn from those that it truly concerns, 20 times, in
training sets of 100 (of 40 beside it); sources are left out of what is counted. Without --data only
the generated agent-like requests are measured. The data is not part of this project. Writes
`benchmarks/results/concern.json`.
"""

import argparse
import json
import random
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tfgrpo_dspy.experience import Evidence, Experience  # noqa: E402
from tfgrpo_dspy.gate.concern import WordConcern  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "concern.json"
N_DRAWS = 20
Truth = Callable[[Mapping[str, str]], bool]


@dataclass(frozen=True)
class Lesson:
    """A lesson, and the rule that says which examples it truly concerns."""

    text: str
    truth: Truth


def has(pattern: str) -> Truth:
    """The input matches."""
    found = re.compile(pattern, re.IGNORECASE | re.DOTALL)
    return lambda row: bool(found.search(row["text"]))


def asks(pattern: str) -> Truth:
    """The last sentence of the input, the question, matches."""
    found = re.compile(pattern, re.IGNORECASE)
    return lambda row: bool(found.search(re.split(r"(?<=[.!?])\s+", row["text"].strip())[-1]))


def both(*truths: Truth) -> Truth:
    return lambda row: all(truth(row) for truth in truths)


def task(name: str, *truths: Truth) -> Truth:
    """An example of this task for which the rules hold."""
    return lambda row: row["task"] == name and all(truth(row) for truth in truths)


MATHS = [
    Lesson(
        "When the problem asks for or gives a percentage, write it as a decimal before you "
        "multiply.",
        has(r"\d\s?%|percent"),
    ),
    Lesson(
        "When a discount or a sale lowers the price, subtract it from the full price first.",
        has(r"\d\s?% (off|less|discount)|discount|coupon|on sale|\bsales?\b.*cheaper|reduced"),
    ),
    Lesson(
        "When the ages of people are compared, set up an equation for one year and solve it.",
        has(r"years? (old|older|younger)|\bages?\b|twice as old"),
    ),
    Lesson(
        "When an average is asked for or given, divide the sum by how many there are.",
        has(r"\baverage|\bmean (of|score)"),
    ),
    Lesson(
        "When a speed in miles per hour is involved, divide the distance by the speed.",
        has(r"mph|(miles|km|kilometers|meters|feet) (per|an|every|each) (hour|minute|second|day)"),
    ),
    Lesson(
        "When minutes and hours are mixed, convert everything to minutes first.",
        both(has(r"\bminutes?\b|\bmins?\b"), has(r"\bhours?\b|\bhrs?\b|\d ?[ap]\.?m")),
    ),
    Lesson(
        "When it is asked how much is left or remains, subtract everything that was used.",
        asks(r"\b(left|remain\w*|still|leftover|unsold|rest)\b"),
    ),
    Lesson(
        "When one amount is twice or three times another, compute the smaller amount first.",
        has(
            r"\btwice\b|\bthrice\b|\bdoubl\w+|\btripl\w+|\b(\w+|\d+) times (as|the|more|that|older)"
        ),
    ),
    Lesson(
        "When half or another fraction of an amount is taken, compute that part before going on.",
        has(r"\b\d/\d\b|\bhalf\b|\ba (third|quarter|fifth|fourth)\b|\bone[- ](third|fourth|fifth)"),
    ),
    Lesson(
        "When something is earned per hour, multiply the hourly pay by the hours worked.",
        both(
            has(r"\bhours?\b|hourly"),
            has(r"\$\s?\d+[\d.]* ?(an|per|/|every|each|for (every|each)) ?hour|hourly|per hour"),
            has(r"earn|paid|pays?\b|makes?|charges?|wage|salary"),
        ),
    ),
    Lesson(
        "When something happens every day and a total for weeks is asked, multiply by seven days.",
        both(has(r"\bweek"), has(r"\bdaily\b|(per|each|every|a) day\b")),
    ),
    Lesson(
        "When money is spent on several items with different prices, add up each item's cost.",
        lambda row: (
            len(re.findall(r"\$\s?\d", row["text"])) >= 3
            and bool(re.search(r"\b(buy|bought|buys|cost|costs|spen[dt]|pay|paid)", row["text"]))
        ),
    ),
    Lesson(
        "When the area, perimeter or length of a shape is needed, draw it and name its sides.",
        has(r"\b(square|cubic) (feet|meters|inches|yards|foot)|\barea\b|perimeter|rectang|\bwidth"),
    ),
    Lesson(
        "When students in a class or school are counted, split them into groups that do not meet.",
        has(r"\bstudents?\b|\bpupils?\b|\bclassroom|\bkindergart|\bgraders?\b"),
    ),
    Lesson(
        "When the original amount before a change is asked, work backwards from the end.",
        asks(
            r"\b(originally|at first|initially|to (start|begin) with|start with|in the beginning)"
        ),
    ),
    Lesson(
        "When items are packed in boxes or bags, multiply the number of boxes by what each holds.",
        has(r"\b(box|boxes|bags?|crates?|cartons?|packs?|packages?|packets?|cases?)\b"),
    ),
]


def n_listed(row: Mapping[str, str]) -> int:
    return len(re.split(r", | and ", row["text"].partition("?")[0]))


BIG_BENCH = [
    Lesson(
        "When a list of words is to be sorted alphabetically, compare letter by letter.",
        task("word_sorting"),
    ),
    Lesson("When a date has to be computed, count days forward from today.", task("date")),
    Lesson(
        "When the truth of a boolean expression is asked, resolve 'not' first, then 'and'.",
        task("boolean"),
    ),
    Lesson(
        "When a sentence about sports is judged plausible or not, check the player's sport.",
        task("sports"),
    ),
    Lesson("When objects are counted, write each with its number and add.", task("counting")),
    Lesson(
        "When fruits are counted, leave out what is no fruit.",
        task("counting", has(r"how many fruits")),
    ),
    Lesson(
        "When musical instruments are counted, leave out furniture.",
        task("counting", has(r"how many musical")),
    ),
    Lesson(
        "When the date of yesterday is asked, go back one day and mind the month's end.",
        task("date", has(r"date yesterday")),
    ),
    Lesson(
        "When the date some days ago is asked, subtract the days.",
        task("date", has(r"date \d+ days ago|date yesterday")),
    ),
    Lesson(
        "When an expression has parentheses, resolve what is inside them first.",
        task("boolean", has(r"\(")),
    ),
    Lesson(
        "When a long list has to be sorted, sort by first letters, then inside each letter.",
        task("word_sorting", lambda row: len(row["text"].split()) > 18),
    ),
    Lesson(
        "When penalty boxes, pucks or other ice hockey terms occur, check for a hockey player.",
        task(
            "sports", has(r"penalty box|stanley cup|power ?play|wrister|puck|skate|attacking zone")
        ),
    ),
    Lesson(
        "When the list of things is long, number them as you go.",
        task("counting", lambda row: n_listed(row) >= 7),
    ),
]

INTENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "refund": (
        "When a customer wants a refund or money back, call get_order before issue_refund.",
        (
            "I want my money back for order {n}, the {item} arrived broken.",
            "Please refund the {item} I bought on {day}.",
            "The {item} stopped working after {n} days. How do I return it and get reimbursed?",
            "Order {n}: wrong {item}. Refund requested.",
            "You charged me for a {item} that never came, give me back what I paid.",
        ),
    ),
    "flight": (
        "When a flight is to be booked, search_flights for both directions first.",
        (
            "Book me a flight from {city} to {city2} on {day}.",
            "I need to fly to {city} next {day}, as cheap as possible.",
            "Find flights {city}-{city2}, window seat, and reserve one.",
            "Get two plane tickets to {city} for {day}.",
            "Can you arrange air travel for {n} people from {city} to {city2}?",
        ),
    ),
    "weather": (
        "When the weather of a city is asked, pass the country too to get_forecast.",
        (
            "What will the weather be like in {city} on {day}?",
            "Do I need an umbrella in {city} this {day}?",
            "Weather forecast for {city}, next {n} days.",
            "Is it going to rain in {city2} on {day}?",
            "How cold does it get in {city} on {day}?",
        ),
    ),
    "spreadsheet": (
        "When a spreadsheet or CSV file has to be read, look at its column names first.",
        (
            "Open sales_{n}.csv and tell me the total of the column amount.",
            "In the spreadsheet budget.xlsx, which row has the highest cost?",
            "Convert report_{n}.csv to JSON.",
            "How many rows of the CSV file orders.csv are from {city}?",
            "Make a chart of the columns date and price of the sheet {item}s.xlsx.",
        ),
    ),
    "email": (
        "When an email has to be sent, look the address up with find_contact.",
        (
            "Send an email to Maria that the {item} ships on {day}.",
            "Mail the team that the meeting in {city} is moved to {day}.",
            "Write to Mr. Okafor and tell him his {item} is ready.",
            "Forward the last email about the {item} to Priya.",
            "Draft an e-mail to accounting about invoice {n} and send it.",
        ),
    ),
    "calendar": (
        "When a meeting is to be scheduled, check everybody's calendar for conflicts.",
        (
            "Schedule a meeting with Tom and Ana on {day} at {n}.",
            "Move my {day} meeting to the afternoon.",
            "Am I free on {day} for a call with {city}? If so put it in my calendar.",
            "Set up a weekly meeting on {day} with the {item} team.",
            "Cancel all appointments on {day}.",
        ),
    ),
    "papers": (
        "When scientific papers are searched, filter the results by year.",
        (
            "Find papers on {topic} since 20{n}.",
            "Which articles cite the {topic} paper of Li et al.?",
            "Give me {n} recent papers about {topic}, with abstracts.",
            "Has anyone published on {topic} and {topic2}?",
            "Look for arXiv papers on {topic}.",
        ),
    ),
    "code": (
        "When a failing test has to be fixed, run that test alone before changing code.",
        (
            "test_{topic2}_{n} fails with a KeyError, fix it.",
            "The tests of module {item} fail since {day}. Repair the code.",
            "Fix the bug that makes test {n} fail.",
            "CI is red: an assertion in {item}.py, line {n}.",
            "Make the failing unit test for {topic} pass.",
        ),
    ),
}
SLOTS = {
    "city": [
        "Oslo",
        "Lima",
        "Cairo",
        "Delhi",
        "Boston",
        "Quito",
        "Lyon",
        "Perth",
        "Seoul",
        "Dakar",
    ],
    "city2": ["Rome", "Kyoto", "Accra", "Toronto", "Porto", "Hanoi", "Dublin", "Austin"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "item": ["lamp", "kettle", "printer", "backpack", "headset", "blender", "camera", "keyboard"],
    "topic": [
        "graphene",
        "sleep",
        "batteries",
        "malaria",
        "robotics",
        "transformers",
        "corals",
        "inflation",
    ],
    "topic2": ["memory", "vision", "safety", "ageing", "friction", "cooling"],
}
AGENT = [
    Lesson(text, lambda row, name=name: row["task"] == name)  # type: ignore[misc]
    for name, (text, _) in INTENTS.items()
]


def requests(n: int = 400) -> list[dict[str, str]]:
    """Generated requests to an agent, the intents in turn."""
    draw = random.Random("requests")
    rows = []
    for i in range(n):
        intent = list(INTENTS)[i % len(INTENTS)]
        template = draw.choice(INTENTS[intent][1])
        slots = {name: draw.choice(values) for name, values in SLOTS.items()}
        text = template.format(**slots, n=draw.randrange(10, 60))
        rows.append({"text": text, "task": intent})
    return rows


def tasks(folder: Path | None) -> dict[str, tuple[list[Lesson], list[dict[str, str]]]]:
    """Lessons and examples, by the name of the data."""
    found = {"agent": (AGENT, requests())}
    if folder is None:
        return found
    for part in ("train", "test"):
        rows = [{"text": row["question"], "task": ""} for row in _rows(folder, f"gsm8k_{part}")]
        found[f"gsm8k_{part}"] = (MATHS, rows)
    names = {
        "boolean": "boolean_expressions",
        "date": "date_understanding",
        "counting": "object_counting",
        "sports": "sports_understanding",
        "word_sorting": "word_sorting",
    }
    found["bbh"] = (
        BIG_BENCH,
        [
            {"text": row["input"], "task": name}
            for name, file in names.items()
            for row in _rows(folder, f"bbh_{file}")
        ],
    )
    return found


def _rows(folder: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


@dataclass(frozen=True)
class Outcome:
    """One lesson in one training set: whether there was a signal, and what it found."""

    lesson: int
    has_signal: bool
    n_found: int = 0
    n_right: int = 0
    n_true: int = 0


def outcome(
    signal: Any,
    lesson: Lesson,
    index: int,
    rows: Sequence[Mapping[str, str]],
    seed: str,
    n: int,
    n_sources: int,
    with_domains: bool,
) -> Outcome | None:
    """What the signal finds in a training set of n rows; None where too few are concerned."""
    draw = random.Random(f"{seed}/{lesson.text}")
    sample = draw.sample(rows, n)
    truly = [i for i, row in enumerate(sample) if lesson.truth(row)]
    if len(truly) <= n_sources:
        return None
    sources = draw.sample(truly, n_sources)
    evidence = tuple(Evidence(0, source, (), ()) for source in sources)
    experience = Experience("E1", lesson.text, evidence=evidence)
    domains = [row["task"] for row in sample] if with_domains else ()
    found = signal([experience], [row["text"] for row in sample], domains).get("E1")
    if found is None:
        return Outcome(index, False)
    outside, right = found - set(sources), set(truly) - set(sources)
    return Outcome(index, True, len(outside), len(outside & right), len(right))


def outcomes(
    signal: Any, lessons: Sequence[Lesson], rows: Sequence[Mapping[str, str]], **how: Any
) -> list[Outcome]:
    """One for each lesson and draw."""
    found = [
        outcome(signal, lesson, index, rows, str(draw), **how)
        for index, lesson in enumerate(lessons)
        for draw in range(N_DRAWS)
    ]
    return [each for each in found if each is not None]


def quality(found: Sequence[Outcome]) -> dict[str, float]:
    """Precision and recall over all that the signal told, and how often it told anything."""
    told = [each for each in found if each.has_signal]
    n_right = sum(each.n_right for each in told)
    return {
        "precision": _ratio(n_right, sum(each.n_found for each in told)),
        "recall": _ratio(n_right, sum(each.n_true for each in told)),
        "told": _ratio(len(told), len(found)),
    }


def summary(found: Sequence[Outcome], lessons: Sequence[Lesson]) -> dict[str, Any]:
    """Pooled quality, its mean over lessons, and each lesson's own."""
    own = {
        lesson.text: quality([each for each in found if each.lesson == index])
        for index, lesson in enumerate(lessons)
    }
    told = [row for row in own.values() if row["told"]]
    return {
        **quality(found),
        "precision_mean": round(statistics.fmean(row["precision"] for row in told), 3),
        "recall_mean": round(statistics.fmean(row["recall"] for row in told), 3),
        "n_lessons": len(lessons),
        "lessons": own,
    }


def rates(found: Sequence[Outcome], n: int) -> list[list[list[float] | None]]:
    """By lesson: recall and rate of false alarms of each draw, None where nothing was told."""
    by_lesson: dict[int, list[list[float] | None]] = {}
    for each in found:
        recall = _ratio(each.n_right, each.n_true)
        alarms = _ratio(each.n_found - each.n_right, n - each.n_true)
        by_lesson.setdefault(each.lesson, []).append([recall, alarms] if each.has_signal else None)
    return list(by_lesson.values())


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    settings = ((100, 1, False), (100, 2, False), (40, 1, False), (100, 1, True))
    print("| data | examples | sources | domains | precision | recall | told |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (lessons, rows) in tasks(args.data).items():
        for n, n_sources, with_domains in settings:
            if with_domains and name.startswith("gsm8k"):
                continue  # it has none
            found = outcomes(
                WordConcern(), lessons, rows, n=n, n_sources=n_sources, with_domains=with_domains
            )
            row = summary(found, lessons)
            results.append(
                {
                    "data": name,
                    "n_examples": n,
                    "n_sources": n_sources,
                    "has_domains": with_domains,
                    **row,
                    "rates": rates(found, n),
                }
            )
            print(
                f"| {name} | {n} | {n_sources} | {'yes' if with_domains else 'no'} "
                f"| {row['precision']:.2f} | {row['recall']:.2f} | {row['told']:.2f} |",
                flush=True,
            )
    if args.data is not None:
        RESULTS.write_text(json.dumps({"rows": results}) + "\n", "utf-8")


if __name__ == "__main__":
    main()
