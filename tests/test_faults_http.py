"""Faults of a real provider: HTTP errors, resets and cut answers, met by DSPy's own client.

A table of faults at a table of places: wherever a fault that passes hits, nothing that is learned
changes, every request is counted, and nothing recorded is asked again.
"""

import json
import re
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import dspy
import pytest
from chat_server import YES, ChatServer, Fault, Plan, in_turn, server
from runs import (
    ADVICE,
    learned,
    learned_in,
    library_texts,
    n_calls,
    polite_answer,
    polite_rules,
    questions,
)  # fmt: skip
from scripted import EXTRACT, UPDATE, Prompt

from tfgrpo_dspy import NoGate, TrainingFreeGRPO

__all__ = ["server"]  # a fixture

KEY = "sk-secret-of-the-fault-test-0123456789"
NUM_THREADS = 4

PASSING = {
    "429 with Retry-After": Fault(429, "Slow down.", "rate_limit_exceeded", "0.1"),
    "429": Fault(429, "Slow down.", "rate_limit_exceeded"),
    "529": Fault(529),
    "503 with Retry-After": Fault(503, retry_after="0.1"),
    "500": Fault(500),
    "reset": Fault("reset"),
    "cut answer": Fault("cut"),
    "late": Fault("late", delay_s=0.2),
    "a page": Fault("page", "<html>Bad gateway</html>"),
    "not ready": Fault(400, "The model is loading."),
}
PLACES = {"a rollout": "question 1", "a lesson": EXTRACT, "an update": UPDATE}
HITS = [
    *((fault, "a rollout") for fault in PASSING),
    *((fault, place) for fault in ("429", "cut answer") for place in ("a lesson", "an update")),
]
TOO_LONG = Fault(400, "This model's maximum context length is 1024.", "context_length_exceeded")
TOO_LARGE = Fault(413, "Corps de requête trop grand.", "limite")
GATED = {"max_lm_calls": 200, "gate": None, "epochs": None, "max_demos": 0}
REFUSED = re.compile(r"the provider refused (\d+) of \1 prompts with it")


def run(server: ChatServer, plan: Plan | None = None, **settings: Any) -> Any:
    """A program after one epoch, all of its calls over HTTP."""
    server.rules, server.plan = polite_rules(), plan or server.plan
    num_retries = settings.pop("num_retries", 3)
    lm = server.lm(api_key=KEY, seed=1, temperature=1.0, num_retries=num_retries)
    try:
        given = {"gate": NoGate(), "epochs": 1, "num_threads": NUM_THREADS, **settings}
        return learned(lm=lm, **given)
    finally:
        lm.close()


def what_was_learned(program: Any) -> Any:
    return learned_in(program.detailed_results), library_texts(program)


@pytest.fixture(scope="module")
def undisturbed() -> Any:
    """What is learned where nothing goes wrong."""
    dspy.configure_cache(enable_disk_cache=False)
    with dspy.context(lm=None, adapter=None, callbacks=[]), ChatServer() as server:
        found = what_was_learned(run(server))
    assert found[1]
    return found


@pytest.mark.parametrize(("fault", "place"), HITS)
def test_a_fault_that_passes_changes_nothing_and_every_request_is_counted(
    fault: str, place: str, server: ChatServer, undisturbed: Any
) -> None:
    first: list[str] = []

    def plan(_number: int, prompt: str) -> Fault | None:
        is_first = re.search(PLACES[place], prompt) and len(first) < 2 and not first.append(prompt)
        return PASSING[fault] if is_first else None

    program = run(server, plan)
    assert len(first) == 2 or place == "an update"
    assert what_was_learned(program) == undisturbed
    assert program.detailed_results.failures == {}
    faults = [arrival.fault for arrival in server.arrivals if arrival.fault]
    n_refused = sum(each.status in (400, 429, 529) or each.retry_after > "" for each in faults)
    assert n_calls(program) == len(server.arrivals) - n_refused
    n_unanswered = sum(not arrival.was_answered for arrival in server.arrivals)
    assert n_calls(program, "n_failed_calls") == n_unanswered


def test_a_call_that_is_told_to_wait_is_not_made_again_before(
    server: ChatServer, undisturbed: Any
) -> None:
    pause_s = 0.5
    plan = in_turn(None, None, Fault(429, "Slow down.", "rate_limit_exceeded", str(pause_s)))
    assert what_was_learned(run(server, plan)) == undisturbed
    (refused,) = (arrival for arrival in server.arrivals if arrival.fault)
    (again,) = (arrival for arrival in server.arrivals if arrival.attempt == 1)
    assert again.content == refused.content
    assert again.at_s - refused.at_s > pause_s


