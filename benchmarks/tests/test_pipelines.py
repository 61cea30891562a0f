"""The pipeline whose two lessons help only together: that the command runs, and its score."""

import json

import dspy
import pipelines
import pytest


@pytest.mark.parametrize("metric", [pipelines.judged, pipelines.judged_each])
def test_only_both_rules_together_score(metric):
    right, wrong = (
        dspy.Prediction(group="NORTH", answer="done-7"),
        dict(group="north", answer="done"),
    )
    assert metric(None, right).score == 1.0
    for name, value in wrong.items():
        assert metric(None, dspy.Prediction(**{**right.toDict(), name: value})).score == 0.0


def test_a_run_says_whether_both_lessons_are_in_the_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipelines, "ROWS", {"short": (0.05, 0.3, 200, False)})
    pipelines.main(["--seeds", "1", "--out", str(tmp_path / "pipelines.json")])
    (run,) = json.loads((tmp_path / "pipelines.json").read_text(encoding="utf-8"))["runs"]
    assert run["both"] and "1 of 1" in capsys.readouterr().out
