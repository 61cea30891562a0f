"""What a run reports: values that are JSON, need nothing of ours when pickled, and a page."""

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
from coded_cases import cases, compiled, world
from runs import learned, predictor

from tfgrpo_dspy import ExperienceLibrary
from tfgrpo_dspy.listeners import worst_first
from tfgrpo_dspy.report import html
from tfgrpo_dspy.results import NOT_FINISHED, ExampleRow, RunResults, strongest_first


@pytest.fixture(scope="module")
def results() -> Any:
    """A report with demos, a test set, finalists and tried advice."""
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        given = {"n": 20, "epochs": 2, "max_demos": 2}
        return compiled(world(), testset=cases(4, 700), **given).detailed_results


def test_the_results_of_a_run_are_json_and_a_copy(results: Any) -> None:
    values = results.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert RunResults.from_dict(values) == results
    for name in ("updates", "candidates", "tried", "test", "usage", "library", "schedule"):
        assert values[name], name
    values["updates"][0]["groups"].clear()
    assert results.to_dict() != values


class BuiltinsOnly(pickle.Unpickler):
    """Refuses whatever an interpreter without this package does not have."""

    def find_class(self, module: str, name: str) -> Any:
        assert module == "builtins", f"{module}.{name} is needed to read it"
        return super().find_class(module, name)


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickled_results_are_read_without_this_package_as_a_dict(
    pickler: Any, results: Any
) -> None:
    read = BuiltinsOnly(io.BytesIO(pickler.dumps(results))).load()
    assert type(read) is dict
    assert read == results.to_dict()


def a_full_run(results: Any) -> RunResults:
    """A run of 100 experiences, 100 dropped ones and 20 kinds of failures, all with long texts."""
    values = results.to_dict()
    texts = [f"Advice {number}: {'x' * 1000}" for number in range(100)]
    changes = [
        {
            "kind": "dropped",
            "id": f"E{number}",
            "text": f"{number}" * 300,
            "scope": "*",
            "reason": "z\nz",
        }
        for number in range(101, 201)
    ]
    values |= {"n_demos": 0, "library": ExperienceLibrary.from_texts(texts).to_dict()}
    values["updates"][-1]["changes"] = changes
    values["failures"] = {f"kind {number}": number for number in range(1, 21)}
    values["usage"]["metric"]["n_lm_calls"] = values["usage"]["unfinished"]["n_lm_calls"] = 3
    return RunResults.from_dict(values)


def test_the_page_has_at_most_40_lines_however_much_there_is_to_say(results: Any) -> None:
    lines = str(a_full_run(results)).splitlines()
    assert len(lines) == 40
    assert max(map(len, lines)) < 1000
    assert "The result has 100 experiences: 78 tokens a call" in lines
    assert ["...", "94", "more", "see", ".experiences"] in [line.split() for line in lines]


def test_the_page_leaves_out_what_did_not_happen_and_counts_one_as_one() -> None:
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        text = str(learned().detailed_results)
    assert "The result has 1 experience: 35 tokens a call\n" in text
    assert "Not in the result" not in text
    assert "\nTaken: better than the student with probability " in text
    assert "No failures\nTaken" in text
    assert "; optimistic: these scores chose the result\n" in text


def test_a_run_without_scores_or_an_end_says_so(results: Any) -> None:
    values = results.to_dict() | dict.fromkeys(("student", "best", "gain", "test"))
    values |= {"ended_because": NOT_FINISHED, "usage": {"rollout": {"n_lm_calls": 7}}}
    unfinished = RunResults.from_dict(values)
    text = str(unfinished)
    assert text.startswith("Mean score: not measured\n")
    assert text.endswith("\nThe run is not finished.")
    assert "  so far, in all  7" in text
    assert "Failures are recorded at the end of a run\n" in text
    assert "Costs: tokens and calls of the metric are recorded at the end of a run\n" in text
    assert not [line for line in text.splitlines() if "0 calls" in line or "No failures" in line]
    assert (unfinished.policy_usage.n_lm_calls, unfinished.reflection_usage.n_lm_calls) == (7, 0)


def test_the_repr_is_one_line_and_the_page_of_a_notebook_escapes_every_text(results: Any) -> None:
    values = results.to_dict()
    values["library"]["experiences"][0]["text"] = "<script>alert(1)</script>"
    values["failures"] = {"<b>": 1}
    hostile = RunResults.from_dict(values)
    shown = hostile._repr_html_()
    assert re.fullmatch(r"<RunResults: validation score .+; 4 experiences .+>", repr(hostile))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<script" not in shown
    assert "<b>" not in shown


