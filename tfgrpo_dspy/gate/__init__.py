"""Gates: from measured scores, does an update stay? A gate is asked in turns and calls nothing.

`protocol` says what a gate is asked and what it answers. Each gate has a file of its own: `auto`
(the default), `then_confirm` and `in_use` (TrialThenConfirm and TrialInUse; their memory in
`on_trial`, their own rollouts in `extra`, what becomes of each experience in `judging`), `trial`
(ProbeThenTrial; `probing`, `posterior`, `records`, `rules`, `ruling`), `factorial`, `paired`.
Several rest on `sequential` (tests), `effects`, `candidates`, `halves` and `concern`.
"""

from tfgrpo_dspy.gate.auto import AutoGate
from tfgrpo_dspy.gate.concern import Concern, WordConcern
from tfgrpo_dspy.gate.factorial import FactorialGate
from tfgrpo_dspy.gate.in_use import TrialInUse
from tfgrpo_dspy.gate.paired import PairedGate
from tfgrpo_dspy.gate.protocol import (
    Decision,
    Gate,
    GroupEvidence,
    GroupPlan,
    NoGate,
    Trial,
    TrialEvidence,
    Trials,
)
from tfgrpo_dspy.gate.rules import Probe, TrialRule
from tfgrpo_dspy.gate.then_confirm import TrialThenConfirm
from tfgrpo_dspy.gate.trial import ProbeThenTrial

__all__ = [
    "AutoGate",
    "Concern",
    "Decision",
    "FactorialGate",
    "Gate",
    "GroupEvidence",
    "GroupPlan",
    "NoGate",
    "PairedGate",
    "Probe",
    "ProbeThenTrial",
    "Trial",
    "TrialEvidence",
    "TrialInUse",
    "TrialRule",
    "TrialThenConfirm",
    "Trials",
    "WordConcern",
]
