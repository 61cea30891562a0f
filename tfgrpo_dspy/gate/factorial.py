"""A gate for many candidates at once, each of which may concern every example.

Choosing: validation examples are rolled out with a random half of the candidates and with the
other half, so that each rollout is evidence on all of them (`effects`); what seems to do harm goes.
Confirming: the rest together against the incumbent, on rollouts of its own (`sequential`), so that
what was chosen by luck is not believed, and candidates that spoil each other do not pass together.
Pruning: once they are confirmed, and only then, halves of them are tried further, and those that
cannot be told from useless are dropped.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tfgrpo_dspy.experience import Delete
from tfgrpo_dspy.gate.candidates import Candidates
from tfgrpo_dspy.gate.effects import Estimate, Row, balanced_presence, estimate_effects
from tfgrpo_dspy.gate.measured import annotated
from tfgrpo_dspy.gate.protocol import Decision, Trial, TrialEvidence, Trials
from tfgrpo_dspy.gate.sequential import (
    MIN_TRIALS,
    Account,
    Plan,
    Verdict,
    check_settings,
    compare,
    slots,
)

_LOOKS = 3
_CLEAR = 0.95
"""A part ends early when each candidate helps, or does not, with this probability."""

_Tried = tuple[Trial, frozenset[int]]
"""A trial, and the candidates that are present in it."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the trials of random halves showed, and who stays by it."""

    staying: frozenset[int]
    estimates: Mapping[int, Estimate]
    trials: tuple[_Tried, ...] = ()


