"""Runs the program once: (program, example, LM, rollout id) -> Rollout, with its full trajectory.

Nothing that another thread uses is touched: every rollout works on its own copy of the program
and of its LMs. No exception of program or metric leaves this room; each becomes a `Failure`
(see `rollout`). Which rollouts are run, and when, is `run`'s business.
"""

from tfgrpo_dspy.sampling.demos import BestRollouts, Demo, demos_of, with_demos
from tfgrpo_dspy.sampling.fields import (
    NoRoundTripError,
    as_fields,
    decode_fields,
    encode_fields,
    field_annotations,
)
from tfgrpo_dspy.sampling.models import allows_temperature, sampling_copy
from tfgrpo_dspy.sampling.one_rollout import Outline, RolloutTask, run_rollout, score_again

__all__ = [
    "BestRollouts",
    "Demo",
    "NoRoundTripError",
    "Outline",
    "RolloutTask",
    "allows_temperature",
    "as_fields",
    "decode_fields",
    "demos_of",
    "encode_fields",
    "field_annotations",
    "run_rollout",
    "sampling_copy",
    "score_again",
    "with_demos",
]
