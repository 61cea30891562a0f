"""Rollouts that take far longer than their siblings: left behind, or asked a second time.

Both look at the clock, and are off unless the user asks for them: what a run learns then depends on
timing. What was left behind is recorded, and so is whichever of two attempts was first.
"""

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

FAR_LONGER = 3.0
"""A rollout is a straggler when it has taken so many times the median of those that are done."""
FEWEST = 5
"""So many must be done before anything is known of how long a rollout takes."""
REMEMBERED = 200


class Verdict(Enum):
    """What is to be done about a task that is under way."""

    WAIT = "wait"
    ASK_AGAIN = "ask again"
    LEAVE = "leave"


@dataclass(slots=True)
class Stragglers:
    """How long the rollouts of one kind take, and what that says of one under way.

    Args:
        quorum: the share of a group with which it goes on without its stragglers; None: never.
        hedge: whether a straggler is begun a second time.
    """

    quorum: float | None
    hedge: bool
    _durations: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def watch(self, n_rollouts: int) -> "Watch | None":
        """Watches over a group of so many rollouts; None where nothing is to be done."""
        return Watch(self, n_rollouts) if self.hedge or self.quorum is not None else None

    def note(self, seconds: float) -> None:
        """A rollout has taken so long."""
        self._durations.append(seconds)

    def is_straggler(self, seconds: float) -> bool:
        """Whether one that has taken so long already takes far longer than the others."""
        if len(self._durations) < FEWEST:
            return False
        return seconds > FAR_LONGER * statistics.median(self._durations)


@dataclass(slots=True)
class Watch:
    """Over the rollouts of one group."""

    stragglers: Stragglers
    n_rollouts: int
    n_done: int = 0

    def done(self, started_s: float | None) -> None:
        """One of them is there, begun at that moment (of `time.monotonic`)."""
        self.n_done += 1
        if started_s is not None:
            self.stragglers.note(time.monotonic() - started_s)

    def verdict(self, seconds: float, is_hedged: bool) -> Verdict:
        """What to do about one that has been under way so long."""
        if not self.stragglers.is_straggler(seconds):
            return Verdict.WAIT
        quorum = self.stragglers.quorum
        if quorum is not None and self.n_done >= math.ceil(quorum * self.n_rollouts):
            return Verdict.LEAVE
        return Verdict.ASK_AGAIN if self.stragglers.hedge and not is_hedged else Verdict.WAIT
