"""Names say what they name: no participle, no pronoun stands for a value."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tfgrpo_dspy"
PARTICIPLES = {"told", "own", "given", "found", "known", "said", "made"}
PRONOUNS = {"each", "one"}  # only what a loop goes over may have these names


def names_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that is assigned, or is a parameter, a function or a field; with its line."""
    loops: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            loops |= {id(part) for part in ast.walk(node.target)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if not (node.id in PRONOUNS and id(node) in loops):
                yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno


def test_no_value_has_a_name_that_does_not_say_what_it_is() -> None:
    bad: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        for name, line in names_of(ast.parse(path.read_text(encoding="utf-8"))):
            if name in PARTICIPLES | PRONOUNS:
                bad.append(f"{place}:{line} {name}")
    assert not bad, "use a noun of the glossary"
