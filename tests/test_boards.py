"""What boards show of a run: Weights & Biases offline, trackio."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import (
    is_polite,
    optimizer_of,
    polite_lm,
    predictor,
    questions,
)

from tfgrpo_dspy import SettingsError
from tfgrpo_dspy.listeners.boards import BoardListener


class Board:
    """Has the functions of wandb and trackio, and keeps what it is told."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def log(self, figures: dict[str, Any], step: int) -> None:
        self.logged.append((step, figures))

    @staticmethod
    def Table(columns: list[str], data: list[list[Any]]) -> Any:  # noqa: N802 - as theirs
        return columns, data


def with_objectives(example: Any, pred: Any, trace: Any = None) -> dspy.Prediction:
    score = is_polite(example, pred, trace).score
    return dspy.Prediction(score=score, objectives={"polite": score, "brief": 1.0})


def compiled(listener: Any) -> Any:
    with dspy.context(lm=polite_lm(), adapter=None, callbacks=[]):
        optimizer = optimizer_of(metric=with_objectives, max_lm_calls=150, on_event=listener)
        sets = {
            "trainset": questions(6),
            "valset": questions(12, 100),
            "testset": questions(4, 200),
        }
        return optimizer.compile(predictor(), **sets).detailed_results


def test_a_board_is_told_each_update_the_scores_and_all_rollouts() -> None:
    board = Board()
    results = compiled(BoardListener(board))
    *updates, (last, end) = board.logged
    assert [step for step, _ in updates] == [update.update for update in results.updates]
    assert last == len(results.updates)
    for (_, figures), update in zip(updates, results.updates, strict=True):
        assert figures["training_objective.polite"] == pytest.approx(figures["training_score"])
        assert figures["lm_calls"] == update.n_lm_calls
        n_flat = sum(group.used_as == "no contrast" for group in update.groups)
        assert figures["groups_without_contrast"] == n_flat / len(update.groups)
    assert end["test_score"] == results.test.best.mean
    assert end["student_validation_score"] == results.student.mean
    assert end["validation_objective.brief"] == 1.0
    columns, data = end["rollouts"]
    n_training = sum(len(group.scores) for update in results.updates for group in update.groups)
    assert sum(row[columns.index("set")] == "training" for row in data) == n_training


@pytest.mark.timeout(180)
@pytest.mark.parametrize("board", ["wandb", "trackio"])
def test_the_real_boards_take_it(board: str, tmp_path: Path) -> None:
    pytest.importorskip(board, reason="the boards are in no extra: install wandb, trackio")
    folder = str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("board_child.py")), board],
        cwd=folder,
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": folder, "TRACKIO_DIR": folder,
             "HF_HUB_OFFLINE": "1", "WANDB_SILENT": "true",
             "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["failures"] == {}
    assert any(path.stat().st_size > 1000 for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("board", [None, "wandb", object()])
def test_what_is_no_board_is_refused_before_the_run(board: Any) -> None:
    with pytest.raises(SettingsError, match=r"^board=.* has no 'log': pass the module"):
        BoardListener(board)
