"""Which batch comes next: its examples, their rollouts, and whether the budget pays for them.

A batch depends only on the updates that are decided for sure when it is made, `max_staleness` ones
behind it. So it is the same for any number of threads.
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.calls.reserve import Reserve
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.run.endings import why_finished
from tfgrpo_dspy.run.strategy_calls import Strategies
from tfgrpo_dspy.run.updates import Batch, Update, rollouts_of
from tfgrpo_dspy.settings.schedule import RunInputs
from tfgrpo_dspy.strategies.base import BatchPlan

MAX_EXAMPLES_BEFORE_DRAFTS = 8
"""The number of examples that are sampled while drafts are still written. The lessons of more would
mostly repeat the drafts."""
ASKED_IN_VAIN, ASKING_SHARE = 3, 0.2
"""A metric that said nothing of the predictors of 3 rollouts is asked of the whole only. In a
program of one predictor, the first batches ask if that takes at most a fifth of the budget."""

LATE_SHARE = 0.5  # of the calls assumed; a program that takes less calls few of its predictors


class Planner:
    """Plans the batches of one run; `ended_because` says why none follows the last of them."""

    def __init__(
        self,
        inputs: RunInputs,
        strategies: Strategies,
        ledger: Ledger,
        reserve: Reserve,
        updates: Sequence[Update],  # the start and the decided ones, which somebody else appends
    ) -> None:
        settings = self._settings = inputs.settings
        is_recorded = settings.data.is_recorded
        self.ended_because = "all epochs are done"
        self.batches: list[Batch] = []
        self.n_batches = math.ceil(len(inputs.training) / settings.batch_size)  # of an epoch
        proposes = any(s.proposes_first for s in strategies.overriding("propose"))
        self.n_drafts = int(settings.drafts > 0 or (proposes and not is_recorded))
        n_epochs = 1 if is_recorded else settings.epochs
        self.n_updates = self.n_drafts + n_epochs * self.n_batches
        self._inputs, self._strategies, self._updates = inputs, strategies, updates
        self._ledger, self._reserve = ledger, reserve
        self._group_size = 0 if is_recorded else settings.group_size
        self._visits: Counter[int] = Counter()
        self._is_over = False
        self._late: set[int] = set()  # numbers of updates planned when all earlier are decided

    def next(self) -> Batch | None:
        """The next batch, maybe a draft; None: not before another update is decided, or none."""
        number, n_decided = len(self.batches), len(self._updates) - 1
        if self._is_over or number == self.n_updates or n_decided < self.n_awaited(number):
            return None
        batch = self._planned(number)
        if batch is not None:
            self.batches.append(batch)
        elif not self._postpones(number):
            self._is_over = True
        return batch

    def n_awaited(self, number: int) -> int:
        """How many updates are decided before the batch of the update with this number is made."""
        n_decided, n_examples = self._n_decided(number), number * self._settings.batch_size
        is_after_drafts = self.n_drafts and n_examples > MAX_EXAMPLES_BEFORE_DRAFTS
        return max(n_decided, 1) if is_after_drafts else n_decided

    def _n_decided(self, number: int) -> int:
        return number if number in self._late else max(0, number - self._settings.max_staleness)

    def _postpones(self, number: int) -> bool:
        """Plan the batch, which is not paid for, when all before it are decided; False: do not.

        Where nothing but an assumption says what a rollout takes, those under way will tell. Then
        it follows if they take far fewer calls, as of a program that calls few predictors.
        """
        if self._ledger.cut_because or number <= self.n_drafts or number in self._late:
            return False
        if not self._updates[self._n_decided(number)].account.n_rollouts:
            self._late.add(number)
        return number in self._late

    def _planned(self, number: int) -> Batch | None:
        if self._ledger.cut_because:
            return None
        base = self._updates[self.n_awaited(number)]
        if number < self.n_drafts:
            return Batch(number, base, is_draft=True)
        decided = self._updates[: base.number + 1]
        if finished := why_finished(decided, self.n_drafts, self.n_batches, self._inputs):
            self.ended_because = finished
            return None
        epoch, examples = self._scheduled(number)
        n, limit = self._n_affordable(number)
        if n < len(examples):
            value = getattr(self._settings, limit)
            self.ended_because = f"{limit}={value} is spent as planned"
        if n < 1:
            return None
        chosen = examples[: int(min(n, self._settings.batch_size))]
        sizes = self._strategies.sizes(self._plan(number, base, chosen)) if self._group_size else {}
        examples = tuple(sizes or chosen)
        visits = tuple(self._visits[example] for example in examples)
        self._visits.update(examples)
        return Batch(
            number,
            base,
            epoch,
            examples,
            sizes=tuple(sizes.values()) or (0,) * len(examples),
            visits=visits,
            asks_predictors=self.asks_predictors(base),
        )

    def order(self, epoch: int) -> list[int]:
        """The training examples in the order of this epoch's batches."""
        order = list(self._inputs.training)
        random.Random(f"{self._settings.seed}/{epoch}").shuffle(order)
        return order

    def _scheduled(self, number: int) -> tuple[int, tuple[int, ...]]:
        """The epoch, and the examples that the batch has where nothing makes it smaller."""
        size = self._settings.batch_size
        epoch, index = divmod(number - self.n_drafts, self.n_batches)
        return epoch, tuple(self.order(epoch)[index * size : (index + 1) * size])

    def _plan(self, number: int, base: Update, examples: Sequence[int]) -> BatchPlan:
        under_way = (batch.examples for batch in self.batches[base.number : number])
        return BatchPlan(
            sizes=dict.fromkeys(examples, self._group_size),
            past=base.groups,
            under_way=tuple(itertools.chain(*under_way)),
            training=self._inputs.training,
            trainset=self._inputs.trainset,
            group_size=self._group_size,
            update=number,
            seed=self._settings.seed,
        )

    def asks_predictors(self, base: Update) -> bool:
        """Whether the metric is also asked about each predictor in the rollouts of the next batch.

        It is until it was asked about a few rollouts that could have been better, and said nothing
        but what it says of the whole.
        """
        settings = self._settings
        if settings.metric is None or not adapt_metric(settings.metric).asks_predictors:
            return False
        asked = [rollout for rollout in rollouts_of(base.groups) if rollout.n_metric_calls > 1]
        if any(step.feedback for rollout in asked for step in rollout.steps):
            return True
        n_first = settings.rollouts_of_update * (1 + settings.max_staleness)
        n_more = n_first * (1 + len(self._inputs.predictors) - settings.data.n_metric_calls)
        if n_more > ASKING_SHARE * (settings.max_metric_calls or math.inf):
            return False
        range_ = base.score_range
        best = math.inf if range_.is_flat else range_.highest - range_.least_contrast
        scores = [rollout.score for rollout in asked if rollout.score is not None]
        return sum(score < best for score in scores) < ASKED_IN_VAIN

    def _n_affordable(self, number: int) -> tuple[float, str]:
        """How many examples the next batch may have; and the limit that says so ("": none)."""
        n_decided = self._n_decided(number)
        account = self._updates[n_decided].account
        under_way = self.batches[n_decided:number]  # they take what is expected of them
        of_draft = self._settings.drafts + self._settings.n_briefs * len(self._inputs.predictors)
        n_drafts = of_draft * sum(batch.is_draft for batch in under_way)
        operations = account.per_answer * (len(under_way) + 1 + n_drafts)  # one for each update
        of_example = account.per_example(self._group_size, self._settings.groups_per_call)
        reserve = self._reserve.amount(account)
        n, limit = account.n_fitting(of_example, reserve + operations)
        if number in self._late and account.calls_share >= LATE_SHARE:
            return 0, limit
        if number == 0:  # what a rollout takes is only assumed
            return max(1.0, n), limit
        return n - sum(map(self.n_usual, under_way)), limit

    def n_usual(self, batch: Batch, examples: Sequence[int] | None = None) -> float:
        """How many groups of the usual size have as many rollouts as these of the batch."""
        counted = batch.examples if examples is None else examples
        sizes = [batch.size_and_visit(example)[0] for example in counted]
        return sum(sizes) / self._group_size if self._group_size else len(counted)
