"""What can be known, without a call, of the adapter that writes the prompts of the program."""

from collections.abc import Iterator
from typing import Any

import dspy

from tfgrpo_dspy.experience.programs import named_predictors, with_instructions

MARK = "(instructions of tfgrpo_dspy)"


def adapter_faults() -> Iterator[str]:
    """A sentence if the configured adapter is none, such as its class in place of an instance."""
    adapter = dspy.settings.adapter
    if isinstance(adapter, type):
        yield f"adapter={adapter!r} is a class; pass an instance, {adapter.__name__}(...)."
    elif adapter is not None and not callable(adapter):
        yield f"adapter={adapter!r:.80} is no adapter; pass one, such as dspy.JSONAdapter()."


def adapter_cautions(student: Any) -> Iterator[str]:
    """A sentence if the configured adapter writes prompts that do not hold the instructions.

    Those of DSPy do. One that cannot format inputs that are mere texts is not judged.
    """
    adapter = dspy.settings.adapter
    if adapter is None or type(adapter).__module__.startswith("dspy."):
        return
    for name, predictor in named_predictors(student):
        signature = with_instructions(predictor.signature, MARK)
        try:
            messages = str(adapter.format(signature, [], dict.fromkeys(signature.input_fields, "")))
        except Exception:  # noqa: BLE001 - code of the user's, which may need real inputs
            continue
        if MARK not in messages:
            yield (
                f"the prompts of {type(adapter).__name__} do not hold the instructions of the "
                f"predictor {name!r}, so that no experience can reach its LM; write "
                f"signature.instructions into them."
            )
            return
