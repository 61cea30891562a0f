"""The command `watch`: shows the updates of a run as they are decided, until it ends."""

import statistics
import threading
from collections import Counter

import click

from tfgrpo_dspy.cli.reading import run_of
from tfgrpo_dspy.cli.sources import read_source
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.results.records import CHANGES_IN_WORDS, UpdateRecord

COLUMNS = ("update", "epoch", "examples", "score", "lessons", "LM calls", "library", "changes")
ROW = "{:>6}  {:>5}  {:>8}  {:>7}  {:>7}  {:>8}  {:>7}  {}"


def _row(record: UpdateRecord) -> str:
    """The update in a line, with as few columns as a narrow terminal shows."""
    kinds = Counter(CHANGES_IN_WORDS[change.kind] for change in record.changes)
    scores = record.scores
    return ROW.format(
        record.update + 1,
        record.epoch + 1,
        len(record.groups),
        f"{statistics.fmean(scores):z.3f}" if scores else "-",
        len(record.lessons),
        f"{record.n_lm_calls:,}",
        record.library_size,
        ", ".join(f"{n} {kind}" for kind, n in kinds.items()),
    ).rstrip()


@click.command()
@click.argument("run_dir", type=click.Path(file_okay=False))
@click.option("--every", default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Show what is there, and end.")
def watch(run_dir: str, every: float, once: bool) -> None:
    """Show a line for each update of a run, also of one that goes on, and its end.

    RUN_DIR is the log_dir of a compile (its last run), or RUN_DIR#ID. Ctrl-C ends the watching, and
    changes nothing of the run. A run that was killed has no end: nothing more comes.
    """
    run = run_of(read_source(run_dir))
    name = f"{run.results.origin['log_dir']}#{run.id}"  # also if another run begins
    click.echo(f"run {run.id[:8]}, begun {run.begun}\n{ROW.format(*COLUMNS)}")
    n_shown = 0
    while True:
        for record in run.results.updates[n_shown:]:
            click.echo(_row(record))
        n_shown = len(run.results.updates)
        if run.is_finished:
            click.echo(printable(f"{run.results.ended}\n{run.results.in_a_line}"))
        if run.is_finished or once:
            return
        threading.Event().wait(every)
        run = run_of(read_source(name))
