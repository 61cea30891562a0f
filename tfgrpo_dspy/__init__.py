"""Training-Free GRPO (arXiv 2510.08191) as a DSPy optimizer. README.md shows how to use it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tfgrpo_dspy.errors import (
    GateError,
    LibraryError,
    LibraryFormatError,
    LocalLMUnavailableError,
    MetricError,
    MissingRecordError,
    RunFailedError,
    SettingsError,
    StoreError,
    TrainingFreeGRPOError,
)
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Effect, Evidence, Experience

if TYPE_CHECKING:
    from tfgrpo_dspy.gate.bayesian import BayesianGate
    from tfgrpo_dspy.gate.protocol import (
        Belief,
        Decision,
        Gate,
        GroupPlan,
        Measured,
        NoGate,
        RunEvidence,
    )
    from tfgrpo_dspy.optimizer import TrainingFreeGRPO
    from tfgrpo_dspy.reflection.modules import (
        AddLessons,
        DraftLessons,
        ExtractAdvantage,
        SummarizeTrajectory,
        UpdateLibrary,
    )
    from tfgrpo_dspy.run.saved import best_so_far
    from tfgrpo_dspy.settings import Execution, Reflection

__all__ = [
    "AddLessons", "BayesianGate", "Belief", "Decision", "DraftLessons", "Effect", "Evidence",
    "Execution", "Experience", "ExperienceLibrary", "ExtractAdvantage", "Gate", "GateError",
    "GroupPlan", "LibraryError", "LibraryFormatError", "LocalLMUnavailableError", "Measured",
    "MetricError", "MissingRecordError", "NoGate", "Reflection", "RunEvidence", "RunFailedError",
    "SettingsError", "StoreError", "SummarizeTrajectory", "TrainingFreeGRPO",
    "TrainingFreeGRPOError", "UpdateLibrary", "best_so_far",
]  # fmt: skip

_HOMES = {  # imported at the first use: DSPy takes a second, which most of `tfgrpo` does not need
    "gate.bayesian": ["BayesianGate"],
    "gate.protocol": [
        "Belief", "Decision", "Gate", "GroupPlan", "Measured", "NoGate", "RunEvidence",
    ],
    "optimizer": ["TrainingFreeGRPO"],
    "reflection.modules": [
        "AddLessons", "DraftLessons", "ExtractAdvantage", "SummarizeTrajectory", "UpdateLibrary",
    ],
    "run.saved": ["best_so_far"],
    "settings": ["Execution", "Reflection"],
}  # fmt: skip

if not TYPE_CHECKING:  # else a misspelt name would have the type Any

    def __getattr__(name: str) -> Any:
        for module, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
                return value
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
