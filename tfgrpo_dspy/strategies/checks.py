"""What the settings of strategies may be; each raises SettingsError with what to pass."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

from tfgrpo_dspy.errors import SettingsError


def check_range(name: str, value: Any, low: float, high: float, open_: bool = False) -> None:
    """A number from `low` to `high`; between them if `open_`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and (low < value < high if open_ else low <= value <= high)):
        range_ = f"between {low:g} and {high:g}" if open_ else f"from {low:g} to {high:g}"
        raise SettingsError(f"{name}={value!r}: pass a number {range_}.")


def check_whole(name: str, value: Any, low: int) -> None:
    """A whole number from `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise SettingsError(f"{name}={value!r}: pass a whole number from {low}.")


def check_function(name: str, value: Any, of: str) -> None:
    """A function."""
    if not callable(value):
        raise SettingsError(f"{name}={value!r}: pass a function of {of}.")


def check_numbers(name: str, value: Any, low: float) -> None:
    """Finite numbers from `low`, by name."""
    is_mapping = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    try:
        for number in value.values() if is_mapping else [None]:
            check_range(name, number, low, 1e150)
    except SettingsError:
        least = "" if low < 0 else f" from {low:g}"
        message = f"{name}={value!r}: pass a dict of finite numbers{least} by name."
        raise SettingsError(message) from None
