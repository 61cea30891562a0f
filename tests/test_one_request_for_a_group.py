"""Whether a group's rollouts could share one request (n=G), so that the prompt is paid once.

With DSPy 3.4 that depends on the LM: its own client and engine objects are sent a request for each
completion, and each of them pays the prompt; LiteLLM is sent one request with `n`. DSPy's own
client is the default, the one that most LMs get, so here a group is G requests. Where one of these
tests fails, DSPy has changed what that rests on.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dspy
import pytest
from scripted import ScriptedEngine, chat

N = 4
PROMPT_TOKENS = 100
ANSWER = chat(answer="yes")


class LMServer(ThreadingHTTPServer):
    """An OpenAI-compatible server on the loopback interface; `bodies` are the requests to it."""

    block_on_close = False  # LiteLLM keeps its connections

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.bodies: list[dict[str, Any]] = []

    @property
    def api_base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Request(BaseHTTPRequestHandler):
    server: LMServer

    def do_POST(self) -> None:  # the name is http.server's
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        given = {"chat/completions": _chat, "completions": _text, "responses": _responses}
        answer = given[self.path.removeprefix("/v1/")](body.get("n") or 1)
        text = json.dumps({"id": "1", "model": body["model"], "created": 1, **answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing: `bodies` has it."""


def _chat(n: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": ANSWER}
    choices = [{"index": i, "message": message, "finish_reason": "stop"} for i in range(n)]
    return {"object": "chat.completion", "choices": choices, "usage": _usage(n)}


def _text(n: int) -> dict[str, Any]:
    choices = [{"index": i, "text": ANSWER, "finish_reason": "stop"} for i in range(n)]
    return {"object": "text_completion", "choices": choices, "usage": _usage(n)}


def _responses(_: int) -> dict[str, Any]:
    part = {"type": "output_text", "text": ANSWER, "annotations": []}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": 5, "total_tokens": PROMPT_TOKENS + 5}
    output = [{**message, "content": [part]}]
    return {"object": "response", "status": "completed", "output": output, "usage": usage}


def _usage(n: int) -> dict[str, int]:
    """As OpenAI bills `n`: the prompt once, every completion."""
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": 5 * n,
        "total_tokens": PROMPT_TOKENS + 5 * n,
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LMServer]:
    for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):  # DSPy takes LiteLLM where one is set
        monkeypatch.delenv(name, raising=False)
    with LMServer() as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture
def own_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteLLM asks the internet for its price list when it is imported, unless told not to."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


def prompt_tokens_of_a_group(lm: Any) -> int:
    """What is paid for `N` completions of one prompt."""
    with dspy.context(lm=lm):
        prediction = dspy.Predict("question -> answer", n=N)(question="Is it so?")
    assert prediction.completions.answer == ["yes"] * N
    return int(lm.history[-1]["usage"]["prompt_tokens"])


def lm_at(server: LMServer, **kwargs: Any) -> dspy.LM:
    settings = {"api_key": "key", "cache": False, "temperature": 0.9}
    return dspy.LM("openai/some-model", api_base=server.api_base, **settings, **kwargs)


@pytest.mark.parametrize("kwargs", [{}, {"engine": "lm15"}, {"model_type": "responses"}], ids=str)
def test_dspy_sends_one_request_for_each_completion_so_a_group_would_not_pay_the_prompt_once(
    server: LMServer, kwargs: dict[str, Any]
) -> None:
    assert prompt_tokens_of_a_group(lm_at(server, **kwargs)) == N * PROMPT_TOKENS
    assert [body.get("n") for body in server.bodies] == [None] * N


def test_an_engine_object_is_asked_once_for_each_completion_too() -> None:
    engine = ScriptedEngine([("Is it so", ANSWER)])
    prompt_tokens_of_a_group(dspy.LM("scripted", engine=engine, cache=False))
    assert len(engine.prompts) == N


@pytest.mark.filterwarnings("ignore:Item .* on TypedDict")  # of LiteLLM, when it is first used
@pytest.mark.usefixtures("own_prices")
@pytest.mark.parametrize(
    "kwargs",
    [{"engine": "litellm"}, {"extra_headers": {"x-team": "a"}}, {"model_type": "text"}],
    ids=str,
)
def test_litellm_is_sent_one_request_for_a_group_so_the_prompt_is_paid_once(
    server: LMServer, kwargs: dict[str, Any]
) -> None:
    assert prompt_tokens_of_a_group(lm_at(server, **kwargs)) == PROMPT_TOKENS
    assert [body["n"] for body in server.bodies] == [N]
