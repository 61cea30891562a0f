"""An OpenAI-shaped server on the loopback interface, whose answers can be spoilt by a plan.

Everything is real: DSPy's own client, sockets, headers, status lines. What arrived, when, and what
was done to it is in `server.arrivals`.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dspy
import pytest
from scripted import Prompt, Rule, chat

YES = chat(answer="yes")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to one request: a status and its headers, or one of four in words.

    It is "reset"; "cut" in the middle of its answer; answered by a "page", its message, with status
    200; or "late", by `delay_s` at most.
    """

    status: int | str
    message: str = "The server had an error."
    code: str = "server_error"
    retry_after: str = ""
    delay_s: float = 0.0
    echoes_key: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: its attempt (from 0), what it asks, and when it came."""

    attempt: int
    content: str
    prompt: str
    at_s: float
    fault: Fault | None

    @property
    def was_answered(self) -> bool:
        """Whether a whole answer was sent."""
        return self.fault is None or self.fault.status == "late"


Plan = Callable[[int, str], Fault | None]
"""What is done to the request of this number and prompt."""


def in_turn(*faults: Fault | None) -> Plan:
    """The first request gets the first fault, and so on; those after the last are answered."""
    return lambda number, _prompt: faults[number] if number < len(faults) else None


class ChatServer(ThreadingHTTPServer):
    """Answers by `rules`, as a `ScriptedEngine` does, unless the plan says otherwise.

    Each answer counts a thousand tokens in and a hundred out, or what `count` gives.
    """

    request_queue_size = 64

    def __init__(self, rules: Sequence[Rule] = (("", YES),), plan: Plan | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rules, self.plan = rules, plan or in_turn()
        self.count: Callable[[str, str], tuple[int, int]] = lambda _prompt, _answer: (1000, 100)
        self.keys: set[str] = set()
        self.arrivals: list[Arrival] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def lm(self, **kwargs: Any) -> dspy.LM:
        """An LM of DSPy's own that asks this server."""
        base = f"http://127.0.0.1:{self.server_port}/v1"
        settings = {"cache": False, "num_retries": 0, "api_base": base, **kwargs}
        return dspy.LM("openai/gpt-4o-mini", **settings)

    def arrived(self, body: dict[str, Any]) -> Arrival:
        """Note a request, and what is done to it."""
        prompt = "\n\n".join(message["content"] for message in body["messages"])
        content = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self._lock:
            fault = self.plan(len(self.arrivals), prompt)
            attempt = sum(arrival.content == content for arrival in self.arrivals)
            arrival = Arrival(attempt, content, prompt, time.monotonic(), fault)
            self.arrivals.append(arrival)
        return arrival

    def completion(self, body: dict[str, Any], prompt: str) -> dict[str, Any]:
        """The answer in OpenAI's form."""
        rule = next(answer for pattern, answer in self.rules if re.search(pattern, prompt))
        asked = Prompt("", prompt, body.get("seed"), body.get("temperature"))
        text = str(rule(asked)) if callable(rule) else str(rule)
        n_in, n_out = self.count(prompt, text)
        message = {"role": "assistant", "content": text}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": dict(prompt_tokens=n_in, completion_tokens=n_out, total_tokens=n_in + n_out),
        }

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:  # the name is http.server's
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"].removeprefix("Bearer ")
        self.server.keys.add(key)
        arrival = self.server.arrived(body)
        fault = arrival.fault or Fault(200)
        if fault.status == "late":
            self.server.closing.wait(fault.delay_s)
        if fault.status == "reset":
            self._reset()
        elif isinstance(fault.status, int) and fault.status != 200:
            said = fault.message + (key if fault.echoes_key else "")
            error = {"message": said, "type": "invalid_request_error", "code": fault.code}
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self._send(fault.status, {"error": error}, **headers)
        else:
            answer = self.server.completion(body, arrival.prompt)
            answer = fault.message if fault.status == "page" else answer
            self._send(200, answer, is_cut=fault.status == "cut")

    def _send(self, status: int, answer: Any, is_cut: bool = False, **headers: str) -> None:
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        lengths = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in (lengths | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if is_cut else content)

    def _reset(self) -> None:
        lingers_for_0_s = struct.pack("ii", 1, 0)  # so closing sends RST, not FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingers_for_0_s)
        self.connection.close()

    def finish(self) -> None:
        if self.connection.fileno() != -1:
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Nothing is written to stderr."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A server without faults."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")  # no price list from the network
    with ChatServer() as server:
        yield server
