"""Asks a person at the terminal whether an update may be made."""

import contextlib
import dataclasses
import json
import select
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from tfgrpo_dspy.cli.editing import edited
from tfgrpo_dspy.errors import LibraryError, NoTerminalError
from tfgrpo_dspy.events import Approval, Proposal
from tfgrpo_dspy.experience.library_files import json_value
from tfgrpo_dspy.experience.values import NO_LIMITS, Add, Operation, operation_from
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.results.records import Comparison, RolloutSummary
from tfgrpo_dspy.user_code import check_wanted
from tfgrpo_dspy.wording import counted

TERMINAL = "/dev/tty"  # also where stdin is piped
POLL_S = 0.05  # how often it is looked whether the run has ended
INDENT = "\n           "  # of further lines of an attempt
QUESTION = "Make this update? [y]es / [n]o / [e]dit: "
_HINT = """\
# One operation on each line: "op" is ADD, MODIFY, DELETE or KEEP. Remove lines that you do not
# want. "n" joins a line to the evidence of the proposed operation of that number.
"""
_one_at_a_time = threading.Lock()  # several compiles may ask at once


def approve_in_terminal(proposal: Proposal) -> Approval:
    """The answer of the person at the terminal: for `TrainingFreeGRPO(approve=...)`.

    It shows the operations with reasons, evidence and effects, and what they would change; the
    person makes all or none of them, or edits them in $VISUAL or $EDITOR.

    Raises:
        NoTerminalError: the process has no terminal.
    """
    with _one_at_a_time, _terminal() as terminal:
        check_wanted()
        terminal.show(_page(proposal))
        while True:
            answer = terminal.ask(QUESTION).lower()[:1]
            try:
                if answer in ("y", "n"):
                    return answer == "y"
                if answer == "e" and (chosen := _edited(proposal)) is not None:
                    return chosen
            except (LibraryError, click.ClickException) as error:
                terminal.show(f"Error: {error}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Terminal:
    reader: TextIO
    writer: TextIO

    def show(self, text: str) -> None:
        print(printable(text), file=self.writer, flush=True)

    def ask(self, question: str) -> str:
        self.writer.write(question)
        self.writer.flush()
        while not self._is_answered():
            check_wanted()
        check_wanted()  # what is typed after the end of the run is for somebody else
        if not (line := self.reader.readline()):
            raise NoTerminalError(
                f"{QUESTION!r} was not answered: the terminal was closed. Start the same compile "
                f"again; with a log_dir it goes on from there."
            )
        return line.strip()

    def _is_answered(self) -> bool:
        try:
            return bool(select.select([self.reader], [], [], POLL_S)[0])
        except (OSError, ValueError):  # Windows: reading waits until there is a line
            return True


@contextlib.contextmanager
def _terminal() -> Iterator[_Terminal]:
    reader: TextIO
    writer: TextIO
    with contextlib.ExitStack() as stack:
        try:
            reader = stack.enter_context(Path(TERMINAL).open(errors="replace"))
            writer = stack.enter_context(Path(TERMINAL).open("w", errors="backslashreplace"))
        except OSError as error:  # there is none, or this is Windows
            reader, writer = sys.stdin, sys.stderr
            if not (reader and writer and reader.isatty() and writer.isatty()):
                raise NoTerminalError(
                    f"approve=approve_in_terminal has no terminal to ask at ({error}): start the "
                    f"compile in one, or pass a function of your own."
                ) from error
        yield _Terminal(reader, writer)


def _page(proposal: Proposal) -> str:
    library, n = proposal.library, counted(len(proposal.operations), "operation")
    held = counted(len(library), "experience")
    lines = ["", f"Update {proposal.update + 1}: {n} on {held}"]
    pairs = zip(proposal.operations, proposal.comparisons, strict=True)
    for number, (operation, comparisons) in enumerate(pairs, start=1):
        id_ = "" if isinstance(operation, Add) else operation.id
        lines += ["", f"{number}. {operation.op} {id_ or getattr(operation, 'text', '')}".rstrip()]
        lines += [f"   reason: {operation.reason}"] if operation.reason else []
        lines += [f"   now: {library[id_]}"] if id_ in library else []
        n_rollouts = counted(sum(len(each.scores) for each in operation.evidence), "rollout")
        lines += [f"   evidence: {counted(len(operation.evidence), 'group')}, {n_rollouts}"]
        lines += [line for each in comparisons for line in _compared(each)]
    return "\n".join([*lines, "", "The library would change so:", proposal.diff or "not at all"])


def _compared(comparison: Comparison) -> list[str]:
    good, bad = comparison.good, comparison.bad
    is_equal = good.score == bad.score
    first, second, why = ("one", "other", "says") if is_equal else ("best", "worst", "why")
    shown = [(first, _attempt(good))] + [(second, _attempt(bad))] * (good != bad)
    return [
        f"   example {comparison.example}: {comparison.inputs}",
        *(f"     {name:<5} {text}" for name, text in [*shown, (why, comparison.advantage or "-")]),
    ]


def _attempt(attempt: RolloutSummary) -> str:
    score = "no score" if attempt.score is None else f"{attempt.score:z.2f}"
    shown = filter(None, [score, attempt.outputs, attempt.feedback])
    return " | ".join(shown).replace("\n", INDENT)


def _edited(proposal: Proposal) -> list[Operation] | None:
    """The operations as the user edited them; None: not changed. Raises as `edited` does."""
    numbered = enumerate(proposal.operations, start=1)
    lines = [json.dumps(_values(n, one), ensure_ascii=False) + "\n" for n, one in numbered]
    return edited("".join([_HINT, *lines]), lambda text: _read(text, proposal), ".jsonl")


def _values(number: int, operation: Operation) -> dict[str, Any]:
    values = {"n": number, "op": operation.op, **dataclasses.asdict(operation)}
    return {k: v for k, v in values.items() if k != "evidence" and v not in (None, "")}


def _read(text: str, proposal: Proposal) -> list[Operation]:
    """The operations in an edited text. Raises LibraryError: names the line and what is wrong."""
    proposed = {str(n): operation for n, operation in enumerate(proposal.operations, start=1)}
    operations = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        values = json_value(line, f"line {number}")
        operation = operation_from(values)
        same = proposed.get(str(values.get("n")))
        if same is not None and type(same) is type(operation):
            operation = dataclasses.replace(operation, evidence=same.evidence)
        operations.append(operation)
    if refused := proposal.library.refusals(operations, NO_LIMITS):
        raise LibraryError("; ".join(f"{each.operation}: {each.reason}" for each in refused))
    return operations
