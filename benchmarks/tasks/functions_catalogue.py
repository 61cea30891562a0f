"""The catalogue of `functions` and the generator of its requests.

Ten functions of an assistant, described as tersely as such functions often are, and for each a
generator of requests with the call that is right. Of every argument the gold call lists all values
that are accepted; an argument that may be left out says so. The descriptions keep four customs
to themselves (`CUSTOMS`), which feedback brings to light: that is what there is to learn.
"""

import datetime
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

TODAY = datetime.date(2026, 3, 2)
CUSTOMS = (
    "Amounts of money are in cents.",
    "Durations are in minutes.",
    "The number of people counts the person who asks.",
    "Times are HH:MM of 24 hours, dates YYYY-MM-DD.",
)
PEOPLE = ("Ida", "Tom", "Ruth", "Edwin", "Clara", "Hugo", "Nell", "Oscar", "Vera", "Lionel")
CITIES = ("Oslo", "Porto", "Graz", "Leeds", "Ghent", "Turin", "Basel", "Cork", "Lyon", "Gdansk")
RESTAURANTS = ("Blue Heron", "Casa Verde", "Old Mill", "Red Lantern", "Salt and Rye")
ARTISTS = ("Nina Simone", "Arvo Part", "The Lowlands", "Miles Davis", "Björk")
TITLES = ("Budget review", "Dentist", "Standup", "Interview with Ruth", "Planning")
MESSAGES = ("Running late", "The keys are on the table", "Call me back", "Lunch is cancelled")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SMALL_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
# Of each unit what counts as its name; requests use the second.
UNITS = {
    "km": ("km", "kilometres", "kilometers", "kilometre", "kilometer"),
    "miles": ("mi", "miles", "mile"),
    "kg": ("kg", "kilograms", "kilogram", "kilos"),
    "pounds": ("lb", "pounds", "pound", "lbs"),
}


@dataclass(frozen=True)
class Parameter:
    """One argument: its JSON type, a word on it, its allowed values if listed, whether optional."""

    type: str
    description: str
    is_optional: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Function:
    name: str
    description: str
    parameters: dict[str, Parameter]

    def schema(self) -> dict[str, Any]:
        """As JSON schema, the form in which models are told of functions."""
        properties: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            listed = {"enum": list(parameter.choices)} if parameter.choices else {}
            properties[name] = {
                "type": parameter.type,
                "description": parameter.description,
                **listed,
            }
        required = [name for name, one in self.parameters.items() if not one.is_optional]
        return {
            "name": self.name,
            "description": self.description,
            "parameters": {"type": "object", "properties": properties, "required": required},
        }


Accepted = dict[str, list[Any]]
"""Of each argument the accepted values; `LEFT_OUT` among them when it need not be given."""
LEFT_OUT = "<left out>"


@dataclass(frozen=True)
class Ask:
    """A sentence that asks for one call, and what the call has to be."""

    text: str
    function: str
    accepted: Accepted
    incomplete: str = ""
    """The same sentence without something that the call needs; "" where there is none."""


FUNCTIONS: dict[str, Function] = {
    one.name: one
    for one in (
        Function(
            "book_table",
            "Books a table in a restaurant.",
            {
                "restaurant": Parameter("string", "Name of the restaurant."),
                "date": Parameter("string", "Day."),
                "time": Parameter("string", "Time of day."),
                "people": Parameter("integer", "Number of people."),
            },
        ),
        Function(
            "transfer_money",
            "Sends money to somebody.",
            {
                "recipient": Parameter("string", "Who gets it."),
                "amount": Parameter("integer", "Amount."),
                "currency": Parameter("string", "Currency.", choices=("EUR", "USD", "GBP")),
            },
        ),
        Function(
            "create_event",
            "Puts an event into the calendar.",
            {
                "title": Parameter("string", "Title."),
                "date": Parameter("string", "Day."),
                "start": Parameter("string", "Start."),
                "duration": Parameter("integer", "Length."),
            },
        ),
        Function(
            "get_weather",
            "Weather forecast for a city.",
            {
                "city": Parameter("string", "City."),
                "date": Parameter("string", "Day."),
                "unit": Parameter(
                    "string", "Unit; default celsius.", True, ("celsius", "fahrenheit")
                ),
            },
        ),
        Function(
            "send_message",
            "Sends a text message.",
            {
                "recipients": Parameter("array", "Names of those who get it."),
                "text": Parameter("string", "The message."),
            },
        ),
        Function(
            "set_alarm",
            "Sets an alarm.",
            {
                "time": Parameter("string", "Time of day."),
                "repeat": Parameter("array", "Weekdays, in lower case; default none.", True),
            },
        ),
        Function(
            "convert_units",
            "Converts a quantity.",
            {
                "value": Parameter("number", "Quantity."),
                "from_unit": Parameter("string", "Unit of it."),
                "to_unit": Parameter("string", "Unit wanted."),
            },
        ),
        Function(
            "order_part",
            "Orders a spare part.",
            {
                "part_number": Parameter("string", "Part number."),
                "quantity": Parameter("integer", "How many."),
                "express": Parameter("boolean", "Express delivery; default false.", True),
            },
        ),
        Function(
            "find_train",
            "Looks up trains.",
            {
                "origin": Parameter("string", "From."),
                "destination": Parameter("string", "To."),
                "date": Parameter("string", "Day."),
                "after": Parameter("string", "Earliest departure; default any.", True),
            },
        ),
        Function(
            "play_music",
            "Plays music.",
            {
                "artist": Parameter("string", "Artist."),
                "volume": Parameter("integer", "From 0 to 100.", True),
                "shuffle": Parameter("boolean", "Random order; default false.", True),
            },
        ),
    )
}