@dataclass(frozen=True, slots=True)
class FactorialGate:
    """Measures all operations at once, confirms those that help together, prunes the rest.

    Over all updates of a run, the chance that a run of useless lessons ends with any is at most
    `error`. Candidates are chosen when they are more likely to help than not; all of those are
    tested against the incumbent; of what is confirmed, an operation stays if its effect is above 0
    with `min_probability`, and the best one in any case. Of two libraries that cannot be told apart
    the shorter wins: a DELETE stays if with that probability it loses no more than `margin`. (Alone
    it must gain: that nothing is lost takes thousands of rollouts to show.) A single candidate is
    confirmed at once. Experiences that stay carry their `effect`.

    Args:
        error: the chance that a run of useless lessons ends with any of them.
        max_trials: how many rollouts the decision on one update may take.
        choose_share: how much of `max_trials` is for choosing.
        prune_share: how much of `max_trials` is for pruning.
        min_probability: what is pruned: effects above 0 with a smaller probability than this.
        futility: a test ends when its chance to accept, by the trend so far, falls below this.
        margin: what a DELETE may lose, in score, where others gain.
        max_passes: how often an example is used at most, in each part.
        metric: scores the trials in place of the optimizer's metric.
    """

    error: float = 0.1
    max_trials: int = 200
    choose_share: float = 0.4
    prune_share: float = 0.1
    min_probability: float = 0.8
    futility: float = 0.02
    margin: float = 0.02
    max_passes: int = 10
    metric: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_settings(self.error, self.max_trials, self.futility, self.max_passes)
        for name in ("choose_share", "prune_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: pass a share from 0, below 1.")
        if self.choose_share + self.prune_share >= 1:
            raise ValueError(
                f"choose_share={self.choose_share} and prune_share={self.prune_share} leave "
                f"nothing to confirm with: pass shares that sum to less than 1."
            )
        if not 0.5 <= self.min_probability < 1:
            raise ValueError(
                f"min_probability={self.min_probability}: pass at least 0.5 and less than 1."
            )
        if not 0 <= self.margin < math.inf:
            raise ValueError(f"margin={self.margin}: pass 0 or more.")

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The next trials, or the decision."""
        if evidence.max_trials is not None:
            most = max(MIN_TRIALS, min(self.max_trials, evidence.max_trials))
            return replace(self, max_trials=most).next(replace(evidence, max_trials=None))
        account = Account.of(evidence, self.error)
        candidates = Candidates(evidence)
        if reason := self._undecidable(candidates, evidence, account):
            return Decision(candidates.library(()), reason, memory=account)
        chosen = self._choose(candidates, evidence)
        if isinstance(chosen, Trials):
            return chosen
        if not chosen.staying:
            dropped = candidates.dropped((), _reasons(candidates, chosen))
            reason = "no operation seems to help"
            return Decision(candidates.library(()), reason, dropped=dropped, memory=account)
        verdict = self._confirm(chosen, candidates, evidence, account)
        if isinstance(verdict, Trials):
            return verdict
        if not verdict.is_better:
            return _kept_incumbent(chosen, verdict, candidates, account)
        pruned = self._prune(chosen, candidates, evidence)
        if isinstance(pruned, Trials):
            return pruned
        return Decision(
            annotated(candidates, pruned.staying, evidence),
            f"{len(pruned.staying)} of {len(candidates)} operations; "
            f"the {len(chosen.staying)} chosen: {verdict}",
            dropped=candidates.dropped(pruned.staying, _reasons(candidates, pruned)),
            memory=account.after(verdict, keeps_known=pruned.staying == chosen.staying),
        )

    def most_trials(self, n_examples: int) -> int:
        """How many rollouts the decision on one update takes at most, the incumbent's included."""
        return self.max_trials if n_examples else 0

    def _undecidable(
        self, candidates: Candidates, evidence: TrialEvidence, account: Account
    ) -> str:
        """Why nothing is tried, or ""."""
        if not len(candidates):
            return "nothing to decide"
        if not evidence.n_examples:
            return "no validation examples"
        if self._plan(len(candidates), evidence, account).is_hopeless(evidence.n_examples):
            return f"too few trials to tell a gain from luck ({evidence.n_examples} examples)"
        return ""

    # ------------------------------------------------------------------ the three parts

    def _choose(self, candidates: Candidates, evidence: TrialEvidence) -> Trials | _Measured:
        """The trials of the next look at all candidates, or who is more likely to help than not."""
        n_slots = self._n_slots(self.choose_share, len(candidates), evidence)
        if not n_slots:
            return _Measured(candidates.fitting(sorted(candidates.all)), {})
        halves = _Halves(candidates, evidence, candidates.all, n_slots, self.margin)
        return self._look_on(halves, candidates, 0.5)

    def _confirm(
        self, chosen: _Measured, candidates: Candidates, evidence: TrialEvidence, account: Account
    ) -> Trials | Verdict:
        plan = self._plan(len(candidates), evidence, account)
        return compare(evidence, candidates.library(chosen.staying), plan)

    def _prune(
        self, chosen: _Measured, candidates: Candidates, evidence: TrialEvidence
    ) -> Trials | _Measured:
        """The trials of the next look at the confirmed ones, or who stays of them."""
        n_slots = self._n_slots(self.prune_share, len(chosen.staying), evidence)
        if len(chosen.staying) == 1 or not n_slots:
            return chosen
        among = chosen.staying
        halves = _Halves(candidates, evidence, among, n_slots, self.margin, chosen.trials)
        pruned = self._look_on(halves, candidates, self.min_probability)
        if isinstance(pruned, Trials):
            return pruned
        if not any(estimate.is_known for estimate in pruned.estimates.values()):
            return chosen
        pruned = replace(pruned, estimates={**chosen.estimates, **pruned.estimates})
        if pruned.staying:
            return pruned
        best = max(sorted(chosen.staying), key=lambda k: _estimate(pruned.estimates, k))
        return replace(pruned, staying=frozenset({best}))

    def _plan(self, n_candidates: int, evidence: TrialEvidence, account: Account) -> Plan:
        """What confirming may take: all that the other parts do not."""
        n_others = sum(
            2 * self._n_slots(share, n_candidates, evidence)
            for share in (self.choose_share, self.prune_share)
        )
        n_pairs = account.n_pairs(self.max_trials - n_others)
        return Plan(
            min(n_pairs, self.max_passes * evidence.n_examples),
            account.share(evidence, self.error),
            futility=self.futility,
        )

    def _n_slots(self, share: float, n_candidates: int, evidence: TrialEvidence) -> int:
        """How often a part may try two halves; a single candidate has none."""
        if n_candidates < 2:
            return 0
        return min(int(share * self.max_trials) // 2, self.max_passes * evidence.n_examples)

    def _look_on(
        self, halves: "_Halves", candidates: Candidates, least: float
    ) -> Trials | _Measured:
        """The trials of the next look, or who helps with that probability when it is clear."""
        for n_seen in halves.looks:
            if trials := halves.missing(n_seen):
                return trials
            if n_seen < halves.n_slots and not halves.missing(halves.look_after(n_seen)):
                continue
            estimates = halves.estimates(n_seen)
            p_good = {k: self._p_good(candidates, k, estimates.get(k)) for k in halves.among}
            if n_seen == halves.n_slots or all(
                not 1 - _CLEAR < p < _CLEAR for p in p_good.values()
            ):
                break
        staying = [k for k in sorted(halves.among) if p_good[k] >= least]
        staying.sort(key=lambda k: -_estimate(estimates, k))
        return _Measured(candidates.fitting(staying), estimates, halves.tried(n_seen))

    def _p_good(self, candidates: Candidates, k: int, estimate: Estimate | None) -> float:
        """That an operation helps; of a DELETE, that it does no harm."""
        if estimate is None:
            return 0.5
        if isinstance(candidates.changes[k], Delete):
            return estimate.p_harmless
        return estimate.p_positive


class _Halves:
    """Trials of random halves of some candidates, after those that were tried `before`."""

    def __init__(
        self,
        candidates: Candidates,
        evidence: TrialEvidence,
        among: frozenset[int],
        n_slots: int,
        margin: float,
        before: tuple[_Tried, ...] = (),
    ) -> None:
        self._scores = evidence.scores
        self._margin = margin
        self._before = before
        self.among, self.n_slots = among, n_slots
        order, first = sorted(among), len(before) // 2
        halves = balanced_presence(len(order), n_slots, f"{evidence.update}/{first}")
        places = slots(evidence.validation_order, first + n_slots, first=1)[first:]
        own: list[_Tried] = []
        for half, place in zip(halves, places, strict=True):
            present = frozenset(k for k, is_present in zip(order, half, strict=True) if is_present)
            for part in (present, among - present):
                own.append((Trial(candidates.library(part), *place), part))
        self._own = tuple(own)

    @property
    def looks(self) -> tuple[int, ...]:
        """How many slots each look has seen."""
        even = (math.ceil(self.n_slots * look / _LOOKS) for look in range(1, _LOOKS + 1))
        return tuple(dict.fromkeys(even))

    def look_after(self, n_seen: int) -> int:
        """The look that follows."""
        return self.looks[self.looks.index(n_seen) + 1]

    def missing(self, n_seen: int) -> Trials | None:
        """The trials of that look, if one of them is not measured."""
        trials = [trial for trial, _ in self._own[: 2 * n_seen]]
        if all(trial in self._scores for trial in trials):
            return None
        return Trials(tuple(trials))

    def tried(self, n_seen: int) -> tuple[_Tried, ...]:
        """All trials up to that look, those before included."""
        return self._before + self._own[: 2 * n_seen]

    def estimates(self, n_seen: int) -> dict[int, Estimate]:
        """What the trials up to that look show."""
        rows = [
            Row(trial.example, frozenset(map(str, part)), self._scores[trial])
            for trial, part in self.tried(n_seen)
        ]
        estimates = estimate_effects(rows, self._margin)
        return {k: estimates[str(k)] for k in self.among if str(k) in estimates}


def _estimate(estimates: Mapping[int, Estimate], k: int) -> float:
    return estimates[k].effect.estimate if k in estimates else 0.0


def _kept_incumbent(
    chosen: _Measured, verdict: Verdict, candidates: Candidates, account: Account
) -> Decision:
    which = "the chosen" if len(chosen.staying) > 1 else "it"
    reason = f"{which} against the incumbent, not told from luck: {verdict}"
    reasons = _reasons(candidates, chosen) | dict.fromkeys(chosen.staying, reason)
    dropped = candidates.dropped((), reasons)
    return Decision(candidates.library(()), reason, dropped=dropped, memory=account.after(verdict))


def _reasons(candidates: Candidates, measured: _Measured) -> dict[int, str]:
    """Of each candidate in words: what was measured of it."""
    return {k: _reason(measured.estimates.get(k)) for k in candidates.all}


def _reason(estimate: Estimate | None) -> str:
    if estimate is None or not estimate.is_known:
        return "its effect could not be measured"
    effect = estimate.measured
    return (
        f"effect {effect.estimate:+.3f} (standard error {effect.standard_error:.3f}) over "
        f"{effect.n_rollouts} rollouts; above 0 with probability {estimate.p_positive:.2f}"
    )
