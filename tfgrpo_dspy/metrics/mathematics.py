r"""Mathematical equivalence of two answers, in bounded time; nothing in a text is executed.

The answer of a text is the last `\boxed{...}`, or what follows the last `####`, `answer is` or
`answer:`. Formulas are compared by math-verify in another process (`math_worker`), which the kernel
kills if it takes too long. One process serves all threads, one comparison at a time.
"""

import atexit
import contextlib
import importlib.util
import itertools
import json
import logging
import os
import re
import signal
import sys
import threading
from decimal import Decimal
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any
from unicodedata import category, normalize

from tfgrpo_dspy.errors import MathUnavailableError, SettingsError

TIMEOUT_S = 5.0
MAX_CHARACTERS = 2_000  # of a formula
MAX_TEXT_CHARACTERS = 100_000
NUMBER = re.compile(r"[-+]?(?=\.?\d)(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d*)?(?:[eE][-+]?\d{1,3})?")
VALUE = re.compile(r"^(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?|[^A-Za-z<>=]*)\s*=([^<>=]+)$")
KIND = re.compile(r"(?s)\A(?:(?:\\left)?\\?[(\[{](?=.*[)\]}]$)|.*?(?<![<>])=|)")
INSTALL = 'pip install "tfgrpo-dspy[math]"'
DIFFERENT, OTHER_TEXT = "they are not equivalent", "the texts differ"
COMMAND = (sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name("math_worker.py")))
logger = logging.getLogger(__name__)
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


def is_equivalent(answer: str, expected: str, *, timeout_s: float = TIMEOUT_S) -> bool:
    r"""True if two answers are mathematically the same; False, too, if that takes too long.

    `is_equivalent(r"so \boxed{\frac{1}{2}}", "0.5")` and `is_equivalent("x = 5", "5 apples")` are
    True; docs/metrics.md lists the forms. The two answers may be exchanged.

    Args:
        answer, expected: texts that are, or contain at their end, an answer.
        timeout_s: seconds for the comparison, without the start of the worker.

    Raises:
        MathUnavailableError: the extra `math` is not installed, or does not start.
        SettingsError: `timeout_s` is not more than 0.
    """
    check(timeout_s)
    return not difference(answer, expected, timeout_s)


def check(timeout_s: float) -> None:
    """Raise the errors of `is_equivalent`, without a comparison."""
    if not timeout_s > 0:
        raise SettingsError(f"timeout_s={timeout_s}: a comparison needs time; pass {TIMEOUT_S}")
    if importlib.util.find_spec("math_verify") is None:
        raise MathUnavailableError(f"mathematical equivalence needs 'math_verify': {INSTALL}")


def difference(answer: str, expected: str, timeout_s: float) -> str:
    """The difference between two answers, as a phrase; "" if they are equivalent."""
    if answer.strip() == expected.strip():
        return ""
    if max(len(answer), len(expected)) > MAX_TEXT_CHARACTERS:
        return OTHER_TEXT
    answer, wanted = final_answer(answer), final_answer(expected)
    (form, is_prose), (wanted_form, wants_prose) = text_form(answer), text_form(wanted)
    if form == wanted_form or not form or (is_prose and wants_prose):
        return "" if form == wanted_form else OTHER_TEXT if form else "the answer is empty"
    if max(len(answer), len(wanted)) > MAX_CHARACTERS:
        return OTHER_TEXT
    (answer, unit), (wanted, wanted_unit) = without_unit(answer), without_unit(wanted)
    if unit and wanted_unit and unit != wanted_unit:
        return f"expected the unit '{wanted_unit}', given '{unit}'"
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(wanted):
        values = {Decimal(number.replace(",", "")) for number in (answer, wanted)}
        return "" if len(values) == 1 else DIFFERENT
    answer, wanted = in_latex(answer), in_latex(wanted)
    formulas = [_in_form_of(wanted, answer), _in_form_of(answer, wanted)]
    return _worker.difference(formulas, timeout_s) if all(formulas) else DIFFERENT


def _in_form_of(other: str, formula: str) -> str:
    """The formula in the form of the other: `5` for `x = 5` and `7`; "" if they cannot be equal."""
    kind, other_kind = (next(KIND.finditer(text))[0][-1:] for text in (formula, other))
    if kind == "=" != other_kind:
        return VALUE.sub(r"\1", formula) if VALUE.match(formula) else ""
    if {kind, other_kind} in ({"{", "("}, {"{", "["}):
        return ""
    return f"({formula})" if (kind, other_kind) == ("", "(") else formula


class Worker:
    """The process that compares formulas: starts at the first use, and again after it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Any = None  # a Popen

    def difference(self, formulas: list[str], timeout_s: float) -> str:
        """The difference of two formulas; those that end the process count as different."""
        with self._lock:
            reply = b""
            try:
                process = self._running()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps([*formulas, timeout_s]).encode() + b"\n")
                    reply = process.stdout.readline()
            finally:  # after Ctrl-C too: a late reply must not answer the next request
                if not reply:
                    self.close()
        if reply:
            return "" if reply == b"1\n" else DIFFERENT
        is_late = process.returncode == -signal.SIGALRM
        reason = f"took longer than {timeout_s} s" if is_late else "lost its process"
        logger.warning("a comparison %s (%s); it counts as unequal", reason, process.returncode)
        return f"the comparison {reason}"

    def _running(self) -> Any:
        if self._process and self._process.poll() is None:
            return self._process
        self.close()
        fixed = os.environ | {"PYTHONHASHSEED": "0"}  # sympy's results depend on the order of sets
        self._process = Popen(  # in a session of its own: Ctrl-C is not for the worker
            COMMAND, bufsize=0, stdin=PIPE, stdout=PIPE, env=fixed, start_new_session=True
        )
        if self._process.stdout.readline() != b"ready\n":
            raise MathUnavailableError(
                f"the process for formulas did not start; it says why on stderr. Try: {INSTALL}"
            )
        return self._process

    def close(self) -> None:
        """End the process; the next comparison starts another."""
        process, self._process = self._process, None
        if process:
            with process:  # closes the pipes and waits
                process.kill()


_worker = Worker()
_of_parent: list[Worker] = []  # a fork must not end the process of its parent


def _start_anew_in_a_forked_child() -> None:
    global _worker
    _of_parent.append(_worker)
    _worker = Worker()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_a_forked_child)
atexit.register(lambda: _worker.close())