# ----------------------------------------------------------------------- one request each


def _in_any_order(names: Sequence[str]) -> list[list[str]]:
    """Every order; the given one first."""
    return [list(order) for order in itertools.permutations(names)]


def _day(draw: random.Random) -> tuple[str, list[Any]]:
    """A day in words, and how it is written in a call."""
    days = draw.randint(1, 24)
    date = TODAY + datetime.timedelta(days=days)
    if days == 1:
        return "tomorrow", [date.isoformat()]
    if days < 7:
        return f"this {date:%A}", [date.isoformat()]
    return f"on {date.day} {date:%B}", [date.isoformat()]


def _time(draw: random.Random) -> tuple[str, list[Any]]:
    hour, minute = draw.randint(1, 12), draw.choice((0, 0, 15, 30))
    half = draw.choice(("am", "pm"))
    in_words = f"{hour} {half}" if minute == 0 else f"{hour}:{minute:02} {half}"
    return in_words, [f"{hour % 12 + (12 if half == 'pm' else 0):02}:{minute:02}"]


def _book_table(draw: random.Random) -> Ask:
    name, friends = draw.choice(RESTAURANTS), draw.randint(1, 6)
    (day, dates), (time, times) = _day(draw), _time(draw)
    noun = "friend" if friends == 1 else "friends"
    start = f"Book a table at {name} {day}"
    with_whom = f"for me and {SMALL_NUMBERS[friends]} {noun}"
    return Ask(
        f"{start} at {time} {with_whom}.",
        "book_table",
        {"restaurant": [name], "date": dates, "time": times, "people": [friends + 1]},
        incomplete=f"{start} {with_whom}.",
    )


def _transfer_money(draw: random.Random) -> Ask:
    person, cents = draw.choice(PEOPLE), draw.randint(2, 90) * 100 + draw.choice((0, 0, 50, 75))
    currency, word = draw.choice((("EUR", "euros"), ("USD", "dollars"), ("GBP", "pounds")))
    amount = f"{cents // 100}" if cents % 100 == 0 else f"{cents / 100:.2f}"
    return Ask(
        f"Send {amount} {word} to {person}.",
        "transfer_money",
        {"recipient": [person], "amount": [cents], "currency": [currency]},
        incomplete=f"Send some money to {person}.",
    )


def _create_event(draw: random.Random) -> Ask:
    title = draw.choice(TITLES)
    (day, dates), (start, starts) = _day(draw), _time(draw)
    words, minutes = draw.choice(
        (("half an hour", 30), ("an hour", 60), ("an hour and a half", 90), ("two hours", 120))
    )
    return Ask(
        f'Put "{title}" into my calendar {day} at {start}, for {words}.',
        "create_event",
        {"title": [title], "date": dates, "start": starts, "duration": [minutes]},
        incomplete=f'Put "{title}" into my calendar {day}, for {words}.',
    )


def _get_weather(draw: random.Random) -> Ask:
    city, (day, dates) = draw.choice(CITIES), _day(draw)
    unit, in_words = draw.choice((("celsius", ""), ("fahrenheit", " in degrees Fahrenheit")))
    units = [unit, LEFT_OUT] if unit == "celsius" else [unit]
    return Ask(
        f"What will the weather be like in {city} {day}{in_words}?",
        "get_weather",
        {"city": [city], "date": dates, "unit": units},
        incomplete=f"What will the weather be like {day}{in_words}?",
    )


def _send_message(draw: random.Random) -> Ask:
    people, text = draw.sample(PEOPLE, draw.choice((1, 2, 3))), draw.choice(MESSAGES)
    return Ask(
        f'Text "{text}" to {" and ".join(people)}.',
        "send_message",
        {"recipients": _in_any_order(people), "text": [text]},
        incomplete=f"Text {' and '.join(people)}.",
    )


