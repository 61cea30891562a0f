"""What people see while a compile runs: the bar, and log lines that do not tear it."""

import os
import re
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from runs import ADVICE, learned, library_texts
from warm import TESTS, Process, ran

from tfgrpo_dspy import NoGate

ENVIRONMENT = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "PATH": "/usr/bin:/bin"}
SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="LOG %(message)s")
from runs import learned

learned(progress=True, max_lm_calls=150)
"""


def script(code: str, columns: int = 200) -> str:
    """What a script writes to a terminal's error stream, carriage returns included."""
    ours, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (40, columns))
    try:
        done = Process(["-c", code], env=ENVIRONMENT, stderr=terminal)
    finally:
        os.close(terminal)
    with os.fdopen(ours, "rb", buffering=0) as shown:
        written = b"".join(iter(lambda: _read(shown), b""))
    assert done.wait(60) == 0, written.decode()
    return written.decode().replace("\r\n", "\n")


def _read(stream: Any) -> bytes:
    """The next bytes of a terminal; none at its end, which Linux reports as an error."""
    try:
        return bytes(stream.read(65536))
    except OSError:
        return b""


def states(shown: str) -> list[str]:
    """The states of the bar, in their order."""
    return [state for state in re.split(r"[\r\n]+", shown) if "% |" in state or "%|" in state]


@pytest.mark.timeout(60)
def test_log_lines_stand_above_the_bar_and_never_in_it() -> None:
    shown = script(SCRIPT)
    lines = [line.rpartition("\r")[2].strip() for line in shown.split("\n")]
    logged = [line for line in lines if "LOG update" in line]
    assert sum(line.startswith("LOG update") for line in logged) >= 3
    assert all("% |" not in line for line in logged)
    assert len([line for line in lines if "LOG update 1 " in line]) == 1  # not printed twice


COMPILE = """
from runs import learned
results = learned(progress=True, max_lm_calls=150).detailed_results
print(len(results.updates), file=open({out!r}, "w"))
"""


@pytest.mark.timeout(60)
def test_the_bar_shows_phase_calls_update_experiences_and_is_full_at_the_end(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    shown = states(script(COMPILE.format(out=str(out))))
    assert re.match("training: +0%", shown[0])
    end = rf"final choice: 100%.* \d+/150 calls, update {out.read_text().strip()}, 1 experience\]"
    assert re.match(end, shown[-1]), shown[-1]


@pytest.mark.timeout(60)
def test_a_file_gets_hardly_more_than_the_first_and_the_last_state(tmp_path: Path) -> None:
    code = COMPILE.format(out=str(tmp_path / "out"))  # less than a minute
    with (tmp_path / "log").open("w+", newline="") as log:
        ran(["-c", code], env=ENVIRONMENT, stderr=log, check=True)
        log.seek(0)
        shown = states(log.read())
    assert len(shown) <= 4
    assert shown[-1].startswith("final choice: ")
    assert "100%" in shown[-1]


def test_without_a_bar_the_error_stream_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    learned(progress=False)
    assert capsys.readouterr().err == ""


def test_a_service_without_an_error_stream_needs_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert library_texts(learned(progress=True, gate=NoGate())) == [ADVICE]
