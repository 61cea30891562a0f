r"""The text of an answer becomes a tree; no character of it is ever evaluated.

Why a parser of our own, and trees that sympy never sees: sympy's `parse_expr` and `sympify` run
`eval`, so an answer could run code. Its `parse_latex` needs a further package and reads neither
`2**3`, `\sqrt2`, sets, half open intervals nor percent; the lark backend takes powers while it
parses (`9^{9^{9}}` does not return), the antlr backend ends in a RecursionError on a sum of 200
terms (tried with sympy 1.14). And sympy has no bound on the work of `evalf` or `simplify`.

Grammar, weakest first: list (`,` `;` and or), relation (`=` `<` `\in`), a unit behind a value,
set operation (`\cup`), and the arithmetic of `expressions`. What does not fit is refused, never
repaired.
"""

from dataclasses import replace

from tfgrpo_dspy.metrics.expressions import END, ExpressionParser
from tfgrpo_dspy.metrics.limits import MAX_ELEMENTS, NotMathematicsError
from tfgrpo_dspy.metrics.notation import Token, tokens
from tfgrpo_dspy.metrics.plain_notation import plain
from tfgrpo_dspy.metrics.trees import Group, Measured, Relation, SetOperation, Tree

RELATIONS = ("=", "<", "<=", ">", ">=", "!=", "in")
INEQUALITIES = frozenset(("<", "<=", ">", ">="))
SEPARATORS = (",", ";", "and", "or")
SET_OPERATORS = ("cup", "cap", "setminus")
CLOSING = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), r"\{": (r"\}", "}")}
PLAIN_PAIRS = ("()", "[]", "{}")


def parse(text: str) -> Tree:
    r"""The tree of one answer; `\pm` gives the set of both values.

    Raises:
        NotMathematicsError: the text is not read as mathematics, or it is too deep or too long.
    """
    found = tokens(plain(text))
    if not any(token.text in ("pm", "mp") and token.kind == "symbol" for token in found):
        return AnswerParser(found).answer()
    both = [AnswerParser(_with_sign(found, signs)).answer() for signs in ("+-", "-+")]
    return Group("{", tuple(element for tree in both for element in _elements(tree)), "}")


def _with_sign(found: list[Token], signs: str) -> list[Token]:
    sign_of = dict(zip(("pm", "mp"), signs, strict=True))
    return [replace(token, text=sign_of.get(token.text, token.text)) for token in found]


def _elements(tree: Tree) -> tuple[Tree, ...]:
    is_unordered = isinstance(tree, Group) and tree.opening in ("", "{")
    return tree.items if isinstance(tree, Group) and is_unordered else (tree,)


def is_inequality(tree: Tree) -> bool:
    """Whether the tree is `a < b`, `a <= b < c` and so on."""
    return isinstance(tree, Relation) and INEQUALITIES.issuperset(tree.operators)


class AnswerParser(ExpressionParser):
    """Lists, relations, units, sets and intervals around the arithmetic."""

    def answer(self) -> Tree:
        """The whole text: one element, or a list without brackets."""
        items, separators = self._list()
        if self.next is not END:
            self.refuse()
        if len(items) == 1:
            return items[0]
        if all(map(is_inequality, items)) and set(separators) == {"or"}:
            return _united(items)
        return Group("", items, "")

    def bracket(self) -> Tree:
        """A set, pair, interval, list or matrix; one element in plain brackets is that element."""
        if self.accept("begin"):
            return self._matrix()
        opening = self.expect(*CLOSING)
        if "{" in opening and self.accept(*CLOSING[opening]):
            return Group("{", (), "}")
        items, _ = self._list()
        closing = self.expect(*CLOSING[opening])
        if "{" in opening and (len(items) > 1 or opening == r"\{"):
            return Group("{", items, "}")
        if len(items) > 1:
            return Group(opening, items, closing)
        return items[0] if opening + closing in PLAIN_PAIRS else self.refuse()

    def _list(self) -> tuple[tuple[Tree, ...], list[str]]:
        items, separators = [self._element()], []
        while separator := self.accept(*SEPARATORS):
            if separator in (",", ";"):  # "1, 2, and 3"
                separator = self.accept("and", "or") or separator
            separators.append(separator)
            items.append(self._element())
            if len(items) > MAX_ELEMENTS:
                raise NotMathematicsError(f"more than {MAX_ELEMENTS} elements")
        return tuple(items), separators

    def _matrix(self) -> Tree:
        rows = [self._row()]
        while self.accept(";"):
            rows.append(self._row())
        self.expect("end")
        return Group("matrix", tuple(rows), "matrix")

    def _row(self) -> Tree:
        items = [self.sum()]
        while self.accept("&"):
            items.append(self.sum())
        return Group("row", tuple(items), "row")

    def _element(self) -> Tree:
        sides, operators = [self._measured()], []
        while operator := self.accept(*RELATIONS):
            operators.append(operator)
            sides.append(self._measured())
        return Relation(tuple(operators), tuple(sides)) if operators else sides[0]

    def _measured(self) -> Tree:
        value, unit = self._set_operation(), self._unit()
        return Measured(value, unit) if unit else value

    def _unit(self) -> str:
        """Words behind a value, with their powers and quotients: `cm^2`, `miles per hour`."""
        words: list[str] = []
        while True:
            if self.next.kind == "word" or (words and self.next.kind == "name"):
                words.append(self.take().text)
            elif words and self.accept("^"):
                words.append(f"^{self._unit_power()}")
            elif words and (operator := self.accept("/", "*")):
                words.append(operator)
            else:
                return " ".join(words)

    def _unit_power(self) -> str:
        is_braced = bool(self.accept("{"))
        power = self.accept("-") + (self.take().text if self.next.kind == "number" else "")
        if is_braced:
            self.expect("}")
        return power

    def _set_operation(self) -> Tree:
        left = self.sum()
        while operator := self.accept(*SET_OPERATORS):
            left = SetOperation(operator, left, self.sum())
        return left


def _united(items: tuple[Tree, ...]) -> Tree:
    union, *rest = items
    for item in rest:
        union = SetOperation("cup", union, item)
    return union
