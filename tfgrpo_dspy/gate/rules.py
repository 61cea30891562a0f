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
        max_contrasts: after so many contrasts it is settled or dropped at last.
        settle_at_last: P(helps) from which on it is settled then.
        max_epochs: it is dropped if only its source examples speak for it after so many training
            groups, as a share of the training set.

    Raises:
        ValueError: a number is out of range.
    """

    settle_at: float = 0.9
    drop_at: float = 0.2
    harm_at: float = 0.8
    max_contrasts: int = 10
    settle_at_last: float = 0.6
    max_epochs: float = 0.75

    def __post_init__(self) -> None:
        for name in ("settle_at", "drop_at", "harm_at", "settle_at_last"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give more than 0, at most 1.")
        if self.max_contrasts < 1 or self.max_epochs <= 0:
            raise ValueError(
                f"max_contrasts={self.max_contrasts}, max_epochs={self.max_epochs}: give at least "
                f"1 contrast, and more than 0 epochs."
            )
        if self.drop_at >= min(self.settle_at, self.settle_at_last):
            raise ValueError(
                f"drop_at={self.drop_at}: must be below settle_at={self.settle_at} and "
                f"settle_at_last={self.settle_at_last}."
            )

    def verdict(self, record: Record, posterior: Posterior, n_training: int) -> Verdict:
        """Of an experience on trial. What its source examples say alone never settles it."""
        if posterior.helps <= self.drop_at or posterior.harms >= self.harm_at:
            return "dropped"
        is_last = len(record.contrasts) >= self.max_contrasts
        least = self.settle_at_last if is_last else self.settle_at
        if record.outside and posterior.helps >= least:
            return "settled"
        is_alone = not record.outside and record.n_groups >= self.max_epochs * n_training
        return "dropped" if is_last or is_alone else "on trial"
