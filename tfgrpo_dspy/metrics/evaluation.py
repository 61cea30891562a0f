"""The value of an expression without sets: an exact fraction where possible, else 300 digits.

Bounded by construction: the size of a result is estimated before it is computed, and whatever
would be larger than `limits` allows, or is undefined, raises `NoValueError`. Conventions: odd
roots of negative numbers are real, `0^0` is 1, `log` is the natural logarithm.

Uses mpmath, the engine below sympy, in a context of its own whose precision never changes (the
global context is shared by all threads). Only functions that leave the precision alone are
called, and mpmath's cached constants, which are not thread-safe while they grow, are computed
once on import to more digits than the limits can ask for.
"""

import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath  # type: ignore[import-untyped, unused-ignore]

from tfgrpo_dspy.metrics.limits import (
    MAX_BITS,
    MAX_FACTORIAL,
    MAX_POWER_OF_APPROXIMATE,
    Deadline,
    NoValueError,
)
from tfgrpo_dspy.metrics.trees import Call, Constant, Number, Power, Product, Sum, Tree, Variable

Value = Any
"""A `Fraction`, or mpmath's real or complex number."""

DIGITS = 300
MP = mpmath.MPContext()
MP.dps = DIGITS
TOLERANCE = MP.mpf(10) ** -200
"""Difference up to which two irrational values are the same, relative for those above 1."""
NOISE = MP.mpf(10) ** -150
"""An irrational value closer to zero may be zero: nothing is divided by it."""
LARGEST = MP.mpf(10) ** 100
"""Largest irrational value: of a larger one, the tolerance would hide too much."""
LARGEST_EXPONENT = 300
MAX_ROOT_DEGREE = 1_000

for _constant in (MP.pi, MP.e, MP.ln2):
    _constant(prec=8 * MP.prec)


class Evaluation:
    """Values of expressions with these variables; `is_complex` allows values that are not real."""

    def __init__(
        self, value_by_name: Mapping[str, Fraction], deadline: Deadline, *, is_complex: bool
    ) -> None:
        self._value_by_name = value_by_name
        self._deadline = deadline
        self._is_complex = is_complex
        self._evaluate_by_type: dict[type, Callable[[Any], Value]] = {
            Number: lambda tree: tree.value,
            Variable: self._variable,
            Constant: self._constant,
            Sum: lambda tree: self._folded(operator.add, tree.terms),
            Product: lambda tree: self._folded(operator.mul, tree.factors),
            Power: lambda tree: self._power(self.value(tree.base), self.value(tree.exponent)),
            Call: self._call,
        }

    def value(self, tree: Tree) -> Value:
        """The value of the tree.

        Raises:
            NoValueError: undefined, not real where it must be, too large, or no number at all.
            OutOfTimeError: the deadline is over.
        """
        self._deadline.check()
        evaluate = self._evaluate_by_type.get(type(tree))
        if evaluate is None:
            raise NoValueError(f"a {type(tree).__name__} is no number")
        return self._bounded(evaluate(tree))

    def _bounded(self, value: Value) -> Value:
        if isinstance(value, Fraction):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
                raise NoValueError(f"an exact number of more than {MAX_BITS} bits")
            return value
        if isinstance(value, MP.mpc):
            if not value.imag:
                return self._bounded(value.real)
            if not self._is_complex:
                raise NoValueError(f"not real: {MP.nstr(value, 5)}")
        if not MP.isfinite(value) or abs(value) > LARGEST:
            raise NoValueError(f"an irrational number beyond {shown(LARGEST)}")
        return value

    def _folded(self, combine: Callable[[Value, Value], Value], trees: tuple[Tree, ...]) -> Value:
        result = self.value(trees[0])
        for tree in trees[1:]:
            other = self.value(tree)
            is_exact = isinstance(result, Fraction) and isinstance(other, Fraction)
            operands = (result, other) if is_exact else (approximate(result), approximate(other))
            result = self._bounded(combine(*operands))
        return result

    def _variable(self, tree: Variable) -> Value:
        if tree.name not in self._value_by_name:
            raise NoValueError(f"no value for {tree.name}")
        return self._value_by_name[tree.name]

    def _constant(self, tree: Constant) -> Value:
        if tree.name == "i":
            return self._bounded(MP.mpc(0, 1))
        if tree.name not in ("pi", "e"):
            raise NoValueError(f"{tree.name} is no number")
        return +(MP.pi if tree.name == "pi" else MP.e)

    # Powers

    def _power(self, base: Value, exponent: Value) -> Value:
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return self._integer_power(base, int(exponent))
        if _may_be_zero(base):
            if base == 0 and not isinstance(exponent, MP.mpc) and exponent > 0:
                return base
            raise NoValueError(f"zero to the power {shown(exponent)}")
        is_real = not isinstance(base, MP.mpc)
        if is_real and isinstance(exponent, Fraction) and exponent.denominator <= MAX_ROOT_DEGREE:
            return self._rational_power(base, exponent)
        return self._exponential(approximate(exponent) * MP.ln(approximate(base)))

    def _integer_power(self, base: Value, exponent: int) -> Value:
        if exponent < 0:
            return self._integer_power(_reciprocal(base), -exponent)
        if exponent == 0:
            return Fraction(1)
        if base in (0, 1, -1):
            return base if exponent % 2 else base * base
        if isinstance(base, Fraction):
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if size * exponent > 2 * MAX_BITS:
                raise NoValueError(f"{shown(base)} to the power {shown(Fraction(exponent))}")
        elif exponent > MAX_POWER_OF_APPROXIMATE:
            raise NoValueError(f"{shown(base)} to the power {shown(Fraction(exponent))}")
        elif abs(MP.mag(base)) * exponent > MAX_BITS:
            raise NoValueError(f"about 2^{MP.mag(base) * exponent}")
        return base**exponent

    def _rational_power(self, base: Value, exponent: Fraction) -> Value:
        numerator, degree = exponent.numerator, exponent.denominator
        if base < 0:
            if degree % 2:
                positive = self._rational_power(-base, exponent)
                return -positive if numerator % 2 else positive
            return self._exponential(approximate(exponent) * MP.ln(approximate(base)))
        if isinstance(base, Fraction):
            upper, lower = (
                _exact_root(base.numerator, degree),
                _exact_root(base.denominator, degree),
            )
            if upper is not None and lower is not None:
                return self._integer_power(Fraction(upper, lower), numerator)
        return self._exponential(approximate(exponent) * MP.ln(approximate(base)))

    def _exponential(self, exponent: Value) -> Value:
        if abs(exponent) > LARGEST_EXPONENT:
            raise NoValueError(f"e to the power {MP.nstr(exponent, 5)}")
        return MP.exp(exponent)

    # Functions

    def _call(self, tree: Call) -> Value:
        arguments = [self.value(argument) for argument in tree.arguments]
        if tree.name in EXACT_FUNCTIONS:
            return EXACT_FUNCTIONS[tree.name](*arguments)
        if tree.name == "log":
            return _divided(_logarithm(arguments[0]), _logarithm(arguments[1]))
        argument = self._bounded(approximate(arguments[0]))
        grows_with = argument.real if tree.name in HYPERBOLIC else argument.imag
        if abs(grows_with) > LARGEST_EXPONENT:
            raise NoValueError(f"{tree.name} of {shown(argument)}")
        return FUNCTIONS[tree.name](argument)


