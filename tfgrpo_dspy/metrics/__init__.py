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
NUMBER_MARK = re.compile(r"(?<=\d)(?:[.,:/](?=\d)|%)|(?<!\w)[-.\u2010\u2013\u2014](?=\d)")
LEAD_IN = re.compile(r"\banswer\s*(?:is\b\s*:?|[:=])|####", re.IGNORECASE)
LATEX_WORDS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
WRAPPING = re.compile(
    r"\(?([A-Za-z])\)|\$+([^$]+)\$+|\\\(((?:(?!\\\().)+)\\\)|\\\[((?:(?!\\\[).)+)\\\]|"
    + LATEX_WORDS.pattern,
    re.DOTALL,
)
PROSE = re.compile(r"(?!\s*[-\u2212])(?=.*[^\W\d_]{2})[^\d\\^_=<>+*/|{}\[\]$%#@~!]*", re.DOTALL)
NO_FORMULA = re.compile(r"'|!|(?<![\\A-Za-z])(?!and|sqrt|sin|cos|tan|log|[pb]?matrix)[A-Za-z]{3}")
UNIT = re.compile(
    r"(?<=[\d})])(?:\\,)?\s*(?:\\text\{([^{}\d]+)\}|\^?\{?(?:\\circ|°)\}?|(?<=\s)"
    r"(?![a-z]*(?:hundred|thousand|illion|dozen|percent|half|halves|thirds?|ths?)$)([A-Za-z]{2,}))$"
)
REWRITTEN = (
    (r"\\?\$", ""),
    (r"(?<=\d)(?:\\[,!;: ]|\{,\})(?=\d{3})", ""),
    (r"(\d)\s+(\d+/\d+)", r"(\1+\2)"),  # math-verify reads `1 1/2` as 1
    ("[\u2212\u2013]", "-"),
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
        if not self.timeout_s > 0:
            fault = f"timeout_s={self.timeout_s}: a comparison needs time"
            raise SettingsError(f"{fault}; pass {TIMEOUT_S}")
        if importlib.util.find_spec("math_verify") is None:
            raise MathUnavailableError(f"mathematical equivalence needs 'math_verify': {INSTALL}")

    def difference(self, answer: str, expected: str) -> str:
        """The kind of difference, or why the comparison failed."""
        if answer.strip() == expected.strip():
            return ""
        if max(len(answer), len(expected)) > MAX_TEXT_CHARACTERS:
            return OTHER_TEXT
        answers = [_final_answer(answer), _final_answer(expected)]
        texts = [LATEX_WORDS.sub(r"\1", text) for text in answers]
        is_prose = all(map(PROSE.fullmatch, texts))
        forms = [" ".join(normalize("NFKC", text).casefold().split()) for text in texts]
        forms = [re.sub(r"(?<!\w) | (?!\w)", "", form) for form in forms]
        form, wanted_form = map(normalize_text, texts) if is_prose else forms
        if form == wanted_form or not form:
            return "the answer is empty" if form != wanted_form else ""
        if is_prose or max(map(len, answers)) > MAX_CHARACTERS:
            return OTHER_TEXT
        units = [(match[1] or match[2] or "degree") for match in map(UNIT.search, answers) if match]
        if len(units) < 2 or units[0].strip() == units[1].strip():
            answers = [UNIT.sub("", text) for text in answers]
        for pattern, replacement in REWRITTEN:
            answers = [re.sub(pattern, replacement, text).strip() for text in answers]
        if all(map(NUMBER.fullmatch, answers)):
            values = {Decimal(number.replace(",", "")) for number in answers}
            return "" if len(values) == 1 else DIFFERENT
        if any(map(NO_FORMULA.search, answers)):  # math-verify reads a word as a product
            return DIFFERENT
        return _compared(answers, self.timeout_s)


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
    return not MathEquivalent(timeout_s=timeout_s).difference(answer, expected)


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


@functools.cache
def _workers(_process: int) -> tuple[threading.Lock, list[Any]]:
    """At most one process that compares formulas, for this process: a fork has one of its own."""
    return threading.Lock(), []


def _compared(formulas: list[str], timeout_s: float) -> str:
    """The difference of two formulas; those that end the process count as different."""
    lock, processes = _workers(os.getpid())
    with lock:
        if not processes:  # in a session of its own: Ctrl-C is not for it
            fixed = os.environ | {"PYTHONHASHSEED": "0"}  # sympy's results depend on it
            process = Popen(COMMAND, 0, None, PIPE, PIPE, env=fixed, start_new_session=True)
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                fault = "the process for formulas did not start; it says why on stderr"
                raise MathUnavailableError(f"{fault}. Try: {INSTALL}")
            processes.append(process)
        (process,), reply = processes, b""
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps([*formulas, timeout_s]).encode() + b"\n")
                reply = process.stdout.readline()
        finally:  # after Ctrl-C too: a late reply must not answer the next request
            if not reply:
                _end()
    if reply:
        return "" if reply == b"1\n" else DIFFERENT
    is_late = process.returncode == -signal.SIGALRM
    reason = f"took longer than {timeout_s} s" if is_late else "lost its process"
    logger.warning("a comparison %s (%s); it counts as unequal", reason, process.returncode)
    return f"the comparison {reason}"


@atexit.register
def _end() -> None:
    """End the process that compares formulas; the next comparison starts another."""
    for process in _workers(os.getpid())[1]:
        with process:  # closes the pipes and waits
            process.kill()
    _workers(os.getpid())[1].clear()
