"""The command `watch`: shows the updates of a run as they are decided, until it ends."""

import threading
from collections.abc import Sequence
from typing import Any

import click

from tfgrpo_dspy.cli.output import cell
from tfgrpo_dspy.cli.reading import run_of
from tfgrpo_dspy.cli.sources import read_source
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.results.records import UpdateRecord

NARROW = ("update", "score", "LM calls", "changes")
WIDE = ("update", "epoch", "examples", "score", "lessons", "LM calls", "library", "changes")
WIDE_FROM = 72  # characters of a terminal
N_OTHER_LINES = 3  # of a terminal, beside those of the updates


def _table(updates: Sequence[UpdateRecord], width: int) -> Any:
    from rich.table import Table  # noqa: PLC0415 - an extra

    names, gap = (WIDE, 2) if width >= WIDE_FROM else (NARROW, 1)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name == "changes" else "right", overflow="fold")
    for update in updates:
        values = {
            "update": update.update + 1,
            "epoch": update.epoch + 1,
            "examples": len(update.groups),
            "score": update.mean_score,
            "lessons": len(update.lessons),
            "LM calls": update.n_lm_calls,
            "library": update.library_size,
            "changes": update.changes_in_words,
        }
        table.add_row(*(cell(values[name]) for name in names))
    return table


@click.command()
@click.argument("run_dir", type=click.Path(file_okay=False))
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Show what is there, and end.")
def watch(run_dir: str, every: float, once: bool) -> None:
    """Show a row for each update of a run, also of one that goes on, and its end.

    RUN_DIR is the log_dir of a compile (its last run), or RUN_DIR#ID. Ctrl-C ends the watching, and
    changes nothing of the run. A run that was killed has no end. Where the output is no terminal,
    the table is written when the watching ends.
    """
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.live import Live  # noqa: PLC0415
    except ImportError as error:
        install = 'pip install "tfgrpo-dspy[watch]"'
        raise click.UsageError(f"watch needs the package rich: {install}") from error

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # the BrokenPipeError; rich itself would exit with 1

    run = run_of(read_source(run_dir))
    name = f"{run.results.origin['log_dir']}#{run.id}"  # also if another run begins
    console = Output(markup=False, emoji=False, highlight=False)
    console.print(printable(f"run {run.id[:8]}, begun {run.begun}"), style="bold")
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not (run.is_finished or once):
                latest = run.results.updates[-max(1, console.height - N_OTHER_LINES) :]
                live.update(_table(latest, console.width), refresh=True)
                threading.Event().wait(every)
                run = run_of(read_source(name))
    finally:  # also after Ctrl-C
        console.print(_table(run.results.updates, console.width))
    if run.is_finished:
        console.print(printable(f"{run.results.ended}\n{run.results.in_a_line}"), soft_wrap=True)
