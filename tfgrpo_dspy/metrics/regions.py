r"""Sets of real numbers: intervals, points, unions and inequalities, and whether two are the same.

The end points of both sets cut the real line into cells (the points, and the gaps between
them); a set is then a frozenset of cell numbers, and set algebra is Python's. So
`[0,1] \cup [1,2]` is `[0,2]`, and `x > 5` is `(5, \infty)`.
"""

import bisect
import operator
from collections.abc import Callable, Iterator
from typing import TypeGuard

from tfgrpo_dspy.metrics.evaluation import Value, approximate, is_real, is_same, shown
from tfgrpo_dspy.metrics.limits import NoValueError
from tfgrpo_dspy.metrics.trees import (
    Constant,
    Group,
    Measured,
    Relation,
    SetOperation,
    Tree,
    Variable,
    negated,
    variables,
)

Cells = frozenset[int]
INFINITY = Constant("infinity")
REALS = Constant("reals")
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}
COMBINE = {"cup": operator.or_, "cap": operator.and_, "setminus": operator.sub}


def infinite_sign(tree: Tree) -> int:
    """1 for infinity, -1 for minus infinity, 0 for everything else."""
    return 1 if tree == INFINITY else -1 if tree == negated(INFINITY) else 0


def is_region(tree: Tree) -> bool:
    """Whether the tree can only mean a set of real numbers (a plain pair can be a point too)."""
    is_set = isinstance(tree, SetOperation) or tree == REALS
    return is_set or (isinstance(tree, Relation) and _solution(tree) is not None)


def are_same_region(given: Tree, expected: Tree, value: Callable[[Tree], Value]) -> bool:
    """Whether both contain the same numbers; `value` computes an end point.

    Raises:
        NoValueError: an end point is no real number, or a part is no set of numbers.
    """
    names = variables(given) | variables(expected)
    if len(names) > 1:
        raise NoValueError(f"no set of numbers: it has the variables {sorted(names)}")
    line = _Line(value)
    for tree in (given, expected):
        line.cut(tree)
    return line.cells(given) == line.cells(expected)


class _Line:
    """The real line, cut at points: point i is cell 2i+1, the gap below it is cell 2i."""

    def __init__(self, value: Callable[[Tree], Value]) -> None:
        self._value = value
        self._points: list[Value] = []

    def cut(self, tree: Tree) -> None:
        """Makes a point of every finite end point in the tree."""
        for end in _end_points(tree):
            if not infinite_sign(end):
                point = self._real(end)
                index = self._index(point)
                if index == len(self._points) or not is_same(self._points[index], point):
                    self._points.insert(index, point)

    def cells(self, tree: Tree) -> Cells:
        """The cells that the set consists of."""
        every = range(2 * len(self._points) + 1)
        if isinstance(tree, SetOperation):
            return Cells(COMBINE[tree.operator](self.cells(tree.left), self.cells(tree.right)))
        if isinstance(tree, Relation):
            return self.cells(_solution(tree) or tree)
        if isinstance(tree, Group) and tree.opening in ("", "{"):
            return Cells(self._point_cell(item) for item in tree.items)
        if tree == REALS:
            return Cells(every)
        if not _is_interval(tree):
            raise NoValueError(f"a {type(tree).__name__} is no set of numbers")
        low, high = (self._point_cell(item) for item in tree.items)
        start, stop = low + (tree.opening == "("), high + (tree.closing == "]")
        return Cells(every[max(start, 0) : max(stop, 0)])

    def _real(self, tree: Tree) -> Value:
        value = self._value(tree)
        if not is_real(value):
            raise NoValueError(f"an end point that is not real: {shown(value)}")
        return value

    def _index(self, point: Value) -> int:
        """How many of the points lie below this one."""
        index = bisect.bisect_left(self._points, approximate(point), key=approximate)
        is_rounding = index and is_same(self._points[index - 1], point)
        return index - 1 if is_rounding else index

    def _point_cell(self, tree: Tree) -> int:
        """The cell of an end point; infinite ones lie outside of all cells."""
        sign = infinite_sign(tree)
        if sign:
            return -1 if sign < 0 else 2 * len(self._points) + 1
        return 2 * self._index(self._real(tree)) + 1


def _is_interval(tree: Tree) -> TypeGuard[Group]:
    return isinstance(tree, Group) and tree.opening in ("(", "[") and len(tree.items) == 2


def _end_points(tree: Tree) -> Iterator[Tree]:
    if isinstance(tree, SetOperation):
        yield from _end_points(tree.left)
        yield from _end_points(tree.right)
    elif isinstance(tree, Relation):
        solution = _solution(tree)
        yield from _end_points(solution) if solution else ()
    elif isinstance(tree, Group):
        yield from tree.items


def _solution(relation: Relation) -> Tree | None:
    """The numbers for which an inequality in one lone variable holds, or None.

    `x > 5` gives `(5, oo)`, `0 <= x < 1` gives `[0, 1)`, `x != 0` gives all but `{0}`.
    """
    sides = tuple(side.value if isinstance(side, Measured) else side for side in relation.sides)
    operators = relation.operators
    if not set(operators) <= set(MIRRORED):
        return None
    if len(sides) == 2 and isinstance(sides[1], Variable):
        sides, operators = sides[::-1], (MIRRORED[operators[0]],)
    if len(sides) == 2 and isinstance(sides[0], Variable):
        return _bounded_on_one_side(operators[0], sides[1])
    if len(sides) == 3 and isinstance(sides[1], Variable):
        return _bounded_on_both_sides(operators, sides[0], sides[2])
    return None


def _bounded_on_one_side(comparison: str, bound: Tree) -> Tree:
    if comparison == "!=":
        return SetOperation("setminus", REALS, Group("{", (bound,), "}"))
    if comparison in (">", ">="):
        return Group("[" if comparison == ">=" else "(", (bound, INFINITY), ")")
    return Group("(", (negated(INFINITY), bound), "]" if comparison == "<=" else ")")


def _bounded_on_both_sides(operators: tuple[str, ...], left: Tree, right: Tree) -> Tree | None:
    if set(operators) <= {">", ">="}:
        left, right = right, left
        operators = (MIRRORED[operators[1]], MIRRORED[operators[0]])
    if not set(operators) <= {"<", "<="}:
        return None
    opening, closing = "[" if operators[0] == "<=" else "(", "]" if operators[1] == "<=" else ")"
    return Group(opening, (left, right), closing)
