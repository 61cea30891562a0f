"""How benchmarks make their runs: quietly, in several processes, a JSON line for each."""

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


def parser_of(doc: str | None, out: Path, seeds: int, first: int | None) -> argparse.ArgumentParser:
    """The arguments that most benchmarks have; the first line of `doc` says what it is for."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=seeds, help="how many")
    parser.add_argument("--first-seed", type=int, default=first)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--show", type=Path, metavar="FILE", help="print tables of a result file")
    return parser


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Optimizers write progress bars and much else; what a run has to say is in its record."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def results(
    run: Callable[..., Any], tasks: Sequence[Sequence[Any]], jobs: int = 1
) -> Iterator[Any]:
    """What `run` gives for the arguments of each task, in their order, so many at once."""
    with contextlib.ExitStack() as stack:
        mapped: Callable[..., Any] = map
        if jobs > 1:
            spawn = multiprocessing.get_context("spawn")
            mapped = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=spawn)).map
        for n, record in enumerate(mapped(run, *zip(*tasks, strict=True)) if tasks else (), 1):
            if sys.stderr.isatty():
                print(f"\r{n} of {len(tasks)} runs", end="", file=sys.stderr, flush=True)
            yield record


def versions(*packages: str) -> dict[str, str]:
    """The versions of this package, of DSPy and of these packages."""
    return {name: version(name) for name in ("tfgrpo-dspy", "dspy", *packages)}


def commit() -> str:
    """The commit of this checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def command(name: str, arguments: Sequence[str] | None) -> str:
    """The command that makes the figures again."""
    return " ".join(["python", f"benchmarks/{name}", *(arguments or sys.argv[1:])])


def write(path: Path, head: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
    """The file as a whole, with a line for each run; a stop loses nothing of the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(each, ensure_ascii=False) for each in runs)
    begin = json.dumps({**head, "runs": None}, indent=1, ensure_ascii=False)
    new = path.with_suffix(".new")
    new.write_text(begin.removesuffix("null\n}") + f"[\n{rows}\n]}}\n", encoding="utf-8")
    new.replace(path)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to the file; one that a kill cut short is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        is_cut = file.read() not in (b"", b"\n")
        file.write(b"\n" * is_cut + json.dumps(record).encode() + b"\n")


def stored(path: Path) -> list[dict[str, Any]]:
    """The records of a file with a line for each; a line that a kill cut short is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = (line.rstrip(",") for line in text.splitlines())
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def show(heads: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print a table."""
    table = Table(*heads, title=title or None)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=200).print(table)
