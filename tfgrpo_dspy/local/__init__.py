"""An LM that runs in this process, without key, network or GPU, and an adapter for small models."""

from tfgrpo_dspy.local.engine import AsyncLlamaEngine, LlamaEngine, local_lm
from tfgrpo_dspy.local.plain_adapter import PlainAdapter

__all__ = ["AsyncLlamaEngine", "LlamaEngine", "PlainAdapter", "local_lm"]
