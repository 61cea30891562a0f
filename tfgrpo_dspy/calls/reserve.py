"""What is kept for the end of a run, and which training rollouts may begin beside it.

The reserve pays for measuring student and result. It follows what rollouts take: the account of the
decided updates says how the next batch is planned, that of all rollouts so far (which depends on
the clock) what the ledger refuses.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tfgrpo_dspy.budget.account import COST_MARGIN, LIMITS, Account, Amount
from tfgrpo_dspy.budget.ledger import Budget, Ledger
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.settings.schedule import (
    CALLS_FOR_AN_ANSWER,
    MIN_PROGRAMS_MEASURED,
    MOST_SHARE,
    RunSettings,
)
from tfgrpo_dspy.tasks.pool import Pool

BESIDE_S = 1.0  # of the time at the end, for what is no rollout
TIME_MARGIN = 2.0  # how much longer than expected the end may take, and what is under way then


class Reserve:
    """Keeps in the ledger what the end of a run needs; `account` holds all rollouts so far."""

    def __init__(self, settings: RunSettings, ledger: Ledger, pool: Pool) -> None:
        data = settings.data
        dollars = 0.0 if math.isnan(data.dollars_per_rollout) else data.dollars_per_rollout
        assumed = Amount(data.calls_per_rollout, data.n_metric_calls)
        answer = Amount(1.0, 0, dollars)
        self.account = Account(settings.budget, assumed=assumed, assumed_answer=answer)
        self._settings, self._ledger, self._pool = settings, ledger, pool
        self._seconds: list[float] = []
        self.lessons: Callable[[], Amount] = Amount  # what the batches under way still need
        self.n_begun = 0  # training rollouts that are under way
        self._turns: list[object] = []
        self.renew()

    def n_rollouts(self, account: Account) -> int:
        """How many rollouts the end needs; fewer where one takes more than was assumed."""
        settings, per_rollout = self._settings, account.per_rollout
        if settings.metric is None:
            return 0
        data, times = settings.data, [1.0]
        if settings.max_lm_calls is not None:
            times.append(per_rollout.n_lm_calls / data.calls_per_rollout)
        if settings.max_cost is not None and data.dollars_per_rollout > 0:
            times.append(per_rollout.cost / data.dollars_per_rollout)
        return max(min(settings.reserve, data.smallest_end), int(settings.reserve / max(times)))

    def amount(self, account: Account, dearest: float = 0.0) -> Amount:
        """The amount that the end needs: of a limit at most `MOST_SHARE`, and the test set.

        The last call is made only if the worst that it may cost is left. Where rollouts take as
        many calls as was assumed, the schedule has looked whether they are there; it refuses no
        limit that would be too small for what is only assumed.
        """
        settings, data = self._settings, self._settings.data
        of_test = account.later * (data.n_of_test_set if settings.metric else 0)
        kept = account.reserve(self.n_rollouts(account))
        kept += Amount(cost=max(data.dollars_of_dearest_call, dearest))
        limits = (settings.max_lm_calls, None, settings.max_cost)
        are_there = kept.n_lm_calls + of_test.n_lm_calls < (settings.max_lm_calls or math.inf)
        if are_there and account.per_rollout.n_lm_calls <= data.calls_per_rollout:
            limits = (None, None, settings.max_cost)
        rows = zip(limits, kept, of_test, strict=True)
        return Amount(*(_at_most(limit, more, test) + test for limit, more, test in rows))

    def note(self, rollout: Rollout, seconds: float | None) -> None:
        """Count a training rollout and the seconds that it took; None if it was replayed."""
        self.account = self.account.after_rollouts([rollout])
        is_cut = rollout.failure is not None and rollout.failure.kind.is_cut_short
        self.n_begun -= seconds is not None
        if seconds is not None and not is_cut:
            self._seconds.append(seconds)
        self.renew()

    def renew(self) -> None:
        """Let nothing else take what the end of the run needs, by what rollouts took so far."""
        with self._pool.lock:
            account, data = self.account, self._settings.data
            amount = self.amount(account, self._ledger.dearest)
            if not account.n_rollouts and self.n_rollouts(account):  # nobody knows what one takes
                dearest = MIN_PROGRAMS_MEASURED * CALLS_FOR_AN_ANSWER * data.most_calls_per_rollout
                half = MOST_SHARE * (self._settings.max_lm_calls or math.inf)
                dollars = dearest * account.per_answer.cost / data.calls_per_rollout
                most = MOST_SHARE * (self._settings.max_cost or math.inf)
                amount |= Amount(min(dearest, half), cost=min(dollars, most))
            self._ledger.set_reserve(
                Budget(
                    max_lm_calls=math.ceil(amount.n_lm_calls),
                    max_metric_calls=math.ceil(amount.n_metric_calls),
                    max_cost=self._dollars(account, amount.cost),
                    max_minutes=self._minutes(self.n_rollouts(account) + data.n_of_test_set),
                ),
                n_lessons=math.ceil(self.lessons().n_lm_calls),
            )

    def _dollars(self, account: Account, planned: float) -> float:
        """Less than planned with, to cut no batch, but the smallest end, and two dear rollouts."""
        last = self.dearest_call
        n = min(self.n_rollouts(account), self._settings.data.smallest_end)
        n_of_test = self._settings.data.n_of_test_set if n else 0
        smallest = last + account.per_rollout.cost * (n + n_of_test)
        two = last + COST_MARGIN * max(account.dearest.cost, account.per_rollout.cost) * min(2, n)
        return max(MOST_SHARE * planned, min(planned, smallest), two)

    @property
    def dearest_call(self) -> float:
        """The most dollars that one call may cost, as far as is known; a replay knows as much."""
        return max(self._settings.data.dollars_of_dearest_call, self._ledger.dearest)

    def _minutes(self, n_rollouts: int) -> float:
        """For these though they are slower, and for what is under way when the training ends."""
        most = MOST_SHARE * (self._settings.max_minutes or math.inf)
        if not self._seconds or not n_rollouts:  # nobody knows what one takes
            return most if n_rollouts else 0.0
        mean, longest = sum(self._seconds) / len(self._seconds), max(self._seconds)
        seconds = (n_rollouts * mean / self._settings.threads + longest) * TIME_MARGIN
        return min((seconds + BESIDE_S) / 60, most)

    @property
    def is_tight(self) -> bool:
        """Whether the first batches may not fit if a rollout takes twice what is assumed."""
        n = self.n_rollouts(self.account) + 2 * self._settings.rollouts_of_update
        return not self._pays_for(2 * n)

    @contextmanager
    def turn(self, n_rollouts: int) -> Iterator[bool]:
        """Whether so many further rollouts may begin within: all of them are paid for.

        They come out of what is left beside what is kept, and what the rollouts under way take.
        They are let in one after the other, in the order in which they ask; if the rollouts under
        way may leave enough, they are waited for.
        """
        turn, turns = object(), self._turns
        turns.append(turn)
        try:
            self._pool.until(
                lambda: turns[0] is turn and (not self.n_begun or self._pays_for(n_rollouts))
            )
            yield self._pays_for(n_rollouts)
        finally:
            turns.remove(turn)
            self._pool.wake()

    def _pays_for(self, n_rollouts: int) -> bool:
        needed = self.account.expected(self.n_begun + n_rollouts) + self.lessons()
        pairs = zip(LIMITS, needed, strict=True)
        return not n_rollouts or all(n <= self._ledger.left(name) for name, n in pairs)


def _at_most(limit: float | None, kept: float, of_test: float) -> float:
    return kept if limit is None else max(0.0, min(kept, MOST_SHARE * (limit - of_test)))
