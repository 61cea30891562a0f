r"""Whether two answers mean the same: their kind, their elements, their signs and units.

The values themselves are compared by `identity`, sets of real numbers by `regions`. Every
function here returns the difference as a sentence for people, empty when there is none.
"""

from collections.abc import Iterator

from tfgrpo_dspy.metrics.identity import Identity
from tfgrpo_dspy.metrics.limits import Deadline, NoValueError
from tfgrpo_dspy.metrics.regions import are_same_region, is_region
from tfgrpo_dspy.metrics.trees import (
    DEGREE,
    PERCENT,
    Group,
    Mark,
    Measured,
    Number,
    Power,
    Product,
    Relation,
    SetOperation,
    Tree,
    Variable,
    multiplied,
    nodes,
    rewritten,
    variables,
)
from tfgrpo_dspy.metrics.units import contradict

MIRRORED = {">": "<", ">=": "<="}


def difference(given: Tree, expected: Tree, deadline: Deadline) -> str:
    """What differs between two answers; empty when they mean the same.

    Raises:
        OutOfTimeError: the deadline is over.
    """
    comparison = _Comparison(deadline)
    differences = []
    for one, two in _readings(given, expected):
        differences.append(comparison.between(one, two))
        if not differences[-1]:
            return ""
    return differences[-1]


def _readings(given: Tree, expected: Tree) -> Iterator[tuple[Tree, Tree]]:
    """Both trees without percent and degree signs, in each way in which they can be meant.

    Where both have the sign, it is a factor in both. Where one has it, it may be a unit as well:
    50% is 1/2, and it is the 50 of a question that asks for a percentage.
    """
    is_marked = [any(isinstance(node, Mark) for node in nodes(tree)) for tree in (given, expected)]
    if any(is_marked):
        yield _read(given, as_factor=True), _read(expected, as_factor=True)
    if not all(is_marked):
        yield _read(given, as_factor=False), _read(expected, as_factor=False)


def _read(tree: Tree, *, as_factor: bool) -> Tree:
    def read(node: Tree) -> Tree:
        if not isinstance(node, Mark):
            return node
        if not as_factor:
            return node.value
        if node.sign == "%" and isinstance(node.value, Number):
            number = node.value
            decimals = None if number.decimals is None else number.decimals + 2
            return Number(number.value / 100, decimals, number.digits)
        return multiplied((node.value, PERCENT if node.sign == "%" else DEGREE))

    return rewritten(tree, read)


