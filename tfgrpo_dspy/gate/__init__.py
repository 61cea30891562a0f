"""The gate: which experiences stay, which rollouts are given them, and which library is returned.

`protocol` says what a gate is asked, `bayesian` is the default gate, `model` its statistics;
`relevance` tells what an experience is about; `race` makes the final choice. No LM is called.
"""

from tfgrpo_dspy.gate.bayesian import BayesianGate
from tfgrpo_dspy.gate.protocol import (
    Belief,
    Decision,
    Gate,
    GroupPlan,
    Measured,
    NoGate,
    RunEvidence,
    advice_of,
)
from tfgrpo_dspy.gate.race import Race

__all__ = [
    "BayesianGate",
    "Belief",
    "Decision",
    "Gate",
    "GroupPlan",
    "Measured",
    "NoGate",
    "Race",
    "RunEvidence",
    "advice_of",
]
