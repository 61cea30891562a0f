"""Programs by their shape (no DSPy is imported): their predictors, their LMs, a copy."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from tfgrpo_dspy.experience.block import replace_block

ProgramT = TypeVar("ProgramT")


def named_predictors(program: Any) -> list[tuple[str, Any]]:
    """The program's predictors by name, as DSPy lists them (frozen sub-modules are left out)."""
    return list(program.named_predictors())


def bare_instructions(predictor: Any) -> str:
    """The predictor's instructions without the experiences that are baked into them."""
    return replace_block(predictor.signature.instructions)


def with_instructions(signature: Any, instructions: str) -> Any:
    """The signature with these instructions, byte for byte.

    DSPy reads them through `inspect.cleandoc`, which would take the indentation from the second
    line on; behind an empty first line it changes nothing.
    """
    return signature.with_instructions(f"\n{instructions}")


def copy_program(program: ProgramT, lms: Mapping[int, Any] | None = None) -> ProgramT:
    """A deep copy with these LMs in place of the program's, by `id`; by default with the same LMs.

    What else refuses to be copied (a lock, a connection) is shared, but never a module: DSPy's own
    copy would share the predictors of a list that holds such a thing.
    """
    if lms is None:
        lms = {id(lm): lm for lm in language_models(program)}
    try:
        return copy.deepcopy(program, dict(lms))
    except Exception:  # noqa: BLE001 - anything that a program holds may refuse to be copied
        shared = {id(held): held for held in _held_by(program) if not _can_be_copied(held, lms)}
        return copy.deepcopy(program, {**shared, **lms})


def language_models(program: Any) -> list[Any]:
    """Every LM that a module of the program holds, as an attribute or in a list or dict of one."""
    return [
        held
        for held in _held_by(program)
        if hasattr(held, "num_retries") and callable(getattr(held, "copy", None))
    ]


def _held_by(program: Any) -> list[Any]:
    """What the program's modules hold besides modules, once each; looked for where DSPy looks."""
    modules = [module for _, module in program.named_sub_modules()]
    seen = {id(module) for module in modules}
    found: list[Any] = []
    waiting: list[Any] = [vars(module) for module in modules]
    while waiting:
        container = waiting.pop(0)
        for item in container.values() if isinstance(container, dict) else container:
            if id(item) not in seen:
                seen.add(id(item))
                (waiting if isinstance(item, dict | list | tuple) else found).append(item)
    return found


def _can_be_copied(value: Any, lms: Mapping[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(lms))
    except Exception:  # noqa: BLE001 - as above
        return False
    return True
