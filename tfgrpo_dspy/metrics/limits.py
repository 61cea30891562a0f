"""What a comparison may cost, and the exceptions that say it would cost more; computes nothing.

Answers are text that a language model wrote. Every cap here is checked before the work is done
(an exponent before the power is taken, a length before the text is read), because a running
big-integer operation cannot be interrupted in a worker thread. With these caps no single step
takes more than a few milliseconds; `Deadline` is asked between steps, as a safety net.
"""

import time

MAX_CHARACTERS = 2_000
"""Longer answers are not read as mathematics, only compared as text."""

MAX_TEXT_CHARACTERS = 100_000
"""Longer texts are compared character for character, without normalising them."""

MAX_DEPTH = 30
"""Brackets, exponents and function calls inside each other."""

MAX_ELEMENTS = 50
"""Elements of one set, list or tuple."""

MAX_LITERAL_DIGITS = 1_000
"""Digits of a number as written, and the size of the exponent in `1e1000`."""

MAX_BITS = 16_384
"""Size of the numerator and of the denominator of an exact number."""

MAX_FACTORIAL = 500
"""Largest n in `n!` and in binomial coefficients."""

MAX_POWER_OF_APPROXIMATE = 10**6
"""Largest integer exponent of an irrational number: its rounding error grows with it."""


class NotMathematicsError(ValueError):
    """The text is no formula that this package reads; never leaves `metrics`."""


class NoValueError(ArithmeticError):
    """The expression has no value here: undefined, not real, or too large; never leaves."""


class OutOfTimeError(TimeoutError):
    """The comparison used up its time; never leaves `metrics`."""


class Deadline:
    """A moment on the monotonic clock after which `check` raises; works in every thread."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ends_at = time.monotonic() + timeout_s

    def check(self) -> None:
        """Returns in time, or raises.

        Raises:
            OutOfTimeError: the time is over.
        """
        if time.monotonic() > self._ends_at:
            raise OutOfTimeError(f"the comparison took longer than {self._timeout_s} s")