class Pipeline(dspy.Module):
    """Holds an optimized program, and calls it."""

    def __init__(self, stages: list[Any]) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, question: str) -> Any:
        return [stage(question=question) for stage in self.stages][-1]


def read_again(program: Any, folder: Path) -> Any:
    program.save(folder, save_program=True)
    return dspy.load(folder, allow_pickle=True)


OLD = {"in memory": lambda program, _: program, "from a file": read_again}


@pytest.mark.parametrize("old", OLD.values(), ids=OLD)
def test_a_program_made_from_an_optimized_one_does_not_carry_its_results(
    old: Any, tmp_path: Path
) -> None:
    program = old(learned(), tmp_path / "saved")
    before = program.detailed_results
    assert not hasattr(ExperienceLibrary().bake(program), "detailed_results")
    again = learned(Pipeline([program]))
    assert isinstance(again.detailed_results, RunResults)
    assert not hasattr(again.stages[0], "detailed_results")
    assert program.detailed_results is before


def test_examples_without_a_score_stand_first_then_the_lowest_and_of_equals_the_most_lost() -> None:
    scores = [(0.0, 1.0), (1.0, 0.5), (0.0, 0.5), (None, 0.5), (1.0, 0.0), (1.0, None), (0.0, 0.0)]
    rows = [ExampleRow("test", n, "", *pair, "", "") for n, pair in enumerate(scores)]
    assert [row.example for row in worst_first(rows)] == [5, 4, 6, 1, 2, 3, 0]


def test_each_candidate_is_a_program_and_says_what_it_adds_to_a_call() -> None:
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        optimized = learned(prices={"scripted": (2.0, 5.0)}, max_lm_calls=150)
    results = optimized.detailed_results
    student, result = results.candidates
    assert (student.name, student.added.n_tokens, student.added.dollars) == ("student", 0, 0.0)
    assert (result.name, result.added, result.is_best) == ("result", results.added, True)
    assert result.added.dollars == pytest.approx(1000 * result.added.lines * 2.0 / 1_000_000)
    assert result.program().dump_state() == optimized.dump_state()
    assert student.program().signature.instructions == predictor().signature.instructions
    assert f"The result has 1 experience: {result.added}\n" in str(results)
    assert str(result.added).endswith("tokens a call, $0.0700 for 1,000 calls")


def test_lines_stand_by_effect_and_the_next_step_names_those_that_may_not_be_worth_it(
    results: Any,
) -> None:
    strongest = strongest_first(results.experiences)
    estimates = [each.effect.estimate for each in strongest if each.effect]
    assert len(estimates) == len(strongest) and estimates == sorted(estimates, reverse=True)
    assert results.next_step.startswith('save it (program.save("program.json")); more budget is ')
    values = results.to_dict() | {"test": None}
    last = strongest[-1]
    for one in values["tried"]:
        one["chance"] = 0.3 if one["text"] == last.text else 0.9
    doubtful = RunResults.from_dict(values)
    assert doubtful.next_step.startswith(
        f"strike {last.id} (more likely not worth their tokens), pass a testset"
    )
    assert f"\nNext: {doubtful.next_step}\n" in str(doubtful)


def test_lines_of_the_student_that_the_result_leaves_out_are_listed(results: Any) -> None:
    values = results.to_dict()
    own = ExperienceLibrary.from_texts(["Be brief."]).bake(predictor()).signature.instructions
    values["instructions"] = {"self": [own, "Answer."]}
    values["library"] = ExperienceLibrary(next_number=9).to_dict()
    values["updates"] = []
    text = str(RunResults.from_dict(values))
    assert "Not in the result: 1 experience, and why\n  E1  Be brief. (it did not win" in text
    assert "Be brief." in html(values)


def test_a_student_that_cannot_score_more_is_said_to_be_at_the_top() -> None:
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        found = learned(metric=lambda *_: 1.0, max_lm_calls=150).detailed_results
    assert found.nothing_learned.startswith("the student already scores 1.000")
    assert "keep the student; more budget is not worth it: no attempt scored more" in str(found)


def test_what_training_scores_say_of_a_student_at_the_top_of_negative_scores_is_said() -> None:
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        found = learned(metric=lambda *_: -1.0, max_lm_calls=150).detailed_results
    assert "attempts scored -1.000, and none another score" in found.nothing_learned


def test_answers_that_came_from_a_cache_are_said(results: Any) -> None:
    values = results.to_dict()
    values["usage"]["rollout"]["n_cached_calls"] = 7
    assert "; 7 more answers came from a cache, and cost nothing\n" in str(
        RunResults.from_dict(values)
    )
