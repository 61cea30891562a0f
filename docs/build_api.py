"""Builds the API reference from the docstrings: `python docs/build_api.py [FOLDER]`.

The tool is pdoc. Its warnings, such as one about a type that cannot be resolved, are errors here.
The folder is `build/api` by default, and begins with `index.html`. `python docs/build_api.py
--arguments` writes all arguments at the end of docs/settings.md, and `--layout` all files of the
package at the end of CONTRIBUTING.md.
"""

import argparse
import ast
import importlib
import inspect
import re
import typing
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pdoc.doc
import pdoc.render

MODULES = (
    "tfgrpo_dspy",
    "tfgrpo_dspy.cli",
    "tfgrpo_dspy.errors",
    "tfgrpo_dspy.events",
    "tfgrpo_dspy.results",
    "tfgrpo_dspy.report",
    "tfgrpo_dspy.interchange",
    "tfgrpo_dspy.local",
    "tfgrpo_dspy.metrics",
    "tfgrpo_dspy.integrations.mlflow",
    "tfgrpo_dspy.rollout",
    "tfgrpo_dspy.strategies",
    "tfgrpo_dspy.experience",
    "tfgrpo_dspy.settings",
)


def without_check(annotation: Any) -> Any:
    """The type without checks, of `Annotated[int, Field(ge=1)]`: readers need `int`."""
    if isinstance(annotation, str):
        return annotation
    holder = type("Holder", (), {"__annotations__": {"value": annotation}})
    return typing.get_type_hints(holder)["value"]


def simplify(scope: Any) -> None:
    """Show types without checks, and of a class no values that have neither type nor docstring."""
    for name, member in list(scope.members.items()):
        if isinstance(member, pdoc.doc.Class):
            simplify(member)
        elif isinstance(member, pdoc.doc.Function):
            signature = member.signature
            given = signature.parameters.values()
            given = [each.replace(annotation=without_check(each.annotation)) for each in given]
            member.signature = signature.replace(parameters=given)
        elif isinstance(member, pdoc.doc.Variable):
            member.annotation = without_check(member.annotation)
            is_bare = member.annotation is pdoc.doc.empty and not member.docstring
            if is_bare and isinstance(scope, pdoc.doc.Class):
                del scope.members[name]


def documented(name: str) -> pdoc.doc.Module:
    """What pdoc reads in the module of this name."""
    read = pdoc.doc.Module(importlib.import_module(name))
    simplify(read)
    return read


def build(folder: Path) -> None:
    """Write a page for each module, an index and the file of the search."""
    pdoc.render.configure(docformat="google")
    modules = {name: documented(name) for name in MODULES}
    pages = {f"{name.replace('.', '/')}.html": module for name, module in modules.items()}
    texts = {name: pdoc.render.html_module(page, modules) for name, page in pages.items()}
    texts["index.html"] = pdoc.render.html_index(modules)
    texts["search.js"] = pdoc.render.search_index(modules)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


HEADING = "## All arguments\n"
ARGUMENTS = f"""{HEADING}
None as a default means: derived, no limit, or nothing. This table is made from the code by `python
docs/build_api.py --arguments`.
"""


def page_with_arguments(page: str) -> str:
    """The page of settings, which ends with all arguments, from signatures and docstrings."""
    package = importlib.import_module("tfgrpo_dspy")
    parts = [page.partition(HEADING)[0] + ARGUMENTS]
    for kind in (package.TrainingFreeGRPO, package.Reflection, package.Execution):
        known = dict(_documented_arguments(inspect.getdoc(kind) or ""))
        parts.append(
            f"### {kind.__name__}\n\n| argument | default | meaning |\n| --- | --- | --- |"
        )
        parameters = [p for p in inspect.signature(kind).parameters.values() if p.name in known]
        for parameter in parameters:
            is_needed = parameter.default is parameter.empty
            is_made = type(parameter.default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS"
            default = "" if is_needed or is_made else f"`{parameter.default!r}`"
            parts.append(f"| `{parameter.name}` | {default} | {known[parameter.name]} |")
        parts.append("")
    return "\n".join(parts)


def _documented_arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """Each argument with its text, from the section `Args` of a docstring."""
    section = docstring.partition("\nArgs:\n")[2]
    section = re.split(r"\n(?=\S)", section)[0]
    for found in re.finditer(r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)", section, re.DOTALL | re.MULTILINE):
        yield found[1], " ".join(found[2].split()).replace("|", "\\|")


LAYOUT = """## Layout

Each file with the first sentence of its docstring (made by `python docs/build_api.py --layout`).
"""
ROOT = Path(__file__).parents[1]


def page_with_layout(page: str) -> str:
    """The page for contributors, which ends with a line for each file of the package."""
    parts = [page.partition("## Layout\n")[0] + LAYOUT]
    files = sorted((ROOT / "tfgrpo_dspy").rglob("*.py"))
    folders = sorted({file.parent for file in files})
    for folder in folders:
        parts.append("")
        for file in (each for each in files if each.parent == folder):
            place, is_room = file.relative_to(ROOT), file.name == "__init__.py"
            name = f"{folder.name}/" if is_room else f"{file.name}"
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            sentence = " ".join(text.partition("\n\n")[0].split()).partition(". ")[0]
            indent = "" if is_room else "  "
            parts.append(f"{indent}- [{name}]({place.as_posix()}): {sentence.removesuffix('.')}")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("error")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/api"))
    parser.add_argument("--arguments", action="store_true", help="write docs/settings.md instead")
    parser.add_argument("--layout", action="store_true", help="write CONTRIBUTING.md instead")
    asked = parser.parse_args()
    if asked.arguments or asked.layout:
        path = ROOT / ("docs/settings.md" if asked.arguments else "CONTRIBUTING.md")
        write = page_with_arguments if asked.arguments else page_with_layout
        path.write_text(write(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        build(asked.folder)
