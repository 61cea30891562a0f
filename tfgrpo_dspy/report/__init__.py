"""x."""

from typing import Any


def html(results: Any) -> str:
    """x."""
    return str(results._repr_html_())
