"""Arguments of the optimizer by name alone: fields of `Reflection` and `Execution` among the rest.

So tables of settings, here and in the tests, name one thing each. The private flags of the paper
and the ablations (`update_per_group`, ...) can be given as well.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tfgrpo_dspy import Execution, Reflection
from tfgrpo_dspy.settings import PaperReflection

FLAGS = {"summarize_always": False, "failure_analysis": True, "update_per_group": False}
"""Private flags, as they are outside of the paper's schedule."""
OF_REFLECTION = {field.name for field in fields(PaperReflection)}
OF_EXECUTION = {field.name for field in fields(Execution)}


def grouped(given: Mapping[str, Any], is_paper: bool = False) -> dict[str, Any]:
    """The same arguments, those of the groups in `reflection` and `execution`."""
    of_reflection = {name: given[name] for name in OF_REFLECTION & given.keys()}
    of_execution = {name: given[name] for name in OF_EXECUTION & given.keys()}
    others = {k: v for k, v in given.items() if k not in OF_REFLECTION | OF_EXECUTION}
    reflection = Reflection
    if is_paper:
        reflection = PaperReflection
    elif FLAGS.keys() & of_reflection.keys():
        reflection = PaperReflection
        of_reflection = {"drafts": None, "groups_per_call": None} | FLAGS | of_reflection
    groups = {"reflection": reflection(**of_reflection), "execution": Execution(**of_execution)}
    return groups | others
