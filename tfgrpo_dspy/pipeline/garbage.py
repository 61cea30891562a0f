"""Python's search for garbage, and what it is spared while a run goes on."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def looking_at_new_objects_only() -> Iterator[None]:
    """Within it, Python looks for garbage among what was made since it began.

    A full search goes through all objects of the process, modules and data sets of the user's
    included, again and again as DSPy's history of calls grows. What became garbage meanwhile is
    found when it is over. Where somebody has frozen objects already, nothing is changed.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
