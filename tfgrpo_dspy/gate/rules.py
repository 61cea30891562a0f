"""When a probe ends and when a trial ends: thresholds on posterior probabilities, as values."""

from dataclasses import dataclass
from typing import Literal

from tfgrpo_dspy.gate.posterior import Posterior
from tfgrpo_dspy.gate.records import Record

Verdict = Literal["settled", "dropped", "on trial"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe ends with P(helps) at `pass_at` or above, at `drop_at` or below, or with its last.

    After `max_rollouts` the candidate passes if P(helps) is at least `pass_at_end`.

    Raises:
        ValueError: the values are not in this order, or there is nothing to do.
    """

    pass_at: float
    drop_at: float
    pass_at_end: float
    max_rollouts: int

    def __post_init__(self) -> None:
        if not 0 <= self.drop_at <= self.pass_at_end <= self.pass_at <= 1:
            raise ValueError(f"{self}: give 0 <= drop_at <= pass_at_end <= pass_at <= 1.")
        if self.max_rollouts < 1:
            raise ValueError(f"max_rollouts={self.max_rollouts}: a probe takes at least 1.")

    def is_over(self, helps: float) -> bool:
        """Whether the answer is clear."""
        return helps >= self.pass_at or helps <= self.drop_at


@dataclass(frozen=True, slots=True)
class TrialRule:
    """When an experience on trial is settled or dropped.

    Args:
        settle_at: P(helps) from which on it is settled.
        drop_at: P(helps) at or below which it is dropped.
        harm_at: P(harms) from which on it is dropped.
        max_epochs: after so many training groups, as a share of the training set, its trial ends.
        settle_at_last: P(helps) from which on it is settled then, by what examples show that it
            was not drawn from; else it is dropped, unless it was in use before its trial.

    Raises:
        ValueError: a number is out of range.
    """

    settle_at: float = 0.85
    drop_at: float = 0.2
    harm_at: float = 0.8
    max_epochs: float = 3.0
    settle_at_last: float = 0.6

    def __post_init__(self) -> None:
        for name in ("settle_at", "drop_at", "harm_at", "settle_at_last"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give more than 0, at most 1.")
        if self.max_epochs <= 0:
            raise ValueError(f"max_epochs={self.max_epochs}: give more than 0.")
        if self.drop_at >= min(self.settle_at, self.settle_at_last):
            raise ValueError(
                f"drop_at={self.drop_at}: must be below settle_at={self.settle_at} and "
                f"settle_at_last={self.settle_at_last}."
            )

    def verdict(
        self, record: Record, posterior: Posterior, elsewhere: Posterior, n_training: int
    ) -> Verdict:
        """Of an experience on trial. What its source examples say alone never settles it.

        `posterior` is by all its contrasts, `elsewhere` by those outside its sources.
        """
        if posterior.helps <= self.drop_at or posterior.harms >= self.harm_at:
            return "dropped"
        if record.outside and posterior.helps >= self.settle_at:
            return "settled"
        if record.n_groups < self.max_epochs * n_training:
            return "on trial"
        is_shown = record.outside and elsewhere.helps >= self.settle_at_last
        return "settled" if is_shown or record.is_in_use else "dropped"
