"""An optimizer with small explicit settings, for tests that are not about what is derived."""

from collections.abc import Callable
from typing import Any

from flat_settings import grouped

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.settings import RunSettings
from tfgrpo_dspy.settings.plan import schedule_of
from tfgrpo_dspy.settings.schedule import Facts

SMALL = {"group_size": 5, "epochs": 3, "max_demos": 0, "drafts": 0, "max_staleness": 1}


def grpo(metric: Callable[..., Any] | None, **given: Any) -> TrainingFreeGRPO:
    """Groups of 5, 3 epochs, no drafts, no demos, staleness 1; what is given wins.

    The fields of `Reflection` and `Execution` are given by their own names.
    """
    return TrainingFreeGRPO(metric, **grouped(SMALL | given))


def paper_grpo(metric: Callable[..., Any] | None, **given: Any) -> TrainingFreeGRPO:
    """`TrainingFreeGRPO.paper`, with the fields of the groups given by their own names."""
    return TrainingFreeGRPO.paper(metric, **grouped(given, is_paper=True))


def run_settings(metric: Callable[..., Any] | None, **given: Any) -> RunSettings:
    """The same settings as a run has them, for 20 examples."""
    settings = grpo(metric, **given).settings
    return RunSettings.of(settings, schedule_of(settings, Facts(n_training=20, n_validation=0)))
