"""The commands that change nothing: runs, show, report, diff, completion."""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from tfgrpo_dspy.cli.output import echo_json, table, write
from tfgrpo_dspy.cli.sources import Source, read_source
from tfgrpo_dspy.errors import StoreError
from tfgrpo_dspy.experience.values import Experience
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.report import html
from tfgrpo_dspy.store.database import DATABASE
from tfgrpo_dspy.store.runs import SavedRun, runs_and_faults

FILE = click.Path(allow_dash=True)  # also a folder: shells complete both
FOLDER = click.Path(exists=True, file_okay=False)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("folder", type=FOLDER, default=".")
@as_json
@click.pass_context
def runs(ctx: click.Context, folder: str, as_json: bool) -> None:
    """List the runs of the run stores in FOLDER and below, by the time when they were begun.

    Before and after are the mean validation scores of student and result.
    """
    rows: list[dict[str, Any]] = []
    faults: list[StoreError] = []
    for store in sorted(path.parent for path in Path(folder).rglob(DATABASE)):
        try:
            runs, damaged = runs_and_faults(store)
            rows += [_run_values(str(store), run) for run in runs]
            faults += damaged
        except StoreError as error:  # the other stores can be listed
            faults.append(error)
    rows.sort(key=lambda run: run["begun"])
    if as_json:
        echo_json(rows)
    elif rows:
        click.echo(table([{**run, "run": run["run"][:8]} for run in rows]))
    elif not faults:
        click.echo(f"no runs in {folder}: pass the log_dir of a compile, or above", err=True)
    for fault in faults:
        click.echo(f"Error: {fault}", err=True)
    ctx.exit(2 if faults else 0 if rows else 1)


def _run_values(folder: str, run: SavedRun) -> dict[str, Any]:
    results, usage = run.results, run.results.usage.values()
    return {
        "run": run.id,
        "begun": run.begun,
        "finished": run.is_finished,
        "before": results.student and results.student.mean,
        "after": results.best and results.best.mean,
        "n_experiences": len(results.experiences),
        "n_LM_calls": sum(each.n_lm_calls for each in usage),
        "dollars": float(sum(each.cost_usd for each in usage)),
        "run_dir": folder,
    }


@click.command()
@click.argument("library", type=FILE)
@click.option("--full", is_flag=True, help="Of a run: its results, as print(detailed_results).")
@as_json
def show(library: str, full: bool, as_json: bool) -> None:
    """Show the experiences of LIBRARY.

    The effect is what an experience adds to the score; low and high bound it with 95 %
    confidence. Rollouts: how many were given it. Groups: from how many it was learned.
    """
    source = read_source(library)
    if full:
        results = run_of(source).results
        return echo_json(results.to_dict()) if as_json else click.echo(printable(str(results)))
    rows = [_values(each) for each in source.library]
    return echo_json(rows) if as_json else click.echo(table(rows) if rows else "no experiences")


def run_of(source: Source) -> SavedRun:
    """The run that a source is. Raises UsageError: it is none."""
    if source.run is None:
        raise click.UsageError(f"{source.name} is no run; pass a run directory.")
    return source.run


def _values(experience: Experience) -> dict[str, Any]:
    effect = experience.effect
    low, high = effect.bounds if effect else (None, None)
    return {
        "id": experience.id,
        "effect": effect and effect.estimate,
        "low": low,
        "high": high,
        "n_rollouts": effect and effect.n_rollouts,
        "n_tokens": experience.price,
        "n_groups": len(experience.evidence),
        "scope": experience.scope,
        "text": experience.text,
    }


@click.command()
@click.argument("run_dir", type=click.Path(file_okay=False))
@click.option("-o", "--output", default="report.html", show_default=True, type=click.Path())
def report(run_dir: str, output: str) -> None:
    """Write the report of a run as an HTML page: the last run of RUN_DIR, or RUN_DIR#ID.

    With `-o -` the page goes to stdout.
    """
    write(output, html(run_of(read_source(run_dir)).results))
    if output != "-":
        click.echo(output)


@click.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@as_json
@click.pass_context
def diff(ctx: click.Context, a: str, b: str, as_json: bool) -> None:
    """Compare two libraries: + only in B, - only in A, ~ changed. Exit code 1: they differ.

    Texts and scopes are compared; ids, effects and evidence are not. Where no text is the same, two
    experiences of one id count as changed.
    """
    old, new = read_source(a).library, read_source(b).library
    text = old.diff(new)
    if as_json:
        added, removed, changed = old.differences(new)
        echo_json(
            {
                "added": [_values(each) for each in added],
                "removed": [_values(each) for each in removed],
                "changed": [[_values(one), _values(other)] for one, other in changed],
            }
        )
    elif text:
        click.echo(printable(text))
    ctx.exit(1 if text else 0)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes tfgrpo in SHELL.

    bash: eval "$(tfgrpo completion bash)"; zsh: eval "$(tfgrpo completion zsh)"; fish: tfgrpo
    completion fish | source.
    """
    kind = get_completion_class(shell)
    if kind is not None:
        click.echo(kind(ctx.find_root().command, {}, "tfgrpo", "_TFGRPO_COMPLETE").source())
