"""The messages of demos are kept for a run: what an LM is sent is what the program alone sends."""

from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.adapters.baml_adapter import BAMLAdapter
from scripted import ScriptedEngine

from tfgrpo_dspy.dspy_seam import demo_keeping_adapter
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, run_rollout
from tfgrpo_dspy.user_code import Identities

ANSWER = '{"answer": "yes"}\n[[ ## answer ## ]]\n<answer>yes</answer>'
"""What each adapter of DSPy can read."""
WHY = dspy.Example(question="why?").with_inputs("question")


class Recording(ScriptedEngine):
    """Keeps what of each request does not differ between samples."""

    def __init__(self) -> None:
        super().__init__([("", ANSWER)])
        self.sent: list[str] = []

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.sent.append(repr((request.system, request.messages)))
        return super().complete(request)


def program_with(demos: Sequence[Any], signature: Any = "question -> answer") -> dspy.Predict:
    program = dspy.Predict(signature)
    program.demos = list(demos)
    return program


def demo(question: Any, answer: Any = "no", **more: Any) -> dspy.Example:
    return dspy.Example(question=question, answer=answer, **more).with_inputs("question")


def sent(run: Callable[[], Any], adapter: Any) -> list[str]:
    engine = Recording()
    with dspy.context(lm=dspy.LM("recording", engine=engine, cache=False), adapter=adapter):
        run()
    return engine.sent


def sent_by_rollouts(programs: Sequence[dspy.Module], adapter: Any, kept: Any) -> list[str]:
    def run() -> None:
        for i, program in enumerate(programs):
            done = run_rollout(RolloutTask(program, WHY, 0, i, 0.7, None, kept_demos=kept))
            assert done.failure is None

    return sent(run, adapter)


def sent_alone(programs: Sequence[dspy.Module], adapter: Any) -> list[str]:
    return sent(lambda: [program(question="why?") for program in programs], adapter)


TEXTS = [demo("who?"), demo("where?", "yes"), dspy.Example(answer="lost", question="when?")]
LACKING = [demo("who?"), dspy.Example(question="how?", answer="so", note="none")]
TYPED = "question, context: list[str] -> answer"
SETS: dict[str, tuple[Any, list[Any], int]] = {
    "none": ("question -> answer", [], 0),
    "texts": ("question -> answer", TEXTS, 3),
    "dicts": ("question -> answer", [dict(each.items()) for each in TEXTS], 3),
    "an incomplete one": ("question, note -> answer", LACKING, 2),
    "with what is no text": (TYPED, [demo("who?", context=["a", "b"]), demo("where?")], 0),
    "with an image": (
        "picture: dspy.Image, question -> answer",
        [demo("who?", picture=dspy.Image("https://example.org/a.png"))],
        0,
    ),
    "bootstrapped": ("question -> answer", [demo("who?", augmented=True)], 0),
}
ADAPTERS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "chat": dspy.ChatAdapter,
    "json": dspy.JSONAdapter,
    "xml": lambda: dspy.XMLAdapter(use_native_function_calling=True),
    "baml": BAMLAdapter,
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize(("signature", "demos", "n_kept"), SETS.values(), ids=SETS)
def test_a_rollout_sends_what_the_program_alone_sends(
    signature: Any, demos: list[Any], n_kept: int, adapter: Callable[[], Any]
) -> None:
    programs, kept = [program_with(demos, signature)] * 3, dict[Any, Any]()
    assert sent_by_rollouts(programs, adapter(), kept) == sent_alone(programs, adapter())
    assert sum(not isinstance(key, int) for key in kept) == n_kept  # of layouts ids are the keys


def test_the_adapter_of_a_rollout_is_the_same_for_a_run_within_it() -> None:
    adapters = [dspy.ChatAdapter(use_native_function_calling=is_used) for is_used in (True, False)]
    identities = [Identities().of(adapter) for adapter in adapters]
    kept = [demo_keeping_adapter(adapter, {}) for adapter in adapters]
    assert [Identities().of(adapter) for adapter in kept] == identities


def test_a_program_is_sent_its_own_demos_whatever_was_kept_before() -> None:
    programs = [
        program_with(TEXTS), program_with(TEXTS[::-1]), program_with(TEXTS[:1]),
        program_with(TEXTS[:1], "question, note -> answer"), program_with([demo("who?", "1")]),
        program_with([demo("who?", 1)]), program_with([demo("who?", True)]), program_with(TEXTS),
    ]  # fmt: skip
    for adapter in (dspy.ChatAdapter, dspy.XMLAdapter):
        assert sent_by_rollouts(programs, adapter(), {}) == sent_alone(programs, adapter())
