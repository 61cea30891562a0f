"""Modules of the package import only from the layers above their own in the list below.

A folder counts as one module: `gate/race.py` is part of `gate`.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from tfgrpo_dspy.listeners import RunReport

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tfgrpo_dspy"
LAYERS = [
    {"text", "dspy_seam"}, {"errors"}, {"files", "user_code"}, {"experience", "rollout"},
    {"budget", "results", "interchange"}, {"events"}, {"sampling", "reflection", "gate"},
    {"strategies"}, {"settings"}, {"store"}, {"pool", "listeners"}, {"calls"}, {"run"},
    {"report"}, {"optimizer"}, {"cli", "local", "metrics", "integrations"}, {"__main__"},
]  # fmt: skip
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
RANK["__init__"] = RANK["cli"]  # the package itself: neither `local` nor `metrics`
NO_DSPY = "errors files text experience rollout results events"
WITH_LOCKS = "integrations pool budget user_code store local metrics cli"
AWAITING = "budget local user_code"
ONLY_IN = {
    "dspy": RANK.keys() - {*NO_DSPY.split(), "gate", "interchange"},
    "concurrent": {"integrations", "pool", "calls", "local", "settings", "user_code"},
    "contextvars": {"pool", "budget", "user_code", "local"}, "threading": {*WITH_LOCKS.split()},
    "asyncio": {*AWAITING.split()}, "signal": {"metrics"}, "resource": {"metrics"},
    "multiprocessing": set[str](), "subprocess": {"metrics"}, "pickle": set[str](),
    "cloudpickle": {"pool"}, "sqlite3": {"store"}, "json_repair": {"reflection"},
    "orjson": {"dspy_seam"}, "numpy": {"gate", "strategies"}, "threadpoolctl": {"gate"},
    "scipy": {"gate", "results", "strategies"}, "tqdm": {"listeners"}, "jinja2": {"report"},
    "sympy": {"metrics"}, "math_verify": {"metrics"}, "xllamacpp": {"local"},
    "argparse": set[str](), "click": {"cli"}, "yaml": {"interchange"},
    "mlflow": {"integrations"},
}  # fmt: skip
"""The libraries that only some modules may import, and these modules."""
THIRD_PARTIES = {name for name in ONLY_IN if name not in sys.stdlib_module_names} | {"pydantic"}
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def module_of(path: Path) -> str:
    """The module that a file is part of: `gate` for gate/race.py, `metric` for metric.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


HOOKS = {
    "caller_modules", "caller_predict", "max_trace_size", "send_stream", "stream_listeners",
    "update_history", "usage_tracker", "GLOBAL_HISTORY", "_store",
}  # fmt: skip
"""Names of what DSPy reads, or lets itself be given, and does not document."""
DOCUMENTED_SETTINGS = {
    "lm", "adapter", "callbacks", "num_threads", "disable_history", "get", "copy",
}  # fmt: skip
STANDING = {
    # of `_Metered`, which test_dspy_seam watches
    "budget/meter.py": {"update_history", "super().update_history"},
    "sampling/one_rollout.py": {"dspy.settings.lock"},  # a lock of all threads; any other would do
    "pool.py": {"_max_workers", "_client"},
    "user_code.py": {"_store", "asyncio._get_running_loop"},  # of demos, by their shape
}
"""The hooks that stand outside of the seam, by file."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def hooks_in(tree: ast.AST) -> Iterator[str]:
    """Undocumented names of DSPy, histories, and private attributes of other objects."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=of, attr=name):
                is_others = is_private(name) and ast.unparse(of) not in {"self", "cls", "super()"}
                of_settings = ast.unparse(of) == "dspy.settings" and name not in DOCUMENTED_SETTINGS
                is_changed = name == "__class__" and isinstance(node.ctx, ast.Store)
                if name in HOOKS | {"history"} or is_others or of_settings or is_changed:
                    yield ast.unparse(node)
            case ast.keyword(arg=name) | ast.FunctionDef(name=name) | ast.Constant(value=name):
                if isinstance(name, str) and name in HOOKS:
                    yield name
            case ast.Call(func=ast.Name("getattr" | "setattr"), args=[_, ast.Constant(name), *_]):
                if isinstance(name, str) and (is_private(name) or name in {"history", "__class__"}):
                    yield name


