"""The commands that write: merge, export, import, bake, edit, gc."""

import os
import sys
from collections.abc import Iterable

import click

from tfgrpo_dspy.cli.editing import edited_library
from tfgrpo_dspy.cli.output import write
from tfgrpo_dspy.cli.reading import FILE, FOLDER
from tfgrpo_dspy.cli.sources import Source, given_bytes, read_source
from tfgrpo_dspy.errors import LibraryError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Experience
from tfgrpo_dspy.files import decoded
from tfgrpo_dspy.interchange import FORMATS, format_of, render
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.reflection.guard import unsafe_reason
from tfgrpo_dspy.store import notes, runs

READABLE = [name for name in FORMATS if name != "prompt"]
STDOUT = "-"
output = click.option(
    "-o", "--output", "out", type=FILE, default=STDOUT, help="A file; by default stdout."
)
let_in = click.option(
    "--let-in", is_flag=True, help="Also texts that a run refuses: an address, an attack."
)


def _write_library(
    library: ExperienceLibrary, out: str, format: str | None = None, into: str | None = None
) -> None:
    named = format or ("json" if out == STDOUT else format_of(out))
    old = "" if into is None else decoded(given_bytes(into), into)
    write(out, render(library, named, into=old))


def _check(experiences: Iterable[Experience]) -> None:
    """Raises LibraryError: the guards of a run refuse some of these texts."""
    reasons = [(each.id, unsafe_reason(each.text)) for each in experiences]
    if refused := [f"[{id_}] is {reason}" for id_, reason in reasons if reason]:
        raise LibraryError(f"{'; '.join(refused)}. Change the text, or pass --let-in.")


def _admitted(source: Source, let_in: bool, held: Iterable[Experience] = ()) -> ExperienceLibrary:
    """The library of a source. A run has checked its own; the texts of those `held` are let in.

    Raises LibraryError: a text is refused.
    """
    texts = {each.text for each in held}
    if not let_in and source.run is None:
        _check(each for each in source.library if each.text not in texts)
    return source.library


@click.command()
@click.argument("library", type=FILE)
@click.argument("others", type=FILE, nargs=-1, required=True)
@output
@let_in
def merge(library: str, others: tuple[str, ...], out: str, let_in: bool) -> None:
    """Merge libraries: LIBRARY keeps its ids, and gets what OTHERS have besides.

    The same text in the same scope is kept once, with the evidence of both.
    """
    merged = read_source(library).library
    for other in others:
        merged = merged.merge(_admitted(read_source(other), let_in, merged))
    _write_library(merged, out)


@click.command()
@click.argument("library", type=FILE)
@output
@click.option("--format", type=click.Choice(FORMATS), help="By default json, or that of OUTPUT.")
@click.option(
    "--into", type=FILE, help="Agent file (yaml), SKILL.md (skill) or instructions (prompt)."
)
@let_in
def export(library: str, out: str, format: str | None, into: str | None, let_in: bool) -> None:
    """Write LIBRARY in another format.

    With --into, the experiences are put into that text, which stays as it is otherwise.
    """
    if into and not format and out == STDOUT:
        format = "yaml" if into == STDOUT else format_of(into)
    _write_library(_admitted(read_source(library), let_in), out, format, into)


@click.command("import")
@click.argument("file", type=FILE)
@output
@click.option("--format", type=click.Choice(READABLE), help="Of FILE, if not by its ending.")
@let_in
def import_(file: str, out: str, format: str | None, let_in: bool) -> None:
    """Read FILE, in any format, and write it as a library."""
    _write_library(_admitted(read_source(file, format), let_in), out)


@click.command()
@click.argument("program", type=FILE)
@click.argument("library", type=FILE)
@output
@click.option("--in-place", is_flag=True, help="Write to PROGRAM itself.")
@let_in
def bake(program: str, library: str, out: str, in_place: bool, let_in: bool) -> None:
    """Write the experiences of LIBRARY into the instructions of PROGRAM, a saved program.

    They replace those that are there. All else in the file keeps its value.
    """
    source = read_source(program)
    if source.program is None:
        raise click.UsageError(f"{program} is no program; save one with program.save('x.json').")
    if in_place and out != STDOUT:
        raise click.UsageError(f"--in-place writes to {program}: leave out -o {out}.")
    if STDOUT not in (out, program) and os.path.realpath(out) == os.path.realpath(program):
        raise click.UsageError(f"{out} is the program itself; pass --in-place to replace it.")
    text = source.rewritten(_admitted(read_source(library), let_in, source.library))
    write(program if in_place else out, text)


@click.command()
@click.argument("target", type=FILE)
@let_in
def edit(target: str, let_in: bool) -> None:
    """Edit the library in TARGET, a library file or a saved program, in $VISUAL or $EDITOR.

    It is shown as Markdown. A text that is refused is shown again, with the error. Unchanged
    experiences keep effect and evidence, changed ones only the evidence.
    """
    source = None if target == STDOUT else read_source(target)
    if source is None or source.run is not None:
        raise click.UsageError(f"{target} is no file; `tfgrpo export` makes one of it.")
    source.rewritten(source.library)  # what cannot be written back is refused before it is edited
    changed = edited_library(source, (lambda _new: None) if let_in else _check)
    if changed is None:
        click.echo(f"{target}: nothing changed", err=True)
        return
    library, text = changed
    write(target, text)
    click.echo(printable(source.library.diff(library)))


@click.command()
@click.argument("run_dir", type=FOLDER)
@click.option("--keep-last", type=click.IntRange(min=1), help="Keep this many runs; default: all.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def gc(run_dir: str, keep_last: int | None, dry_run: bool, yes: bool) -> None:
    """Remove from the run store RUN_DIR what no run reads again.

    Removed are: with --keep-last, the notes, updates and results of all but the runs that were
    written to last; those that belong to no run; and notes of failures that were made good since.
    Rollouts, reflections and answers of approve= stay: any run may share them. So every run that
    is kept can be resumed and replayed. The room is given back to the disk.

    It is refused while another process, such as a compile, has the store open.
    """
    keys = runs.unused_records(run_dir, keep_last)
    n_runs = sum(key.startswith(notes.RUN) for key in keys)
    what = f"{len(keys)} records (runs: {n_runs})"
    if dry_run:
        click.echo(f"{run_dir}: would remove {what}")
        return
    if not (yes or sys.stdin.isatty()):
        raise click.UsageError(f"{run_dir}: nobody can be asked here; pass --yes or --dry-run.")
    if yes or click.confirm(f"{run_dir}: remove {what}?", err=True):
        n_bytes = runs.remove_records(run_dir, keys)
        click.echo(f"{run_dir}: removed {what}, {max(n_bytes, 0):,} bytes")
