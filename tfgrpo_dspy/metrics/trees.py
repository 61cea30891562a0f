"""Formulas as values: what the parser builds and the comparison reads. Nothing is computed here.

Our own few nodes rather than sympy's: a sympy object evaluates while it is built (`9**9**9`
never returns), and every fact about how an answer was written (decimal places, a percent sign,
the kind of bracket) is lost on it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

from tfgrpo_dspy.metrics.limits import NotMathematicsError


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """An exact rational; `decimals` and `digits` tell how it was written.

    `0.50` has two decimals and two significant digits; `decimals` is None for `1/2` and `7`.
    """

    value: Fraction
    decimals: int | None = None
    digits: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Variable:
    """An unknown: `x`, `x_1`, `θ`."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """`pi`, `e`, `i`, `infinity` or `reals`."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sum:
    """Two or more terms."""

    terms: tuple["Tree", ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """Two or more factors; a quotient is a factor to the power -1."""

    factors: tuple["Tree", ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Power:
    """`base ** exponent`; roots are powers too."""

    base: "Tree"
    exponent: "Tree"


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A named function of one or two arguments; `log` has its base second."""

    name: str
    arguments: tuple["Tree", ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A percent or degree sign behind a value; both can be read as a factor or as a unit."""

    sign: str
    value: "Tree"


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """A value with a unit behind it: `5 cm`."""

    value: "Tree"
    unit: str


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Elements between brackets.

    `{` `}` is a set, two elements between round or square brackets are a pair or an interval,
    `row` and `matrix` are those, and a list without brackets has empty ones.
    """

    opening: str
    items: tuple["Tree", ...]
    closing: str


@dataclasses.dataclass(frozen=True, slots=True)
class SetOperation:
    """A union, intersection or difference of two sets: `cup`, `cap` or `setminus`."""

    operator: str
    left: "Tree"
    right: "Tree"


@dataclasses.dataclass(frozen=True, slots=True)
class Relation:
    """A chain of `=`, `<`, `<=`, `>`, `>=`, `!=` or `in`: one more side than operators."""

    operators: tuple[str, ...]
    sides: tuple["Tree", ...]


Tree = (
    Number
    | Variable
    | Constant
    | Sum
    | Product
    | Power
    | Call
    | Mark
    | Measured
    | Group
    | SetOperation
    | Relation
)

MINUS_ONE = Number(Fraction(-1))
HALF = Number(Fraction(1, 2))
PERCENT = Number(Fraction(1, 100))
DEGREE = Product((Constant("pi"), Number(Fraction(1, 180))))


def added(terms: Iterable[Tree]) -> Tree:
    """The sum of the terms; a single term is itself."""
    whole = tuple(terms)
    return whole[0] if len(whole) == 1 else Sum(_scalars(whole))


def multiplied(factors: Iterable[Tree]) -> Tree:
    """The product of the factors; a single factor is itself."""
    whole = tuple(factors)
    return whole[0] if len(whole) == 1 else Product(_scalars(whole))


def negated(tree: Tree) -> Tree:
    """`-tree`; a number stays a number, so that `-0.50` keeps its decimals."""
    if isinstance(tree, Number):
        return dataclasses.replace(tree, value=-tree.value)
    return multiplied((MINUS_ONE, tree))


def inverted(tree: Tree) -> Tree:
    """`1/tree`."""
    return raised(tree, MINUS_ONE)


def raised(base: Tree, exponent: Tree) -> Tree:
    """`base ** exponent`."""
    return Power(*_scalars((base, exponent)))


def called(name: str, *arguments: Tree) -> Tree:
    """The function of that name, of these arguments."""
    return Call(name, _scalars(arguments))


def marked(sign: str, value: Tree) -> Tree:
    """The value with a percent or degree sign."""
    return Mark(sign, *_scalars((value,)))


def _scalars(trees: tuple[Tree, ...]) -> tuple[Tree, ...]:
    """The trees, when each of them stands for a number: there is no arithmetic of sets here."""
    for tree in trees:
        if isinstance(tree, Group | SetOperation | Relation | Measured):
            raise NotMathematicsError(f"arithmetic with a {type(tree).__name__}")
    return trees


def rewritten(tree: Tree, change: Callable[[Tree], Tree]) -> Tree:
    """The tree with `change` made to every node, from the leaves up."""

    def renewed(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(renewed(one) for one in value)
        return rewritten(value, change) if isinstance(value, Tree) else value

    fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    return change(type(tree)(**{name: renewed(value) for name, value in fields.items()}))  # type: ignore[arg-type]


def nodes(tree: Tree) -> Iterator[Tree]:
    """Every node of the tree, itself first."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            parts = value if isinstance(value, tuple) else (value,)
            waiting.extend(part for part in parts if isinstance(part, Tree))


def variables(tree: Tree) -> frozenset[str]:
    """The names of the unknowns in the tree."""
    return frozenset(node.name for node in nodes(tree) if isinstance(node, Variable))
