"""Experiences and their library: values, operations, and the text baked into a program."""

from tfgrpo_dspy.experience.block import plain_instructions
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.operations import DEFAULT_LIMITS, Limits, check_operations, n_words
from tfgrpo_dspy.experience.programs import (
    bare_instructions,
    copied_program,
    copy_program,
    language_models,
    named_predictors,
    with_instructions,
)
from tfgrpo_dspy.experience.values import (
    ALL,
    Add,
    Delete,
    Effect,
    Evidence,
    Experience,
    Keep,
    Modify,
    Operation,
    Refusal,
    operation_from,
)

__all__ = [
    "ALL",
    "DEFAULT_LIMITS",
    "Add",
    "Delete",
    "Effect",
    "Evidence",
    "Experience",
    "ExperienceLibrary",
    "Keep",
    "Limits",
    "Modify",
    "Operation",
    "Refusal",
    "bare_instructions",
    "check_operations",
    "copied_program",
    "copy_program",
    "language_models",
    "n_words",
    "named_predictors",
    "operation_from",
    "plain_instructions",
    "with_instructions",
]
