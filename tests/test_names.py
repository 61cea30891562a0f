"""Names say what they name: no participle, no pronoun stands for a value."""

import ast
from collections import Counter
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


def test_no_two_files_and_no_file_and_folder_have_one_name() -> None:
    files = [path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    folders = [path.parent.name for path in PACKAGE.rglob("__init__.py")]
    twice = {name for name, n in Counter(files + folders).items() if n > 1}
    assert not twice, "a name says where to look"


def starred_tuples(tree: ast.AST) -> Iterator[str]:
    """Arguments that are put into a tuple with a name, and taken out of it again in a call."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        nodes = list(ast.walk(function))
        names: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Assign):
                names |= set(tuples_of(node.targets[0], node.value))
        starred = (arg for node in nodes if isinstance(node, ast.Call) for arg in node.args)
        for arg in starred:
            name = ast.unparse(arg.value) if isinstance(arg, ast.Starred) else ""
            if name in names:
                yield f"line {arg.lineno}: *{name}"


def tuples_of(target: ast.expr, value: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for part, of_part in zip(target.elts, value.elts, strict=False):
            yield from tuples_of(part, of_part)
    elif isinstance(value, ast.Tuple) and isinstance(target, ast.Name):
        is_sequence = any(isinstance(part, ast.Starred) for part in value.elts)
        yield from () if is_sequence else [target.id]


def test_no_call_takes_its_arguments_out_of_a_tuple() -> None:
    bad = {
        str(path.relative_to(PACKAGE)): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := list(starred_tuples(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert not bad, "name the arguments in the call"
