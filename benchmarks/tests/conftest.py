"""Every test starts with an empty cache of DSPy in memory, and none on disk."""

from collections.abc import Iterator

import dspy
import pytest


@pytest.fixture(autouse=True)
def fresh_dspy() -> Iterator[None]:
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        yield
