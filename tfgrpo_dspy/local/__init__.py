"""An LM that runs in this process: llama.cpp as a DSPy engine, and an adapter for small models.

`local_lm()` needs no key, no network and no GPU; its default model comes from a wheel.
"""

from tfgrpo_dspy.local.engine import AsyncLlamaEngine, LlamaEngine, local_lm
from tfgrpo_dspy.local.plain_adapter import PlainAdapter

__all__ = ["AsyncLlamaEngine", "LlamaEngine", "PlainAdapter", "local_lm"]
