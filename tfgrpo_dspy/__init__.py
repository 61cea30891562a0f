"""Training-Free GRPO (arXiv 2510.08191) as a DSPy optimizer. README.md shows how to use it."""

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
from tfgrpo_dspy.experience import Effect, Evidence, Experience, ExperienceLibrary
from tfgrpo_dspy.gate.bayesian import (
    BayesianGate,
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
    WriteBrief,
)
from tfgrpo_dspy.settings import Execution, Reflection
from tfgrpo_dspy.store import best_so_far

__all__ = [
    "AddLessons", "BayesianGate", "Belief", "Decision", "DraftLessons", "Effect",
    "Evidence", "Execution", "Experience", "ExperienceLibrary", "ExtractAdvantage", "Gate",
    "GateError", "GroupPlan", "LibraryError", "LibraryFormatError", "LocalLMUnavailableError",
    "Measured", "MetricError", "MissingRecordError", "NoGate", "Reflection", "RunEvidence",
    "RunFailedError", "SettingsError", "StoreError", "SummarizeTrajectory", "TrainingFreeGRPO",
    "TrainingFreeGRPOError", "UpdateLibrary", "WriteBrief", "best_so_far",
]  # fmt: skip
