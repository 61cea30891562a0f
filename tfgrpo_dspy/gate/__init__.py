"""The gate: which experiences stay, which rollouts are given them, and which library is returned.

`protocol` says what a gate is asked. `BayesianGate` (in `bayesian`) is the default; its statistical
model is in `model`, and what an experience is about in `relevance`. `race` makes the final choice.
Nothing in this room calls a program, an LM or a metric.
"""

from tfgrpo_dspy.gate.bayesian import BayesianGate
from tfgrpo_dspy.gate.protocol import (
    Belief,
    Decision,
    Gate,
    GroupEvidence,
    GroupPlan,
    NoGate,
    RunEvidence,
    advice_of,
)
from tfgrpo_dspy.gate.race import Part, Race

__all__ = [
    "BayesianGate",
    "Belief",
    "Decision",
    "Gate",
    "GroupEvidence",
    "GroupPlan",
    "NoGate",
    "Part",
    "Race",
    "RunEvidence",
    "advice_of",
]
