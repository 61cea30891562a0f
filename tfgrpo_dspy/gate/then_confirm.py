"""A gate for advice that concerns every example: a trial in use, which is free, then a proof.

A candidate goes on trial at once: a random half of the rollouts of every training group from then
on is given it, drawn for each candidate anew, so that all are measured at once by rollouts that are
paid for anyway (`effects`). What is unlikely to help is dropped. What very likely helps is tried
together against the library without it, on validation examples, as deployed (`sequential`): only
that test settles it, and only it spends of the error that the run may make.

Towards the planned end of a run, or in a short one, no groups are left to try anything in. Then
what is on trial and likely helps is tested, and new candidates are measured on the validation set
at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary, sift
from tfgrpo_dspy.gate.effects import Estimate, Row
from tfgrpo_dspy.gate.extra import ExtraPairs
from tfgrpo_dspy.gate.factorial import FactorialGate
from tfgrpo_dspy.gate.judging import Judging, Rules, after
from tfgrpo_dspy.gate.on_trial import OnTrial, Said
from tfgrpo_dspy.gate.protocol import Decision, GroupPlan, Trial, TrialEvidence, Trials
from tfgrpo_dspy.gate.sequential import (
    MIN_TRIALS,
    Account,
    Plan,
    Verdict,
    check_settings,
    compare,
    slots,
)


@dataclass(frozen=True, slots=True)
class TrialThenConfirm:
    """Lessons on trial in training groups; those that seem to help are confirmed on validation.

    Over all updates of a run, the chance that a run of useless lessons ends with any is at most
    `error`: each test may spend `error_share` of what is left of it. A new text under an old id is
    on trial against the old text; a DELETE puts what it names on trial against its absence, and it
    goes if it cannot be told from useless. Experiences carry their `effect`: as training groups
    showed it, and the test that settled them (but for a test with a `metric` of its own).

    Args:
        error: the chance that a run of useless lessons ends with any of them.
        error_share: how much of the error that is left one test may spend.
        max_trials: how many rollouts the decision on one update may take.
        extra_share: how much of `max_trials` is for pairs of rollouts on training examples, beside
            the groups; none of it where the run has a budget of calls or cost, or where no test
            can follow.
        ready_at: with this probability that it helps, an experience on trial is tested. (Its own:
            not pooled with those of the others. A test follows, which a lucky one does not pass.)
        ready_at_last: the same, where no groups are left to try it in.
        keep_at: of those that pass a test together, the best is settled, and those that help with
            this probability; the others stay on trial.
        drop_at: with this probability or less it is dropped.
        max_epochs: after so many groups, as a share of the training set, it is dropped, if it is
            not ready then.
        max_on_trial: where more would be on trial, those go that less likely help than not, then
            the new ones with the least evidence.
        least_ahead: nothing is put on trial if fewer training rollouts than this are to come.
        at_once: decides then; its `error` is that of this gate.
        futility: a test ends when its chance to accept, by the trend so far, falls below this.
        max_passes: how often a test uses an example at most.
        metric: scores the validation trials in place of the optimizer's metric.

    Raises:
        ValueError: a number is out of range.
    """

    error: float = 0.1
    error_share: float = 0.3
    max_trials: int = 400
    extra_share: float = 0.1
    ready_at: float = 0.9
    ready_at_last: float = 0.75
    keep_at: float = 0.97
    drop_at: float = 0.25
    max_epochs: float = 1.0
    max_on_trial: int = 12
    least_ahead: int = 30
    at_once: FactorialGate = field(default_factory=FactorialGate)
    futility: float = 0.02
    max_passes: int = 10
    metric: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_settings(self.error, self.max_trials, self.futility, self.max_passes)
        if not 0 < self.error_share <= 1:
            raise ValueError(f"error_share={self.error_share}: pass more than 0, at most 1.")
        if not 0 <= self.extra_share < 1:
            raise ValueError(f"extra_share={self.extra_share}: pass a share from 0, below 1.")
        if not 0 <= self.drop_at < self.ready_at_last <= self.ready_at <= self.keep_at < 1:
            raise ValueError(
                f"drop_at={self.drop_at}, ready_at_last={self.ready_at_last}, "
                f"ready_at={self.ready_at}, keep_at={self.keep_at}: "
                f"pass 0 <= drop_at < ready_at_last <= ready_at <= keep_at < 1."
            )
        if self.max_epochs <= 0 or self.max_on_trial < 1:
            raise ValueError(
                f"max_epochs={self.max_epochs}, max_on_trial={self.max_on_trial}: pass more than "
                f"0, and at least 1."
            )

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The next trials of a test, or the decision."""
        state = OnTrial.from_memory(evidence.memory).having_read(evidence)
        if self.is_over(evidence):
            return self._ended(state, evidence)
        return self._ruled(state, evidence, self.max_trials)

    def _ruled(self, state: OnTrial, evidence: TrialEvidence, most: int) -> Trials | Decision:
        """What becomes of what is on trial, by at most so many rollouts; and of the operations."""
        n_extra_pairs = self._n_extra_pairs(state, evidence, most)
        extra = ExtraPairs.of(state, evidence, n_extra_pairs)
        trials = tuple(trial for trial, _ in extra.trials)
        if any(trial not in evidence.scores for trial in trials):
            return Trials(trials)
        state = replace(state, rows=state.rows + extra.rows(evidence))
        estimates = state.estimates()
        plan = self._plan(state, evidence, most - 2 * n_extra_pairs)
        ready = self._ready(state, estimates, evidence)
        verdict = self._tested(state, ready, evidence, plan)
        if isinstance(verdict, Trials):
            return verdict
        return self._judged(state, estimates, evidence, ready, verdict)

    def most_trials(self, n_examples: int) -> int:
        """How many rollouts the decision on one update takes at most."""
        return self.max_trials if n_examples else 0

    def assign(self, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
        """The library of each rollout of a group: a random half holds each experience on trial.

        The others hold what stood before it: the old text of a MODIFY, or nothing.
        """
        return OnTrial.who(plan.memory).assigned(plan)

    def on_trial(self, memory: Any) -> frozenset[str]:
        """The ids of what this gate has on trial, by what its last decision left."""
        return frozenset(OnTrial.who(memory).tried)

    def is_over(self, evidence: TrialEvidence) -> bool:
        """Whether there are too few groups to come to try anything in."""
        return evidence.n_ahead is not None and evidence.n_ahead < self.least_ahead

    # ------------------------------------------------------------------ who is tested, and how

    def _ready(
        self, state: OnTrial, estimates: Mapping[str, Estimate], evidence: TrialEvidence
    ) -> tuple[str, ...]:
        """Which of those that an operation added or changed are to be tested now."""
        least = self.ready_at_last if self.is_over(evidence) else self.ready_at
        return tuple(
            id_
            for id_, tried in state.tried.items()
            if not tried.is_delete and id_ in estimates and estimates[id_].p_unpooled >= least
        )

    def _ended(self, state: OnTrial, evidence: TrialEvidence) -> Trials | Decision:
        """First what is on trial is tested or dropped; then new candidates are decided at once.

        Where there are both, each may take half of the rollouts.
        """
        first: Trials | Decision = Decision(evidence.incumbent, "", memory=state.to_memory())
        operations, n_parts = evidence.operations, 2 if state.tried and evidence.operations else 1
        most = max(MIN_TRIALS, self.max_trials // n_parts)
        if evidence.max_trials is not None:
            evidence = replace(evidence, max_trials=evidence.max_trials // n_parts)
        if state.tried:
            first = self._ruled(state, replace(evidence, operations=()), most)
        if isinstance(first, Trials):
            return first
        state = OnTrial.from_memory(first.memory)
        taken, _ = sift(first.library, operations, evidence.limits)
        n_most = min(most, self.at_once.max_trials)
        at_once = replace(self.at_once, error=self.error, max_trials=n_most)
        account = Account(state.error_spent)
        second = at_once.next(
            replace(evidence, incumbent=first.library, operations=tuple(taken), memory=account)
        )
        if isinstance(second, Trials):
            return second
        spent = second.memory.error_spent
        return replace(after(first, second), memory=replace(state, error_spent=spent).to_memory())

    def _n_extra_pairs(self, state: OnTrial, evidence: TrialEvidence, most: int) -> int:
        """How many pairs are made beside the groups.

        None where a budget limits the trials, and none where no test can follow.
        """
        if not state.tried or evidence.max_trials is not None:
            return 0
        n_pairs = int(self.extra_share * most) // 2
        return 0 if self._plan(state, evidence, most - 2 * n_pairs) is None else n_pairs

    def _plan(self, state: OnTrial, evidence: TrialEvidence, most: int) -> Plan | None:
        """The test that is possible with so many; None: too few to tell a gain from luck."""
        if evidence.max_trials is not None:
            most = min(most, evidence.max_trials)
        n_pairs = min(most // 2, self.max_passes * evidence.n_examples)
        plan = Plan(n_pairs, self.error_share * state.error_left(self.error), 4, self.futility)
        return None if plan.is_hopeless(evidence.n_examples) else plan

    def _tested(
        self, state: OnTrial, ready: Sequence[str], evidence: TrialEvidence, plan: Plan | None
    ) -> Trials | Verdict | None:
        """How those that are ready do together, against the library without them."""
        if not ready or plan is None:
            return None
        without, with_them = _compared(state, evidence, ready)
        return compare(replace(evidence, incumbent=without), with_them, plan)

    # ------------------------------------------------------------------ what comes of it

    def _judged(
        self,
        state: OnTrial,
        estimates: Mapping[str, Estimate],
        evidence: TrialEvidence,
        ready: Sequence[str],
        verdict: Verdict | None,
    ) -> Decision:
        """By the test, if there was one; by the groups, of those that were not in it."""
        settled: frozenset[str] = frozenset()
        failed: dict[str, str] = {}
        note = ""
        if verdict is not None:
            state = state.after_test(verdict)
            note = f"tested {', '.join(ready)}: {verdict}"
            settled = self._carrying(ready, estimates) if verdict.is_better else frozenset()
            if not verdict.is_better or self.is_over(evidence):
                reason = f"tested with {len(ready) - 1} others: {verdict}"
                failed = {id_: reason for id_ in ready if id_ not in settled}
        elif ready:
            note = f"{', '.join(ready)}: too few trials to tell a gain from luck"
        rules = Rules(
            self.drop_at,
            self.ready_at,
            self.max_epochs,
            self.max_on_trial,
            is_over=self.is_over(evidence),
            has_test=True,
        )
        decision = Judging(rules, state, estimates, evidence).decision(settled, failed, note)
        if verdict is None or not settled or self.metric is not None:
            return decision
        estimates = _with_test(state, evidence, ready, verdict)
        return _restated(decision, {state.tried[id_].said: estimates[id_] for id_ in settled})

    def _carrying(self, ready: Sequence[str], estimates: Mapping[str, Estimate]) -> frozenset[str]:
        """Of those that passed a test together, the ones that it was passed by: not the riders."""
        sure = {id_ for id_ in ready if estimates[id_].p_unpooled >= self.keep_at}
        best = max(ready, key=lambda id_: estimates[id_].effect.estimate)
        return frozenset(sure | {best})


def _compared(
    state: OnTrial, evidence: TrialEvidence, ready: Sequence[str]
) -> tuple[ExperienceLibrary, ExperienceLibrary]:
    """What is settled, without those that are ready and with them."""
    without = state.exported(evidence.incumbent)
    with_them = state.exported(evidence.incumbent, frozenset(ready))
    return ExperienceLibrary(without), ExperienceLibrary(with_them)


def _with_test(
    state: OnTrial, evidence: TrialEvidence, ready: Sequence[str], verdict: Verdict
) -> dict[str, Estimate]:
    """The effects of those on trial by the groups and by the test together."""
    without, with_them = _compared(state, evidence, ready)
    rows = [
        Row(f"test/{example}", present, evidence.scores[Trial(library, example, index)])
        for example, index in slots(evidence.validation_order, verdict.n_slots)
        for library, present in ((without, frozenset()), (with_them, frozenset(ready)))
    ]
    return replace(state, rows=(*state.rows, *rows)).estimates()


def _restated(decision: Decision, settled: Mapping[Said, Estimate]) -> Decision:
    """The same decision; of what is settled, the effects that these estimates show.

    An operation of the same update may have changed or deleted it.
    """

    def restated(library: ExperienceLibrary) -> ExperienceLibrary:
        found = {own.id: settled.get((own.text, own.scope)) for own in library}
        return library.annotated(
            {id_: {"effect": of.effect} for id_, of in found.items() if of and of.is_known}
        )

    exported = decision.exported
    return replace(
        decision,
        library=restated(decision.library),
        exported=None if exported is None else restated(exported),
    )
