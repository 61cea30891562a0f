"""The process that compares two formulas with math-verify (on sympy); this file is its script.

A request is a line of JSON, `[given, expected, timeout_s]`; the reply is `1` or `0`. Texts are read
by math-verify's LaTeX grammar, because its other reader calls `eval`.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from dataclasses import replace
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Float, Rational

MEMORY_BYTES = 2**31
PLAIN = replace(LatexExtractionConfig().normalization_config, units=False, boxed="none")
FORMULA = LatexExtractionConfig(normalization_config=PLAIN)


def are_equal(answer: str, expected: str) -> bool:
    """True if both texts mean the same."""
    formula, wanted = read(answer), read(expected)
    pairs = ((formula, wanted), (wanted, formula))
    return any(verify(first, other, timeout_seconds=None) for first, other in pairs)


def read(text: str) -> Any:
    """The text as a sympy object with exact numbers; an error if it is no formula."""
    (formula,) = parse(f"${text}$", [FORMULA], "no_fallback", "first_match", parsing_timeout=None)
    return formula.xreplace({number: Rational(str(number)) for number in formula.atoms(Float)})


replies = os.dup(1)
os.dup2(2, 1)  # what libraries print goes to stderr, not among the replies
logging.disable(logging.CRITICAL)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
os.write(replies, b"ready\n")
for line in sys.stdin:
    *formulas, timeout_s = json.loads(line)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    is_equal = False
    with contextlib.suppress(Exception):  # what sympy cannot compare is unequal
        is_equal = are_equal(*formulas)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.write(replies, b"1\n" if is_equal else b"0\n")
