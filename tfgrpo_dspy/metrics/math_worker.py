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

from math_verify import LatexExtractionConfig, parse, verify

MEMORY_BYTES = 2**31
PLAIN = replace(LatexExtractionConfig().normalization_config, units=False, boxed="none")
FORMULA = LatexExtractionConfig(normalization_config=PLAIN)

replies = os.dup(1)
os.dup2(2, 1)  # what libraries print goes to stderr, not among the replies
logging.disable(logging.CRITICAL)
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
os.write(replies, b"ready\n")
for line in sys.stdin:
    *texts, timeout_s = json.loads(line)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    is_equal = False
    with contextlib.suppress(Exception):  # what sympy cannot compare is unequal
        formula, wanted = (
            parse(f"${text}$", [FORMULA], "no_fallback", parsing_timeout=None) for text in texts
        )
        is_equal = bool(formula and wanted) and (
            verify(formula, wanted, timeout_seconds=None)
            or verify(wanted, formula, timeout_seconds=None)
        )
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.write(replies, b"1\n" if is_equal else b"0\n")
