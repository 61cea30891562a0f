"""Units and other words behind a number: which are known, and which two contradict each other.

Words behind a number are not compared ("5 apples" is 5), with one exception: two known units
that differ ("5 km", "5 m") are a difference. Nothing is converted.
"""

import re

_ALIASES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "km": "kilometer kilometre kms",
    "m": "meter metre",
    "in": "inch inche",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram",
    "kg": "kilogram kgs",
    "lb": "pound lbs",
    "oz": "ounce",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "s": "second sec",
    "min": "minute mins",
    "h": "hour hr hrs",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr yrs",
    "mph": "",
    "kph": "kmh",
    "dollar": "usd",
    "cent": "",
    "euro": "eur",
    "gbp": "",
    "degC": "celsius",
    "degF": "fahrenheit",
    "rad": "radian",
    "Hz": "hz hertz",
}
_CHANGES_VALUE = re.compile(
    "half|halves|thirds?|fourths|fifths|(?:ten|hundred|thousand)ths?|plus|minus|than|not"
)
_UNIT_BY_WORD = {
    word.casefold(): unit for unit, names in _ALIASES.items() for word in (unit, *names.split())
}


def is_unit(word: str) -> bool:
    """Whether the letters are a known unit of two letters or more: `cm` is, `xy` is not."""
    return len(word) > 1 and _known(word) is not None


def changes_value(word: str) -> bool:
    """Whether a number with this word behind it is another number: `2 thirds`, `5 more than x`."""
    return bool(_CHANGES_VALUE.fullmatch(word.casefold()))


def contradict(unit: str, other: str) -> bool:
    """Whether both are made of known units only, and not of the same: `km` and `m`, `cm^2`."""
    one, two = _canonical(unit), _canonical(other)
    return one is not None and two is not None and one != two


def _canonical(unit: str) -> str | None:
    """The unit with each word replaced by its short form; None when one is unknown, or none is."""
    parts = [(part, _known(part)) for part in re.findall(r"[^\W\d_]+|[^\w\s]|[0-9]+", unit)]
    if not parts or any(known is None and part[0].isalpha() for part, known in parts):
        return None
    return "".join(known or part for part, known in parts)


def _known(word: str) -> str | None:
    folded = word.casefold()
    return _UNIT_BY_WORD.get(folded) or _UNIT_BY_WORD.get(folded.removesuffix("s"))
