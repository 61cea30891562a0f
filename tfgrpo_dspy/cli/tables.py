"""The commands that show what a run has made, as tables: rollouts, reflections, examples."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import click

from tfgrpo_dspy.cli.output import echo_json, table, write
from tfgrpo_dspy.cli.reading import as_json, run_of
from tfgrpo_dspy.cli.sources import read_source
from tfgrpo_dspy.files import write_bytes
from tfgrpo_dspy.interchange.csv_tables import csv_text
from tfgrpo_dspy.results.rows import as_columns
from tfgrpo_dspy.store.runs import SavedRun, saved_rows
from tfgrpo_dspy.wording import shortened

SHOWN_BYTES = 60  # of a cell in the terminal
NOT_SHOWN = ("rollout_id", "n_demos", "n_tokens", "dollars", "explanation")  # for want of room


def _command(name: str, read: Callable[[SavedRun], Sequence[Any]], help: str) -> click.Command:
    """A command that shows the rows which `read` finds in a run."""

    def show(run_dir: str, as_json: bool, as_csv: bool, parquet: str | None) -> None:
        if as_json and as_csv:
            raise click.UsageError(f"{run_dir}: pass --json or --csv, not both.")
        rows = as_columns(read(run_of(read_source(run_dir))))
        if parquet is not None:
            _write_parquet(rows, parquet)
        if as_json:
            echo_json(rows)
        elif as_csv:
            write("-", csv_text(rows))
        elif parquet is None:
            shown = [{k: _short(v) for k, v in row.items() if k not in NOT_SHOWN} for row in rows]
            click.echo(table(shown) if shown else f"no {name}")

    for decorator in (
        click.option("--parquet", type=click.Path(), help="Write this Parquet file."),
        click.option("--csv", "as_csv", is_flag=True, help="Print CSV."),
        as_json,
        click.argument("run_dir", type=click.Path(file_okay=False)),
    ):
        show = decorator(show)
    return click.command(name, help=help)(show)


def _short(value: Any) -> Any:
    return shortened(value, SHOWN_BYTES) if isinstance(value, str) else value


def _write_parquet(rows: list[dict[str, Any]], path: str) -> None:
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        install = 'pip install "tfgrpo-dspy[parquet]"'
        raise click.UsageError(f"--parquet {path} needs the package pyarrow: {install}") from error
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), data)
    write_bytes(path, data.getvalue())


_WHERE = """RUN_DIR is the log_dir of a compile (its last run), or RUN_DIR#ID. Long texts are cut in
    the table; --csv, --json and --parquet have them whole, and more columns."""

rollouts = _command(
    "rollouts",
    lambda run: saved_rows(run, "rollouts"),
    f"""Show the rollouts of a run: score, outputs, feedback, and what each was given.

    {_WHERE} Of a run that goes on, those of decided updates are there.""",
)
reflections = _command(
    "reflections",
    lambda run: saved_rows(run, "reflections"),
    f"""Show what the reflection LM was asked and answered, also what could not be read.

    {_WHERE}""",
)
examples = _command(
    "examples",
    lambda run: run.results.examples,
    f"""Show what student and result scored on each validation and test example, worst first.

    {_WHERE}""",
)
