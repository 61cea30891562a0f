r"""What a text says once its wrapping is off: the final answer in it, and its form as words.

Takes the last `\boxed{...}`, what follows the last `####` or a leading "the answer is" or `=`, and
strips dollar signs, Markdown, quotes and a final period. Reads no mathematics.
"""

import re
import unicodedata

from tfgrpo_dspy.metrics.limits import MAX_TEXT_CHARACTERS

LEAD_IN = re.compile(
    r"(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\s*:?|[:=])\s*|=\s*", re.IGNORECASE
)
WRAPPINGS = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
)
MAX_WRAPPINGS = 6
WORDS_IN_LATEX = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textrm|mbox)\s*\{([^{}]*)\}")
SPACING_IN_LATEX = re.compile(r"\\(?:left|right|quad|qquad|displaystyle)(?![A-Za-z])|\\[,;:!]")
CHOICE = re.compile(r"\(?\s*([A-Za-z])\s*[).:]?")
PROSE = re.compile(r"[^\d\\^_=<>+*/|{}\[\]$%#@~]*")
ARTICLES = re.compile(r"\b(?:(?:an?|the)\s+)+(?=\w\w)")


def final_answer(text: str) -> str:
    r"""The part of the text that is its answer: `so \boxed{\frac{1}{2}}.` gives `\frac{1}{2}`."""
    answer = text.rpartition("####")[2].strip()
    boxed = _last_box(answer)
    answer = answer if boxed is None else boxed.strip()
    if lead_in := LEAD_IN.match(answer):
        answer = answer[lead_in.end() :]
    for _ in range(MAX_WRAPPINGS):
        answer = _unwrapped(answer.strip().rstrip(".,;: \n"))
    return answer


def _last_box(text: str) -> str | None:
    r"""The content of the last `\boxed`, up to the end of the text when its brace stays open."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        return None
    rest = text[start : start + MAX_TEXT_CHARACTERS].partition("box")[2].removeprefix("ed").lstrip()
    if not rest.startswith("{"):
        return rest.partition(" ")[0]
    depth = 0
    for position, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return rest[1:position]
    return rest[1:]


def _unwrapped(answer: str) -> str:
    for opening, closing in WRAPPINGS:
        inside = answer[len(opening) : -len(closing)]
        is_wrapped = answer.startswith(opening) and answer.endswith(closing) and inside
        if is_wrapped and opening not in inside:
            return inside
    words = WORDS_IN_LATEX.fullmatch(answer)
    return words[1] if words else answer


def choice_letter(answer: str) -> str:
    """The letter of a multiple-choice answer such as `(b)`, `B.` or `B`, as a capital; or ''."""
    match = CHOICE.fullmatch(answer)
    return match[1].upper() if match else ""


def text_form(answer: str) -> str:
    """What is compared of an answer that is no mathematics.

    Prose is normalised by `normalize_text`. In anything with digits or mathematical signs every
    character counts but case, LaTeX spacing, and white space that separates no words.
    """
    text = SPACING_IN_LATEX.sub("", WORDS_IN_LATEX.sub(r"\1", answer))
    if PROSE.fullmatch(text):
        return normalize_text(text)
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"\{(\w)\}", r"\1", " ".join(text.split()))
    return re.sub(r"(?<!\w) | (?!\w)", "", text)


def normalize_text(text: str) -> str:
    """The text as `normalized_match` compares it: `"The U.S.A.!"` becomes `"usa"`.

    In this order:

    1. Unicode NFKC, then case folding (`Straße` is `STRASSE`, full-width letters are plain).
    2. Punctuation (Unicode categories P*): full stops and apostrophes vanish (`U.S.`, `don't`),
       every other mark becomes a space. Marks that belong to a number stay: the minus of `-5`,
       the mark inside of `1.5`, `1,234`, `3:30`, `1/2`, and the `%` of `5%`. Symbols such as
       `+ = < $ °` are no punctuation and stay.
    3. The articles a, an, the, before a word of two letters or more (so not the A of "A, B").
    4. White space: none at the ends, single spaces inside.

    A text that consists of punctuation only keeps it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(re.sub(r"[^\w\s]|_", _without_mark, folded).split())
    return ARTICLES.sub("", words) or " ".join(folded.split())


def _without_mark(match: re.Match[str]) -> str:
    mark, text = match[0], match.string
    before = text[match.start() - 1 : match.start()]
    is_before_digit = text[match.end() : match.end() + 1].isdecimal()
    category = unicodedata.category(mark)
    if not category.startswith("P") or (mark == "%" and before.isdecimal()):
        return mark
    if is_before_digit and mark in ".,:/" and before.isdecimal():
        return mark
    if is_before_digit and not before.isalnum() and (category == "Pd" or mark == "."):
        return mark
    return "" if mark in ".'\N{RIGHT SINGLE QUOTATION MARK}" else " "
