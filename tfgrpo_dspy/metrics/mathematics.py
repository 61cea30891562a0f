r"""Mathematical equivalence of two answers, in bounded time, without evaluating their text.

Order: equal texts are equal; multiple-choice letters are compared as letters; when both texts
are read as mathematics (`parser`), mathematics decides (`equality`); otherwise the texts decide
(`answer_text.text_form`), so `no solution` is `No solution.`
"""

import re
from dataclasses import dataclass

from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.metrics.answer_text import choice_letter, final_answer, text_form
from tfgrpo_dspy.metrics.equality import difference
from tfgrpo_dspy.metrics.limits import (
    MAX_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    Deadline,
    NotMathematicsError,
    OutOfTimeError,
)
from tfgrpo_dspy.metrics.parser import parse
from tfgrpo_dspy.metrics.trees import Tree

TIMEOUT_S = 2.0
CURRENCY = re.compile(
    r"(?:\\?(?P<dollar>\$)|(?P<euro>€)|(?P<pound>£))\s*"
    r"(?P<amount>-?[0-9.][0-9.,]*(?:\s*(?:thousand|million|billion|trillion)\b)?)"
)
MATHS_DELIMITER = re.compile(r"(?<!\\)\$")
UNIT_OF_CURRENCY = {"dollar": "dollars", "euro": "euros", "pound": "gbp"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right; `difference` is a phrase for people, empty when it is."""

    is_equal: bool
    difference: str = ""


EQUAL = Verdict(is_equal=True)


def is_equivalent(answer: str, expected: str, *, timeout_s: float = TIMEOUT_S) -> bool:
    r"""Whether two answers are mathematically the same; False when that takes too long.

    Read are LaTeX, Unicode and keyboard notation of numbers, fractions, roots, powers, common
    functions, variables, equations, inequalities, sets, intervals, tuples, matrices and `\pm`,
    inside of `\boxed{}`, dollar signs or a lead-in. What cannot be read is compared as text.
    `is_equivalent(r"\frac{1}{2}", "0.5")` and `is_equivalent("y = 2(x+1)", "2x+2")` are True.

    - Rational numbers are compared exactly. `0.33` is not `1/3`; `0.333` is: see `identity`.
    - Expressions with variables are the same when their values at fixed points are.
    - Of `x = 5` the 5 is compared, unless both are equations. Words behind a number are ignored,
      but two known units that differ (`km`, `m`) are a difference.
    - `50\%` is `0.5`, and also the `50` of a question that asks for a percentage.
    - `{1,2}` has no order, nor has `1, 2`; `(1,2)` has. Brackets of two elements must agree.

    Symmetric and reflexive, but for these two readings of `%` not transitive. Nothing in the
    text is executed, and every size is capped before anything is computed, so that the time
    limit, which is checked between steps, holds in every thread.

    Args:
        answer: a text that is, or contains at its end, an answer.
        expected: the same; which of the two is the label plays no role.
        timeout_s: seconds for the comparison, more than 0.

    Raises:
        SettingsError: `timeout_s` is not more than 0.
    """
    return compare(answer, expected, timeout_s=timeout_s).is_equal


def compare(answer: str, expected: str, *, timeout_s: float = TIMEOUT_S) -> Verdict:
    """`is_equivalent`, with the difference in words."""
    if not timeout_s > 0:
        raise SettingsError(f"timeout_s={timeout_s}: a comparison needs time; pass 2.0")
    if answer.strip() == expected.strip():
        return EQUAL
    try:
        return _compared(final_answer(answer), final_answer(expected), Deadline(timeout_s))
    except OutOfTimeError as error:
        return Verdict(is_equal=False, difference=str(error))


def _compared(given: str, wanted: str, deadline: Deadline) -> Verdict:
    if given == wanted:
        return EQUAL
    letters = choice_letter(given), choice_letter(wanted)
    if all(letters):
        return _verdict("" if letters[0] == letters[1] else "another letter")
    trees = _read(given), _read(wanted)
    deadline.check()
    if trees[0] is None or trees[1] is None:
        return _compared_as_text(given, wanted)
    try:
        return _verdict(difference(trees[0], trees[1], deadline))
    except RecursionError:  # called with hardly any stack left
        return _compared_as_text(given, wanted)


def _verdict(difference_found: str) -> Verdict:
    return Verdict(is_equal=not difference_found, difference=difference_found)


def _compared_as_text(given: str, wanted: str) -> Verdict:
    is_comparable = max(len(given), len(wanted)) <= MAX_TEXT_CHARACTERS
    is_equal = is_comparable and text_form(given) == text_form(wanted)
    return _verdict("" if is_equal else "the texts differ" if given else "the answer is empty")


def _read(answer: str) -> Tree | None:
    """The tree of the answer; None when it is not read as mathematics."""
    if not answer or len(answer) > MAX_CHARACTERS:
        return None
    try:
        return parse(_with_currency_behind(answer))
    except (NotMathematicsError, RecursionError):
        return None


def _with_currency_behind(answer: str) -> str:
    r"""`$5` and `\$5` as `5 dollars`; pairs of `$` around mathematics vanish."""
    if len(MATHS_DELIMITER.findall(answer)) % 2 == 0:
        answer = MATHS_DELIMITER.sub("", answer)
    return CURRENCY.sub(
        lambda match: f"{match['amount']} {UNIT_OF_CURRENCY[_currency(match)]}", answer
    )


def _currency(match: re.Match[str]) -> str:
    return next(name for name in UNIT_OF_CURRENCY if match[name])
