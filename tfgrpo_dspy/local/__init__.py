"""A real LM inside this process: llama.cpp as a DSPy engine, and an adapter for small models.

`local_lm()` needs no key, no network and no GPU; its default model, SmolLM2-135M-Instruct, comes
from a wheel. Downloads nothing, writes nothing, and nothing else in the package imports it.
"""

from tfgrpo_dspy.local.engine import AsyncLlamaEngine, LlamaEngine, LocalLM, local_lm
from tfgrpo_dspy.local.plain_adapter import PlainAdapter

__all__ = ["AsyncLlamaEngine", "LlamaEngine", "LocalLM", "PlainAdapter", "local_lm"]
