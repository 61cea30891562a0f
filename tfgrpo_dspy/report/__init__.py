"""x."""

from pathlib import Path
from typing import Any


def html(results: Any) -> str:
    """x."""
    return str(results._repr_html_())


def write_html(results: Any, path: str | Path) -> None:
    """x."""
    Path(path).write_text(html(results), encoding="utf-8")
