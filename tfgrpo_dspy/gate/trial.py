"""A gate for lessons that concern some of the examples: a cheap probe, then a trial in use.

A candidate is first probed on the examples that it was drawn from: the group that it comes from is
a control that is paid for. What passes goes on trial: a random half of the rollouts of the
training groups that it concerns are given it, which costs nothing extra; it is settled, dropped or
exported by posterior probability, as in Thall and Simon (Biometrics 50, 1994). The thresholds are
looked at after every group and are not corrected for that: error rates are those measured by
`benchmarks/gate_model.py`, not guarantees.

It measures on training examples only. That the library does no harm on the validation set is for
the pipeline to check at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import Experience, ExperienceLibrary, Keep
from tfgrpo_dspy.gate.concern import Concern, WordConcern
from tfgrpo_dspy.gate.halves import random_half
from tfgrpo_dspy.gate.posterior import Beliefs
from tfgrpo_dspy.gate.probing import Probed, confirmed, probed
from tfgrpo_dspy.gate.protocol import Decision, GroupEvidence, GroupPlan, TrialEvidence, Trials
from tfgrpo_dspy.gate.records import Ledger, Record, Shown
from tfgrpo_dspy.gate.rules import Probe, TrialRule
from tfgrpo_dspy.gate.ruling import Ruling

BELIEFS = Beliefs()
SHORT_PROBE = Probe(pass_at=0.7, drop_at=0.2, pass_at_end=0.5, max_rollouts=2)
LONG_PROBE = Probe(pass_at=0.9, drop_at=0.2, pass_at_end=0.5, max_rollouts=6)
TRIAL_RULE = TrialRule()
"""What was best in `benchmarks/gate_model.py` with the concern signal that is measured there."""


@dataclass(frozen=True, slots=True)
class ProbeThenTrial:
    """Candidates are probed on their source examples, then on trial where they concern.

    Where somebody says which training examples experiences concern (`TrialEvidence.concerns`), the
    probe is short and lets a candidate only on trial; its source examples alone never settle it,
    because a lesson can give their answers away. A trial lasts three epochs at most; what is not
    settled by then stays only if examples outside its sources speak for it, or if it was in use
    before its trial. Evidence from elsewhere are the groups that it concerns, and groups that made
    a KEEP of it: those are probed too. Where nobody says anything, a longer probe is all there is,
    and settles it.

    A new text under an old id is a candidate like any other: the old text stays until the new one
    has passed, and comes back if the new one is dropped. A DELETE puts a settled experience on
    trial afresh, beside those that may have made it superfluous; where nobody says what it
    concerns, it goes unless it was measured.

    Scores outside [0, 1] are brought there by the range of all scores seen. Scores that do not
    differ, or that the provider or the metric did not give, are no evidence.

    Args:
        beliefs: what is believed before anything is measured.
        probe: when a probe ends that a trial follows.
        probe_only: when a probe ends that nothing follows; leaks are not thought of there.
        trial: when a trial ends.
        max_candidates: how many candidates of one update are probed, those with the most evidence
            first; and how many on trial are probed further where other groups support them.
        max_sources: on how many of its source examples a candidate is probed, in turns.
        max_confirmations: how many rollouts a group takes that supports an experience on trial.
        solved: a group of which more than this share of the rollouts has the highest score seen is
            not reflected on.
        explained: neither is one whose contrast an experience on trial explains with this
            probability.
        concern: says which training examples experiences concern; None: nobody does.
        domain: the field of the examples that names their domain, if there is one.

    Raises:
        ValueError: a number is out of range.
    """

    beliefs: Beliefs = BELIEFS
    probe: Probe = SHORT_PROBE
    probe_only: Probe = LONG_PROBE
    trial: TrialRule = TRIAL_RULE
    max_candidates: int = 20
    max_sources: int = 2
    max_confirmations: int = 1
    solved: float = 0.7
    explained: float = 0.8
    concern: Concern | None = field(default_factory=WordConcern)
    domain: str | None = None
    metric: Callable[..., Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name in ("solved", "explained"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give more than 0, at most 1.")
        for name in ("max_candidates", "max_sources"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give 1 or more.")
        if self.max_confirmations < 0:
            raise ValueError(f"max_confirmations={self.max_confirmations}: give 0 or more.")

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The next rollout of each probe that is not over, or the decision."""
        ledger = Ledger.from_memory(evidence.memory).having_read(evidence.groups)
        ledger = ledger.having_seen(evidence.scores.values())
        candidates = self._candidates(evidence, ledger)
        confirmed = self._confirmed(evidence, ledger)
        wanted = [each.wants for each in (*candidates, *confirmed) if each.wants is not None]
        if wanted:
            return Trials(tuple(wanted))
        records = {each.experience.id: each.record for each in confirmed}
        ledger = replace(ledger, records={**ledger.records, **records})
        by_id = {each.experience.id: each for each in candidates}
        return Ruling(evidence, ledger, by_id, self.beliefs, self.trial).decision()

    def most_trials(self, n_examples: int) -> int:  # noqa: ARG002 - of the validation set
        """How many rollouts the decision on one update takes at most."""
        longest = max(self.probe.max_rollouts, self.probe_only.max_rollouts)
        return self.max_candidates * (longest + self.max_confirmations)

    def assign(self, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
        """The library of each rollout of a group: balanced, and drawn anew for each experience.

        An experience on trial that concerns the example is given to a random half of the rollouts
        (of an odd number, to one more or one less). One that does not is given to all if it was
        measured to help, else to none: who the text does not name may be concerned all the same,
        and then the group is solved with it, and teaches the same lesson again without it. But
        such a group's KEEP is all that tests an experience of which nobody says what other
        examples it concerns; it has no effect, and is kept away (`Ruling`). All that is settled
        is given to all.
        """
        everyone = frozenset(range(plan.n_rollouts))
        concerned = {experience.id for experience in plan.concerned}
        given = {own.id: everyone for own in plan.library}
        for own in plan.library:
            if own.is_on_trial and own.id in concerned:
                given[own.id] = random_half(plan, own)
            elif own.is_on_trial and (own.effect is None or own.effect.estimate <= 0):
                given[own.id] = frozenset()
        return tuple(
            ExperienceLibrary(
                [own for own in plan.library if index in given[own.id]],
                next_number=plan.library.next_number,
            )
            for index in range(plan.n_rollouts)
        )

    def skips(self, group: GroupEvidence, memory: Any) -> str:
        """Why the group is not worth reflecting on, by what the last decision left; else ""."""
        scores = [score for score in group.scores if score is not None]
        ledger = Ledger.from_memory(memory).having_seen(scores)
        n_solved = sum(score == ledger.high for score in scores)
        if n_solved > self.solved * len(scores):
            return f"solved by {n_solved} of {len(scores)} rollouts"
        shown = Shown.by(group)
        for id_, record in ledger.records.items():
            contrast = None if record.is_settled else shown.contrast(id_, record)
            if contrast is None:
                continue
            probability = self.beliefs.explains(
                ledger.posterior(record, self.beliefs),
                ledger.scaled([contrast])[0],
                group.example in record.sources,
            )
            if probability >= self.explained:
                return f"explained by {id_}, which is on trial (probability {probability:.2f})"
        return ""

    def _candidates(self, evidence: TrialEvidence, ledger: Ledger) -> list[Probed]:
        """The probes of new experiences and of new texts of old ones."""
        known = set(evidence.incumbent)
        new = [own for own in evidence.proposed if own not in known]
        new.sort(key=lambda own: -len(own.evidence))
        n = self._n_probed(evidence)
        new, left = new[:n], new[n:]
        reason = f"there were more than the {n} candidates that could be probed"
        not_tried = [Probed(own, Record.of(own), reason=reason) for own in left]
        return [*self._probes(new, evidence, ledger), *not_tried]

    def _n_probed(self, evidence: TrialEvidence) -> int:
        """How many experiences may be probed: as many as the budget has rollouts for, at most."""
        if evidence.max_trials is None:
            return self.max_candidates
        rule = self.probe_only if evidence.concerns is None else self.probe
        return min(
            self.max_candidates,
            evidence.max_trials // (rule.max_rollouts + self.max_confirmations),
        )

    def _probes(
        self, new: list[Experience], evidence: TrialEvidence, ledger: Ledger
    ) -> list[Probed]:
        if evidence.concerns is not None:
            return [
                probed(own, evidence, ledger, self.beliefs, self.probe, self.max_sources)
                for own in new
            ]
        beliefs = replace(self.beliefs, leak=0.0)
        probes = [
            probed(own, evidence, ledger, beliefs, self.probe_only, self.max_sources) for own in new
        ]
        return [  # where nothing follows, what nothing was measured of does not pass
            replace(each, has_passed=each.has_passed and bool(each.record.contrasts))
            for each in probes
        ]

    def _confirmed(self, evidence: TrialEvidence, ledger: Ledger) -> list[Probed]:
        """The probes of experiences on trial that other groups support."""

        def is_over(record: Record) -> bool:
            beliefs, n = self.beliefs, evidence.n_training
            now, elsewhere = ledger.posterior(record, beliefs), ledger.elsewhere(record, beliefs)
            return self.trial.verdict(record, now, elsewhere, n) != "on trial"

        kept = {own.id for own in evidence.proposed if own in set(evidence.incumbent)}
        keeps = {
            operation.id: operation
            for operation in evidence.operations
            if isinstance(operation, Keep) and operation.id in kept and self.max_confirmations
        }
        open_ones = [
            keep
            for id_, keep in keeps.items()
            if id_ in ledger.records and not ledger.records[id_].is_settled
        ]
        return [
            confirmed(keep, evidence, ledger, self.max_confirmations, is_over)
            for keep in open_ones[: self._n_probed(evidence)]
        ]
