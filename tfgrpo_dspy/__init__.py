"""Training-Free GRPO (arXiv 2510.08191) as a DSPy optimizer."""

from tfgrpo_dspy.errors import (
    GateError,
    LibraryError,
    LibraryFormatError,
    LocalLMUnavailableError,
    MetricError,
    SettingsError,
    TrainingFreeGRPOError,
)
from tfgrpo_dspy.experience import Evidence, Experience, ExperienceLibrary
from tfgrpo_dspy.gate import Decision, Gate, NoGate, PairedGate, TrialEvidence, Trials
from tfgrpo_dspy.optimizer import TrainingFreeGRPO
from tfgrpo_dspy.reflection import (
    AddLessons,
    ExtractAdvantage,
    SummarizeTrajectory,
    UpdateLibrary,
)

__all__ = [
    "AddLessons",
    "Decision",
    "Evidence",
    "Experience",
    "ExperienceLibrary",
    "ExtractAdvantage",
    "Gate",
    "GateError",
    "LibraryError",
    "LibraryFormatError",
    "LocalLMUnavailableError",
    "MetricError",
    "NoGate",
    "PairedGate",
    "SettingsError",
    "SummarizeTrajectory",
    "TrainingFreeGRPO",
    "TrainingFreeGRPOError",
    "TrialEvidence",
    "Trials",
    "UpdateLibrary",
]
