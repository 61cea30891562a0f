"""What the commands write: text for people, JSON, and files."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from tfgrpo_dspy.files import write_text
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.wording import aligned


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows, each on a line below the names of their values, in aligned columns."""
    head = [cell(name.removeprefix("n_").replace("_", " ")) for name in rows[0]]
    return "\n".join(aligned([head, *([cell(value) for value in row.values()] for row in rows)]))


def cell(value: Any) -> str:
    """The value as a person reads it, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:z.3f}"
    return printable(" ".join(value.split()))


def echo_json(value: Any) -> None:
    """Print the value as JSON, in ASCII; null stands for numbers that JSON does not have."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    click.echo(json.dumps(finite, indent=2))


def write(path: str, text: str) -> None:
    """Write the text as UTF-8 to a file, or for `-` to stdout."""
    if path == "-":
        click.echo(printable(text) if sys.stdout.isatty() else text.encode(), nl=False)
    else:
        write_text(path, text)
