"""Code as an identity knows it: the text of functions and classes, and what they close over."""

import functools
import inspect
import textwrap
import types
from typing import Any


@functools.lru_cache(maxsize=10_000)
def source_text(code: Any) -> str | None:
    """The source of a code object or a class; None where there is none."""
    try:
        return textwrap.dedent(inspect.getsource(code)).strip()
    except (OSError, TypeError, SyntaxError, IndentationError):
        return None


def lambda_text(code: types.CodeType) -> list[Any] | None:
    """The text of a lambda alone: its source are whole lines, which may hold several of them."""
    if code.co_name != "<lambda>":
        return None
    spots: list[Any] = [spot for spot in code.co_positions() if None not in spot]
    spots = [(a, b, c, d) for a, b, c, d in spots if (a, c) != (b, d)]  # those of no text
    try:
        lines = [line.encode() for line in inspect.findsource(code)[0]]
        first, start = min((line, column) for line, _, column, _ in spots)
        last, end = max((line, column) for _, line, _, column in spots)
        body = lines[first - 1 : last]
        body[-1] = body[-1][:end]
        body[0] = body[0][start:]
    except (OSError, TypeError, ValueError, IndexError):
        return None
    return [list(code.co_varnames), b"".join(body).decode(errors="replace")]


def closure(function: types.FunctionType) -> dict[str, Any]:
    """What the function closes over, by name, but for itself."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    values = {}
    for name, cell in cells:
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not set yet
            values[name] = None
    return {name: value for name, value in values.items() if value is not function}


def method_closures(kind: type) -> dict[str, Any]:
    """What the methods of a class close over, besides the class itself."""
    return {
        name: values
        for name, method in vars(kind).items()
        if isinstance(method, types.FunctionType)
        and (values := {k: v for k, v in closure(method).items() if v is not kind})
    }
