"""Names say what they name: no participle, no pronoun stands for a value."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import tfgrpo_dspy

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tfgrpo_dspy"
PAGE_OF_WORDS = "docs/how-it-works.md"
PARTICIPLES = {"told", "own", "given", "found", "known", "said", "made"}
PRONOUNS = {"each", "one"}  # only what a loop goes over may have these names


def names_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that is assigned, or is a parameter, a function or a field; with its line."""
    loops: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            loops |= {id(part) for part in ast.walk(node.target)}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                if not (name in PRONOUNS and id(node) in loops):
                    yield name, node.lineno
            case (
                ast.Attribute(attr=name, ctx=ast.Store())
                | ast.arg(arg=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
            ):
                yield name, node.lineno


def test_no_value_has_a_name_that_does_not_say_what_it_is() -> None:
    bad: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        for name, line in names_of(ast.parse(path.read_text(encoding="utf-8"))):
            if name in PARTICIPLES | PRONOUNS:
                bad.append(f"{place}:{line} {name}")
    assert not bad, "use a noun of the glossary"


def test_the_test_of_names_notices_attributes() -> None:
    assert ("given", 1) in [*names_of(ast.parse("self.given = 1"))]


def test_no_two_files_and_no_file_and_folder_have_one_name() -> None:
    files = [path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    folders = [path.parent.name for path in PACKAGE.rglob("__init__.py")]
    twice = {name for name, n in Counter(files + folders).items() if n > 1}
    assert not twice, "a name says where to look"


def test_every_public_name_ends_with_a_word_of_the_glossary() -> None:
    readme, page = ((ROOT / name).read_text("utf-8") for name in ("README.md", PAGE_OF_WORDS))
    words = re.findall(r"\*([a-z]+)\*|^\d\. \*\*([A-Z][a-z]+)s?\.", readme, re.MULTILINE)
    glossary = {word.lower() for pair in words for word in pair}
    for row in re.findall(r"^\| ([a-z, ]+) \|", page.partition("## Words")[2], re.MULTILINE):
        glossary |= {*row.split(", ")}
    classes = (name for name in tfgrpo_dspy.__all__ if not name.endswith(("Error", "GRPO")))
    last = {name: re.sub(r".*(?=[A-Z])", "", name).lower().removesuffix("s") for name in classes}
    assert [name for name, noun in last.items() if noun not in glossary] == ["best_so_far"]


VARIADIC = {
    "chain", "format", "gather", "intersection", "max", "min", "partial", "with_inputs", "zip",
    "zip_longest",
}  # fmt: skip
"""Functions of any number of arguments of one kind."""


def starred_tuples(tree: ast.AST) -> Iterator[str]:
    """Arguments that come as a tuple, with a name or from a call, and are taken out in a call."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        names = set(names_of_tuples(function))
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            starred = [arg for arg in call.args if isinstance(arg, ast.Starred)]
            for arg in starred if callee(call) not in VARIADIC else ():
                is_made = isinstance(arg.value, ast.Call) and callee(arg.value) != "map"
                if is_made or ast.unparse(arg.value) in names:
                    yield f"line {arg.lineno}: *{ast.unparse(arg.value)}"


def names_of_tuples(function: ast.AST) -> Iterator[str]:
    """The names that a function gives to tuples, to results of calls, and to items of a loop."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            yield from tuples_of(node.targets[0], node.value)
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            yield from (one.id for one in ast.walk(node.target) if isinstance(one, ast.Name))


def callee(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def tuples_of(target: ast.expr, value: ast.expr) -> Iterator[str]:
    """The names that are given a tuple, or what a call gives."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for part, of_part in zip(target.elts, value.elts, strict=False):
            yield from tuples_of(part, of_part)
    elif isinstance(target, ast.Name) and isinstance(value, ast.Tuple | ast.Call):
        parts = value.elts if isinstance(value, ast.Tuple) else []
        yield from () if any(isinstance(part, ast.Starred) for part in parts) else [target.id]


@pytest.mark.parametrize(
    "line",
    ["pair = 1, 2; f(*pair)", "pair = g(); f(*pair)", "f(*g())", "[f(*pair) for pair in pairs]"],
)
def test_the_test_of_calls_notices(line: str) -> None:
    assert [*starred_tuples(ast.parse(f"def h(pairs): {line}"))]


def test_no_call_takes_its_arguments_out_of_a_tuple() -> None:
    bad = {
        str(path.relative_to(PACKAGE)): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := list(starred_tuples(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert not bad, "name the arguments in the call"
