r"""Whether two expressions, or two equations, are the same; if not, the difference in words.

Without variables the values decide: exactly for rational numbers, to 200 digits for others. A
decimal is an exact number (0.33 is not 1/3), with one exception: where no finite decimal can
state the other value, one with at least 3 significant digits stands for it when it is that
value rounded to the places given (0.333 and 0.3333 are 1/3, 3.14 is pi; 0.33 and 0.334 are
not 1/3, 0.13 is not 1/8).

With variables the values at a fixed list of points decide, never `simplify`. Variables are
real: points at which a side is undefined or not real are left out, so `(x^2-1)/(x-1)` is `x+1`;
some points are negative, so `\sqrt{x^2}` is not `x`.
"""

import random
from collections.abc import Iterator
from fractions import Fraction

from tfgrpo_dspy.metrics.evaluation import Evaluation, Value, approximate, is_real, is_same, shown
from tfgrpo_dspy.metrics.limits import Deadline, NoValueError
from tfgrpo_dspy.metrics.regions import infinite_sign
from tfgrpo_dspy.metrics.trees import (
    Constant,
    Number,
    Relation,
    Tree,
    added,
    negated,
    nodes,
    variables,
)

MIN_DIGITS = 3
"""Significant digits from which a decimal may stand for a value that no decimal can state."""
SIGNED_POINTS = 8
WHOLE_POINTS = 3
"""Points of small whole numbers, the only ones at which `n!` has a value."""
SCALES = (1, 7, 53)
INFINITIES = {1: "infinity", -1: "minus infinity", 0: "a finite value"}
Point = dict[str, Fraction]


class Identity:
    """Compares by value, within a deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._numbers = Evaluation({}, deadline, is_complex=True)
        self._value_by_tree: dict[Tree, Value] = {}

    def value(self, tree: Tree) -> Value:
        """The value of an expression without variables.

        Raises:
            NoValueError: it has variables, is undefined or too large, or is no number.
        """
        if tree not in self._value_by_tree:
            self._value_by_tree[tree] = self._numbers.value(tree)
        return self._value_by_tree[tree]

    def expressions(self, given: Tree, expected: Tree) -> str:
        """The difference of two expressions; empty when they are the same."""
        if infinite_sign(given) or infinite_sign(expected):
            kinds = [INFINITIES[infinite_sign(tree)] for tree in (given, expected)]
            return "" if kinds[0] == kinds[1] else f"expected {kinds[1]}, given {kinds[0]}"
        if variables(given) or variables(expected):
            return self._functions(given, expected)
        try:
            value, wanted = self.value(given), self.value(expected)
        except NoValueError as error:
            return f"no value to compare: {error}"
        if is_same(value, wanted) or _is_rounded(given, wanted) or _is_rounded(expected, value):
            return ""
        if not is_real(value) or not is_real(wanted):
            return f"the given value is {shown(value)}, expected {shown(wanted)}"
        return _distance(value, wanted)

    def _functions(self, given: Tree, expected: Tree) -> str:
        n_points = 0
        for point, value, wanted in self._values(given, expected):
            n_points += 1
            if not is_same(value, wanted):
                where = ", ".join(f"{name} = {number}" for name, number in point.items())
                return f"at {where} the given is {shown(value)}, expected {shown(wanted)}"
        return "" if n_points else "no point was found at which both have a value"

    def relations(self, given: Relation, expected: Relation) -> str:
        """The difference of two chains of numbers with the same operators between them."""
        for index, operator in enumerate(given.operators):
            pair = [_left_minus_right(relation, index) for relation in (given, expected)]
            if not self._are_proportional(*pair, by_positive=operator in ("<", "<=")):
                return "the equations are not multiples of each other"
        return ""

    def _are_proportional(self, given: Tree, expected: Tree, *, by_positive: bool) -> bool:
        ratios = []
        for _, value, wanted in self._values(given, expected):
            zeros = [is_same(number, Fraction(0)) for number in (value, wanted)]
            if all(zeros):
                continue
            if any(zeros):
                return False
            ratios.append(approximate(value) / approximate(wanted))
        if len(ratios) < 2 or not all(is_same(ratio, ratios[0]) for ratio in ratios):
            return False
        return not by_positive or (is_real(ratios[0]) and ratios[0] > 0)

    def _values(self, given: Tree, expected: Tree) -> Iterator[tuple[Point, Value, Value]]:
        """Both values at each point where both have one; complex where none are real."""
        trees = (given, expected)
        points = _points(sorted(variables(given) | variables(expected)))
        has_i = any(Constant("i") in nodes(tree) for tree in trees)
        at_real_points = iter(()) if has_i else self._values_at(points, trees, is_complex=False)
        first = next(at_real_points, None)
        if first is None:
            yield from self._values_at(points, trees, is_complex=True)
        else:
            yield first
            yield from at_real_points

    def _values_at(
        self, points: list[Point], trees: tuple[Tree, Tree], *, is_complex: bool
    ) -> Iterator[tuple[Point, Value, Value]]:
        for point in points:
            at_point = Evaluation(point, self._deadline, is_complex=is_complex)
            try:
                yield point, at_point.value(trees[0]), at_point.value(trees[1])
            except NoValueError:
                continue


def _points(names: list[str]) -> list[Point]:
    """The same points for the same names, on every machine: signed fractions, then whole ones."""
    points = []
    for index in range(SIGNED_POINTS + WHOLE_POINTS):
        point: Point = {}
        for position, name in enumerate(names):
            source = random.Random(f"{index}/{name}")
            if index >= SIGNED_POINTS:
                point[name] = Fraction(source.randrange(2, 12))
            else:
                size = Fraction(source.randrange(1, 29), 29) * SCALES[index % len(SCALES)]
                point[name] = -size if index >> position % 3 & 1 else size
        points.append(point)
    return points


def _left_minus_right(relation: Relation, index: int) -> Tree:
    return added((relation.sides[index], negated(relation.sides[index + 1])))


def _is_rounded(tree: Tree, value: Value) -> bool:
    """Whether the tree is a decimal that states the value as far as a decimal can."""
    if not isinstance(tree, Number) or tree.decimals is None or tree.digits < MIN_DIGITS:
        return False
    if not is_real(value) or _terminates(value):
        return False
    half_a_unit = Fraction(10) ** -tree.decimals / 2
    return bool(abs(approximate(value) - approximate(tree.value)) <= approximate(half_a_unit))


def _terminates(value: Value) -> bool:
    """Whether a finite decimal states the number: its denominator has no factor but 2 and 5."""
    if not isinstance(value, Fraction):
        return False
    return pow(10, value.denominator.bit_length(), value.denominator) == 0


def _distance(value: Value, wanted: Value) -> str:
    if isinstance(value, Fraction) and isinstance(wanted, Fraction):
        distance = value - wanted
    else:
        distance = approximate(value) - approximate(wanted)
    side = "large" if distance > 0 else "small"
    return f"the given value is too {side} by {shown(abs(distance))}"
