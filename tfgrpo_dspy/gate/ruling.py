"""One decision of `ProbeThenTrial` in the making: what becomes of each experience, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.experience import Effect, Experience, ExperienceLibrary
from tfgrpo_dspy.gate.posterior import Beliefs, Posterior
from tfgrpo_dspy.gate.probing import Probed
from tfgrpo_dspy.gate.protocol import Decision, TrialEvidence
from tfgrpo_dspy.gate.records import Ledger, Record
from tfgrpo_dspy.gate.rules import TrialRule


class Ruling:
    """Goes through the experiences once; `decision` is asked once.

    Args:
        ledger: with all evidence of this update.
        probed: the candidates, by id, their probes over.
    """

    def __init__(
        self,
        evidence: TrialEvidence,
        ledger: Ledger,
        probed: Mapping[str, Probed],
        beliefs: Beliefs,
        rule: TrialRule,
    ) -> None:
        self._evidence = evidence
        self._ledger = ledger
        self._probed = probed
        self._beliefs = beliefs
        self._rule = rule
        self._records = dict(ledger.records)
        self._dropped: dict[str, str] = {}
        self._notes: list[str] = []

    def decision(self) -> Decision:
        """The library, what of it is exported, and what is to be remembered."""
        judged = [self._judged(experience) for experience in self._kept()]
        number = self._evidence.proposed.next_number
        library = ExperienceLibrary([own for own in judged if own], next_number=number)
        library = library.annotated({own.id: self._annotations(own) for own in library})
        records = {own.id: self._records[own.id] for own in library if own.id in self._records}
        exported = [own for own in library if self._is_exported(own)]
        return Decision(
            library,
            self._reason(library),
            ExperienceLibrary(exported, next_number=number),
            self._dropped,
            replace(self._ledger, records=records).to_memory(),
        )

    def _is_exported(self, own: Experience) -> bool:
        is_in_use = not own.is_on_trial or self._record_of(own).is_in_use
        return is_in_use or self._posterior(own).gain > 0

    # ------------------------------------------------------------------ what the operations ask

    def _kept(self) -> list[Experience]:
        """What stays of the incumbent and the candidates that passed, in their order."""
        incumbent, proposed = self._evidence.incumbent, self._evidence.proposed
        old_ids, new_ids = {own.id for own in incumbent}, {own.id for own in proposed}
        kept = [
            self._admitted(proposed[old.id], old) if old.id in new_ids else self._undeleted(old)
            for old in incumbent
        ]
        kept += [self._admitted(new, None) for new in proposed if new.id not in old_ids]
        return self._within_limits([own for own in kept if own is not None], new_ids)

    def _admitted(self, new: Experience, old: Experience | None) -> Experience | None:
        """What goes on under this id: the new text if it passed, the old text, or nothing."""
        probed = self._probed.get(new.id)
        if probed is None:  # not a candidate: it says what it said
            return new
        if probed.has_passed:
            before = None if old is None else replace(self._record_of(old), before=None)
            is_settled = self._evidence.concerns is None
            self._records[new.id] = replace(probed.record, is_settled=is_settled, before=before)
            return new
        if old is None:
            self._dropped[new.id] = probed.reason
        else:
            self._notes.append(f"{new.id} keeps its text; of the new one: {probed.reason}")
        return old

    def _undeleted(self, old: Experience) -> Experience | None:
        """An experience that a DELETE names: on trial afresh, or still there, or gone."""
        record = self._records.get(old.id)
        if self._evidence.concerns is not None:
            if record is None or record.is_settled:
                self._records[old.id] = Record.of(old, is_in_use=True)
            self._notes.append(f"{old.id} is on trial, not deleted at once")
            return old
        if record is not None and record.contrasts:
            self._notes.append(f"{old.id} was measured to help, and stays")
            return old
        self._dropped[old.id] = "deleted by an operation; it was not measured"
        return None

    def _within_limits(self, kept: Sequence[Experience], proposed: set[str]) -> list[Experience]:
        """The same; where it is too many, without the worst of those that a DELETE named."""
        spared = [own for own in kept if own.id not in proposed]
        spared.sort(key=lambda own: self._posterior(own).gain)
        n_over = max(0, len(kept) - self._evidence.limits.max_experiences)
        for own in spared[:n_over]:
            self._dropped[own.id] = "deleted by an operation; the library is full"
        return [own for own in kept if own.id not in self._dropped]

    # ------------------------------------------------------------------ what the evidence says

    def _judged(self, experience: Experience) -> Experience | None:
        """The experience, settled or not; its old text, where there is one; None: dropped."""
        record = self._records.get(experience.id)
        if record is None or record.is_settled:
            return experience
        posterior = self._posterior(experience)
        elsewhere = self._ledger.elsewhere(record, self._beliefs)
        verdict = self._rule.verdict(record, posterior, elsewhere, self._evidence.n_training)
        if verdict == "settled":
            self._records[experience.id] = replace(record, is_settled=True, before=None)
        if verdict != "dropped":
            return experience
        reason = (
            f"P(helps) {posterior.helps:.2f}, P(harms) {posterior.harms:.2f} after "
            f"{sum(contrast.n_rollouts for contrast in record.contrasts)} rollouts, "
            f"{sum(contrast.n_rollouts for contrast in record.outside)} of them not of its sources"
        )
        if record.before is None:
            self._dropped[experience.id] = reason
            return None
        self._records[experience.id] = record.before
        self._notes.append(f"{experience.id} has its old text again; of the new one: {reason}")
        before = record.before
        return Experience(experience.id, before.text, before.scope, experience.evidence)

    def _record_of(self, experience: Experience) -> Record:
        """What is known of it; an experience that was there from the start counts as settled."""
        return self._records.get(experience.id) or Record.of(experience, is_settled=True)

    def _posterior(self, experience: Experience) -> Posterior:
        return self._ledger.posterior(self._record_of(experience), self._beliefs)

    def _annotations(self, experience: Experience) -> dict[str, Any]:
        """Whether it is on trial, and its effect, once that was measured.

        What its sources show counts where nothing else is known. On trial it counts only if
        somebody says which other examples the experience concerns: it is then given to groups
        that it does not concern (`ProbeThenTrial.assign`), as those others will test it.
        """
        record = self._record_of(experience)
        concerned = (self._evidence.concerns or {}).get(experience.id, frozenset())
        has_test = record.is_settled or not concerned <= set(record.sources)
        counted = record.outside or (record.contrasts if has_test else ())
        if not counted:
            return {"is_on_trial": not record.is_settled}
        posterior, unit = self._posterior(experience), self._ledger.high - self._ledger.low
        n_rollouts = sum(contrast.n_rollouts for contrast in counted)
        effect = Effect(posterior.gain * unit, posterior.error * unit, n_rollouts)
        return {"is_on_trial": not record.is_settled, "effect": effect}

    def _reason(self, library: ExperienceLibrary) -> str:
        n_on_trial = sum(own.is_on_trial for own in library)
        counts = f"{len(library) - n_on_trial} settled, {n_on_trial} on trial"
        if self._dropped:
            counts += f", {len(self._dropped)} dropped"
        return "; ".join([counts, *self._notes])
