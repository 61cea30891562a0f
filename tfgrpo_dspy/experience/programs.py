"""Programs as far as a library needs them: their predictors, their LMs, a copy that shares LMs.

Programs are known by their shape only, so that no DSPy has to be imported.
"""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from tfgrpo_dspy.experience.block import split_instructions

ProgramT = TypeVar("ProgramT")


def named_predictors(program: Any) -> list[tuple[str, Any]]:
    """The program's predictors by name, as DSPy lists them (frozen sub-modules are left out)."""
    return list(program.named_predictors())


def own_instructions(predictor: Any) -> str:
    """The predictor's instructions without the experiences that are baked into them."""
    return split_instructions(predictor.signature.instructions)[0]


def copy_program(program: ProgramT, lms: Mapping[int, Any] | None = None) -> ProgramT:
    """A deep copy that shares the program's LMs, which DSPy's own copy would double.

    Args:
        program: a DSPy module.
        lms: what stands in the copy for each LM of the program, by `id` of the LM; by default
            each LM stands for itself.
    """
    if lms is None:
        lms = {id(lm): lm for lm in language_models(program)}
    try:
        return copy.deepcopy(program, dict(lms))
    except Exception:  # noqa: BLE001 - anything that a program holds may refuse to be copied
        copied: ProgramT = program.deepcopy()  # type: ignore[attr-defined]
        for original, twin in zip(_modules(program), _modules(copied), strict=True):
            if getattr(original, "lm", None) is not None:
                twin.lm = lms.get(id(original.lm), original.lm)
        return copied


def language_models(program: Any) -> list[Any]:
    """Every LM that a module of the program holds as an attribute, once each."""
    held = {
        id(value): value
        for module in _modules(program)
        for value in vars(module).values()
        if hasattr(value, "num_retries") and callable(getattr(value, "copy", None))
    }
    return list(held.values())


def _modules(program: Any) -> list[Any]:
    return [module for _, module in program.named_sub_modules()]
