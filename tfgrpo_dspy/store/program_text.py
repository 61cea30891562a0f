"""A program as text, where that is all of it: DSPy's own plain modules. A store holds no code."""

import ast
from collections.abc import Mapping
from typing import Any

import dspy

from tfgrpo_dspy.errors import StoreError
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors, with_instructions
from tfgrpo_dspy.store import Unseen, digest, program_identity

_KINDS: Mapping[str, Any] = {"Predict": dspy.Predict, "ChainOfThought": dspy.ChainOfThought}
NEEDS_STUDENT = (
    "A store holds no code, and this program is more than text: pass it, "
    "best_so_far(log_dir, student=program)."
)
PLAIN_TYPES = frozenset(
    {"str", "int", "float", "bool", "list", "dict", "tuple", "set", "bytes", "NoneType"}
    | {"Any", "Literal", "Optional", "Union", "List", "Dict"}
)
"""DSPy imports what else stands for a type in a text; from a file nothing is imported."""
_ADDED = {"Predict": frozenset[str](), "ChainOfThought": frozenset({"reasoning"})}


def program_text(program: Any) -> dict[str, str] | None:
    """The text from which `rebuilt` makes an equal program; None where there is none."""
    kind = type(program).__name__
    if type(program) is not _KINDS.get(kind):
        return None
    ((_, predictor),) = named_predictors(program)
    fields = predictor.signature
    inputs = ", ".join(_shown(name, info) for name, info in fields.input_fields.items())
    outputs = ", ".join(
        _shown(name, info)
        for name, info in fields.output_fields.items()
        if name not in _ADDED[kind]
    )
    text = {
        "kind": kind,
        "signature": f"{inputs} -> {outputs}",
        "instructions": bare_instructions(predictor),
    }
    try:
        is_all = _identity(rebuilt(text)) == _identity(_without_library(program))
    except Exception:  # noqa: BLE001 - a type that its name does not tell; then there is no text
        return None
    return text if is_all else None


def rebuilt(program: Mapping[str, str] | None) -> Any:
    """The program of that text. Raises StoreError: there is none."""
    if program is None or program.get("kind") not in _KINDS:
        raise StoreError(NEEDS_STUDENT)
    text = program["signature"]
    if not all(map(_has_plain_types, text.split("->"))):
        raise StoreError(NEEDS_STUDENT)
    signature = dspy.Signature(text)
    return _KINDS[program["kind"]](with_instructions(signature, program["instructions"]))


def _has_plain_types(fields: str) -> bool:
    try:
        tree = ast.parse(f"def fields({fields}): pass")
    except (SyntaxError, ValueError):
        return False
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    plain = (ast.arg, ast.Name, ast.Load, ast.Subscript, ast.Tuple, ast.Constant, ast.BinOp)
    shape = (ast.Module, ast.FunctionDef, ast.arguments, ast.Pass, ast.BitOr)
    return names <= PLAIN_TYPES and all(isinstance(n, plain + shape) for n in ast.walk(tree))


def _shown(name: str, info: Any) -> str:
    kind = info.annotation
    if (info.json_schema_extra or {}).get("IS_TYPE_UNDEFINED"):
        return name
    return (
        f"{name}: {kind.__name__ if isinstance(kind, type) else str(kind).replace('typing.', '')}"
    )


def _identity(program: Any) -> str:
    return digest(program_identity(program, Unseen()))


def _without_library(program: Any) -> Any:
    bare = program.deepcopy()
    for _, predictor in named_predictors(bare):
        predictor.signature = with_instructions(predictor.signature, bare_instructions(predictor))
    return bare
