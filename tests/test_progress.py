"""What people see while a compile runs: the bar, and log lines that do not tear it."""

import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import learned, polite_lm, predictor, questions
from small import grpo

TESTS = Path(__file__).parent
SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="LOG %(message)s")
import dspy
from runs import learned
logging.getLogger("dspy").setLevel(logging.INFO)

def tell(event):
    logging.getLogger("dspy.tests").info("from DSPy %s", type(event).__name__)

learned(progress=True, on_event=tell, max_lm_calls=150)
"""


def script(code: str) -> str:
    """What a script writes to a terminal's error stream, carriage returns included."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stderr.decode()


@pytest.mark.timeout(60)
def test_log_lines_stand_above_the_bar_and_never_in_it() -> None:
    shown = script(SCRIPT)
    lines = [line.rpartition("\r")[2].strip() for line in shown.split("\n")]
    logged = [line for line in lines if "LOG update" in line or "from DSPy" in line]
    assert sum(line.startswith("LOG update") for line in logged) >= 3
    assert sum("from DSPy UpdateDecided" in line for line in logged) >= 3
    assert all("rollout/s" not in line and "%|" not in line for line in logged)
    assert len([line for line in lines if "LOG update 1 " in line]) == 1  # not printed twice


def bars(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The states of the bar, in their order."""
    return [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if "rollout" in line]


def test_the_bar_shows_phase_update_scores_experiences_calls_of_the_budget_and_dollars(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = learned(progress=True, max_lm_calls=150)
    states = bars(capsys)
    assert states[0].startswith("training: ")
    assert states[-1].startswith("final choice: ")
    found = re.search(
        r"update (\d+), 1 experience, student ([\d.]+), best ([\d.]+), \d+/150 LM calls, \$0\.0",
        states[-1],
    )
    assert found is not None
    assert int(found[1]) == len(program.detailed_results.updates)
    results = program.detailed_results
    shown = [f"{mean:.3f}" for mean in (results.student.mean, results.best.mean)]
    assert [found[2], found[3]] == shown  # on validation, at the end
    n_rollouts = sum(
        program.detailed_results.usage[r].n_lm_calls for r in ("rollout", "validation")
    )
    assert f" {n_rollouts}/" in states[-1]


def test_the_bar_is_refreshed_every_second_though_no_rollout_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hanging, waiting = threading.Event(), threading.Event()

    def before(_prompt: Any) -> None:
        hanging.set()
        waiting.wait(3.2)

    with dspy.context(lm=polite_lm(before=before)):
        grpo(lambda *_: 0.0, epochs=1, group_size=2, num_threads=1, max_minutes=3.0 / 60).compile(
            predictor(), trainset=questions(2), valset=questions(2, start=9)
        )
    waiting.set()
    seconds = {found[1] for state in bars(capsys) if (found := re.search(r"\[00:0(\d)<", state))}
    assert {"1", "2"} <= seconds


def test_without_a_bar_the_error_stream_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    learned(progress=False)
    assert capsys.readouterr().err == ""


def test_handlers_have_their_own_streams_again_after_two_compiles_at_once() -> None:
    handler = logging.StreamHandler(sys.stdout)
    logger = logging.getLogger("tfgrpo_dspy")
    logger.addHandler(handler)
    try:
        threads = [threading.Thread(target=lambda: learned(progress=True)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert handler.stream is sys.stdout
    finally:
        logger.removeHandler(handler)