def found_by(look: Callable[[ast.AST], Iterator[str]], but: str) -> dict[str, set[str]]:
    """By file, what the function finds in it; a module is left out."""
    others = {path: tree for path, tree in TREES.items() if module_of(path) != but}
    found = {path.relative_to(PACKAGE).as_posix(): {*look(tree)} for path, tree in others.items()}
    return {file: names for file, names in found.items() if names}


def test_only_the_seam_touches_what_dspy_does_not_document() -> None:
    assert found_by(hooks_in, but="dspy_seam") == STANDING, "do that in dspy_seam"


KNOWN = {dotted(path) for path in FILES}


def imports_of(path: Path) -> Iterator[str]:
    """The dotted name of everything that a file imports, anywhere in it."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in KNOWN else str(node.module) for name in names)


def may_import(here: str, name: str) -> bool:
    top, *rest = name.split(".")
    if top == "tfgrpo_dspy":  # but not its root
        return bool(rest) and (rest[0] == here or RANK[rest[0]] < RANK[here])
    if top in ONLY_IN:  # what DSPy does not document, the seam alone
        is_inside = top == "dspy" and len(rest) > 0 and here != "dspy_seam"
        return here in ONLY_IN[top] and not is_inside
    return top in sys.stdlib_module_names or top in THIRD_PARTIES


LATER = [("optimizer.py", "tfgrpo_dspy.integrations.mlflow")]  # in a function, if it is in use


def test_a_file_imports_only_from_lower_layers_and_only_the_libraries_that_it_may() -> None:
    imported = ((path, name) for path in FILES for name in imports_of(path))
    wrong = [(p.name, name) for p, name in imported if not may_import(module_of(p), name)]
    assert wrong == LATER


ASKED = {"run/deciding.py": {"results"}}
"""What a report is asked for outside of its room: what a run has as its result."""


def asked_of_reports(tree: ast.AST) -> Iterator[str]:
    """The names of what code takes from a report, and does not only tell them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.search(
            r"(^|[._])report$", ast.unparse(node.value)
        ):
            method = getattr(RunReport, node.attr, None)
            gives: Any = inspect.signature(method).return_annotation if method else Any
            if gives not in (None, Iterator[None]):
                yield node.attr


def test_a_report_is_told_things_and_nothing_is_decided_by_it() -> None:
    assert found_by(asked_of_reports, but="listeners") == ASKED


def test_no_two_files_import_each_other() -> None:
    later = {name for _, name in LATER}
    graph = {dotted(path): set(imports_of(path)) for path in FILES}
    graph["tfgrpo_dspy.optimizer"] -= later
    known = {file: imported & graph.keys() for file, imported in graph.items()}
    assert len(list(TopologicalSorter(known).static_order())) == len(FILES)


def closure(module: str) -> set[str]:
    """Everything that importing a module imports, directly or through other modules."""
    waiting, seen, names = {module}, set[str](), set[str]()
    while waiting:
        here = waiting.pop()
        seen.add(here)
        for path in FILES:
            if module_of(path) == here:
                names |= set(imports_of(path))
        waiting |= {n.split(".")[1] for n in names if n.startswith("tfgrpo_dspy.")} - seen
    return {name.partition(".")[0] for name in names} - {"tfgrpo_dspy"}


@pytest.mark.parametrize("module", ["experience", "rollout", "results", "gate", "interchange"])
def test_a_library_and_what_is_said_of_it_can_be_read_without_dspy(module: str) -> None:
    others = closure(module) - sys.stdlib_module_names
    assert others <= {"pydantic", "numpy", "scipy", "threadpoolctl", "jinja2", "yaml"}
