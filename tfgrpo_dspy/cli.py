"""The command line `tfgrpo`: looks at runs, and at the libraries that they learned."""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from tfgrpo_dspy import files, interchange
from tfgrpo_dspy.errors import StoreError, TrainingFreeGRPOError
from tfgrpo_dspy.experience import ExperienceLibrary, library_of
from tfgrpo_dspy.listeners import as_columns
from tfgrpo_dspy.report import html
from tfgrpo_dspy.results import RunResults, strongest_first
from tfgrpo_dspy.store import DATABASE, saved_rows, saved_runs
from tfgrpo_dspy.text import aligned, printable, shortened

SHOWN_BYTES = 60  # of a cell in the terminal
NOT_SHOWN = ("rollout_id", "n_demos", "n_tokens", "dollars", "explanation")  # for want of room


class _Commands(click.Group):
    """The commands; what they raise becomes one line on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):  # a terminal may not have every character
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except TrainingFreeGRPOError as error:
            raise click.UsageError(printable(str(error))) from error
        except BrokenPipeError:
            raise  # click ends quietly: the reader, such as `head`, has what it wanted
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.UsageError(f"{where}{error.strerror or error}; check the path.") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tfgrpo-dspy", message="%(prog)s %(version)s")
def tfgrpo() -> None:
    """Look at runs of TrainingFreeGRPO, and at what they learned.

    A RUN_DIR is the log_dir of a compile, of which the last run counts; RUN_DIR#ID is the run whose
    id begins so (`tfgrpo runs` shows the ids). A LIBRARY is a run, a library file (.json, .md,
    SKILL.md), or a program saved by `program.save("program.json")`.

    Exit codes: 0 done; 1 `diff` found a difference, or `runs` no run; 2 wrong usage, or a file
    that cannot be used.
    """


def main() -> None:
    """Run the command line with the arguments of the process, and exit."""
    tfgrpo.main(prog_name="tfgrpo")


def _run(name: str) -> RunResults | None:
    """The run that RUN_DIR or RUN_DIR#ID names; None: a file. Raises StoreError: no such run."""
    folder, _, run_id = (name, "", "") if Path(name).exists() else name.rpartition("#")
    if not Path(folder or name).is_dir():
        return None
    by_id = {run.origin["run"]: run for run in saved_runs(folder)}
    matching = [run for id_, run in by_id.items() if id_.startswith(run_id)]
    if not matching or (run_id and len(matching) > 1):
        ids = ", ".join(id_[:8] for id_ in by_id) or "no run yet"
        fault = "several runs" if matching else "no run"
        raise StoreError(f"{name}: {fault} of that id; the store holds {ids}.")
    return matching[-1]


def _existing_run(name: str) -> RunResults:
    return _run(name) or saved_runs(name)[-1]  # which says that it is no run store


def _library(name: str) -> ExperienceLibrary:
    """The library that LIBRARY names. Raises LibraryFormatError, StoreError, OSError."""
    if run := _run(name):
        return run.experiences
    text, format = files.read_text(name), interchange.format_of(name)
    if format != "json" or '"signature"' not in text:
        return interchange.parse(text, format, source=name)
    state = files.json_value(text, name)  # of a program, whose class is not needed
    states = {"self": state, **state} if isinstance(state, dict) else {}
    signatures = {n: each.get("signature") for n, each in states.items() if isinstance(each, dict)}
    return library_of({n: s["instructions"] for n, s in signatures.items() if isinstance(s, dict)})


def _write(path: str, text: str) -> None:
    if path == "-":
        click.echo(printable(text) if sys.stdout.isatty() else text.encode(), nl=False)
    else:
        files.write_text(path, text)


def _write_library(library: ExperienceLibrary, path: str, format: str | None = None) -> None:
    format = format or ("json" if path == "-" else interchange.format_of(path))
    _write(path, interchange.render(library, format))


