"""An HTTP proxy on the loopback interface that spoils what passes through it, by a plan.

    with FaultProxy(server_url, in_turn([None, rate_limit(0.5), RESET])) as proxy:
        lm = dspy.LM("openai/some-model", api_base=proxy.api_base, api_key="...")

Everything is real: sockets, headers, status lines; behind it stands any server that speaks the
OpenAI protocol. A plan is a function of one `Arrival`; what it gives is done to that request. What
arrived, when, and what was done to it is in `proxy.arrivals`, and no request's header is kept.
"""

import hashlib
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

REFUSED = ("status", "reset")
"""Kinds of fault that keep a request from the server behind the proxy."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to one request.

    `kind`: "status" (refused with that status and an error in OpenAI's form), "reset" (the
    connection is reset before an answer), "truncate" (the server's answer is cut in its middle),
    "delay" (passed on after `delay_s`; reset if the proxy closes before). `echoes_key` puts the
    request's API key into the error, as some providers do.
    """

    kind: str
    status: int = 0
    code: str = ""
    message: str = ""
    retry_after_s: float | None = None
    delay_s: float = 0.0
    echoes_key: bool = False


RESET = Fault("reset")
TRUNCATED = Fault("truncate")
SERVER_ERROR = Fault("status", 500, "server_error", "The server had an error.")
UNKNOWN_MODEL = Fault("status", 404, "model_not_found", "The model does not exist.")
CONTEXT_EXCEEDED = Fault(
    "status",
    400,
    "context_length_exceeded",
    "This model's maximum context length is 1024 tokens. However, your messages resulted in 5031.",
)
BAD_KEY = Fault("status", 401, "invalid_api_key", "Incorrect API key provided: ", echoes_key=True)


def rate_limit(retry_after_s: float | None = None) -> Fault:
    """A 429, with a Retry-After header where a time is given."""
    return Fault("status", 429, "rate_limit_exceeded", "Rate limit reached.", retry_after_s)


def delay(seconds: float) -> Fault:
    """The request is passed on late."""
    return Fault("delay", delay_s=seconds)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: its number (from 0), its attempt (from 0, among those of the same content).

    `content` stands for path and body, equal for equal requests; `at_s` is when it was read, on
    the monotonic clock.
    """

    number: int
    attempt: int
    content: str
    at_s: float
    prompt: str
    fault: Fault | None = None

    @property
    def was_refused(self) -> bool:
        """It never reached the server behind."""
        return self.fault is not None and self.fault.kind in REFUSED


Plan = Callable[[Arrival], Fault | None]


def in_turn(faults: Sequence[Fault | None]) -> Plan:
    """The first request gets the first fault, and so on; those after the last pass unspoilt."""
    return lambda arrival: faults[arrival.number] if arrival.number < len(faults) else None


def every(step: int, fault: Fault) -> Plan:
    """The second request gets the fault, and then one in so many."""
    return lambda arrival: fault if arrival.number % step == 1 else None


def always(fault: Fault, where: str = "") -> Plan:
    """Every request whose prompt holds the text gets the fault."""
    return lambda arrival: fault if where in arrival.prompt else None


def seeded(seed: int, shares: Mapping[Fault, float]) -> Plan:
    """Each fault for its share of all first attempts, always the same; second ones pass.

    Which requests, depends on the seed and their content alone, not on the order of arrival.
    """

    def plan(arrival: Arrival) -> Fault | None:
        if arrival.attempt:
            return None
        drawn = random.Random(f"{seed}/{arrival.content}").random()
        for fault, share in shares.items():
            drawn -= share
            if drawn < 0:
                return fault
        return None

    return plan


class FaultProxy:
    """The proxy; serves while the `with` block lasts."""

    def __init__(self, server_url: str, plan: Plan, port: int = 0) -> None:
        self.plan = plan
        self._server = urlsplit(server_url).netloc
        self._lock = threading.Lock()
        self._arrivals: list[Arrival] = []
        self._attempts: Counter[str] = Counter()
        self._closing = threading.Event()
        self._http = _HTTPServer(self, port)

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def port(self) -> int:
        """On which it listens."""
        return int(self._http.server_address[1])

    @property
    def api_base(self) -> str:
        """What `dspy.LM(api_base=...)` takes."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def arrivals(self) -> list[Arrival]:
        """All requests so far, in the order in which they came."""
        with self._lock:
            return list(self._arrivals)

    @property
    def n_refused(self) -> int:
        """How many requests never reached the server behind."""
        return sum(arrival.was_refused for arrival in self.arrivals)

    @property
    def n_passed_on(self) -> int:
        """How many requests the server behind was sent."""
        return len(self.arrivals) - self.n_refused

    @property
    def n_spoilt(self) -> int:
        """How many requests got no usable answer: refused, or the answer was cut."""
        return sum(a.was_refused or a.fault == TRUNCATED for a in self.arrivals)

    def answer(self, request: "_Request", body: bytes) -> None:
        """Do to the request what the plan says."""
        fault = self._arrived(request.path, body).fault
        if fault is not None and fault.kind == "reset":
            return request.reset()
        if fault is not None and fault.kind == "status":
            return request.refuse(fault)
        if fault is not None and fault.kind == "delay" and self._closing.wait(fault.delay_s):
            return request.reset()
        status, answer = self._passed_on(request, body)
        sent = answer[: len(answer) // 2] if fault == TRUNCATED else answer
        return request.respond(status, sent, length=len(answer))

    def _arrived(self, path: str, body: bytes) -> Arrival:
        content = hashlib.sha256(path.encode() + body).hexdigest()
        messages = json.loads(body)["messages"]
        prompt = "\n\n".join(str(message["content"]) for message in messages)
        with self._lock:
            number, attempt = len(self._arrivals), self._attempts[content]
            arrival = Arrival(number, attempt, content, time.monotonic(), prompt)
            arrival = replace(arrival, fault=self.plan(arrival))
            self._arrivals.append(arrival)
            self._attempts[content] += 1
        return arrival

    def _passed_on(self, request: "_Request", body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._server)
        names = ("Content-Type", "Authorization")
        headers = {name: request.headers[name] for name in names if name in request.headers}
        try:
            connection.request("POST", request.path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class _HTTPServer(ThreadingHTTPServer):
    """Speaks HTTP/1.0: each request has a connection of its own, so a reset spoils it alone."""

    daemon_threads = False
    block_on_close = True  # so no request is under way when the server behind goes
    request_queue_size = 64

    def __init__(self, proxy: FaultProxy, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Request)
        self.proxy = proxy

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


class _Request(BaseHTTPRequestHandler):
    server: _HTTPServer

    def do_POST(self) -> None:  # the name is http.server's
        self.server.proxy.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

    def respond(
        self, status: int, body: bytes, length: int, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, fault: Fault) -> None:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        message = fault.message + (key if fault.echoes_key else "")
        error = {"message": message, "type": "invalid_request_error", "code": fault.code}
        wait = fault.retry_after_s
        headers = {} if wait is None else {"Retry-After": f"{wait:g}"}
        body = json.dumps({"error": error}).encode()
        self.respond(fault.status, body, len(body), headers)

    def reset(self) -> None:
        lingers_for_0_s = struct.pack("ii", 1, 0)  # so closing sends RST, not FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingers_for_0_s)
        self.connection.close()

    def finish(self) -> None:
        if self.connection.fileno() != -1:
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Nothing: `arrivals` has it."""
