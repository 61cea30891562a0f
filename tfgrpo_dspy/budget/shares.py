"""Shares of the budget for rollouts in other processes, which cannot ask the ledger for each call.

A share is a reservation that the worker may spend; what it did not need comes back. It is as large
as the rollouts so far suggest, and larger for one that it was too small for.
"""

import math

from tfgrpo_dspy.budget.ledger import Budget, Ledger, Reservation

FIRST_CALLS = 16
"""At most so many calls are reserved before it is known what a rollout takes."""
HEADROOM = 2.0
"""How much more than any rollout took so far is reserved, where there is enough."""
GREATER = 1.01
"""A rollout is tried again with more dollars only if there are so many times as many."""


class Shares:
    """Takes shares from a ledger, `n_at_once` of which are out at once."""

    def __init__(self, ledger: Ledger, n_at_once: int) -> None:
        self._ledger = ledger
        self._n_at_once = n_at_once
        self._least: tuple[int, float] = (1, 0.0)

    def take(self) -> Reservation | None:
        """A share; None: not now. Raises RunStopped: nothing is left, or the run has ended."""
        n_calls, cost = self._least
        most = max(FIRST_CALLS, HEADROOM * n_calls), HEADROOM * cost or math.inf
        return self._ledger.take_share(self._n_at_once, self._least, most)

    def as_budget(self, share: Reservation) -> Budget:
        """The share as the worker's budget."""
        limits = self._ledger.budget
        return Budget(
            max_lm_calls=share.n_calls if limits.max_lm_calls is not None else None,
            max_cost=share.cost if limits.max_cost is not None else None,
            max_minutes=self._ledger.minutes_left(),
        )

    def settle(self, share: Reservation, n_calls: int, cost: float, n_metric_calls: int) -> None:
        """Correct what was taken by what was used."""
        self._ledger.settle(share, n_calls, cost)
        for _ in range(n_metric_calls):
            self._ledger.note_metric_call()

    def learn(self, n_calls: int, cost: float) -> None:
        """Make later shares no smaller than this."""
        self._least = max(self._least[0], n_calls), max(self._least[1], cost)

    def grow(self, limit: str, n_calls: int, cost: float) -> bool:
        """Whether there is more than a share that was too small; then the next is twice as large.

        `limit` is the one that the share was too small for.
        """
        if limit == "max_lm_calls" and self._ledger.may_reach(n_calls + 1, 0.0):
            self.learn(2 * n_calls, 0.0)
            return True
        if limit == "max_cost" and self._ledger.may_reach(0, GREATER * cost):
            self.learn(0, 2 * cost)
            return True
        return False