def _echo(
    rows: Iterable[Mapping[str, Any]], as_json: bool, none: str, most_bytes: int = sys.maxsize
) -> None:
    """Print the rows as JSON, or in aligned columns below the names of their values."""
    if as_json:
        _echo_json([*rows])
        return

    def cell(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return {None: "-", True: "yes", False: "no"}[value]
        if isinstance(value, int | float):
            return f"{value:,}" if isinstance(value, int) else f"{value:z.3f}"
        return printable(shortened(" ".join(value.split()), most_bytes))

    cells = [[*map(cell, row.values())] for row in rows]
    head = [name.removeprefix("n_").replace("_", " ") for row in rows for name in row]
    click.echo("\n".join(aligned([head[: len(cells[0])], *cells])) if cells else none)


def _echo_json(value: Any) -> None:
    """Print the value as JSON; null stands for numbers that JSON does not have."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    click.echo(json.dumps(finite, indent=2))


library_argument = click.argument("library", type=click.Path())
run_argument = click.argument("run_dir", type=click.Path())
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
output = click.option(
    "-o", "--output", "out", default="-", type=click.Path(), help="A file; by default stdout."
)


@tfgrpo.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False), default=".")
@as_json
@click.pass_context
def runs(ctx: click.Context, folder: str, as_json: bool) -> None:
    """List the runs of the run stores in FOLDER and below, by the time when they were begun.

    Before and after are the mean validation scores of student and result.
    """
    listed: list[RunResults] = []
    faults: list[StoreError] = []
    for store in sorted(path.parent for path in Path(folder).rglob(DATABASE)):
        try:
            listed += saved_runs(store)
        except StoreError as error:  # the other stores can be listed
            faults.append(error)
    rows = [
        {
            "run": run.origin["run"] if as_json else run.origin["run"][:8],
            "begun": run.origin["begun"],
            "finished": run.is_finished,
            "before": run.student and run.student.mean,
            "after": run.best and run.best.mean,
            "n_experiences": len(run.experiences),
            "n_LM_calls": run.spent.n_lm_calls,
            "dollars": float(run.spent.cost_usd),
            "run_dir": run.origin["log_dir"],
        }
        for run in sorted(listed, key=lambda run: run.origin["begun"])
    ]
    if rows or as_json:
        _echo(rows, as_json, "")
    elif not faults:
        click.echo(f"no runs in {folder}: pass the log_dir of a compile, or above", err=True)
    for fault in faults:
        click.echo(f"Error: {fault}", err=True)
    ctx.exit(2 if faults else 0 if rows else 1)


@tfgrpo.command()
@library_argument
@click.option("--full", is_flag=True, help="Of a run: its results, as print(detailed_results).")
@as_json
def show(library: str, full: bool, as_json: bool) -> None:
    """Show the experiences of LIBRARY.

    The effect is what an experience adds to the score; low and high bound it with 95 %
    confidence. Rollouts: how many were given it. Groups: from how many it was learned.
    """
    results = _existing_run(library) if full else _run(library)
    if results and full:
        _echo_json(results.to_dict()) if as_json else click.echo(printable(str(results)))
        return
    rows = [
        {
            "id": each.id,
            "effect": each.effect and each.effect.estimate,
            "low": each.effect and each.effect.bounds[0],
            "high": each.effect and each.effect.bounds[1],
            "n_rollouts": each.effect and each.effect.n_rollouts,
            "n_tokens": each.n_tokens,
            "n_groups": len(each.evidence),
            "scope": each.scope,
            "text": each.text,
        }
        for each in strongest_first(results.experiences if results else _library(library))
    ]
    _echo(rows, as_json, "no experiences")
    if results and not as_json:
        click.echo(f"adds {results.added}")


@tfgrpo.command()
@run_argument
@click.option("-o", "--output", default="report.html", show_default=True, type=click.Path())
def report(run_dir: str, output: str) -> None:
    """Write the report of a run as an HTML page; with `-o -` to stdout."""
    _write(output, html(_existing_run(run_dir)))
    if output != "-":
        click.echo(output)


@tfgrpo.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.pass_context
def diff(ctx: click.Context, a: str, b: str) -> None:
    """Compare two libraries: + only in B, - only in A, ~ changed. Exit code 1: they differ.

    Texts and scopes are compared; ids, effects and evidence are not. Where no text is the same, two
    experiences of one id count as changed.
    """
    text = _library(a).diff(_library(b))
    if text:
        click.echo(printable(text))
    ctx.exit(1 if text else 0)


@tfgrpo.command()
@library_argument
@output
@click.option("--format", type=click.Choice(interchange.FORMATS), help="By default that of OUTPUT.")
def export(library: str, out: str, format: str | None) -> None:
    """Write LIBRARY as JSON, YAML, Markdown, SKILL.md or CSV."""
    _write_library(_library(library), out, format)


@tfgrpo.command()
@library_argument
@click.argument("others", type=click.Path(), nargs=-1, required=True)
@output
def merge(library: str, others: tuple[str, ...], out: str) -> None:
    """Merge libraries: LIBRARY keeps its ids, and gets what OTHERS have besides.

    The same text in the same scope is kept once, with the evidence of both.
    """
    libraries = map(_library, (library, *others))
    _write_library(functools.reduce(ExperienceLibrary.merge, libraries), out)


def _rows_command(name: str, help: str) -> Callable[..., None]:
    """A command that shows the rows of this name in a run."""

    def show(run_dir: str, as_json: bool) -> None:
        rows = as_columns(saved_rows(_existing_run(run_dir), name))
        if not as_json:
            rows = [{k: v for k, v in row.items() if k not in NOT_SHOWN} for row in rows]
        _echo(rows, as_json, f"no {name}", most_bytes=SHOWN_BYTES)

    more = "Long texts are cut; --json has them whole, and more columns."
    return tfgrpo.command(name, help=f"{help}\n\n{more}")(run_argument(as_json(show)))


rollouts = _rows_command(
    "rollouts", "Show the rollouts of a run: score, outputs, feedback, and what each was given."
)
reflections = _rows_command(
    "reflections", "Show what the reflection LM was asked and answered, also what was not read."
)
