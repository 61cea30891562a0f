"""Numbers as people pass them (`np.int64(3)`, `1e3`, `np.float32(0.7)`), as Python's own."""

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any


def use_plain_numbers(settings: Any, whole: Iterable[str] = (), real: Iterable[str] = ()) -> None:
    """Put Python's own numbers in place of these attributes of a frozen dataclass.

    `whole` ones become an `int` where they are whole (`1e3` is 1000), and stay what they are where
    they are not; what is no number stays too.
    """
    for name in whole:
        object.__setattr__(settings, name, _as_whole(getattr(settings, name)))
    for name in real:
        object.__setattr__(settings, name, _as_plain(getattr(settings, name)))


def _as_whole(value: Any) -> Any:
    plain = _as_plain(value)
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def _as_plain(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def whole_number_faults(settings: Any, least: Mapping[str, int], needed: set[str]) -> Iterator[str]:
    """A sentence for each attribute that is no whole number of at least so much.

    None is allowed for all but those that are `needed`.
    """
    for name, minimum in least.items():
        value = getattr(settings, name)
        if value is None and name not in needed:
            continue
        if not is_whole(value) or value < minimum:
            yield f"{name}={value!r}: pass a whole number of at least {minimum}."


def positive_number_faults(settings: Any, names: tuple[str, ...]) -> Iterator[str]:
    """A sentence for each attribute that is neither None nor a finite number above 0."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and (not is_finite(value) or value <= 0):
            yield f"{name}={value!r}: pass a number above 0, or None."


def is_whole(value: object) -> bool:
    """Whether it is an integer, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Whether it is a finite int or float, and no bool."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]