def is_rollout_of(question: str, prompt: str) -> bool:
    return bool(re.search(rf"{question}$", prompt, re.MULTILINE)) and not re.search(EXTRACT, prompt)


TOO_BIG = Fault(500, "The request exceeds the available context size.")


@pytest.mark.parametrize("fault", [TOO_LONG, TOO_LARGE, TOO_BIG], ids=["code", "status", "words"])
def test_a_prompt_that_is_too_long_is_a_failed_rollout_and_is_not_tried_again(
    fault: Fault, server: ChatServer
) -> None:
    program = run(server, lambda _n, prompt: fault if is_rollout_of("question 2", prompt) else None)
    failed = [arrival for arrival in server.arrivals if arrival.fault]
    assert [arrival.attempt for arrival in failed] == [0] * len(failed)
    assert program.detailed_results.failures == {"program": len(failed)}


CHOICES = {
    "null message": ("stop", None),
    "error": ("error", {"role": "assistant", "content": None}),
    "error in the midst": ("error", {"role": "assistant", "content": YES}),
}
BODIES: dict[str, dict[str, Any]] = {
    **{"nothing": {}, "null": {"choices": None}, "null choice": {"choices": [None]}},
    **{
        name: {"choices": [{"index": 0, "finish_reason": end, "message": message}]}
        for name, (end, message) in CHOICES.items()
    },
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_an_answer_without_a_message_is_the_providers_fault_and_not_the_programs(
    body: dict[str, Any], server: ChatServer
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    whole = {"id": "1", "object": "chat.completion", "model": "m", "usage": usage, **body}
    fault = Fault("page", json.dumps(whole))
    program = run(server, lambda _n, prompt: fault if is_rollout_of("question 2", prompt) else None)
    assert [*program.detailed_results.failures] == ["provider"]


def test_advice_that_makes_a_judge_refuse_the_answers_counts_as_worse(server: ChatServer) -> None:
    def judged(_example: Any, pred: Any, _trace: Any = None) -> float:
        dspy.Predict("question -> answer")(question=f"Is it polite: {pred.answer}?")
        return float(pred.answer == "please")

    fault = Fault(400, "The prompt was filtered.", "content_filter")
    server.rules = polite_rules()
    server.plan = lambda _n, prompt: fault if "polite: please" in prompt else None
    given = {"max_lm_calls": 200, "max_demos": 0, "group_size": 4, "num_threads": NUM_THREADS}
    with dspy.context(lm=server.lm(api_key=KEY, seed=1, temperature=1.0)):
        program = TrainingFreeGRPO(judged, progress=False, **given).compile(
            dspy.Predict("question -> answer"),
            trainset=questions(6),
            valset=questions(12, start=100),
        )
    assert library_texts(program) == []
    student, refused = program.detailed_results.candidates
    assert student.is_best
    assert refused.score.mean < student.score.mean


@pytest.mark.parametrize(
    "fault",
    [Fault(400, "Prompt filtered.", "content_filter"), Fault(403, "Flagged."), Fault(451, "No.")],
    ids=["filtered", "moderated", "forbidden by law"],
)
def test_advice_whose_prompts_the_provider_refuses_is_dropped_and_the_page_says_so(
    server: ChatServer, fault: Fault
) -> None:
    def plan(_number: int, prompt: str) -> Fault | None:
        is_bad = ADVICE in prompt and not re.search(f"{EXTRACT}|{UPDATE}", prompt)
        return fault if is_bad else None

    program = run(server, plan, **GATED)
    assert library_texts(program) == []
    (n,) = REFUSED.findall(str(program.detailed_results))  # once, however often it is learned
    assert int(n) == sum(not arrival.was_answered for arrival in server.arrivals) < 20


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize(
    ("num_retries", "fault"),
    [(0, Fault(500)), (3, Fault(500)), (3, Fault(520)), (0, Fault("page", "<html>"))],
    ids=["500", "500 again", "520 again", "page"],
)
def test_advice_on_which_a_server_breaks_is_dropped_and_costs_few_calls(
    server: ChatServer, num_retries: int, fault: Fault, num_threads: int
) -> None:
    def plan(_number: int, prompt: str) -> Fault | None:
        is_bad = ADVICE in prompt and not re.search(f"{EXTRACT}|{UPDATE}", prompt)
        return fault if is_bad else None

    program = run(server, plan, num_retries=num_retries, **GATED | {"num_threads": num_threads})
    n_answered = sum(arrival.was_answered for arrival in server.arrivals)
    assert library_texts(program) == []
    assert REFUSED.search(str(program.detailed_results))
    assert n_calls(program) - n_answered < 20 and len(server.arrivals) - n_answered < 50


def test_an_outage_in_which_calls_that_were_under_way_are_answered_late_blames_no_advice(
    server: ChatServer,
) -> None:
    began_s: list[float] = []

    def plan(_number: int, prompt: str) -> Fault | None:
        """From the result's first prompt on an outage, into which two of the student's come."""
        if not (is_on_validation := re.search(r"question 1\d\d\b", prompt)) or ADVICE not in prompt:
            return Fault("late", delay_s=0.8) if "question 11" in prompt else None
        began_s.extend([time.monotonic()] * (not began_s))
        is_out = is_on_validation and time.monotonic() - began_s[0] < 4
        return Fault(503) if is_out else None

    results = run(server, plan).detailed_results
    assert results.best.mean is None or results.best.mean > 0.3


def test_a_judge_of_the_metric_whose_fault_it_hides_gives_no_score(server: ChatServer) -> None:
    def judged(_example: Any, pred: Any, _trace: Any = None) -> float:
        with suppress(Exception):
            judge(question=f"Is it polite: {pred.answer}?")
            return float(pred.answer == "please")
        return 0.0

    judge = dspy.Predict("question -> answer")
    judge.lm = server.lm(api_key=KEY)
    results = run(
        server, lambda _n, prompt: Fault(503) if "polite: please" in prompt else None, metric=judged
    ).detailed_results
    assert results.student is None or results.student.n_failed == 12 - results.student.n > 0


def test_a_parameter_that_one_server_refuses_is_sent_to_another_of_the_same_model(
    server: ChatServer,
) -> None:
    def answer(prompt: Prompt) -> str:
        temperatures.append(prompt.temperature)
        return polite_answer(prompt)

    temperatures, server.rules = list[float | None](), [("", answer)]
    refusing = in_turn(Fault(400, "Unsupported parameter: 'temperature'."))
    with ChatServer(polite_rules(), refusing) as other:
        lm, reflection_lm = (each.lm(api_key=KEY, temperature=0.9) for each in (server, other))
        learned(lm=lm, reflection_lm=reflection_lm, gate=NoGate(), epochs=1)
        assert len(other.arrivals) > 1
    assert None not in temperatures


def test_what_a_passing_fault_leaves_missing_is_made_once_more_and_then_left_out_of_both(
    server: ChatServer,
) -> None:
    asked: Counter[str] = Counter()

    def plan(_number: int, prompt: str) -> Fault | None:
        """Validation question 103 never works for the result, 105 the first time only."""
        found = re.search(r"question (103|105)\b", prompt)
        if not found or ADVICE not in prompt:
            return None
        asked[found[1]] += 1
        return Fault(503) if found[1] == "103" or asked["105"] == 1 else None

    server.rules, server.plan = polite_rules(), plan
    lm = server.lm(api_key=KEY, temperature=1.0)
    results = learned(lm=lm, gate=NoGate(), epochs=1).detailed_results
    lm.close()
    assert asked == {"103": 2, "105": 2}
    assert (results.student.n, results.student.n_failed) == (11, 1)
    assert (results.best.n, results.best.n_failed) == (11, 1)


def test_where_the_budget_pays_for_no_more_what_is_missing_is_left_out_of_both(
    server: ChatServer,
) -> None:
    asked: Counter[str] = Counter()

    def plan(_number: int, prompt: str) -> Fault | None:
        """The result fails on three of ten questions the first time; two more calls are there."""
        found = re.search(r"question (10[468])\b", prompt)
        if not found or ADVICE not in prompt:
            return None
        asked[found[1]] += 1
        return Fault(503) if asked[found[1]] == 1 else None

    server.rules, server.plan = polite_rules(), plan
    lm = server.lm(api_key=KEY, temperature=1.0)
    program = learned(lm=lm, gate=NoGate(), epochs=1, max_lm_calls=52)
    lm.close()
    results = program.detailed_results
    assert n_calls(program) == 52 and asked.total() == 3 + 2
    assert (results.student.n, results.best.n) == (9, 9)
    assert str(results).count("on 9 examples, 1 more without a score") == 2
