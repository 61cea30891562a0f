"""What all prompts of a predictor have in common is rendered once, not at every call.

DSPy renders the system message (fields, JSON schemas of their types, instructions) anew for each
call: a quarter of all that it does for a call with text outputs, more than half of it with typed
ones. It depends on the signature only, and a run makes thousands of calls with a few signatures.
"""

import copy
from collections.abc import Callable
from typing import Any

import dspy

OF_SIGNATURE = ("format_system_message", "user_message_output_requirements")
"""Methods of DSPy's adapters that make a text of the signature alone."""
KEPT_TEXTS = 256


def rendering_once(adapter: Any) -> Any:
    """The adapter (None: DSPy's default), in a copy that remembers what it made of signatures.

    One that is not DSPy's own is given back as it is: its messages may depend on anything.
    """
    adapter = adapter or dspy.ChatAdapter()
    if not type(adapter).__module__.startswith("dspy.adapters."):
        return adapter
    own = copy.copy(adapter)
    for name in OF_SIGNATURE:
        if hasattr(own, name):
            setattr(own, name, _Remembered(getattr(own, name)))
    return own


class _Remembered:
    """What a function of a signature gave; the instructions of a signature may be set anew."""

    def __init__(self, render: Callable[[Any], str]) -> None:
        self._render = render
        self._texts: dict[tuple[Any, str | None], str] = {}

    def __call__(self, signature: Any) -> str:
        key = signature, signature.__doc__
        text = self._texts.get(key)
        if text is None:
            if len(self._texts) >= KEPT_TEXTS:  # a program that makes signatures as it goes
                self._texts.clear()
            text = self._texts[key] = self._render(signature)
        return text
