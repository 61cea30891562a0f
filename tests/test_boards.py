"""What boards and the terminal show of a run: Weights & Biases offline, trackio, `tfgrpo watch`."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from click.testing import CliRunner
from runs import (
    AtCall,
    is_polite,
    learned,
    optimizer_of,
    polite_lm,
    polite_rules,
    predictor,
    questions,
)
from scripted import scripted_lm
from warm import ENVIRONMENT, Process

from tfgrpo_dspy import SettingsError
from tfgrpo_dspy.cli import tfgrpo
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


def test_watching_a_finished_run_shows_its_updates_and_its_end(tmp_path: Path) -> None:
    results = learned(log_dir=tmp_path).detailed_results
    head, columns, *lines, ended, scores = watched(tmp_path).splitlines()
    assert head.startswith("run ")
    assert columns.split()[:3] == ["update", "epoch", "examples"]
    shown = [[*line.split()[:4], line.split()[6]] for line in lines]
    assert shown == [
        [*map(str, (n, one.epoch + 1, len(one.groups))), _mean(one.scores), str(one.library_size)]
        for n, one in enumerate(results.updates, start=1)
    ]
    assert "1 added" in "".join(lines)
    assert max(map(len, lines)) <= 80
    assert (ended, scores) == (results.ended, results.in_a_line)
    _, _, columns, first, *_, narrow_ended, _ = watched(tmp_path, width="30").splitlines()
    assert columns.split() == ["update", "score", "LM", "calls", "changes"]
    assert first.split() == ["1", shown[0][3], lines[0].split()[5], "1", "added"]
    assert narrow_ended == ended


def _mean(scores: list[float]) -> str:
    return f"{sum(scores) / len(scores):.3f}"


def watched(log_dir: Path, *options: str, width: str = "80") -> str:
    arguments = ["watch", str(log_dir), "--every", "0.05", *options]
    result = CliRunner().invoke(tfgrpo, arguments, env={"COLUMNS": width})
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    return result.output


def test_watching_shows_what_a_provider_says_without_obeying_it(tmp_path: Path) -> None:
    fault = dspy.LMError("\x1b]0;owned\x07\u202e [bold]full[/]")
    found = (r"`(?:lessons|semantic_advantage)`", fault)
    learned(lm=scripted_lm([found, *polite_rules()], num_retries=0), log_dir=tmp_path, batch_size=1)
    assert r"\x1b]0;owned\x07\u202e [bold]full[/]" in watched(tmp_path)


@pytest.mark.parametrize("board", [None, "wandb", object()])
def test_what_is_no_board_is_refused_before_the_run(board: Any) -> None:
    with pytest.raises(SettingsError, match=r"^board=.* has no 'log': pass the module"):
        BoardListener(board)


def test_a_time_between_two_looks_is_above_zero(tmp_path: Path) -> None:
    result = CliRunner().invoke(tfgrpo, ["watch", str(tmp_path), "--every", "-1"])
    assert (result.exit_code, "x>0" in result.stderr) == (2, True)


def test_watching_without_rich_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    result = CliRunner().invoke(tfgrpo, ["watch", str(tmp_path)])
    assert result.exit_code == 2
    assert 'pip install "tfgrpo-dspy[watch]"' in result.output


def test_a_run_that_measures_its_test_set_has_not_ended(tmp_path: Path) -> None:
    (last,), shown = questions(1, start=200), []

    def metric(example: Any, pred: Any, trace: Any = None) -> dspy.Prediction:
        if example.question == last.question:
            shown.append(watched(tmp_path, "--once"))
        return is_polite(example, pred, trace)

    with dspy.context(lm=polite_lm()):
        optimizer = optimizer_of(metric=metric, log_dir=tmp_path, num_threads=1)
        sets = {"trainset": questions(6), "valset": questions(12, 100), "testset": [last]}
        optimizer.compile(predictor(), **sets)
    assert shown
    assert not re.search("ended|finished", "".join(shown), re.IGNORECASE)


def test_watching_a_run_that_goes_on_shows_what_comes_until_it_ends(tmp_path: Path) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert goes_on.wait(60)

    lm, settings = polite_lm(before=AtCall(48, hold)), {"batch_size": 2, "num_threads": 1}
    compile_ = threading.Thread(target=lambda: learned(lm=lm, log_dir=tmp_path, **settings))
    compile_.start()
    try:
        assert begun.wait(60)
        early = watched(tmp_path, "--once")
        screen = on_a_terminal(tmp_path, goes_on.set)
    finally:
        goes_on.set()
    compile_.join()
    whole = watched(tmp_path)
    assert "Ended after" not in early
    assert 5 < len(early.splitlines()) < len(whole.splitlines()) - 2
    latest, *_, end = screen.split("\x1b[2K")  # each drawing but the first clears the lines
    assert as_lines(latest)[-3:] == as_lines(early)[-3:]  # what the terminal has room for
    assert as_lines(end) == as_lines(whole)[1:]


def as_lines(text: str) -> list[str]:
    return [line.strip() for line in re.sub(r"\x1b\[[?\d]*\w", "", text).strip().splitlines()]


def on_a_terminal(log_dir: Path, once_shown: Callable[[], None]) -> str:
    """What `watch` writes to a terminal of six lines."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 6, 80, 0, 0))
    command = ["-m", "tfgrpo_dspy", "watch", log_dir, "--every", "0.05"]
    child = Process(command, stdout=end, stderr=end, env=ENVIRONMENT | {"TERM": "xterm"})
    screen = ""
    os.close(end)
    with contextlib.suppress(OSError):  # the child has ended
        while True:
            screen += os.read(terminal, 10_000).decode()
            if screen.count("update") > 1:  # the table was drawn twice
                once_shown()
    os.close(terminal)
    child.wait(60)
    return screen