class _Comparison:
    """One comparison by kind of answer; the methods call each other for the elements."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._identity = Identity(deadline)

    def between(self, given: Tree, expected: Tree) -> str:
        """The difference of two answers, or of two elements of them."""
        self._deadline.check()
        if given == expected:
            return ""
        units = [tree.unit if isinstance(tree, Measured) else "" for tree in (given, expected)]
        if contradict(*units):
            return f"expected the unit {units[1]}, given {units[0]}"
        given, expected = _bare(given), _bare(expected)
        return self._values(_compared(given, expected), _compared(expected, given))

    def _values(self, given: Tree, expected: Tree) -> str:
        if isinstance(given, Relation) and isinstance(expected, Relation):
            return self._relations(_upward(given), _upward(expected))
        if is_region(given) or is_region(expected):
            return self._regions(given, expected)
        if isinstance(given, Group) and isinstance(expected, Group):
            return self._groups(given, expected)
        if isinstance(given, Group | Relation) or isinstance(expected, Group | Relation):
            return _other_kind(given, expected)
        return self._identity.expressions(given, expected)

    def _groups(self, given: Group, expected: Group) -> str:
        openings = {given.opening, expected.opening}
        if "{" in openings:
            is_unordered = openings <= {"{", ""}
            return self._sets(given, expected) if is_unordered else _other_kind(given, expected)
        if openings == {""}:
            return self._lists(given, expected)
        if len(given.items) != len(expected.items):
            return f"expected {len(expected.items)} elements, given {len(given.items)}"
        found = "" if "" in openings else _brackets(given, expected)
        return found or self._tuples(given, expected)

    def _tuples(self, given: Group, expected: Group) -> str:
        for index, (one, two) in enumerate(zip(given.items, expected.items, strict=True)):
            if found := self.between(one, two):
                return f"element {index + 1} differs: {found}"
        return ""

    def _sets(self, given: Group, expected: Group) -> str:
        """Order and repetitions mean nothing: each element of one is in the other."""
        n_missing, n_surplus = (
            sum(all(self.between(item, other) for other in others.items) for item in group.items)
            for group, others in ((expected, given), (given, expected))
        )
        return _elements(n_missing, n_surplus)

    def _lists(self, given: Group, expected: Group) -> str:
        """Order means nothing, repetitions do: each element is in both equally often."""
        surplus = [
            self._n_equal(item, given) - self._n_equal(item, expected)
            for item in (*given.items, *expected.items)
        ]
        return _elements(sum(n < 0 for n in surplus), sum(n > 0 for n in surplus))

    def _n_equal(self, item: Tree, group: Group) -> int:
        return sum(not self.between(item, other) for other in group.items)

    def _regions(self, given: Tree, expected: Tree) -> str:
        try:
            is_equal = are_same_region(given, expected, self._identity.value)
        except NoValueError:  # an end point is a variable: then the parts are compared
            if isinstance(given, SetOperation) and isinstance(expected, SetOperation):
                return self._set_operations(given, expected)
            return _other_kind(given, expected)
        return "" if is_equal else "the two sets do not contain the same numbers"

    def _set_operations(self, given: SetOperation, expected: SetOperation) -> str:
        if given.operator != expected.operator:
            return f"expected the operation {expected.operator}, given {given.operator}"
        return self.between(given.left, expected.left) or self.between(given.right, expected.right)

    def _relations(self, given: Relation, expected: Relation) -> str:
        if given.operators != expected.operators:
            signs = [" ".join(relation.operators) for relation in (given, expected)]
            return f"expected the relation {signs[1]}, given {signs[0]}"
        sides = [self.between(*pair) for pair in zip(given.sides, expected.sides, strict=True)]
        found = next(filter(None, sides), "")
        has_sets = any(
            isinstance(side, Group | SetOperation) for side in (*given.sides, *expected.sides)
        )
        if not found or has_sets or not (variables(given) | variables(expected)):
            return found
        return self._identity.relations(given, expected)


def _bare(tree: Tree) -> Tree:
    return tree.value if isinstance(tree, Measured) else tree


def _compared(tree: Tree, other: Tree) -> Tree:
    """What of the tree is compared with the other: of `x = 5` the 5, of `{5}` the 5."""
    if isinstance(tree, Group) and tree.opening == "{" and len(tree.items) == 1:
        is_set = isinstance(other, Group | SetOperation)
        return tree if is_set else _compared(_bare(tree.items[0]), other)
    if isinstance(tree, Relation) and not isinstance(other, Relation):
        return _bare(_defined_by(tree))
    return tree


def _defined_by(relation: Relation) -> Tree:
    r"""The value in `x = 5`, `5 = x`, `f(x) = 5`, `2 + 3 = 5`, `x \in {5}`; else the relation."""
    *names, value = relation.sides
    if relation.operators == ("in",) and _is_name(names[0]):
        return value
    if set(relation.operators) != {"="}:
        return relation
    if len(names) == 1 and _is_name(value) and not variables(names[0]):
        return names[0]
    is_closed = not variables(value)
    if all(_is_name(side) or (is_closed and not variables(side)) for side in names):
        return value
    return relation


def _is_name(tree: Tree) -> bool:
    """Whether the tree can be a name: `x`, or `f(x)`, `f(2)`, which read as products."""
    if isinstance(tree, Variable):
        return True
    if not isinstance(tree, Product):
        return False
    function, *arguments = tree.factors
    if isinstance(function, Power):  # the inverse function
        function = function.base
    return isinstance(function, Variable) and all(
        isinstance(argument, Variable | Number) for argument in arguments
    )


def _upward(relation: Relation) -> Relation:
    """The relation with `<` for `>`: `5 > x` is `x < 5`; sides without their units."""
    sides = tuple(map(_bare, relation.sides))
    if not set(relation.operators) <= set(MIRRORED):
        return Relation(relation.operators, sides)
    mirrored = tuple(MIRRORED[operator] for operator in relation.operators[::-1])
    return Relation(mirrored, sides[::-1])


def _brackets(given: Group, expected: Group) -> str:
    """Only two elements can be an interval, where the kind of bracket has a meaning."""
    brackets = [group.opening + group.closing for group in (given, expected)]
    if len(given.items) != 2 or brackets[0] == brackets[1]:
        return ""
    return f"expected the brackets {brackets[1]}, given {brackets[0]}"


def _elements(n_missing: int, n_surplus: int) -> str:
    if not n_missing and not n_surplus:
        return ""
    return f"{n_missing} expected elements are missing, {n_surplus} given ones are not expected"


def _other_kind(given: Tree, expected: Tree) -> str:
    return f"expected {_kind(expected)}, given {_kind(given)}"


def _kind(tree: Tree) -> str:
    if isinstance(tree, Group):
        names = {"": "a list", "{": "a set", "matrix": "a matrix", "row": "a row"}
        return f"{names.get(tree.opening, 'a tuple')} of {len(tree.items)}"
    if isinstance(tree, SetOperation):
        return "a combination of sets"
    return "an equation or inequality" if isinstance(tree, Relation) else "a single value"