def approximate(value: Value) -> Value:
    """The value as mpmath's number."""
    if isinstance(value, Fraction):
        return MP.mpf(value.numerator) / value.denominator
    return value


def is_real(value: Value) -> bool:
    """Whether the value is a real number."""
    return not isinstance(value, MP.mpc)


def is_same(value: Value, other: Value) -> bool:
    """Whether two values are equal: exactly when both are exact, else to 200 digits."""
    if isinstance(value, Fraction) and isinstance(other, Fraction):
        return value == other
    one, two = approximate(value), approximate(other)
    return bool(abs(one - two) <= TOLERANCE * max(abs(one), abs(two), 1))


def shown(value: Value) -> str:
    """The value for people: a short exact number, or six digits."""
    if isinstance(value, Fraction) and max(abs(value.numerator), value.denominator) < 10**12:
        has_few_decimals = value.denominator > 1 and 10**6 % value.denominator == 0
        return f"{float(value):.12g}" if has_few_decimals else str(value)
    return str(MP.nstr(approximate(value), 6))


def _may_be_zero(value: Value) -> bool:
    return value == 0 if isinstance(value, Fraction) else bool(abs(value) < NOISE)


def _reciprocal(value: Value) -> Value:
    if _may_be_zero(value):
        raise NoValueError(f"division by {shown(value)}")
    return 1 / value


def _divided(numerator: Value, denominator: Value) -> Value:
    return numerator * _reciprocal(denominator)


def _logarithm(value: Value) -> Value:
    if _may_be_zero(value):
        raise NoValueError(f"the logarithm of {shown(value)}")
    return MP.ln(approximate(value))


def _exact_root(value: int, degree: int) -> int | None:
    """The whole number whose power it is, or None."""
    if degree == 2:
        root = math.isqrt(value)
    elif value < 2:
        root = value
    else:
        root = int(MP.nint(MP.exp(MP.ln(MP.mpf(value)) / degree)))
    return root if root**degree == value else None


def _rounded(function: Callable[[Any], int]) -> Callable[[Value], Value]:
    """Floor or ceiling, where a value that may or may not be a whole number has none."""

    def rounded(value: Value) -> Value:
        if isinstance(value, Fraction):
            return Fraction(function(value))
        if isinstance(value, MP.mpc) or is_same(value, MP.nint(value)):
            raise NoValueError(f"rounding of {shown(value)}")
        return Fraction(int(MP.floor(value) if function is math.floor else MP.ceil(value)))

    return rounded


def _count(value: Value) -> int:
    if not (isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= MAX_FACTORIAL):
        raise NoValueError(f"the factorial of {shown(value)}")
    return int(value)


EXACT_FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "abs": abs,
    "floor": _rounded(math.floor),
    "ceil": _rounded(math.ceil),
    "factorial": lambda n: Fraction(math.factorial(_count(n))),
    "binomial": lambda n, k: Fraction(math.comb(_count(n), _count(k))),
}
HYPERBOLIC = ("sinh", "cosh", "tanh")
FUNCTIONS: Mapping[str, Callable[[Value], Value]] = {
    "sin": MP.sin,
    "cos": MP.cos,
    "tan": lambda x: _divided(MP.sin(x), MP.cos(x)),
    "cot": lambda x: _divided(MP.cos(x), MP.sin(x)),
    "sec": lambda x: _reciprocal(MP.cos(x)),
    "csc": lambda x: _reciprocal(MP.sin(x)),
    "arcsin": MP.asin,
    "arccos": MP.acos,
    "arctan": MP.atan,
    "sinh": MP.sinh,
    "cosh": MP.cosh,
    "tanh": MP.tanh,
    "ln": _logarithm,
}
