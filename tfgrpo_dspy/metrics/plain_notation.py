r"""Unicode and LaTeX spellings of mathematics, replaced by one plain spelling: text in, text out.

`x²` becomes `x^{2}`, `½` becomes `\frac{1}{2}`, `\dfrac` becomes `\frac`, `90^\circ` becomes `90°`.
"""

import re
import unicodedata

_SPELLING_BY_NAME = {
    "MINUS SIGN": "-",
    "EN DASH": "-",
    "EM DASH": "-",
    "HYPHEN": "-",
    "NON-BREAKING HYPHEN": "-",
    "SMALL HYPHEN-MINUS": "-",
    "MULTIPLICATION SIGN": "*",
    "DOT OPERATOR": "*",
    "MIDDLE DOT": "*",
    "BULLET OPERATOR": "*",
    "BULLET": "*",
    "ASTERISK OPERATOR": "*",
    "DIVISION SIGN": "/",
    "DIVISION SLASH": "/",
    "FRACTION SLASH": "/",
    "LESS-THAN OR EQUAL TO": "<=",
    "GREATER-THAN OR EQUAL TO": ">=",
    "NOT EQUAL TO": "!=",
    "ALMOST EQUAL TO": "=",
    "ELEMENT OF": r"\in ",
    "UNION": r"\cup ",
    "INTERSECTION": r"\cap ",
    "SET MINUS": r"\setminus ",
    "EMPTY SET": r"\emptyset ",
    "INFINITY": r"\infty ",
    "SQUARE ROOT": " sqrt ",
    "CUBE ROOT": " cbrt ",
    "MINUS-OR-PLUS SIGN": r"\mp ",
    "PLUS-MINUS SIGN": r"\pm ",
    "PRIME": "'",
    "DIVIDES": "|",
    "LEFT FLOOR": r"\lfloor ",
    "RIGHT FLOOR": r"\rfloor ",
    "LEFT CEILING": r"\lceil ",
    "RIGHT CEILING": r"\rceil ",
}
_SPELLING = str.maketrans(
    {unicodedata.lookup(name): spelling for name, spelling in _SPELLING_BY_NAME.items()}
)
# NFKC would turn these into plain letters and full stops.
_SPELLING_BEFORE_NFKC = str.maketrans(
    {"º": "°", "\N{DOUBLE-STRUCK CAPITAL R}": r"\mathbb{R}", "…": ""}
)
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_ONE_CHARACTER_FRACTION = re.compile("[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_SIZED_MACRO = re.compile(r"\\[dtc](frac|binom)(?![A-Za-z])")
_BASE_IN_NAME = re.compile(r"\blog(2|10)(?=\()")
_TIGHT_COMMA = re.compile(r",\s*\\!\s*")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\\!|\{,\}|\\,)+(?=[0-9]{3}(?![0-9]))")
_DEGREES = re.compile(r"\^\s*(?:\{\s*(?:\\circ|\\degree|°)\s*\}|\\circ(?![a-z])|\\degree|°)")
_TEMPERATURE = re.compile(r"°\s*([CF])(?![A-Za-z])")


def plain(text: str) -> str:
    """The text in the notation that the scanner reads."""
    text = text.translate(_SPELLING_BEFORE_NFKC)
    text = _SUPERSCRIPTS.sub(r"^{\g<0>}", text)
    text = _SUBSCRIPTS.sub(r"_{\g<0>}", text)
    text = _ONE_CHARACTER_FRACTION.sub(_as_macro, text)
    text = unicodedata.normalize("NFKC", text).translate(_SPELLING)
    text = _SIZED_MACRO.sub(r"\\\1", text)
    text = _BASE_IN_NAME.sub(r"log_{\1}", text)
    text = _THOUSANDS.sub("", _TIGHT_COMMA.sub(",", text))
    return _TEMPERATURE.sub(r" deg\1", _DEGREES.sub("°", text))


def _as_macro(match: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.decomposition(match[0]).rpartition(" 2044 ")
    digits = [
        "".join(chr(int(code, 16)) for code in part.replace("<fraction>", "").split())
        for part in (numerator, denominator)
    ]
    return rf"\frac{{{digits[0]}}}{{{digits[1]}}}"
