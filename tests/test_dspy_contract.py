"""What DSPy 3.4 asks of an optimizer, point by point."""

import asyncio
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import LabeledFewShot, Teleprompter
from dspy.utils.callback import BaseCallback
from runs import ADVICE, Pair, learned, library_texts, optimizer_of, polite_lm, predictor, questions

from tfgrpo_dspy import SettingsError, TrainingFreeGRPO


def test_the_optimizer_is_a_direct_subclass_as_mlflows_autolog_needs_it() -> None:
    assert TrainingFreeGRPO.__bases__ == (Teleprompter,)
    assert not hasattr(optimizer_of(), "callbacks")


def test_get_params_gives_a_new_dict_of_scalars_each_time() -> None:
    optimizer = optimizer_of(seed=7, objective="manners")
    params = optimizer.get_params()
    assert params["seed"] == 7
    assert params["objective"] == "manners"
    assert params["reflection_lm"] is None
    assert {type(value) for value in params.values()} <= {int, float, str, bool, type(None)}
    params["student"] = "added, as mlflow's autolog does"
    assert "student" not in optimizer.get_params()


def test_the_optimizer_holds_settings_only_also_after_a_compile() -> None:
    optimizer = optimizer_of()
    before = dict(vars(optimizer))
    with dspy.context(lm=polite_lm()):
        optimizer.compile(predictor(), trainset=questions(9))
    assert vars(optimizer) == before
    assert list(before) == ["settings"]


class CompileEvents(BaseCallback):
    def __init__(self) -> None:
        self.started: list[tuple[Any, dict[str, Any]]] = []
        self.ended: list[tuple[Any, Any]] = []

    def on_compile_start(self, instance: Any, inputs: dict[str, Any], **_: Any) -> None:
        self.started.append((instance, inputs))

    def on_compile_end(self, outputs: Any, exception: Any = None, **_: Any) -> None:
        self.ended.append((outputs, exception))


def test_a_compile_fires_one_pair_of_events_with_its_arguments_and_its_program_or_error() -> None:
    events, optimizer, student = CompileEvents(), optimizer_of(), predictor()
    data: dict[str, Any] = {"trainset": questions(9), "max_errors": None}
    data |= dict.fromkeys(["teacher", "valset", "testset", "num_threads", "seed"])
    with dspy.context(lm=polite_lm(), callbacks=[events]):
        optimized = optimizer.compile(student, trainset=data["trainset"])
        with pytest.raises(SettingsError) as raised:
            optimizer.compile(student, trainset=[])
    assert events.started[0] == (optimizer, {"student": student, **data})
    assert events.ended == [(optimized, None), (None, raised.value)]


def test_saving_inside_a_parent_keeps_the_advice(tmp_path: Path) -> None:
    parent, fresh = dspy.Module(), dspy.Module()
    parent.inner, fresh.inner = learned(Pair()), Pair()
    parent.save(tmp_path / "parent.json")
    fresh.load(tmp_path / "parent.json")
    assert library_texts(fresh.inner) == [ADVICE]


def test_another_optimizer_that_comes_after_keeps_the_advice() -> None:
    optimized = LabeledFewShot(k=2).compile(learned(), trainset=questions(4))
    assert library_texts(optimized) == [ADVICE]
    assert len(optimized.demos) == 2


class Learning(dspy.Module):
    """A program that compiles another one."""

    def forward(self, subject: str) -> dspy.Prediction:
        return dspy.Prediction(advice=library_texts(learned()), subject=subject)

    async def aforward(self, subject: str) -> dspy.Prediction:
        with dspy.context(lm=polite_lm()):
            data = {"trainset": questions(6), "valset": questions(12, start=100)}
            optimized = await optimizer_of().acompile(predictor(), **data)
        return dspy.Prediction(advice=library_texts(optimized), subject=subject)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_compile_in_a_program_that_is_streamed_sends_nothing_to_the_stream(
    is_async: bool,
) -> None:
    program = dspy.streamify(Learning(), is_async_program=is_async)

    async def main() -> list[Any]:
        return [value async for value in program(subject="manners")]

    (prediction,) = asyncio.run(main())
    assert prediction.advice == [ADVICE]


def test_the_callers_usage_tracker_sees_the_calls_of_all_threads() -> None:
    with dspy.track_usage() as tracker:
        optimized = learned()
    usage = optimized.detailed_results.usage.values()
    total = tracker.get_total_tokens()["scripted"]
    assert total["prompt_tokens"] == sum(used.prompt_tokens for used in usage) > 0
    assert total["completion_tokens"] == sum(used.completion_tokens for used in usage) > 0


def test_neither_trace_nor_settings_of_the_caller_are_touched() -> None:
    trace: list[Any] = []
    lm = polite_lm()
    with dspy.context(trace=trace, lm=lm):
        before = dict(dspy.settings.config)
        learned(lm=lm)
        assert dict(dspy.settings.config) == before
    assert trace == []
