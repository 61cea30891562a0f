"""What every test starts from: DSPy as freshly imported, with an empty cache in memory."""

import logging
import os
import signal
from collections.abc import Iterator

import dspy
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tfgrpo",
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tfgrpo")
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import waits for the network

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what it put behind
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist takes files in their order: last would come those of few tests, the longest."""
    config.option.loadscopereorder = False


@pytest.fixture(autouse=True)
def fresh_dspy() -> Iterator[None]:
    """No disk cache, an empty memory cache, no configured LM."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    with dspy.context(lm=None, adapter=None, callbacks=[], track_usage=False):
        yield


@pytest.fixture(autouse=True)
def usual_log_level() -> Iterator[None]:
    """What a test, or code of the docs that it runs, sets for the log ends with it."""
    logger, root = logging.getLogger("tfgrpo_dspy"), logging.getLogger()
    levels = logger.level, root.level
    yield
    logger.setLevel(levels[0])
    root.setLevel(levels[1])
