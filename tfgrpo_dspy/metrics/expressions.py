r"""Arithmetic, read from tokens into a tree by recursive descent; nothing is evaluated.

Weakest first: sum, product (`*`, `/` or nothing, from left to right, so `1/2x` is half of x),
sign, power (from right to left), `!` `%` `°`, atom. Brackets may hold sets and intervals, so the
parser of whole answers reads them (`bracket`).
"""

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import NoReturn, TypeGuard

from tfgrpo_dspy.metrics.limits import MAX_DEPTH, MAX_LITERAL_DIGITS, NotMathematicsError
from tfgrpo_dspy.metrics.notation import Token
from tfgrpo_dspy.metrics.trees import (
    DEGREE,
    Constant,
    Group,
    Number,
    Tree,
    Variable,
    added,
    called,
    inverted,
    marked,
    multiplied,
    negated,
    raised,
)

CALLED_BETWEEN = {"|": ("abs", "|"), "lfloor": ("floor", "rfloor"), "lceil": ("ceil", "rceil")}
NEEDS_INVERSE = {name: f"arc{name}" for name in ("sin", "cos", "tan")}
END = Token("end", "")


class ExpressionParser(ABC):
    """Reads one list of tokens from left to right."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._index = 0
        self._depth = 0
        self._open_bars = 0
        self._open_functions = 0

    @abstractmethod
    def bracket(self) -> Tree:
        """What stands between the bracket that is next and its partner."""

    @property
    def next(self) -> Token:
        """The token that is read next; `END` behind the last."""
        return self._tokens[self._index] if self._index < len(self._tokens) else END

    @property
    def before(self) -> Token:
        """The token that was read last."""
        return self._tokens[self._index - 1] if self._index else END

    def take(self) -> Token:
        """The next token, which is now read."""
        token = self.next
        self._index += 1
        return token

    def is_next(self, *symbols: str) -> bool:
        """Whether one of these symbols is next."""
        return self.next.kind == "symbol" and self.next.text in symbols

    def accept(self, *symbols: str) -> str:
        """The symbol, read, when it is one of these; empty when it is not."""
        return self.take().text if self.is_next(*symbols) else ""

    def expect(self, *symbols: str) -> str:
        """The symbol, read, which must be one of these."""
        return self.accept(*symbols) or self.refuse()

    def refuse(self) -> NoReturn:
        """The text is not mathematics: the next token cannot stand here."""
        raise NotMathematicsError(f"{self.next.text!r} at token {self._index}")

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotMathematicsError(f"deeper than {MAX_DEPTH} levels")

    def sum(self) -> Tree:
        """Terms with `+` and `-` between them."""
        self._enter()
        terms = [self._product()]
        while sign := self.accept("+", "-"):
            term = self._product()
            terms.append(term if sign == "+" else negated(term))
        self._depth -= 1
        return added(terms)

    def _product(self) -> Tree:
        factors = [self._signed()]
        while True:
            if operator := self.accept("*", "/"):
                factor = self._signed()
                factors.append(factor if operator == "*" else inverted(factor))
            elif self._starts_factor():
                may_be_mixed = self.before.kind == "number" and self.next.text == "frac"
                factor = self._power()
                if may_be_mixed and (mixed := _mixed_number(factors[-1], factor)):
                    factors[-1] = mixed
                else:
                    factors.append(factor)
            else:
                return multiplied(factors)

    def _starts_factor(self) -> bool:
        """Whether what is next multiplies without a sign; a number never does (`x2`, `2 3`)."""
        opening = ("(", "[", "{", "lfloor", "lceil") + (() if self._open_bars else ("|",))
        return self.next.kind in ("name", "constant", "function", "macro") or self.is_next(*opening)

    def _signed(self) -> Tree:
        is_negative = False
        while sign := self.accept("+", "-"):
            is_negative ^= sign == "-"
        tree = self._power()
        return negated(tree) if is_negative else tree

    def _power(self) -> Tree:
        base = self._postfixed()
        return raised(base, self._exponent()) if self.accept("^") else base

    def _exponent(self) -> Tree:
        self._enter()
        exponent = self._signed()
        self._depth -= 1
        return exponent

    def _postfixed(self) -> Tree:
        tree = self._atom()
        while sign := self.accept("!", "%", "°"):
            if sign == "!":
                tree = called("factorial", tree)
            elif sign == "°" and self._open_functions:  # an angle of sin, cos...
                tree = multiplied((tree, DEGREE))
            else:
                tree = marked(sign, tree)
        return tree

    def _atom(self) -> Tree:
        kind = self.next.kind
        if kind == "number":
            return self._number()
        if kind == "repeating":
            return _repeating(self.take().text)
        if kind == "name":
            return Variable(self.take().text)
        if kind == "constant":
            return Constant(self.take().text)
        if kind == "function":
            return self._function(self.take().text)
        if kind == "macro":
            return self._macro(self.take().text)
        return self._enclosed()

    def _enclosed(self) -> Tree:
        if self.accept("emptyset"):
            return Group("{", (), "}")
        if opening := self.accept(*CALLED_BETWEEN):
            name, closing = CALLED_BETWEEN[opening]
            self._open_bars += opening == "|"
            inside = self.sum()
            self.expect(closing)
            self._open_bars -= opening == "|"
            return called(name, inside)
        bars, self._open_bars = self._open_bars, 0
        inside = self.bracket()
        self._open_bars = bars
        return inside

    def _number(self) -> Tree:
        """A literal; with a spaced proper fraction behind it (`1 1/2`) the mixed number."""
        literal = _number(self.take().text)
        rest = self._tokens[self._index : self._index + 3]
        is_spaced = bool(rest) and rest[0].is_spaced
        if not is_spaced or [token.kind for token in rest] != ["number", "symbol", "number"]:
            return literal
        self.take()
        self.expect("/")
        fraction = _quotient(_number(rest[0].text), _number(self.take().text))
        return _mixed_number(literal, fraction) or self.refuse()

    def _macro(self, name: str) -> Tree:
        r"""`\frac` and `\binom`, whose arguments may be single characters: `\frac12`."""
        first, second = self._macro_argument(), self._macro_argument()
        return called("binomial", first, second) if name == "binom" else _quotient(first, second)

    def _macro_argument(self) -> Tree:
        token = self.next
        if token.kind == "number" and token.text.isdecimal() and len(token.text) > 1:
            self._tokens[self._index] = Token("number", token.text[1:])
            return _number(token.text[0])
        self._enter()
        argument = self._atom()
        self._depth -= 1
        return argument

    def _function(self, name: str) -> Tree:
        if name in ("sqrt", "cbrt"):
            return self._root(3 if name == "cbrt" else 2)
        base = self._subscript() if self.accept("_") else None
        exponent = self._exponent() if self.accept("^") else None
        self._open_functions += 1
        argument = self._argument()
        self._open_functions -= 1
        if exponent == Number(Fraction(-1)) and name in NEEDS_INVERSE:
            return called(NEEDS_INVERSE[name], argument)
        value = self._named_call(name, argument, base)
        return value if exponent is None else raised(value, exponent)

    def _subscript(self) -> Tree:
        is_number = self.next.kind == "number"
        return _number(self.take().text) if is_number else self._macro_argument()

    def _named_call(self, name: str, argument: Tree, base: Tree | None) -> Tree:
        if base is not None:
            return called("log", argument, base) if name == "log" else self.refuse()
        if name == "exp":
            return raised(Constant("e"), argument)
        if name == "lg":
            return called("log", argument, Number(Fraction(10)))
        return called("ln" if name == "log" else name, argument)

    def _root(self, degree: int) -> Tree:
        index: Tree = Number(Fraction(degree))
        if degree == 2 and self.accept("["):
            index = self.sum()
            self.expect("]")
        self._enter()
        radicand = self._atom()
        self._depth -= 1
        return raised(radicand, _quotient(Number(Fraction(1)), index))

    def _argument(self) -> Tree:
        """A bracket, or the factors up to the next sign or function: `\\sin 2x \\cos x`."""
        self._enter()
        if self.is_next("(", "["):
            argument = self._atom()
        else:
            factors = [self._power()]
            while self._starts_factor() and self.next.kind != "function":
                factors.append(self._power())
            argument = multiplied(factors)
        self._depth -= 1
        return argument


def _number(text: str) -> Number:
    """The exact value of a literal such as `12`, `.5` or `1.5e3`."""
    mantissa, _, exponent = text.lower().partition("e")
    power = int(exponent or 0)
    if len(mantissa) > MAX_LITERAL_DIGITS or abs(power) > MAX_LITERAL_DIGITS:
        raise NotMathematicsError(f"a number of {len(mantissa)} digits, times 10^{exponent or 0}")
    whole, point, fraction = mantissa.partition(".")
    value = Fraction(int((whole + fraction) or 0)) * Fraction(10) ** (power - len(fraction))
    digits = len((whole + fraction).lstrip("0"))
    return Number(value, len(fraction) - power, digits) if point or exponent else Number(value)


def _repeating(text: str) -> Number:
    r"""The exact value of a repeating decimal: `0.1\overline{6}` is 1/6."""
    digits, _, period = text.partition("\\overline")
    whole, _, fraction = digits.partition(".")
    period = period.strip(" {}")
    if len(text) > MAX_LITERAL_DIGITS:
        raise NotMathematicsError(f"a repeating decimal of {len(text)} characters")
    scale = 10 ** len(fraction)
    repeated = Fraction(int(period), scale * (10 ** len(period) - 1))
    return Number(Fraction(int((whole + fraction) or 0), scale) + repeated)


def _quotient(numerator: Tree, denominator: Tree) -> Tree:
    """A fraction; of two whole numbers it is one number."""
    if _is_whole(numerator) and _is_whole(denominator) and denominator.value:
        return Number(numerator.value / denominator.value)
    return multiplied((numerator, inverted(denominator)))


def _mixed_number(whole: Tree, fraction: Tree) -> Number | None:
    """`1` and `1/2` are 3/2; None when these two do not make a mixed number."""
    if not (_is_whole(whole) and isinstance(fraction, Number) and 0 < fraction.value < 1):
        return None
    return Number(whole.value - fraction.value if whole.value < 0 else whole.value + fraction.value)


def _is_whole(tree: Tree) -> TypeGuard[Number]:
    return isinstance(tree, Number) and tree.decimals is None and tree.value.denominator == 1
