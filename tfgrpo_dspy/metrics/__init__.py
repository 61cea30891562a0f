r"""Ready DSPy metrics with feedback, which compare a field of the prediction with a label.

The answer of a mathematical text is the last `\boxed{...}`, or what follows the last `####`,
`answer is` or `answer:`. Formulas are compared by math-verify in another process (`math_worker`),
which the kernel kills if it takes too long: in bounded time, and nothing in a text is executed.
"""

import atexit
import contextlib
import functools
import importlib.util
import itertools
import json
import logging
import os
import re
import signal
import sys
import threading
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any
from unicodedata import category, normalize

import dspy

from tfgrpo_dspy.errors import MathUnavailableError, MetricError, SettingsError
from tfgrpo_dspy.text import shortened

__all__ = ["exact_match", "is_equivalent", "math_equivalent", "normalize_text", "normalized_match"]

logger = logging.getLogger(__name__)

SHOWN_BYTES = 200  # of a label or an answer in the feedback
TIMEOUT_S = 5.0
MAX_CHARACTERS, MAX_TEXT_CHARACTERS = 2_000, 100_000  # of a formula; of a text with an answer
INSTALL = 'pip install "tfgrpo-dspy[math]"'
DIFFERENT, OTHER_TEXT = "they are not equivalent", "the texts differ"
COMMAND = (sys.executable, "-P", "-W", "ignore", str(Path(__file__).with_name("math_worker.py")))
NUMBER = re.compile(r"[-+]?(?=\.?\d)(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d*)?(?:[eE][-+]?\d{1,3})?")
VALUE = re.compile(r"^(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?|[^A-Za-z<>=]*)\s*=([^<>=]+)$")
KIND = re.compile(r"(?s)\A(?:(?:\\left)?\\?[(\[{](?=.*[)\]}]$)|.*?(?<![<>])=|)")
LEAD_IN = re.compile(r"\banswer\s*(?:is\b\s*:?|[:=])|####", re.IGNORECASE)
LATEX_WORDS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
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
    (r"\*\*", "^"),
    (r"\\?\$|\n", " "),
)


class ScoredPrediction(dspy.Prediction):
    """`score` and `feedback`; true only if the score is 1.

    `BootstrapFewShot` takes an answer as a demonstration if the metric's result is true; a plain
    `dspy.Prediction` with fields is always true.
    """

    def __bool__(self) -> bool:
        return bool(self.score == 1.0)


@dataclass(frozen=True)
class ExactMatch:
    """A metric: 1.0 if field and label are the same text, apart from white space around it.

    Other values than texts are compared by their `str`. If the label is a list, tuple or set, one
    match is enough.

    Attributes:
        field: the output field of the prediction.
        label_field: the field of the example that holds the label; `field` when None.

    Raises:
        SettingsError: a name is empty.
        MetricError: on a call: the example has no label.
    """

    field: str = "answer"
    label_field: str | None = None

    def __post_init__(self) -> None:
        if not self.field or self.label_field == "":
            raise SettingsError(f"{self!r}: a field needs a name; pass for example 'answer'")

    def __call__(
        self, example: dspy.Example, pred: dspy.Prediction, *_: Any, **__: Any
    ) -> ScoredPrediction:
        """1.0 or 0.0, and a sentence on the difference; raises MetricError without a label."""
        name = self.label_field or self.field
        label = example.get(name)
        label = sorted(label, key=str) if isinstance(label, set | frozenset) else label
        labels = label if isinstance(label, list | tuple) else [label]
        if not labels or None in labels:
            there = ", ".join(example.keys())
            message = f"the example has no label '{name}' (it has: {there}); pass label_field="
            raise MetricError(f"{message} with the field of the expected answer.")
        expected, answer = " or ".join(map(_quoted, labels)), pred.get(self.field)
        if answer is None:
            there = ", ".join(pred.keys())
            feedback = f"Expected {expected} in the field '{self.field}'; there is only: {there}."
            return ScoredPrediction(score=0.0, feedback=feedback)
        differences = [self.difference(str(answer), str(each)) for each in labels]
        if "" in differences:
            return ScoredPrediction(score=1.0, feedback=f"{_quoted(answer)} is right.")
        feedback = f"Expected {expected}, given {_quoted(answer)}: {differences[0]}."
        return ScoredPrediction(score=0.0, feedback=feedback)

    def difference(self, answer: str, expected: str) -> str:
        """The difference between answer and label, as a phrase; "" if there is none."""
        return "" if answer.strip() == expected.strip() else "they are not the same text"


class NormalizedMatch(ExactMatch):
    """`exact_match` of the texts after `normalize_text`."""

    def difference(self, answer: str, expected: str) -> str:
        """The normalised texts, if they differ."""
        form, wanted = normalize_text(answer), normalize_text(expected)
        return "" if form == wanted else f"compared as {_quoted(wanted)} and {_quoted(form)}"


@dataclass(frozen=True)
class MathEquivalent(ExactMatch):
    """1.0 if `is_equivalent` holds for field and label; 0.0 if that takes over `timeout_s` seconds.

    Raises:
        SettingsError: a name is empty, or `timeout_s` is not more than 0.
        MathUnavailableError: the extra `math` is not installed, or does not start.
        MetricError: on a call: the example has no label.
    """

    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.timeout_s)

    def difference(self, answer: str, expected: str) -> str:
        """The kind of difference, or why the comparison failed."""
        return _difference(answer, expected, self.timeout_s)


exact_match, normalized_match, math_equivalent = ExactMatch, NormalizedMatch, MathEquivalent
"""`exact_match("answer")` makes a metric."""


def _quoted(value: Any) -> str:
    return f"'{shortened(str(value), SHOWN_BYTES)}'"


