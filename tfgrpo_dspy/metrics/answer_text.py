r"""Finds the answer in a text, and writes it as plain words, as number and unit, or as LaTeX.

The answer is the last `\boxed{...}`, or what follows the last `####`, `answer is` or `answer:`.
"""

import itertools
import re
from unicodedata import category, normalize

LEAD_IN = re.compile(r"\banswer\s*(?:is\b\s*:?|[:=])|####", re.IGNORECASE)
LATEX_WORDS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
LATEX_SPACING = re.compile(r"\\(?:left|right|quad|qquad|displaystyle)(?![A-Za-z])|\\[,;:!]")
WRAPPING = re.compile(
    r"\(?([A-Za-z])\)|\$+([^$]+)\$+|\\\(((?:(?!\\\().)+)\\\)|\\\[((?:(?!\\\[).)+)\\\]|"
    + LATEX_WORDS.pattern,
    re.DOTALL,
)
PROSE = re.compile(r"(?!\s*[-\u2212])(?=.*[^\W\d_]{2})[^\d\\^_=<>+*/|{}\[\]$%#@~!]*", re.DOTALL)
NUMBER_MARK = re.compile(r"(?<=\d)(?:[.,:/](?=\d)|%)|(?<!\w)[-.\u2010\u2013\u2014](?=\d)")
DOLLARS = re.compile(r"([-+]?)\\?\$\s*(\.?\d.*)")
UNIT = re.compile(
    r"(?<=[\d})])\s*(?:\\,)?(?:\\(?:text|textrm|mathrm|mbox)\{([^{}\d]+)\}"
    r"|\^?\{?(\\circ|°)\}?|((?:[ckm]m|[km]g|ml|ft|lbs?|mph)\b|(?<=\s)(?!(?:hundred|thousand|dozen|"
    r"[a-z]+illion|half|halves|thirds?|quarters?|[a-z]+ths?|squared|cubed|factorial|infinity|"
    r"percent)\b)[A-Za-z]{3,}))(\^\{?\d\}?|[²³])?$"
)
FORMULA_WORDS = "and|or|sqrt|sin|cos|tan|log|exp|infinity|percent|[pb]?matrix"
NO_FORMULA = re.compile(
    rf"\d_|'|[<>≤≥].*\b(?:and|or)\b|(?<![\\A-Za-z])(?!(?:{FORMULA_WORDS})(?![A-Za-z]))[A-Za-z]{{3,}}"
)
SIGNS = str.maketrans("\u2212\u2013\u2044\u00d7·÷", "--/**/")  # minus, dash, slash, times
REWRITTEN = (
    *(("≤", r"\\le "), ("≥", r"\\ge "), ("√", r"\\sqrt "), ("π", r"\\pi "), ("∞", r"\\infty ")),
    (r"\\sqrt\s+(\d+|[A-Za-z])", r"\\sqrt{\1}"),
    (r"(\d)\s+(\d+/\d+)", r"(\1+\2)"),
    (r"(?<=\d)(?:\\[,!;: ]|\{,\}|,\\!)+\s*(?=\d{3})", ""),
    (r"(?<![A-Za-z\d])(\d+(?:\.\d*)?)[eE]([+-]?\d+)(?![A-Za-z\d])", r"\1*10^{\2}"),
    (r"(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
    (r"\*\*", "^"),
    (r"\\?\$|\n", " "),
)


def final_answer(text: str) -> str:
    r"""The part of the text that is its answer: `so \boxed{\frac{1}{2}}.` gives `\frac{1}{2}`."""
    _, boxed, rest = text.rpartition(r"\boxed{")
    depths = itertools.accumulate(({"{": 1, "}": -1}.get(mark, 0) for mark in rest), initial=1)
    end = next((end for end, depth in enumerate(depths) if not depth), len(rest) + 1)
    answer = rest[: end - 1] if boxed else LEAD_IN.split(text)[-1]
    for _ in range(6):  # wrappings in each other
        answer = answer.strip(' \n\t*`"“”').rstrip(".,;:").removeprefix("= ")
        if wrapped := WRAPPING.fullmatch(answer):
            answer = wrapped[wrapped.lastindex or 0]
    return answer


def text_form(answer: str) -> tuple[str, bool]:
    """The answer in the form in which texts are compared, and whether it is prose."""
    text = LATEX_SPACING.sub("", LATEX_WORDS.sub(r"\1", answer))
    if PROSE.fullmatch(text):
        return normalize_text(text), True
    text = " ".join(normalize("NFKC", text).casefold().split())
    return re.sub(r"(?<!\w) | (?!\w)", "", re.sub(r"\{(\w)\}", r"\1", text)), False


def without_unit(answer: str) -> tuple[str, str]:
    """A number and its unit: `$5` is `5`, `dollar`; `12 apples` is `12`, `apple`; or no unit."""
    answer = DOLLARS.sub(r"\1\2 dollars", answer) if DOLLARS.match(answer) else answer
    unit = UNIT.search(answer)
    if unit is None:
        return answer, "%" if re.search(r"(?:%|percent)$", answer) else ""
    name = unit[1] or ("degree" if unit[2] else unit[3])
    return answer[: unit.start()], name.strip().casefold().rstrip("s") + (unit[4] or "")


def in_latex(answer: str) -> str:
    """The answer in LaTeX for math-verify; "" if math-verify would read a word as a product."""
    if NO_FORMULA.search(LATEX_WORDS.sub(r"\1", answer)):
        return ""
    text = re.sub(r"(?<=\d)(?=[¼½¾⅓⅔])", " ", answer)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda match: "^{" + normalize("NFKC", match[0]) + "}", text)
    text = normalize("NFKC", text).translate(SIGNS)
    for pattern, replacement in REWRITTEN:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def normalize_text(text: str) -> str:
    """The text as `normalized_match` compares it: `"The U.S.A.!"` becomes `"usa"`.

    Unicode NFKC and case folding come first. Then full stops and apostrophes vanish, other
    punctuation becomes a space; marks of a number stay (`-5`, `1.5`, `1,234`, `3:30`, `1/2`,
    `5%`), and so do symbols (`+ = < $ °`). Then the articles a, an and the go, before a word of
    two letters or more, and superfluous space. A text of punctuation only keeps it.
    """
    folded = normalize("NFKC", normalize("NFKC", text).casefold())
    words = " ".join(re.sub(r"[^\w\s]|_", _without_mark, folded).split())
    return re.sub(r"\b(?:(?:an?|the)\s+)+(?=\w\w)", "", words) or " ".join(folded.split())


def _without_mark(match: re.Match[str]) -> str:
    mark = match[0]
    is_of_number = NUMBER_MARK.match(match.string, match.start())
    if is_of_number or not category(mark).startswith("P"):
        return mark
    return "" if mark in ".'\N{RIGHT SINGLE QUOTATION MARK}" else " "
