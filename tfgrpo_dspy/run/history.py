"""What the updates of a run decided, and what follows from it for the updates to come.

A batch depends only on the updates that are decided for sure when it is made, `max_staleness` ones
behind it. So it is the same for any number of threads.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from tfgrpo_dspy.budget import Account, Amount, Budget
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import Operation
from tfgrpo_dspy.gate import Decision, Measured, RunEvidence, advice_of
from tfgrpo_dspy.reflection.lessons import DroppedExperience
from tfgrpo_dspy.results import TriedAdvice, UpdateRecord
from tfgrpo_dspy.rollout import fields_text
from tfgrpo_dspy.run.batches import TEACHING, Batch, Extracted
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.extracting import Earlier
from tfgrpo_dspy.run.gate_answers import decision_of
from tfgrpo_dspy.run.measuring import amount_of
from tfgrpo_dspy.sampling.fields import as_fields

HOPELESS = 5
"""Where so many answers about groups could not be read, and none could, the reflection LM is asked
no more: all of them would be paid for, and say nothing."""


class History:
    """The batches and decisions of one run.

    `decisions` and `accounts` hold one entry more than there are decided updates: the first is
    what the run starts with.

    Args:
        run: the run.
        start: the library of the student.
        training: the positions of the examples to train on.
        n_test: the size of the test set.
    """

    def __init__(
        self, run: RunContext, start: ExperienceLibrary, training: Sequence[int], n_test: int
    ) -> None:
        calls = run.settings.schedule.inputs.calls_per_rollout
        self.batches: list[Batch] = []
        self.decisions = [Decision(start, "the library of the student")]
        self.accounts = [Account(run.settings.budget, assumed=Amount(calls, 1.0))]
        self._run = run
        self._training = tuple(training)
        self._n_reserved = 0  # rollouts that are kept for the end
        if run.settings.metric is not None:
            self._n_reserved = run.settings.schedule.reserve + 2 * n_test
        self._started_s = time.monotonic()
        self._measured: list[Measured] = []
        self._asked: list[tuple[int, int]] = []
        self._best_scores: list[float] = []

    @property
    def start(self) -> ExperienceLibrary:
        """The library of the student."""
        return self.decisions[0].library

    @property
    def last(self) -> Decision:
        """The latest decision."""
        return self.decisions[-1]

    @property
    def _updates(self) -> list[UpdateRecord]:
        return self._run.report.updates

    # ------------------------------------------------------------------ what is decided

    def decide(
        self,
        batch: Batch,
        extracted: Extracted,
        operations: Sequence[Operation],
        is_paid: bool,
    ) -> Decision:
        """Have the gate decide; `is_paid`: the run has made the rollouts of the batch itself.

        Raises:
            GateError: the gate answered with something else than a decision.
        """
        settings = self._run.settings
        self._measured += [rollout for group in extracted.groups for rollout in group.measured()]
        evidence = RunEvidence(
            previous=self.last,
            operations=tuple(operations),
            rollouts=tuple(self._measured),
            texts=self._texts,
            training=self._training,
            limits=settings.limits,
        )
        self.decisions.append(decision_of(settings.gate, evidence))
        self.accounts.append(self._account(batch, extracted, is_paid))
        self._asked.append((extracted.n_asked, extracted.n_unread))
        scores = [score for each in extracted.groups for score in each.group.scores]
        self._best_scores.append(max(scores, default=-math.inf))
        self.set_reserve()
        return self.last

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The inputs of each example, and its labels where the reflection LM may see them."""
        settings = self._run.settings
        has_labels = settings.reflection.use_labels and settings.metric is not None
        texts = []
        for example in self._run.trainset:
            labels = as_fields(example.labels()) if has_labels else {}
            texts.append(fields_text({**as_fields(example.inputs()), **labels}))
        return tuple(texts)

    def _account(self, batch: Batch, extracted: Extracted, is_paid: bool) -> Account:
        before = self.accounts[-1]
        rollouts = extracted.rollouts if is_paid else []
        reflections = Amount.of(self._run.report.reflection_usage[batch.update], 0)
        account = before.after_rollouts(amount_of(rollouts), len(rollouts))
        account = account.after_reflections(reflections)
        n_groups = len(extracted.groups)
        return account.after_update(before, n_groups) if n_groups else account

    def set_reserve(self) -> None:
        """Let nothing else take what the end of the run needs, by what rollouts took so far."""
        account, n = self.accounts[-1], self._n_reserved
        reserved = account.reserve(n)
        seconds = (time.monotonic() - self._started_s) / max(1, account.n_rollouts)
        reserve = Budget(
            max_lm_calls=math.ceil(reserved.n_lm_calls),
            max_metric_calls=math.ceil(reserved.n_metric_calls),
            max_cost=reserved.cost,
            max_minutes=n * seconds / 60 / self._run.settings.threads if account.n_rollouts else 0,
        )
        self._run.ledger.set_reserve(reserve)

    # ------------------------------------------------------------------ what follows

    def _n_known(self, update: int) -> int:
        """How many updates are decided for sure when the batch of this one is made."""
        return max(0, update - self._run.settings.schedule.max_staleness)

    def earlier(self, batch: Batch) -> Earlier:
        """What the extraction of lessons from a batch may know of the updates before."""
        n_known = self._n_known(batch.update)
        n_asked = sum(n for n, _ in self._asked[:n_known])
        n_unread = sum(n for _, n in self._asked[:n_known])
        has_given_up = HOPELESS <= n_asked == n_unread
        if has_given_up:
            self._run.report.forfeit(n_asked)
        return Earlier(max(self._best_scores[:n_known], default=-math.inf), has_given_up)

    def why_to_end(self, update: int, n_batches: int) -> str:
        """Why no batch is made for this update; "" if one is.

        A whole epoch of batches, of those that are decided for sure, had nothing to teach, and no
        experience is worth more rollouts.
        """
        last = range(self._n_known(update))[-n_batches:]
        teaches = any(
            self.batches[k].is_draft or any(g.used_as in TEACHING for g in self._updates[k].groups)
            for k in last
        )
        is_open = self.decisions[self._n_known(update)].is_open
        if len(last) == n_batches and not teaches and not is_open:
            return "no group of a whole epoch had anything to teach"
        return ""

    def n_affordable(self, update: int, group_size: int) -> tuple[float, str]:
        """How many examples the next batch may have; and the limit that says so ("": none).

        It depends on the updates that are decided for sure when the batch is made, and on what the
        batches between these and this one are expected to take.
        """
        n_known = self._n_known(update)
        account = self.accounts[n_known]
        under_way = self.batches[n_known:update]
        each = account.per_example(group_size)
        operations = Amount(1.0) * (len(under_way) + 1)  # an answer for each update
        n, name = account.n_fitting(each, account.reserve(self._n_reserved) + operations)
        if update == 0:  # what a rollout takes is only assumed
            return max(1.0, n), name
        return n - sum(len(batch.examples) for batch in under_way), name

    # ------------------------------------------------------------------ what it is worth

    def result(self) -> ExperienceLibrary:
        """What a program would be given if the run ended here."""
        return self.like_start(self.last.result)

    def like_start(self, library: ExperienceLibrary) -> ExperienceLibrary:
        """The library, with the next free id of the student's where it has the same experiences.

        The ids that the run has retired since were never in a program.
        """
        if list(library) != list(self.start):
            return library
        return ExperienceLibrary(library, next_number=self.start.next_number)  # with new evidence

    def scaled_decision(self) -> Decision:
        """The latest decision, with the spread of the training scores where it has none."""
        scores = [rollout.score for rollout in self._measured if rollout.score is not None]
        spread = statistics.pstdev(scores) if scores else 0.0
        return replace(self.last, score_sd=self.last.score_sd or spread)

    def dropped(self) -> list[DroppedExperience]:
        """The advice that was tried and is in the library no more, the most tried first."""
        held = {advice_of(experience) for experience in self.last.library}
        tried = [item for item in self.last.beliefs.items() if item[1].n_rollouts]
        tried.sort(key=lambda item: -item[1].n_rollouts)
        return [
            DroppedExperience(text, scope, belief.in_words())
            for (text, scope), belief in tried
            if (text, scope) not in held
        ]

    def tried(self) -> tuple[TriedAdvice, ...]:
        """All advice that rollouts were given, with what is believed of it."""
        return tuple(
            TriedAdvice(text, scope, belief.effect, belief.chance)
            for (text, scope), belief in self.last.beliefs.items()
            if belief.effect is not None
        )
