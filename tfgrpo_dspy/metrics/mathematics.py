"""Mathematical equivalence of two answers, in bounded time; nothing in a text is executed.

Formulas are compared by math-verify in another process (`math_worker`), which the kernel kills
if it takes too long. One process serves all threads, one comparison at a time.
"""

import atexit
import contextlib
import importlib.util
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

from tfgrpo_dspy.errors import MathUnavailableError, SettingsError
from tfgrpo_dspy.metrics.answer_text import final_answer, in_latex, text_form, without_unit

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


def is_equivalent(answer: str, expected: str, *, timeout_s: float = TIMEOUT_S) -> bool:
    r"""Whether two answers are mathematically the same; False if the comparison takes too long.

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

    def forget(self) -> None:
        """In a fork: forget the process, which belongs to the parent, and a lock that is held."""
        if self._process:
            self._process.returncode = 0  # neither kill nor wait does anything then
        self.close()
        self._lock = threading.Lock()


_worker = Worker()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_worker.forget)
atexit.register(_worker.close)