def normalize_text(text: str) -> str:
    """The text as `normalized_match` compares it: `"The U.S.A.!"` becomes `"usa"`.

    Unicode NFKC and case folding come first. Then full stops and apostrophes vanish, other
    punctuation becomes a space; marks of a number stay (`-5`, `1.5`, `1,234`, `3:30`, `1/2`,
    `5%`), and so do symbols (`+ = < $ °`). Then the articles a, an and the go, before a word of
    two letters or more, and superfluous space. A text of punctuation only keeps it.
    """
    folded = normalize("NFKC", normalize("NFKC", text).casefold())

    def without_mark(match: re.Match[str]) -> str:
        mark = match[0]
        if NUMBER_MARK.match(folded, match.start()) or not category(mark).startswith("P"):
            return mark
        return "" if mark in ".'\N{RIGHT SINGLE QUOTATION MARK}" else " "

    words = " ".join(re.sub(r"[^\w\s]|_", without_mark, folded).split())
    return re.sub(r"\b(?:(?:an?|the)\s+)+(?=\w\w)", "", words) or " ".join(folded.split())


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
    _check(timeout_s)
    return not _difference(answer, expected, timeout_s)


def _check(timeout_s: float) -> None:
    """Raise the errors of `is_equivalent`, without a comparison."""
    if not timeout_s > 0:
        raise SettingsError(f"timeout_s={timeout_s}: a comparison needs time; pass {TIMEOUT_S}")
    if importlib.util.find_spec("math_verify") is None:
        raise MathUnavailableError(f"mathematical equivalence needs 'math_verify': {INSTALL}")


def _difference(answer: str, expected: str, timeout_s: float) -> str:
    """The difference between two answers, as a phrase; "" if they are equivalent."""
    if answer.strip() == expected.strip():
        return ""
    if max(len(answer), len(expected)) > MAX_TEXT_CHARACTERS:
        return OTHER_TEXT
    answer, wanted = _final_answer(answer), _final_answer(expected)
    (form, is_prose), (wanted_form, wants_prose) = _text_form(answer), _text_form(wanted)
    if form == wanted_form or not form or (is_prose and wants_prose):
        return "" if form == wanted_form else OTHER_TEXT if form else "the answer is empty"
    if max(len(answer), len(wanted)) > MAX_CHARACTERS:
        return OTHER_TEXT
    (answer, unit), (wanted, wanted_unit) = _without_unit(answer), _without_unit(wanted)
    if unit and wanted_unit and unit != wanted_unit:
        return f"expected the unit '{wanted_unit}', given '{unit}'"
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(wanted):
        values = {Decimal(number.replace(",", "")) for number in (answer, wanted)}
        return "" if len(values) == 1 else DIFFERENT
    answer, wanted = _in_latex(answer), _in_latex(wanted)
    formulas = [_in_form_of(wanted, answer), _in_form_of(answer, wanted)]
    return _worker(os.getpid()).difference(formulas, timeout_s) if all(formulas) else DIFFERENT


def _final_answer(text: str) -> str:
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


def _text_form(answer: str) -> tuple[str, bool]:
    """The answer in the form in which texts are compared, and whether it is prose."""
    text = LATEX_WORDS.sub(r"\1", answer)
    if PROSE.fullmatch(text):
        return normalize_text(text), True
    text = " ".join(normalize("NFKC", text).casefold().split())
    return re.sub(r"(?<!\w) | (?!\w)", "", re.sub(r"\{(\w)\}", r"\1", text)), False


def _without_unit(answer: str) -> tuple[str, str]:
    """A number and its unit: `$5` is `5`, `dollar`; `12 apples` is `12`, `apple`; or no unit."""
    answer = DOLLARS.sub(r"\1\2 dollars", answer) if DOLLARS.match(answer) else answer
    unit = UNIT.search(answer)
    if unit is None:
        return answer, "%" if re.search(r"(?:%|percent)$", answer) else ""
    name = unit[1] or ("degree" if unit[2] else unit[3])
    return answer[: unit.start()], name.strip().casefold().rstrip("s") + (unit[4] or "")


def _in_latex(answer: str) -> str:
    """The answer in LaTeX for math-verify; "" if math-verify would read a word as a product."""
    if NO_FORMULA.search(LATEX_WORDS.sub(r"\1", answer)):
        return ""
    text = re.sub(r"(?<=\d)(?=[¼½¾⅓⅔])", " ", answer)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda match: "^{" + normalize("NFKC", match[0]) + "}", text)
    text = normalize("NFKC", text).translate(SIGNS)
    for pattern, replacement in REWRITTEN:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def _in_form_of(other: str, formula: str) -> str:
    """The formula in the form of the other: `5` for `x = 5` and `7`; "" if they cannot be equal."""
    kind, other_kind = (next(KIND.finditer(text))[0][-1:] for text in (formula, other))
    if kind == "=" != other_kind:
        return VALUE.sub(r"\1", formula) if VALUE.match(formula) else ""
    if {kind, other_kind} in ({"{", "("}, {"{", "["}):
        return ""
    return f"({formula})" if (kind, other_kind) == ("", "(") else formula


class Worker:
    """The process that compares formulas, one pair at a time; starts when it is needed."""

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
            fault = "the process for formulas did not start; it says why on stderr"
            raise MathUnavailableError(f"{fault}. Try: {INSTALL}")
        return self._process

    def close(self) -> None:
        """End the process; the next comparison starts another."""
        process, self._process = self._process, None
        if process:
            with process:  # closes the pipes and waits
                process.kill()


@functools.cache
def _worker(_process: int) -> Worker:
    """The worker of this process; a fork must not end, or ask, that of its parent."""
    return Worker()


atexit.register(lambda: _worker(os.getpid()).close())
