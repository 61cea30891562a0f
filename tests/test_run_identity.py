"""Whose run is it? Runs, answers of a person, traces and results belong to one program and task."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import (
    ADVICE,
    is_polite,
    learned,
    library_texts,
    optimizer_of,
    polite_lm,
    predictor,
    questions,
)
from small import grpo

from tfgrpo_dspy import (
    DraftLessons,
    Execution,
    ExtractAdvantage,
    MissingRecordError,
    NoGate,
    Reflection,
    StoreError,
    SummarizeTrajectory,
    UpdateLibrary,
    best_so_far,
)
from tfgrpo_dspy.events import Proposal
from tfgrpo_dspy.settings import Settings
from tfgrpo_dspy.store import saved_runs
from tfgrpo_dspy.strategies import DomainBandit


def is_short(_example: Any, pred: Any, _trace: Any = None) -> float:
    return float(pred.answer == "please")


def polite_program() -> dspy.Predict:
    return dspy.Predict(dspy.Signature("question -> answer", "Answer the customer."))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity") / "log"
    learned(log_dir=folder, epochs=1)
    return folder


class OtherUpdate(UpdateLibrary): ...


class OtherExtract(ExtractAdvantage): ...


class OtherSummary(SummarizeTrajectory): ...


class OtherDraft(DraftLessons): ...


FREE = {"prices": {"scripted": (0.0, 0.0)}}
ANOTHER_RUN: dict[str, Any] = {
    "metric": is_short, "reflection_lm": polite_lm(top_p=0.5), "objective": "Manners.",
    "group_size": 3, "batch_size": 1, "temperature": 0.9, "max_experiences": 7, "max_demos": 1,
    "gate": NoGate(), "strategies": [DomainBandit("a")], "version": "2", "seed": 1,
    "extract": OtherExtract(), "update": OtherUpdate(), "summarize": OtherSummary(),
    "draft": OtherDraft(), "brief": True, "use_labels": False, "max_experience_words": 9,
    "drafts": 1, "groups_per_call": 3, "show_images": True, "guard": "warn", "max_staleness": 0,
}  # fmt: skip
"""By argument, a value that makes another run; and below, one that makes none, but for limits."""
LIMITS = ("auto", "max_lm_calls", "max_metric_calls", "max_cost", "max_minutes", "epochs")
THE_SAME: dict[str, Any] = {
    "auto": "light", "max_lm_calls": 1000, "max_metric_calls": 1000, "max_cost": 9.0,
    "max_minutes": 9, "epochs": 2, "executor": ThreadPoolExecutor(2), "rollout_timeout_s": 99.0,
    "max_errors": 99, "target_score": 0.99, "prices": FREE["prices"],
    "on_event": lambda _event: None, "approve": lambda _proposal: True, "log_dir": "",
    "offline": True, "num_threads": 2, "progress": True,
}  # fmt: skip


OTHERS: dict[str, dict[str, Any]] = {
    "program": {"student": polite_program()},
    "LM": {"lm": polite_lm(top_p=0.5)},
    "reflection LM": {"reflection_lm": polite_lm(top_p=0.5)},
    **{name: {name: ANOTHER_RUN[name]} for name in ("metric", "gate", "objective", "version")},
}


@pytest.mark.parametrize("part", OTHERS)
def test_offline_names_the_part_in_which_the_recorded_run_differs(
    part: str, finished: Path
) -> None:
    with pytest.raises(MissingRecordError, match=rf"differs in: (\w+, )*{part}\b"):
        learned(log_dir=finished, offline=True, epochs=1, **OTHERS[part])


def compiled(folder: Path, **changes: Any) -> None:
    """A compile on two examples, validated on two."""
    given = {"epochs": 1, "group_size": 2, **FREE, **changes, "log_dir": folder}
    with dspy.context(lm=polite_lm(max_tokens=50)):
        optimizer_of(**given).compile(predictor(), trainset=questions(2), valset=questions(2, 100))


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("priced") / "log"
    compiled(folder)
    return folder


@pytest.mark.parametrize("name", [*ANOTHER_RUN, *THE_SAME])
def test_every_argument_is_part_of_a_runs_identity_or_says_how_far_it_goes(
    name: str, priced: Path, tmp_path: Path
) -> None:
    shutil.copytree(priced, tmp_path / "log")
    compiled(tmp_path / "log", **{name: {**ANOTHER_RUN, **THE_SAME}[name]})
    assert len(saved_runs(tmp_path / "log")) == 1 + (name in {*ANOTHER_RUN, *LIMITS})


def test_no_argument_is_left_out_of_the_two_lists() -> None:
    own = [field.name for kind in (Settings, Reflection, Execution) for field in fields(kind)]
    assert {*ANOTHER_RUN} | {*THE_SAME} == {*own} - {"reflection", "execution"}
    assert not {*ANOTHER_RUN} & {*THE_SAME}


def test_the_page_about_runs_names_the_arguments_that_make_no_other_run() -> None:
    text = (Path(__file__).parents[1] / "docs" / "runs.md").read_text("utf-8")
    (sentence,) = re.findall(r"These arguments make no other run:(.*?)\. All others do", text, re.S)
    assert re.findall(r"`(\w+)`", sentence) == sorted(THE_SAME)


def test_the_same_compile_is_the_same_run_and_says_what_it_cannot_see(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n_runs = len(saved_runs(finished))
    moved = polite_lm()
    moved.port = 8001
    learned(log_dir=finished, epochs=1, lm=moved, num_threads=2)
    assert len(saved_runs(finished)) == n_runs
    assert not moved.engine.prompts
    assert "holds no run" not in caplog.text
    (line,) = (each.getMessage() for each in caplog.records if each.levelname == "WARNING")
    assert "pass version=... when they change): scripted.ScriptedEngine" in line


def test_a_smaller_budget_says_that_it_gives_another_schedule(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for max_lm_calls in (90, 40):
        learned(log_dir=tmp_path, max_lm_calls=max_lm_calls, reflection=Reflection())
    assert "differs in batch_size (derived), drafts (derived)\n" in caplog.text


@pytest.mark.parametrize("changes", [OTHERS["program"], OTHERS["metric"]])
def test_a_persons_answer_counts_for_one_program_and_metric(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    asked: list[Proposal] = []

    def no(proposal: Proposal) -> bool:
        asked.append(proposal)
        return False

    given = {"log_dir": tmp_path, "epochs": 1, "gate": NoGate()}
    assert library_texts(learned(approve=lambda _: True, **given)) == [ADVICE]
    assert library_texts(learned(approve=no, **given)) == [ADVICE]
    assert not asked
    assert library_texts(learned(approve=no, **given, **changes)) == []
    assert asked


class Loud(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.answer(question=question.upper())


class Calm(Loud):
    """The same predictors, and other code."""

    def forward(self, question: str) -> Any:
        return self.answer(question=question)


def test_the_best_so_far_is_that_of_the_students_last_run(tmp_path: Path) -> None:
    given = {"log_dir": tmp_path, "epochs": 1, "gate": NoGate()}
    learned(student=Loud(), **given)
    learned(student=predictor(), approve=lambda _: False, **given)
    assert library_texts(best_so_far(tmp_path, Loud())) == [ADVICE]
    assert library_texts(best_so_far(tmp_path, predictor())) == []
    for other in (Calm(), polite_program(), dspy.ChainOfThought("question -> answer")):
        with pytest.raises(StoreError, match="no run of this program, of 2 in all"):
            best_so_far(tmp_path, other)


def test_the_students_lm_is_no_part_of_whose_run_it_is(tmp_path: Path) -> None:
    student = Loud()
    student.set_lm(polite_lm())
    learned(student=student, log_dir=tmp_path, epochs=1, gate=NoGate())
    assert library_texts(best_so_far(tmp_path, Loud())) == [ADVICE]


DAY: dict[str, Any] = {"score": 0.0, "feedback": "Say please.", "outputs": {"answer": "no"}}
OTHER_DAYS: dict[str, dict[str, Any]] = {
    "feedback": {"feedback": "Be polite."},
    "scores": {"score": 0.25},
    "outputs": {"outputs": {"answer": "never"}},
    "steps": {"steps": [{"name": "look_up", "kind": "tool", "outputs": {"result": "7"}}]},
}


@pytest.mark.parametrize("changes", OTHER_DAYS.values(), ids=OTHER_DAYS)
def test_traces_of_another_day_are_another_run(changes: dict[str, Any], tmp_path: Path) -> None:
    def traces(**of_no: Any) -> list[dict[str, Any]]:
        yes = {"score": 1.0, "outputs": {"answer": "please"}}
        return [
            {"inputs": {"question": f"question {i}"}, **trace}
            for i in range(4)
            for trace in ({**DAY, **of_no}, yes)
        ]

    def learn(given: list[dict[str, Any]]) -> Any:
        with dspy.context(lm=polite_lm()):
            optimizer = grpo(is_polite, log_dir=tmp_path, max_lm_calls=40, progress=False)
            return optimizer.learn(predictor(), traces=given)

    assert library_texts(learn(traces())) == [ADVICE]
    assert library_texts(learn(traces())) == [ADVICE]
    assert len(saved_runs(tmp_path)) == 1
    assert library_texts(learn(traces(**changes))) == [ADVICE]
    assert len(saved_runs(tmp_path)) == 2
