"""Programs, demos, never-worse and replay, under each adapter and with DSPy's newer parts.

DSPy 3.5 makes XMLAdapter with native function calling its default, `reasoning` a
`dspy.Reasoning`, and ReActV2 its agent; DSPy 3.4 has all three already.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.adapters.types.decision import Choice, Noul, Score
from runs import ADVICE, is_polite, library_texts, look_up, questions
from scripted import Prompt, chat, scripted_lm
from small import grpo

from tfgrpo_dspy import SettingsError
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, Start, run_rollout

ADAPTERS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "json": dspy.JSONAdapter,
    "xml": lambda: dspy.XMLAdapter(use_native_function_calling=True),
}


def answered(prompt: Prompt, **fields: Any) -> str:
    """An answer in the form that the adapter asks for."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}
    if "[[ ## completed ## ]]" in prompt.text:
        return chat(**fields)
    if f"<{next(iter(fields))}>" in prompt.text:
        return "\n".join(f"<{name}>{text}</{name}>" for name, text in texts.items())
    return json.dumps(fields)


def outputs(prompt: Prompt) -> Mapping[str, Any]:
    """What the program's LM gives: polite in all samples with the advice, else in three of ten."""
    is_polite = prompt.random().random() < (1.0 if ADVICE in prompt.system else 0.3)
    answer = "please" if is_polite else "no"
    if "tool_calls" in prompt.text:
        call = {"name": "submit", "args": {"answer": answer}}
        if "page 7" not in prompt.text:
            call = {"name": "look_up", "args": {"page": "7"}}
        return {"next_thought": "go on", "tool_calls": {"tool_calls": [call]}}
    if "next_tool_name" in prompt.text:
        is_done = "page 7" in prompt.text
        tool = ("finish", {}) if is_done else ("look_up", {"page": "7"})
        return {"next_thought": "go on", "next_tool_name": tool[0], "next_tool_args": tool[1]}
    return ({"reasoning": "hm"} if "reasoning" in prompt.text else {}) | {"answer": answer}


def policy(prompt: Prompt) -> str:
    return answered(prompt, **outputs(prompt))


def reflection(prompt: Prompt) -> str:
    if "operations" in prompt.text and "`lessons`" in prompt.text:
        add = {"op": "ADD", "text": ADVICE, "lessons": [1]}
        return answered(prompt, operations=[add])
    return answered(prompt, semantic_advantage="It said please.", critique="-", lessons=ADVICE)


def lms() -> tuple[dspy.LM, dspy.LM]:
    program = dspy.LM("program", engine=scripted_lm([("question", policy)]).engine, cache=False)
    asked = scripted_lm([("lessons", reflection)]).engine
    return program, dspy.LM("reflection", engine=asked, cache=False)


def reasoned() -> dspy.Predict:
    fields = {
        "question": (str, dspy.InputField()),
        "reasoning": (dspy.Reasoning, dspy.OutputField()),
        "answer": (str, dspy.OutputField()),
    }
    return dspy.Predict(dspy.make_signature(fields))


PROGRAMS: dict[str, Callable[[], Any]] = {
    "predict": lambda: dspy.Predict("question -> answer"),
    "chain of thought": lambda: dspy.ChainOfThought("question -> answer"),
    "a Reasoning field": reasoned,
    "ReAct": lambda: dspy.ReAct("question -> answer", tools=[look_up], max_iters=3),
    "ReActV2": lambda: dspy.ReActV2("question -> answer", tools=[look_up], max_iters=3),
}


