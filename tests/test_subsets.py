"""The exhaustive part of `benchmarks/subsets.py`: every subset once, and nothing twice."""

import itertools
import re

import dspy
import pytest
import subsets
from dspy.utils.exceptions import LMUnexpectedError
from scripted import Prompt, ScriptedEngine

from tfgrpo_dspy.local import PlainAdapter

REPLY = "We are sorry for the trouble; please send us the number of your order today."
COMPLAINTS = [example for _, example in subsets.pool()]


def lm_on(engine: ScriptedEngine) -> dspy.LM:
    return dspy.LM("scripted", engine=engine, cache=False, num_retries=0)


def measured(
    scores: dict[str, list[float]], n_complaints: int, engine: ScriptedEngine
) -> dict[str, list[float]]:
    with dspy.context(lm=lm_on(engine), adapter=PlainAdapter(one_message=True)):
        subsets.measure(scores, COMPLAINTS[:n_complaints], 2, lambda: None)
    return scores


def lessons_in(prompt: Prompt) -> tuple[int, ...]:
    return tuple(k for k, text in enumerate(subsets.LESSONS) if text in prompt.text)


def complaint_in(prompt: Prompt) -> str:
    return re.search(r"Complaint: (.*)", prompt.text)[1]


def test_each_of_the_32_subsets_is_asked_about_each_complaint_once() -> None:
    engine = ScriptedEngine([("", REPLY)])
    scores = measured({}, 7, engine)
    every = {subset for n in range(6) for subset in itertools.combinations(range(5), n)}
    asked = [(lessons_in(prompt), complaint_in(prompt)) for prompt in engine.prompts]
    assert len(asked) == 32 * 7
    assert set(asked) == set(itertools.product(every, (c.complaint for c in COMPLAINTS[:7])))
    assert {len(values) for values in scores.values()} == {7}


def test_a_score_stands_where_its_complaint_stands() -> None:
    own = re.escape(COMPLAINTS[2].complaint)
    engine = ScriptedEngine([(own, REPLY), ("", "No.")])
    scores = measured({}, 5, engine)
    assert all(values == [0, 0, pytest.approx(0.4), 0, 0] for values in scores.values())


def test_more_complaints_cost_only_what_is_new() -> None:
    scores = measured({}, 3, ScriptedEngine([("", REPLY)]))
    engine = ScriptedEngine([("", REPLY)])
    measured(scores, 6, engine)
    new = {example.complaint for example in COMPLAINTS[3:6]}
    assert len(engine.prompts) == 32 * 3
    assert {complaint_in(prompt) for prompt in engine.prompts} == new


def test_a_run_that_broke_off_goes_on_from_what_was_saved() -> None:
    begun = itertools.count()

    def break_off(_: Prompt) -> None:
        if next(begun) == 23:
            raise ValueError

    scores: dict[str, list[float]] = {}
    with pytest.raises(LMUnexpectedError):
        measured(scores, 5, ScriptedEngine([("", REPLY)], before=break_off))
    n_saved = sum(map(len, scores.values()))
    assert n_saved == 20
    engine = ScriptedEngine([("", REPLY)])
    measured(scores, 5, engine)
    assert len(engine.prompts) == 32 * 5 - n_saved


def test_nothing_is_left_to_ask_once_all_is_scored() -> None:
    scores = measured({}, 5, ScriptedEngine([("", REPLY)]))
    engine = ScriptedEngine([("", REPLY)])
    measured(scores, 5, engine)
    assert not engine.prompts


def test_results_of_other_lessons_are_not_gone_on_from(tmp_path) -> None:
    path = tmp_path / "subsets.json"
    result = {"lessons": list(subsets.LESSONS), "scores": {"1": [0.2]}, "gate_runs": []}
    path.write_text(subsets.written(result), encoding="utf-8")
    assert subsets.load_result(path)["scores"] == {"1": [0.2]}
    path.write_text(subsets.written(result | {"lessons": ["Be brief."]}), encoding="utf-8")
    assert subsets.load_result(path)["scores"] == {}


GOOD = "Sorry! Please tell us your order number, and we will send you a replacement at once."


def answer(prompt: Prompt) -> str:
    """Good with the second lesson; without it now and then, so that groups have contrast."""
    if subsets.LESSONS[1] in prompt.text or prompt.random().random() < 0.1:
        return GOOD
    return "Thank you for writing to us, we are glad to hear from you."


def test_a_compile_and_draws_name_what_the_gate_returned_and_what_it_falls_short_by() -> None:
    complaints = subsets.pool()
    with dspy.context(
        lm=lm_on(ScriptedEngine([("", answer)])), adapter=PlainAdapter(one_message=True)
    ):
        scores: dict[str, list[float]] = {}
        subsets.measure(scores, COMPLAINTS, 2, lambda: None)
        own = subsets.compiled(scores, complaints)
    draws = [subsets.drawn(run, scores, 100, 40) for run in range(3)]
    for found in (own, *draws):
        assert "2" in found["returned"].split("+")
        assert "2" in found["best"].split("+")
        assert found["held_out"] == pytest.approx(0.8, abs=0.02)
        assert 0 <= found["short_of_best"] <= 0.02
        assert found["short_of_best"] == pytest.approx(found["best_held_out"] - found["held_out"])
    assert 12 < own["metric_calls"] <= 12 + 200 + 40
    assert all(40 < found["rollouts"] <= 40 + 200 for found in draws)


def test_what_a_gate_never_saw_is_what_it_is_compared_on() -> None:
    scores = {subsets.name_of(subset): [0.0] * 10 for subset in subsets.SUBSETS}
    scores["2"], scores["3"] = [1.0] * 4 + [0.0] * 6, [0.0] * 4 + [0.5] * 6
    found = subsets.Comparison(scores, [0, 1, 2, 3], 10).of("2")
    assert (found["best"], found["best_held_out"], found["held_out"]) == ("3", 0.5, 0.0)


def test_the_table_has_a_row_for_each_subset_with_the_best_on_top() -> None:
    splits = ["validation", "test", "test", "validation", "test"]
    scores = {subsets.name_of(subset): [0.2] * 5 for subset in subsets.SUBSETS}
    scores["2+4"] = [0.4, 0.6, 1.0, 0.2, 0.8]
    rows = subsets.table(scores, splits)
    assert len(rows) == 32
    assert rows[0]["subset"] == "2+4"
    assert (rows[0]["validation"], rows[0]["test"]) == (0.3, 0.8)