def _set_alarm(draw: random.Random) -> Ask:
    time, times = _time(draw)
    if draw.random() < 0.5:
        return Ask(f"Wake me at {time}.", "set_alarm", {"time": times, "repeat": [[], LEFT_OUT]})
    first = draw.randint(0, 4)
    days = WEEKDAYS[first : first + 2]
    in_words = f"every {days[0].capitalize()} and {days[1].capitalize()}"
    return Ask(
        f"Wake me {in_words} at {time}.",
        "set_alarm",
        {"time": times, "repeat": _in_any_order(days)},
        incomplete=f"Wake me {in_words}.",
    )


def _convert_units(draw: random.Random) -> Ask:
    value = draw.choice((3, 12, 40.5, 7.25, 150))
    pair = draw.choice((("km", "miles"), ("kg", "pounds")))
    source, target = draw.sample(pair, 2)
    return Ask(
        f"How much is {value} {UNITS[source][1]} in {UNITS[target][1]}?",
        "convert_units",
        {
            "value": [value],
            "from_unit": list(UNITS[source]),
            "to_unit": list(UNITS[target]),
        },
    )


def _order_part(draw: random.Random) -> Ask:
    number, quantity = f"{draw.randint(1, 9999):06}", draw.randint(1, 8)
    is_express = draw.random() < 0.5
    how = " by express" if is_express else ""
    return Ask(
        f"Order {SMALL_NUMBERS[quantity]} of part {number}{how}.",
        "order_part",
        {
            "part_number": [number],
            "quantity": [quantity],
            "express": [True] if is_express else [False, LEFT_OUT],
        },
        incomplete=f"Order {SMALL_NUMBERS[quantity]} of that part{how}.",
    )


def _find_train(draw: random.Random) -> Ask:
    (origin, destination), (day, dates) = draw.sample(CITIES, 2), _day(draw)
    after, times = _time(draw)
    is_bound = draw.random() < 0.5
    return Ask(
        f"Which trains go from {origin} to {destination} {day}"
        + (f" after {after}?" if is_bound else "?"),
        "find_train",
        {
            "origin": [origin],
            "destination": [destination],
            "date": dates,
            "after": times if is_bound else [LEFT_OUT],
        },
        incomplete=f"Which trains go from {origin} {day}?",
    )


def _play_music(draw: random.Random) -> Ask:
    artist, (volume_in_words, volumes) = (
        draw.choice(ARTISTS),
        draw.choice((("", [LEFT_OUT]), (" at half volume", [50]), (" at full volume", [100]))),
    )
    is_shuffled = draw.random() < 0.5
    order = ", in random order" if is_shuffled else ""
    return Ask(
        f"Play {artist}{volume_in_words}{order}.",
        "play_music",
        {
            "artist": [artist],
            "volume": volumes,
            "shuffle": [True] if is_shuffled else [False, LEFT_OUT],
        },
    )


_ASKS: dict[str, Callable[[random.Random], Ask]] = {
    "book_table": _book_table,
    "transfer_money": _transfer_money,
    "create_event": _create_event,
    "get_weather": _get_weather,
    "send_message": _send_message,
    "set_alarm": _set_alarm,
    "convert_units": _convert_units,
    "order_part": _order_part,
    "find_train": _find_train,
    "play_music": _play_music,
}


# ------------------------------------------------------------------------------ whole requests


@dataclass(frozen=True)
class Request:
    """What the program is given, and the calls that are right, in any order."""

    kind: str
    text: str
    offered: tuple[str, ...]
    calls: tuple[Ask, ...]


def one_call(draw: random.Random) -> Request:
    """One call, of four functions on offer."""
    ask = _ASKS[draw.choice(list(FUNCTIONS))](draw)
    return Request("one call", ask.text, _offer(draw, {ask.function}, 4), (ask,))


def several_calls(draw: random.Random) -> Request:
    """Two or three calls, sometimes two of the same function."""
    names = draw.sample(list(FUNCTIONS), draw.choice((2, 2, 3)))
    if draw.random() < 0.3:
        names[1] = names[0]
    asks = [_ASKS[name](draw) for name in names]
    text = " ".join(ask.text for ask in asks)
    return Request("several calls", text, _offer(draw, set(names), 5), tuple(asks))


def no_call(draw: random.Random) -> Request:
    """Nothing to call: no function on offer does it, or something is missing from the request."""
    ask = _ASKS[draw.choice(list(FUNCTIONS))](draw)
    if ask.incomplete and draw.random() < 0.5:
        return Request("no call", ask.incomplete, _offer(draw, {ask.function}, 4), ())
    others = [name for name in FUNCTIONS if name != ask.function]
    return Request("no call", ask.text, tuple(draw.sample(others, 3)), ())


def _offer(draw: random.Random, needed: set[str], n: int) -> tuple[str, ...]:
    """The needed functions among others, in random order."""
    others = [name for name in FUNCTIONS if name not in needed]
    offered = sorted(needed) + draw.sample(others, n - len(needed))
    draw.shuffle(offered)
    return tuple(offered)