def compiled(student: Any, adapter: Any, **settings: Any) -> Any:
    program, asked = lms()
    given = {"group_size": 4, "epochs": 2, "num_threads": 2, "progress": False, **settings}
    with dspy.context(lm=program, adapter=adapter):
        optimizer = grpo(is_polite, reflection_lm=asked, **given)
        return optimizer.compile(student, trainset=questions(6), valset=questions(10, start=100))


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("student_of", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_learns_and_is_never_worse(student_of: Any, adapter: Any) -> None:
    student = student_of()
    before = student.dump_state()
    optimized = compiled(student, adapter())
    results = optimized.detailed_results
    assert student.dump_state() == before
    assert ADVICE in library_texts(optimized)
    assert results.best.mean > results.student.mean
    assert results.failures == {}
    fresh = student_of()
    fresh.load_state(optimized.dump_state())
    assert library_texts(fresh) == library_texts(optimized)


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("name", ["ReAct", "ReActV2"])
def test_a_rollout_of_an_agent_goes_on_from_each_of_its_steps(name: str, adapter: Any) -> None:
    program, _ = lms()
    task = RolloutTask(PROGRAMS[name](), questions(1)[0], 0, 1, 0.7, None)
    with dspy.context(lm=program, adapter=adapter()):
        source = run_rollout(task)
        n_steps = range(1, len(source.steps) + 1)
        fresh = [run_rollout(replace(task, rollout_id=2, start=Start(source, n))) for n in n_steps]
    assert [one.failure for one in fresh] == [None] * len(source.steps)
    assert fresh[-1].answer == source.answer


class CallingEngine:
    """Calls tools as providers do, each call with an id of its own."""

    supported_params = frozenset({"temperature", "seed", "tools", "tool_choice"})

    def __init__(self) -> None:
        self.ids = itertools.count()

    def complete(self, request: lm15.Request) -> lm15.Response:
        call: tuple[str, dict[str, Any]] = ("look_up", {"page": "7"})
        if "page 7" in str(request.messages):
            call = ("submit", {"answer": "please"})
        parts = [
            lm15.TextPart("<next_thought>go on</next_thought>"),
            lm15.ToolCallPart(id=f"call {next(self.ids)}", name=call[0], input=call[1]),
        ]
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(parts if request.tools else parts[:1]),
            finish_reason="tool_call",
            usage=lm15.Usage(input_tokens=1, output_tokens=1),
        )


class CallingLM(dspy.LM):
    supports_function_calling = True


def test_an_agent_whose_provider_gives_new_ids_to_calls_of_tools_is_replayed() -> None:
    task = RolloutTask(PROGRAMS["ReActV2"](), questions(1)[0], 0, 1, 0.7, None)
    lm = CallingLM("calling", engine=CallingEngine(), cache=False)
    with dspy.context(lm=lm, adapter=ADAPTERS["xml"]()):
        source = run_rollout(task)
        fresh = [run_rollout(replace(task, rollout_id=2, start=Start(source, n))) for n in (2, 4)]
    assert len(source.steps) == 4
    assert [(one.failure, one.answer) for one in [source, *fresh]] == [(None, "please")] * 3


def test_flex_alone_is_refused_with_the_reason() -> None:
    with pytest.raises(SettingsError, match="student=Flex has no predictors"):
        compiled(dspy.Flex("question -> answer"), None)


Kind = Choice[("please", "It is polite"), ("no", "It is not")]
DECISIONS: dict[str, tuple[Any, Callable[[float], Any]]] = {
    "Noul": (Noul, lambda chance: {"noul": chance}),
    "Choice": (
        Kind,
        lambda chance: {"probabilities": {"please": chance, "no": 1 - chance}, "confidence": 0.5},
    ),
    "Score": (
        Score["poor", "good"],
        lambda chance: {"probabilities": {"0": 1 - chance, "1": chance}, "confidence": 0.5},
    ),
}
"""The type of the output, and what an LM gives of it: evidence, of which DSPy makes the value."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize(("annotation", "evidence"), DECISIONS.values(), ids=DECISIONS)
def test_a_program_that_decides_learns_and_its_decisions_become_demos(
    annotation: Any, evidence: Callable[[float], Any], adapter: Any
) -> None:
    fields = {
        "question": (str, dspy.InputField()),
        "answer": (annotation, dspy.OutputField(desc="polite?")),
    }

    def decides(prompt: Prompt) -> str:
        is_right = prompt.random().random() < (1.0 if ADVICE in prompt.system else 0.3)
        return answered(prompt, answer=evidence(float(is_right)))

    def metric(_example: Any, pred: Any, _trace: Any = None) -> float:
        return float(pred.answer.value in (True, "please", 1.0))

    _, asked = lms()
    program = dspy.LM("program", engine=scripted_lm([("question", decides)]).engine, cache=False)
    with dspy.context(lm=program, adapter=adapter()):
        optimized = grpo(
            metric, reflection_lm=asked, group_size=4, epochs=2, num_threads=2, max_demos=2,
            progress=False,
        ).compile(
            dspy.Predict(dspy.make_signature(fields)),
            trainset=questions(4),
            valset=questions(8, start=100),
        )  # fmt: skip
    results = optimized.detailed_results
    assert ADVICE in library_texts(optimized)
    assert results.best.mean > results.student.mean
    assert any(finalist.has_demos for finalist in results.candidates)
