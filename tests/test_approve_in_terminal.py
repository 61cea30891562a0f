"""`approve_in_terminal` in real compiles, whose terminal is a pseudo-terminal."""

import os
import pty
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import ADVICE
from test_cli import LIBRARY, SEEN, editor
from warm import ENVIRONMENT, Process, ran

from tfgrpo_dspy.cli import approve_in_terminal
from tfgrpo_dspy.events import Proposal
from tfgrpo_dspy.experience.values import Add, Delete

CHILD = """
import fcntl, struct, sys, termios
fcntl.ioctl(2, termios.TIOCSCTTY, 0)  # stderr is the terminal; stdin is not
fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
from runs import learned, library_texts
from tfgrpo_dspy import NoGate
from tfgrpo_dspy.cli import approve_in_terminal
program = learned(approve=approve_in_terminal, gate=NoGate(), progress=True, max_staleness=0)
print(library_texts(program), dict(program.detailed_results.failures))
"""


def answered(folder: Path, *answers: str, **environment: str) -> tuple[str, str]:
    """What a compile prints, and its terminal, whose person gives these answers, then `n`."""
    terminal, child, printed = with_a_terminal(CHILD, folder, **environment)
    screen, given = "", list(answers)
    while True:
        try:
            screen += os.read(terminal, 10_000).decode()
        except OSError:  # the child has ended
            break
        if screen.endswith("[e]dit: "):
            os.write(terminal, f"{given.pop(0) if given else 'n'}\n".encode())
            screen += "\n"
    os.close(terminal)
    child.wait(60)
    return printed.read_text().strip(), screen


def with_a_terminal(code: str, folder: Path, **environment: str) -> tuple[int, Process, Path]:
    """A terminal, the process whose error stream it is, and the file that it prints to."""
    terminal, end = pty.openpty()
    with (folder / "printed").open("w") as out:
        child = Process(
            ["-c", code], env=ENVIRONMENT | environment, start_new_session=True,
            stdout=out, stderr=end,
        )  # fmt: skip
    os.close(end)
    return terminal, child, folder / "printed"


@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        (["y"], [ADVICE]),
        (["n"], []),
        (["what?", "y"], [ADVICE]),
        (["e"], [ADVICE.replace("say please", "beg")]),
    ],
)
def test_a_person_at_the_terminal_decides_what_an_update_may_do(
    answers: list[str], texts: list[str], tmp_path: Path
) -> None:
    beg = editor(tmp_path, "text = text.replace('say please', 'beg')")
    printed, screen = answered(tmp_path, *answers, **beg)
    assert printed == f"{texts} {{}}"
    page = screen[screen.index("Update 1") : screen.index("[y]es")]
    assert f"1. ADD {ADVICE}" in page and f"+ [E1] {ADVICE}" in page
    assert "evidence: 5 groups, 20 rollouts" in page and "0.00 | answer: no" in page
    assert "The better attempts follow the advice." in page
    before = screen[: screen.index("Update 1")].rstrip("\r\n")
    assert " calls, " in before and before.rpartition("\r")[2].isspace()  # the bar was wiped out
    assert "% |" not in page


@pytest.mark.parametrize(
    ("code", "operations"),
    [
        ("text = text.replace('Ask twice.', 'Ask.')", [Add("Ask.", evidence=SEEN)]),
        ("text += '{\"op\": \"ADD\", \"text\": \"Beg.\"}'",
         [Add("Ask twice.", evidence=SEEN), Add("Beg.")]),
        ("text = text.replace('ADD\", ', 'DELETE\", \"id\": \"E3\", ')", [Delete("E3")]),
    ],
    ids=["the same kind", "a new line", "another kind"],
)  # fmt: skip
def test_an_edited_operation_keeps_its_evidence_and_another_one_in_its_line_does_not_get_it(
    code: str, operations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in editor(tmp_path, code).items():
        monkeypatch.setenv(name, value)
    terminal, end = pty.openpty()
    monkeypatch.setattr("tfgrpo_dspy.cli.approval.TERMINAL", os.ttyname(end))
    os.write(terminal, b"e\n")
    chosen = approve_in_terminal(Proposal(0, LIBRARY, (Add("Ask twice.", evidence=SEEN),), ((),)))
    os.close(terminal)
    os.close(end)
    assert chosen == operations
    assert [each.evidence for each in chosen] == [each.evidence for each in operations]


def test_faults_in_edited_operations_are_said_and_asked_about_again(tmp_path: Path) -> None:
    bad = editor(tmp_path, 'text = text.replace(\'ADD", "\', \'DELETE", "id": "E9", "\')')
    printed, screen = answered(tmp_path, "e", "e", **bad)
    assert printed == "[] {}" and "there is no E9" in screen


def test_without_a_terminal_the_error_says_what_to_do() -> None:
    code = "from tfgrpo_dspy.cli import approve_in_terminal\napprove_in_terminal(None)"
    done = ran(["-c", code], start_new_session=True)
    assert done.stderr.splitlines()[-1].startswith("tfgrpo_dspy.errors.NoTerminalError: approve=")


LEFT_ALONE = """
import fcntl, termios
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
from runs import learned
from tfgrpo_dspy import NoGate
from tfgrpo_dspy.cli import approve_in_terminal
try:
    learned(approve=approve_in_terminal, gate=NoGate(), progress=False)
except KeyboardInterrupt as interrupt:
    with open("/dev/tty", "r+b", buffering=0) as terminal:
        terminal.write(b"next? ")
        print(terminal.readline().decode().strip(), interrupt.program is not None)
"""


def test_a_run_that_ends_while_it_asks_leaves_the_next_answer_to_the_script(
    tmp_path: Path,
) -> None:
    terminal, child, printed = with_a_terminal(LEFT_ALONE, tmp_path)
    screen = ""
    while not screen.endswith("next? "):
        screen += os.read(terminal, 10_000).decode()
        if screen.endswith("[e]dit: "):
            child.send_signal(signal.SIGINT)
    os.write(terminal, b"mine\n")
    assert child.wait(60) == 0
    os.close(terminal)
    assert printed.read_text().strip() == "mine True"
