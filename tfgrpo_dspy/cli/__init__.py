"""The command line `tfgrpo`, and `approve_in_terminal` for `TrainingFreeGRPO(approve=...)`."""

import os
import sys
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from tfgrpo_dspy.cli.approval import approve_in_terminal
from tfgrpo_dspy.cli.changing import bake, edit, export, gc, import_, merge
from tfgrpo_dspy.cli.reading import completion, diff, report, runs, show
from tfgrpo_dspy.cli.tables import examples, reflections, rollouts
from tfgrpo_dspy.cli.watching import watch
from tfgrpo_dspy.errors import TrainingFreeGRPOError
from tfgrpo_dspy.outside import printable

__all__ = ["approve_in_terminal", "main", "tfgrpo"]

NAME = "tfgrpo"
INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell reports SIGINT and SIGPIPE


class _Refused(click.ClickException):
    exit_code = 2


def _noted(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(printable(f"Note: {message}"), err=True)


class _Commands(click.Group):
    """The commands; what they raise becomes one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):  # a terminal may not have every character
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default", UserWarning)
                warnings.showwarning = _noted
                return super().invoke(ctx)
        except click.UsageError:
            raise
        except click.ClickException as error:
            raise _Refused(error.message) from error
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader, such as `head`, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(PIPE_CLOSED)
        except TrainingFreeGRPOError as error:
            click.echo(getattr(error, "text", ""), nl=False)  # what could be kept nowhere else
            raise _Refused(str(error)) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise _Refused(f"{where}{error.strerror or error}; check the path.") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tfgrpo-dspy", message="%(prog)s %(version)s")
def tfgrpo() -> None:
    """Look at runs of TrainingFreeGRPO, and work with what they learned.

    A LIBRARY is a library file (json, yaml, md, csv, txt, skill), a program saved by
    `program.save("program.json")`, a run directory (the `log_dir` of a compile; its last run), a
    run of it (RUN_DIR#ID; `tfgrpo runs` shows the ids), or - for standard input.

    Exit codes: 0 done; 1 `diff` found a difference, or `runs` no run; 2 wrong usage, or a file
    that cannot be used; 130 interrupted; 141 the reader of the output ended first.
    """


for _command in (
    *(runs, watch, show, report, rollouts, reflections, examples, diff),
    *(merge, export, import_, bake, edit, gc, completion),
):
    tfgrpo.add_command(_command)


def main() -> None:
    """Run the command line with the arguments of the process, and exit."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # it was closed, as a service may do
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - till the exit
            setattr(sys, name, stream)
    tfgrpo.main(prog_name=NAME)
