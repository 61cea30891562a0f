"""Promise 1: the student is never mutated; what comes back is a plain DSPy program."""

import copy
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
from runs import (
    ADVICE,
    Pair,
    agent_lm,
    learned,
    library_texts,
    optimizer_of,
    polite_lm,
    polite_rules,
    predictor,
    questions,
)
from scripted import scripted_lm

from tfgrpo_dspy import ExperienceLibrary


def two_stage() -> dspy.Module:
    """A module of a class that no file defines, as in a notebook."""

    class TwoStage(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.draft = dspy.Predict("question -> answer")
            self.polish = dspy.ChainOfThought("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            self.draft(question=question)
            return self.polish(question=question)

    return TwoStage()


def notebook_agent() -> dspy.ReAct:
    """An agent with a tool that no file defines."""

    def look_up(page: str) -> str:
        """Reads a page of the manual."""
        return f"page {page}"

    return dspy.ReAct("question -> answer", tools=[look_up], max_iters=3)


PROGRAMS: dict[str, Callable[[], Any]] = {
    "predict": predictor,
    "chain_of_thought": lambda: dspy.ChainOfThought("question -> answer"),
    "react": notebook_agent,
    "two_stage": two_stage,
}


@functools.cache
def optimized_of(name: str) -> Any:
    """The program after a compile; the tests only read it."""
    return learned(PROGRAMS[name](), agent_lm())


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_the_student_is_not_mutated(make: Callable[[], Any]) -> None:
    student, own_lm = make(), agent_lm()
    first = student.predictors()[0]
    first.lm = own_lm
    first.config = {"temperature": 0.5}
    held = [dict(vars(module)) for _, module in student.named_sub_modules()]
    optimized = learned(student, agent_lm())
    assert library_texts(optimized) == [ADVICE]
    assert [dict(vars(module)) for _, module in student.named_sub_modules()] == held
    assert library_texts(student) == []
    assert (student.history, own_lm.history) == ([], [])
    assert own_lm.kwargs == agent_lm().kwargs


def test_lms_and_demos_of_the_student_are_in_what_comes_back() -> None:
    own, default = polite_lm(), polite_lm()
    student = Pair()
    student.second.lm = own
    student.first.demos = [dspy.Example(question="q", answer="no").with_inputs("question")]
    optimized = learned(student, default)
    assert optimized.second.lm is own
    assert optimized.first.lm is None
    assert optimized.first.demos == student.first.demos
    before = own.engine.n_calls()
    with dspy.context(lm=default):
        optimized(question="question 1")
    assert own.engine.n_calls() == before + 1


def test_when_nothing_is_better_the_students_own_text_comes_back_byte_for_byte() -> None:
    student = predictor()
    lm = scripted_lm(polite_rules("Say nothing."))
    with dspy.context(lm=lm):
        optimized = optimizer_of(metric=lambda _e, _p: 0.5).compile(student, trainset=questions(9))
    assert optimized is not student
    assert optimized.signature.instructions == student.signature.instructions
    assert optimized.dump_state() == student.dump_state()


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_every_shape_learn_and_are_plain_and_load_into_a_fresh_program(
    name: str, tmp_path: Path
) -> None:
    optimized = optimized_of(name)
    results = optimized.detailed_results
    assert results.best.mean > results.student.mean
    optimized.save(tmp_path / "program.json")
    fresh = PROGRAMS[name]()
    fresh.load(tmp_path / "program.json")
    assert fresh.dump_state() == optimized.dump_state()
    assert ExperienceLibrary.from_program(fresh) == ExperienceLibrary.from_program(optimized)
    assert library_texts(fresh) == [ADVICE]
    bare = copy.deepcopy(optimized)
    del bare.detailed_results
    assert b"tfgrpo" not in cloudpickle.dumps(bare)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda p: p.deepcopy(), lambda p: cloudpickle.loads(cloudpickle.dumps(p))],
    ids=["copy.deepcopy", "deepcopy", "cloudpickle"],
)
def test_it_can_be_copied_and_pickled(name: str, duplicate: Callable[[Any], Any]) -> None:
    optimized = optimized_of(name)
    twin = duplicate(optimized)
    assert twin.dump_state() == optimized.dump_state()
    lm = agent_lm()
    with dspy.context(lm=lm):
        assert twin(question="question 1").answer in ("please", "no")
    assert lm.engine.n_calls(ADVICE) == lm.engine.n_calls() > 0


LOAD_AND_RUN = """
import json, sys

sys.modules["tfgrpo_dspy"] = None  # importing it, or any part of it, raises

import dspy
from scripted import ScriptedEngine, chat

def answer(prompt):
    asked = "ADVICE" in prompt.system
    if "`next_tool_name`" in prompt.text:
        return chat(next_thought="", next_tool_name="finish", next_tool_args={})
    reasoning = {"reasoning": "hm"} if "`reasoning`" in prompt.text else {}
    return chat(**reasoning, answer="please" if asked else "no")

dspy.configure(lm=dspy.LM("scripted", engine=ScriptedEngine([("", answer)]), cache=False))
loaded = {}
for path in sys.argv[1:]:
    program = dspy.load(path, allow_pickle=True)
    loaded[path] = [program(question="question 1").answer, program.detailed_results["best"]]
fresh = dspy.Predict("question -> answer")
fresh.load(sys.argv[1] + ".json")
loaded["json"] = fresh(question="question 1").answer
print(json.dumps(loaded))
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_saved_programs_run_in_an_interpreter_where_this_package_is_not_installed(
    tmp_path: Path,
) -> None:
    best = {}
    for name in PROGRAMS:
        optimized = optimized_of(name)
        optimized.save(tmp_path / name, save_program=True)
        best[str(tmp_path / name)] = optimized.detailed_results.to_dict()["best"]
    optimized_of("predict").save(tmp_path / "predict.json")
    script = LOAD_AND_RUN.replace("ADVICE", ADVICE)
    run = subprocess.run(
        [sys.executable, "-c", script, *best],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parent), "DSPY_CACHEDIR": str(tmp_path / "cache")},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout.splitlines()[-1])
    assert loaded.pop("json") == "please"
    assert loaded == {path: ["please", summary] for path, summary in best.items()}
