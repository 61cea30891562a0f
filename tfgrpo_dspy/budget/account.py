"""How far the limits of a run reach: what its decided updates have taken, to plan the next one.

The ledger counts calls when they are made, in an order that depends on the clock. The account
counts whole updates, in their order, and counts answers from a cache like calls: so a run that is
repeated, with another number of threads or a warm cache, plans the same batches.
"""

import functools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tfgrpo_dspy.budget.ledger import Budget
from tfgrpo_dspy.rollout import DECIMALS, Rollout, Usage

LIMITS = ("max_lm_calls", "max_metric_calls", "max_cost")
N_RECENT = 2  # an update is expected to cost as much as the dearer of the last two
COST_MARGIN = 1.5
"""Factor for dollars: a rollout with a library has a longer prompt than those before it."""
SPREADS = 2.0  # how many standard deviations above the mean is reckoned with


@dataclass(frozen=True, slots=True)
class Amount:
    """LM calls (answers from a cache included), metric calls, US dollars."""

    n_lm_calls: float = 0.0
    n_metric_calls: float = 0.0
    cost: float = 0.0

    @classmethod
    def of(cls, usage: Usage, n_metric_calls: int) -> "Amount":
        """The amount that rollouts or reflections of this usage have taken."""
        return cls(usage.n_answers, n_metric_calls, usage.cost_usd)

    def __iter__(self) -> Iterator[float]:
        return iter((self.n_lm_calls, self.n_metric_calls, self.cost))

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(*(round(each, DECIMALS) for each in map(operator.add, self, other)))

    def __mul__(self, factor: float) -> "Amount":
        return Amount(*(factor * number for number in self))

    def __truediv__(self, divisor: float) -> "Amount":
        """Exact for equal whole numbers, as a product with `1 / divisor` is not."""
        return Amount(*(number / divisor for number in self))

    def __or__(self, other: "Amount") -> "Amount":
        return Amount(*map(max, self, other))


@dataclass(frozen=True, slots=True)
class Account:
    """What a run has taken up to a decided update.

    The means leave out rollouts that go on from a step of another one, or did not end.
    """

    budget: Budget
    used: Amount = Amount()
    rollouts: Amount = Amount()  # of what was used, by the whole ones
    squares: Amount = Amount()  # the sums of the squares of these
    dearest: Amount = Amount()  # the most that one of them took
    n_rollouts: int = 0
    recent: tuple[Amount, ...] = ()  # what each of the latest updates has taken for an example
    reflections: Amount = Amount()
    assumed: Amount = Amount(1.0, 1.0)  # of a rollout, before the first is made
    assumed_answer: Amount = Amount(1.0)  # the same of an answer of the reflection LM

    def after_rollouts(self, rollouts: Sequence[Rollout]) -> "Account":
        """The account when these rollouts are made."""
        amounts = [Amount.of(r.usage + r.metric_usage, r.n_metric_calls) for r in rollouts]
        pairs = zip(rollouts, amounts, strict=True)
        whole = [amount for rollout, amount in pairs if _is_whole(rollout)]
        squares = [Amount(*(number**2 for number in amount)) for amount in whole]
        return replace(
            self,
            used=sum(amounts, self.used),
            rollouts=sum(whole, self.rollouts),
            squares=sum(squares, self.squares),
            dearest=functools.reduce(operator.or_, whole, self.dearest),
            n_rollouts=self.n_rollouts + len(whole),
        )

    def after_update(
        self, rollouts: Sequence[Rollout], reflections: Usage, n_examples: float
    ) -> "Account":
        """The account after a decided update of `n_examples` examples with groups of usual size."""
        account, answers = self.after_rollouts(rollouts), Amount.of(reflections, 0)
        used, all_answers = account.used + answers, self.reflections + answers
        account = replace(account, used=used, reflections=all_answers)
        if not n_examples:
            return account
        per_example = (account.used + self.used * -1.0) / n_examples
        return replace(account, recent=(*self.recent, per_example)[-N_RECENT:])

    @property
    def per_rollout(self) -> Amount:
        """What a rollout takes on average."""
        return self.rollouts / self.n_rollouts if self.n_rollouts else self.assumed

    @property
    def calls_share(self) -> float:
        """The share of the calls assumed for a rollout that it takes on average."""
        return self.per_rollout.n_lm_calls / self.assumed.n_lm_calls

    def per_example(self, group_size: int, groups_per_call: int) -> Amount:
        """What an example of an update takes: rollouts, its part of a lesson, retries as before."""
        answer = replace(self.per_answer, cost=self.per_answer.cost / groups_per_call)
        usual = self.per_rollout * group_size + answer
        return functools.reduce(operator.or_, self.recent, usual)

    @property
    def per_answer(self) -> Amount:
        """What an answer of the reflection LM takes on average."""
        n = self.reflections.n_lm_calls
        return self.reflections / n if n else self.assumed_answer

    def expected(self, n_rollouts: int) -> Amount:
        """An amount that `n_rollouts` hardly exceed: two standard deviations above the mean."""
        mean, n = self.per_rollout, max(1, self.n_rollouts)
        pairs = zip(self.squares, mean, strict=True)
        sds = Amount(*(math.sqrt(max(0.0, square / n - each**2)) for square, each in pairs))
        spread = sds * (SPREADS * math.sqrt(n_rollouts)) if self.n_rollouts else Amount()
        return mean * n_rollouts + spread

    @property
    def later(self) -> Amount:
        """What a later rollout takes on average; its metric is not asked about predictors."""
        usual, n_metric_calls = self.per_rollout, min(1.0, self.assumed.n_metric_calls)
        return replace(usual, n_metric_calls=n_metric_calls, cost=COST_MARGIN * usual.cost)

    def reserve(self, n_rollouts: int) -> Amount:
        """The amount to keep for later rollouts: at least that of two as dear as the dearest."""
        two = min(2, n_rollouts) * self.dearest.n_lm_calls
        calls = max(self.expected(n_rollouts).n_lm_calls, two)
        return replace(self.later * n_rollouts, n_lm_calls=calls)

    def n_fitting(self, amount: Amount, kept: Amount) -> tuple[float, str]:
        """How often `each` fits into what is left beside `kept`; and the limit that says so."""
        limits = (self.budget.max_lm_calls, self.budget.max_metric_calls, self.budget.max_cost)
        rows = zip(LIMITS, limits, self.used + kept, amount, strict=True)
        fitting = {
            name: max(0.0, math.floor((limit - used) / one + 1e-9))
            for name, limit, used, one in rows
            if limit is not None and one > 0
        }
        name = min(fitting, key=lambda name: fitting[name], default="")
        return fitting.get(name, math.inf), name


def _is_whole(rollout: Rollout) -> bool:
    is_cut = rollout.failure is not None and rollout.failure.kind.is_cut_short
    return rollout.n_replayed is None and not is_cut
