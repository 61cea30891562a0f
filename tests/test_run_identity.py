"""Whose run is it? Runs, answers of a person, traces and results belong to one program and task."""

from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import ADVICE, is_polite, learned, library_texts, polite_lm, predictor, questions
from small import grpo

from tfgrpo_dspy import MissingRecordError, NoGate, StoreError, best_so_far
from tfgrpo_dspy.events import Proposal
from tfgrpo_dspy.run.saved import saved_runs


def is_short(_example: Any, pred: Any, _trace: Any = None) -> float:
    return float(pred.answer == "please")


def polite_program() -> dspy.Predict:
    return dspy.Predict(dspy.Signature("question -> answer", "Answer the customer."))


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "program": ({"student": polite_program()}, "program"),
    "metric": ({"metric": is_short}, "metric"),
    "LM": ({"lm": polite_lm(top_p=0.5)}, "LM"),
    "reflection LM": ({"reflection_lm": polite_lm(top_p=0.5)}, "reflection LM"),
    "gate": ({"gate": NoGate()}, "gate"),
    "objective": ({"objective": "Manners."}, "objective"),
    "version": ({"version": "2"}, "version"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity") / "log"
    learned(log_dir=folder, epochs=1)
    return folder


@pytest.mark.parametrize(("changes", "part"), OTHERS.values(), ids=OTHERS)
def test_offline_names_the_part_in_which_the_recorded_run_differs(
    changes: dict[str, Any], part: str, finished: Path
) -> None:
    with pytest.raises(MissingRecordError, match=rf"differs in: (\w+, )*{part}\b"):
        learned(**{"log_dir": finished, "offline": True, "epochs": 1, **changes})


def test_the_same_compile_is_the_same_run_and_says_nothing(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n_runs = len(saved_runs(finished))
    moved = polite_lm()
    moved.port = 8001
    learned(log_dir=finished, epochs=1, lm=moved, num_threads=2)
    assert len(saved_runs(finished)) == n_runs
    assert not moved.engine.prompts
    assert "holds no run" not in caplog.text


def test_another_lm_in_the_same_folder_is_said_to_be_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learned(log_dir=tmp_path, epochs=1)
    learned(log_dir=tmp_path, epochs=1, lm=polite_lm(top_p=0.5), reflection_lm=polite_lm())
    assert "differs in LM\n" in caplog.text
    assert len(saved_runs(tmp_path)) == 2


@pytest.mark.parametrize("changes", [OTHERS["program"][0], OTHERS["metric"][0]])
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


def test_questions_alone_do_not_make_a_run(tmp_path: Path) -> None:
    """Labels, order and further examples of the data count, too."""
    given = {"gate": NoGate(), "epochs": 1, "log_dir": tmp_path, "progress": False}
    sets = [questions(6), questions(7), questions(6)[::-1]]
    sets += [[example.copy(answer="Please") for example in questions(6)]]
    for examples in sets:
        with dspy.context(lm=polite_lm()):
            grpo(is_polite, **given).compile(predictor(), trainset=examples)
    assert len(saved_runs(tmp_path)) == len(sets)
