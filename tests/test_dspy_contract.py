"""What DSPy 3.4 asks of an optimizer, point by point."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import BetterTogether, LabeledFewShot, Teleprompter
from dspy.utils.callback import BaseCallback
from runs import (
    ADVICE,
    Pair,
    agent,
    agent_lm,
    is_polite,
    learned,
    library_texts,
    optimizer_of,
    polite_answer,
    polite_lm,
    polite_rules,
    predictor,
    questions,
)
from scripted import Prompt, scripted_lm

from tfgrpo_dspy import ExperienceLibrary, SettingsError, TrainingFreeGRPO

# ---------------------------------------------------------------------- the class


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
    data: dict[str, Any] = {"trainset": questions(9), "num_threads": None, "seed": None}
    data |= dict.fromkeys(["teacher", "valset", "testset"])
    with dspy.context(lm=polite_lm(), callbacks=[events]):
        optimized = optimizer.compile(student, trainset=data["trainset"])
        with pytest.raises(SettingsError) as raised:
            optimizer.compile(student, trainset=[])
    assert events.started[0] == (optimizer, {"student": student, **data})
    assert events.ended == [(optimized, None), (None, raised.value)]


# ---------------------------------------------------------------------- BetterTogether


def test_better_together_runs_it_as_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    student = predictor()
    student.set_lm(polite_lm())
    with dspy.context(lm=polite_lm()):
        best = BetterTogether(metric=is_polite, p=optimizer_of()).compile(
            student,
            trainset=questions(9),
            valset=questions(12, start=100),
            strategy="p",
            num_threads=2,
            seed=0,
        )
    assert best.flag_compilation_error_occurred is False
    assert [candidate["strategy"] for candidate in best.candidate_programs] == ["p", ""]
    assert library_texts(best) == [ADVICE]
    assert best.lm.model == "scripted"
    capsys.readouterr()  # its progress bar


# ---------------------------------------------------------------------- the student's shape


class Held(dspy.Module):
    """Calls the predictor that `reach` finds in it."""

    def __init__(self, reach: Callable[[Any], Any], **held: Any) -> None:
        super().__init__()
        vars(self).update(held)
        self.reach = reach

    def forward(self, question: str) -> dspy.Prediction:
        return self.reach(self)(question=question)


def test_predictors_of_one_signature_are_told_apart_by_name_and_so_is_their_advice() -> None:
    lm = scripted_lm(polite_rules(scope="second"))
    optimized = learned(Pair(), lm)
    (experience,) = ExperienceLibrary.from_program(optimized)
    assert (experience.text, experience.scope) == (ADVICE, "second")
    assert ADVICE not in optimized.first.signature.instructions
    assert ADVICE in optimized.second.signature.instructions


def test_saving_inside_a_parent_keeps_the_advice(tmp_path: Path) -> None:
    parent = Held(lambda p: p.inner, inner=learned(Pair()))
    parent.save(tmp_path / "parent.json")
    fresh = Held(lambda p: p.inner, inner=Pair())
    fresh.load(tmp_path / "parent.json")
    assert library_texts(fresh.inner) == [ADVICE]


@pytest.mark.parametrize(
    ("student", "baked"),
    [
        (predictor(), ["self"]),
        (dspy.ChainOfThought("question -> answer"), ["predict"]),
        (Pair(), ["first", "second"]),
        (Held(lambda p: p.all[0], all=[predictor(), predictor()]), ["all[0]", "all[1]"]),
        (Held(lambda p: p.by["k"], by={"k": predictor()}), ["by['k']"]),
        (Held(lambda p: p.inner, inner=Pair()), ["inner.first", "inner.second"]),
    ],
    ids=["bare", "chain of thought", "pair", "list", "dict", "module"],
)
def test_advice_is_baked_into_every_predictor_that_dspy_names(
    student: Any, baked: list[str]
) -> None:
    optimized = learned(student)
    with_advice = [
        name for name, p in optimized.named_predictors() if ADVICE in p.signature.instructions
    ]
    assert with_advice == baked


def test_a_shared_predictor_is_baked_once_and_stays_shared() -> None:
    shared = predictor()
    optimized = learned(Held(lambda p: p.other, one=shared, other=shared))
    assert optimized.one is optimized.other
    assert optimized.one.signature.instructions.count(ADVICE) == 1


def test_predictors_that_dspy_does_not_see_run_and_keep_their_instructions() -> None:
    student = Held(lambda p: p.seen, seen=predictor(), hidden=[[predictor()]])
    optimized = learned(student)
    assert ADVICE in optimized.seen.signature.instructions
    assert ADVICE not in optimized.hidden[0][0].signature.instructions


def test_advice_stands_behind_an_agents_tool_list_which_stays_as_it_was() -> None:
    student = agent()
    optimized = learned(student, agent_lm())
    before = student.react.signature.instructions
    after = optimized.react.signature.instructions
    assert "look_up" in before
    assert after.startswith(f"{before}\n\n<experiences>\n")
    assert ADVICE in after.removeprefix(before)


# ---------------------------------------------------------------------- what comes back


def test_another_optimizer_that_comes_after_keeps_the_advice() -> None:
    optimized = LabeledFewShot(k=2).compile(learned(), trainset=questions(4))
    assert library_texts(optimized) == [ADVICE]
    assert len(optimized.demos) == 2


# ---------------------------------------------------------------------- settings and threads


def test_it_runs_inside_an_event_loop_with_an_async_metric() -> None:
    async def metric(example: Any, pred: Any) -> dspy.Prediction:
        await asyncio.sleep(0)
        return is_polite(example, pred)

    async def main() -> Any:
        return learned(metric=metric)

    assert library_texts(asyncio.run(main())) == [ADVICE]


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


def test_the_callers_adapter_holds_in_training_and_in_trials() -> None:
    def as_json(prompt: Prompt) -> str:
        if "`semantic_advantage`" in prompt.text:
            return json.dumps({"semantic_advantage": "manners", "lessons": [ADVICE]})
        if "`operations`" in prompt.text:
            return json.dumps({"operations": [{"op": "ADD", "text": ADVICE, "lessons": [1]}]})
        return json.dumps({"answer": "please" if "please" in polite_answer(prompt) else "no"})

    lm = scripted_lm([("", as_json)])
    with dspy.context(adapter=dspy.JSONAdapter()):
        optimized = learned(lm=lm)
    assert library_texts(optimized) == [ADVICE]
    assert lm.engine.n_calls("JSON object") == lm.engine.n_calls()
