"""Names say what they name: no participle, no pronoun stands for a value."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

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
