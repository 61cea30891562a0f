"""A gate for lessons that concern some of the examples: a cheap probe, then a trial in use.

A candidate is first probed on the examples that it was drawn from: the group that it comes from
is a control that is paid for. What passes goes on trial: a random half of the rollouts of the
training groups that it concerns are given it, which cost nothing extra; what is settled, dropped
or exported follows from the posterior. The design is that of a simulation study of this project;
its parts are Thall and Simon's monitoring by posterior probability (Biometrics 50, 1994) and
randomised presence. Posterior thresholds are looked at after every group and are not corrected for
that: error rates are those of `benchmarks/gate_model.py`, not guarantees.

It measures on training examples only; that the library does no harm on the validation set is
checked by the pipeline at the end.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import Effect, Evidence, Experience, ExperienceLibrary, Keep
from tfgrpo_dspy.gate.posterior import Beliefs, Posterior
from tfgrpo_dspy.gate.protocol import (
    Decision,
    GroupEvidence,
    GroupPlan,
    Trial,
    TrialEvidence,
    Trials,
)
from tfgrpo_dspy.gate.records import Ledger, Record, Shown, contrast_of


@dataclass(frozen=True, slots=True)
class Probe:
    """When a probe ends: P(helps) at `pass_at` or above, at `drop_at` or below, else the last.

    After `max_rollouts` the candidate passes if P(helps) is at least `pass_at_end`.

    Raises:
        ValueError: the values are not in this order, or there is nothing to do.
    """

    pass_at: float
    drop_at: float
    pass_at_end: float
    max_rollouts: int

    def __post_init__(self) -> None:
        if not 0 <= self.drop_at <= self.pass_at_end <= self.pass_at <= 1:
            raise ValueError(f"{self}: give 0 <= drop_at <= pass_at_end <= pass_at <= 1.")
        if self.max_rollouts < 1:
            raise ValueError(f"max_rollouts={self.max_rollouts}: a probe takes at least 1.")


@dataclass(frozen=True, slots=True)
class _Probed:
    """A candidate and how its probe stands: what it wants next, or whether it passed."""

    experience: Experience
    record: Record
    is_concerned: bool
    wants: Trial | None = None
    has_passed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ProbeThenTrial:
    """Candidates are probed on their source examples, then on trial where they concern.

    Where it is known which training examples a candidate concerns (`TrialEvidence.concerns`),
    the probe is short and only lets it on trial; evidence of source examples alone never settles
    it. Where it is not known, a longer probe is all there is, and settles it.

    A new text under an old id is a candidate like any other; the old text stays until the new one
    has passed, and comes back if the new one is dropped. A DELETE is a question to the gate: the
    experience goes on trial afresh beside those it may have become superfluous by; where that
    cannot be, it goes unless it was measured.

    Args:
        beliefs: what is believed before anything is measured.
        probe: when a probe ends that a trial follows.
        probe_only: when a probe ends that nothing follows; leaks are not thought of here.
        max_sources: on how many of its source examples a candidate is probed, in turns.
        settle_at: P(helps) from which on an experience on trial is settled.
        drop_at: P(helps) at or below which it is dropped.
        harm_at: P(harms) from which on it is dropped.
        max_trials: after how many groups it is settled or dropped at last.
        settle_at_last: P(helps) from which on it is settled then.
        solved: a group of which more than this share of the rollouts has the highest score seen
            is not reflected on.
        explained: neither is one whose contrast an experience on trial explains with this
            probability.

    Raises:
        ValueError: a number is out of range.
    """

    beliefs: Beliefs = Beliefs()
    probe: Probe = Probe(pass_at=0.7, drop_at=0.2, pass_at_end=0.6, max_rollouts=3)
    probe_only: Probe = Probe(pass_at=0.9, drop_at=0.2, pass_at_end=0.5, max_rollouts=6)
    max_sources: int = 2
    settle_at: float = 0.9
    drop_at: float = 0.2
    harm_at: float = 0.8
    max_trials: int = 10
    settle_at_last: float = 0.6
    solved: float = 0.7
    explained: float = 0.8
    confirm: int = 2
    x_show: bool = True
    x_outside: bool = False
    metric: Callable[..., Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        shares = ("settle_at", "drop_at", "harm_at", "settle_at_last", "solved", "explained")
        for name in shares:
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give more than 0, at most 1.")
        for name in ("max_sources", "max_trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give 1 or more.")
        if self.drop_at >= self.settle_at:
            raise ValueError(f"drop_at={self.drop_at}: must be below settle_at={self.settle_at}.")

    # ------------------------------------------------------------------ what the pipeline asks

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The next probe of each candidate that is not decided, or the decision."""
        ledger = Ledger.from_memory(evidence.memory).having_read(evidence.groups)
        ledger = ledger.having_seen(evidence.scores.values())
        known = set(evidence.incumbent)
        probed = [
            self._probed(candidate, evidence, ledger)
            for candidate in evidence.proposed
            if candidate not in known
        ]
        wanted = [each.wants for each in probed if each.wants is not None]
        records = dict(ledger.records)
        for operation in evidence.operations:
            if self.confirm and isinstance(operation, Keep) and operation.id in records:
                record, wants = self._confirmed(operation, evidence, ledger)
                records[operation.id] = record
                wanted += [] if wants is None else [wants]
        if wanted:
            return Trials(tuple(wanted))
        ledger = replace(ledger, records=records)
        return _Ruling(self, evidence, ledger, probed).decision()

    def _confirmed(self, keep, evidence, ledger):
        record = ledger.records[keep.id]
        experience = evidence.incumbent[keep.id]
        if record.is_settled or not record.is_about(experience):
            return record, None
        for source in _usable(keep.evidence):
            if source.example in record.sources or source.update != evidence.update:
                continue
            if any(c.example == source.example for c in record.contrasts[-len(evidence.groups) :]):
                continue
            rolled = {source.example: []}
            base = record
            for turn in range(self.confirm):
                trial = _probe_trial(experience, source, turn, 8, evidence)
                if trial not in evidence.scores:
                    return record, trial
                score = evidence.scores[trial]
                if score is not None:
                    rolled[source.example].append(score)
                record = replace(
                    base, contrasts=base.contrasts + _probe_contrasts([source], rolled, ledger)
                )
                if self.verdict(record, self.posterior(record, ledger)) != "on trial":
                    break
        return record, None

    def assign(self, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
        """The library of each rollout: settled experiences, and on trial a random half of them.

        An experience on trial that concerns the example is given to half of the rollouts (of an
        odd number, to one more or one less); one that does not concern it is given to none.
        """
        everyone = range(plan.n_rollouts)
        given = {
            experience.id: _half(plan, experience)
            for experience in plan.concerned
            if experience.is_on_trial
        }
        return tuple(
            _library(
                plan.library,
                [
                    own
                    for own in plan.library
                    if not own.is_on_trial
                    or index
                    in given.get(
                        own.id,
                        everyone
                        if own.effect is not None and own.effect.estimate > 0 and self.x_show
                        else (),
                    )
                ],
            )
            for index in range(plan.n_rollouts)
        )

    def skips(self, group: GroupEvidence, memory: Any) -> str:
        """Why the group is not worth reflecting on; "" if it is."""
        ledger = Ledger.from_memory(memory)
        scores = [score for score in group.scores if score is not None]
        ledger = ledger.having_seen(scores)
        n_solved = sum(score == ledger.high for score in scores)
        if n_solved > self.solved * len(scores):
            return f"solved by {n_solved} of {len(scores)} rollouts"
        shown = Shown.by(group)
        for id_, record in ledger.records.items():
            found = None if record.is_settled else shown.contrast(id_, record)
            if found is None:
                continue
            (contrast,) = ledger.scaled([found])
            is_source = group.example in record.sources
            before = self.posterior(record, ledger)
            probability = self.beliefs.explains(before, contrast, is_source)
            if probability >= self.explained:
                return f"explained by {id_}, on trial (probability {probability:.2f})"
        return ""

    # ------------------------------------------------------------------ what it believes

    def posterior(self, record: Record, ledger: Ledger) -> Posterior:
        """What is believed of an experience by its record."""
        return self.beliefs.posterior(ledger.scaled(record.contrasts), record.sources)

    def verdict(self, record: Record, posterior: Posterior) -> str:
        """'settled', 'dropped' or 'on trial', for an experience that is on trial."""
        if posterior.helps <= self.drop_at or posterior.harms >= self.harm_at:
            return "dropped"
        least = self.settle_at_last if len(record.contrasts) >= self.max_trials else self.settle_at
        if posterior.helps >= least and record.n_outside:
            return "settled"
        return "dropped" if len(record.contrasts) >= self.max_trials else "on trial"

    # ------------------------------------------------------------------ the probe

    def _probed(self, candidate: Experience, evidence: TrialEvidence, ledger: Ledger) -> _Probed:
        """How the probe of the candidate stands, from the scores of its trials so far."""
        record = Record.of(candidate)
        is_concerned = bool(_concerned(candidate.id, evidence) - set(record.sources))
        is_concerned = evidence.concerns is not None
        rule = self.probe if is_concerned else self.probe_only
        beliefs = self.beliefs if is_concerned else replace(self.beliefs, leak=0.0)
        sources = _usable_sources(candidate)[: self.max_sources]
        if not sources:
            reason = "" if is_concerned else "there is no scored group to measure it against"
            return _Probed(candidate, record, is_concerned, None, is_concerned, reason)
        rolled: dict[int, list[float]] = {source.example: [] for source in sources}
        for n_rolled in range(1, rule.max_rollouts + 1):
            turn, source = divmod(n_rolled - 1, len(sources))
            trial = _probe_trial(candidate, sources[source], turn, rule.max_rollouts, evidence)
            if trial not in evidence.scores:
                return _Probed(candidate, record, is_concerned, wants=trial)
            score = evidence.scores[trial]
            if score is not None:
                rolled[trial.example].append(score)
            record = replace(record, contrasts=_probe_contrasts(sources, rolled, ledger))
            helps = beliefs.posterior(ledger.scaled(record.contrasts), record.sources).helps
            if helps >= rule.pass_at or helps <= rule.drop_at:
                break
        has_passed = helps >= rule.pass_at_end
        reason = f"P(helps) {helps:.2f} after {n_rolled} rollouts of its source examples"
        return _Probed(candidate, record, is_concerned, None, has_passed, reason)


class _Ruling:
    """One decision in the making: what becomes of each experience, and why."""

    def __init__(
        self, gate: ProbeThenTrial, evidence: TrialEvidence, ledger: Ledger, probed: list[_Probed]
    ) -> None:
        self.gate = gate
        self.evidence = evidence
        self.ledger = ledger
        self.probed = {each.experience.id: each for each in probed}
        self.records = dict(ledger.records)
        self.dropped: dict[str, str] = {}
        self.notes: list[str] = []

    def decision(self) -> Decision:
        """The library, what of it is exported, and what is to be remembered."""
        kept = self._kept()
        standing = [self._judged(experience) for experience in kept]
        library = _library(
            self.evidence.proposed, [experience for experience in standing if experience]
        )
        records = {own.id: self.records[own.id] for own in library if own.id in self.records}
        ledger = replace(self.ledger, records=records)
        library = library.annotated({own.id: self._annotations(own) for own in library})
        exported = _library(library, [own for own in library if self._is_exported(own)])
        return Decision(library, self._reason(library), exported, self.dropped, ledger.to_memory())

    def _kept(self) -> list[Experience]:
        """The experiences of the incumbent that stay and the candidates that passed, in order."""
        incumbent, proposed = self.evidence.incumbent, self.evidence.proposed
        old_ids, new_ids = {own.id for own in incumbent}, {own.id for own in proposed}
        kept = [
            self._admitted(proposed[old.id], old) if old.id in new_ids else old
            for old in incumbent
            if old.id in new_ids or self._survives_delete(old)
        ]
        kept += [self._admitted(new, None) for new in proposed if new.id not in old_ids]
        return self._within_limits([own for own in kept if own is not None], new_ids)

    def _admitted(self, new: Experience, old: Experience | None) -> Experience | None:
        """The experience that goes on under this id: the new text if it passed, the old, or none."""
        probed = self.probed.get(new.id)
        if probed is None:  # not a candidate: it says what it said
            return new
        if probed.has_passed:
            before = self._record_of(old) if old is not None else None
            self.records[new.id] = replace(
                probed.record,
                is_settled=not probed.is_concerned,
                before=None if before is None else replace(before, before=None),
            )
            return new
        if old is None:
            self.dropped[new.id] = probed.reason
        else:
            self.notes.append(f"{new.id} keeps its text: of the new one, {probed.reason}")
        return old

    def _survives_delete(self, old: Experience) -> bool:
        """Whether the experience stays though a DELETE names it; a settled one on trial afresh."""
        record = self.records.get(old.id)
        if _concerned(old.id, self.evidence):
            if record is None or record.is_settled:
                self.records[old.id] = Record.of(old)
            self.notes.append(f"{old.id} is on trial instead of deleted")
            return True
        if record is None or not record.contrasts:
            self.dropped[old.id] = "deleted by an operation; it was not measured"
            return False
        self.notes.append(f"{old.id} was measured to help and is not deleted")
        return True

    def _within_limits(self, kept: list[Experience], proposed: set[str]) -> list[Experience]:
        """Of those that a DELETE named, as many as there is room for, the best first."""
        spared = [own for own in kept if own.id not in proposed]
        n_over = max(0, len(kept) - self.evidence.limits.max_experiences)
        spared.sort(key=lambda own: self._posterior(own).gain)
        for own in spared[:n_over]:
            self.dropped[own.id] = "deleted by an operation; the library is full"
        return [own for own in kept if own.id not in self.dropped]

    def _judged(self, experience: Experience) -> Experience | None:
        """The experience, with its record as the evidence has it by now; None: it is dropped."""
        record = self.records.get(experience.id)
        if record is None or record.is_settled:
            return experience
        posterior = self.gate.posterior(record, self.ledger)
        verdict = self.gate.verdict(record, posterior)
        if verdict == "settled":
            self.records[experience.id] = replace(record, is_settled=True, before=None)
        if verdict != "dropped":
            return experience
        reason = (
            f"P(helps) {posterior.helps:.2f}, P(harms) {posterior.harms:.2f} after "
            f"{record.n_rollouts} rollouts"
        )
        if record.before is not None:
            self.records[experience.id] = record.before
            self.notes.append(f"{experience.id} has its old text again: of the new one, {reason}")
            return replace(experience, text=record.before.text, scope=record.before.scope)
        self.dropped[experience.id] = reason
        return None

    def _record_of(self, experience: Experience) -> Record:
        """What is known of it; an experience that was there from the start counts as settled."""
        return self.records.get(experience.id) or Record.of(experience, is_settled=True)

    def _posterior(self, experience: Experience) -> Posterior:
        return self.gate.posterior(self._record_of(experience), self.ledger)

    def _is_exported(self, experience: Experience) -> bool:
        if not experience.is_on_trial:
            return True
        record = self._record_of(experience)
        told = bool(_concerned(experience.id, self.evidence) - set(record.sources))
        return self._posterior(experience).gain > 0 and (
            record.n_outside > 0 or (told and not self.gate.x_outside)
        )

    def _annotations(self, experience: Experience) -> dict[str, Any]:
        record = self._record_of(experience)
        if not record.n_outside:
            return {"is_on_trial": not record.is_settled}
        posterior = self.gate.posterior(record, self.ledger)
        unit = self.ledger.high - self.ledger.low
        effect = Effect(posterior.gain * unit, posterior.error * unit, record.n_rollouts)
        return {"is_on_trial": not record.is_settled, "effect": effect}

    def _reason(self, library: ExperienceLibrary) -> str:
        n_on_trial = sum(own.is_on_trial for own in library)
        counts = f"{len(library) - n_on_trial} settled, {n_on_trial} on trial"
        if self.dropped:
            counts += f", {len(self.dropped)} dropped"
        return "; ".join([counts, *self.notes])


def _concerned(id_: str, evidence: TrialEvidence) -> frozenset[int]:
    """The training examples that the experience is thought to concern; none: nobody knows."""
    return (evidence.concerns or {}).get(id_, frozenset())


def _usable_sources(experience: Experience) -> list[Evidence]:
    return _usable(experience.evidence)


def _usable(those) -> list[Evidence]:
    """The groups that it was drawn from and that have scores, the latest first; one an example."""
    groups = sorted(those, key=lambda group: -group.update)
    scored = [group for group in groups if any(score is not None for score in group.scores)]
    first: dict[int, Evidence] = {}
    for group in scored:
        first.setdefault(group.example, group)
    return list(first.values())


def _probe_contrasts(
    sources: list[Evidence], rolled: dict[int, list[float]], ledger: Ledger
) -> tuple[Any, ...]:
    """What was rolled with the candidate, against the groups that it was drawn from."""
    contrasts = []
    for source in sources:
        control = [score for score in source.scores if score is not None]
        is_selected = min(control) < max(control) and ledger.is_binary(control)
        contrasts.append(contrast_of(source.example, rolled[source.example], control, is_selected))
    return tuple(contrast for contrast in contrasts if contrast.n_with)


def _probe_trial(
    candidate: Experience, source: Evidence, turn: int, max_rollouts: int, evidence: TrialEvidence
) -> Trial:
    """A fresh rollout of a source example: with the candidate, and else as one of its group was."""
    controls = [
        library
        for group in evidence.groups
        if group.example == source.example
        for library in group.libraries
    ] or [evidence.incumbent]
    control = controls[turn % len(controls)]
    others = [own for own in control if own.id != candidate.id]
    number = max(control.next_number, evidence.proposed.next_number)
    library = ExperienceLibrary([*others, candidate], next_number=number)
    return Trial(library, source.example, evidence.update * max_rollouts + turn, on="training")


def _half(plan: GroupPlan, experience: Experience) -> frozenset[int]:
    """A random half of the group's rollouts, the same for the same plan and experience."""
    name = f"{experience.id}/{experience.text}/{plan.example}/{plan.update}"
    draw = random.Random(f"trial/{name}")
    n = plan.n_rollouts / 2
    size = draw.choice((math.floor(n), math.ceil(n)))
    return frozenset(draw.sample(range(plan.n_rollouts), size))


def _library(like: ExperienceLibrary, experiences: list[Experience]) -> ExperienceLibrary:
    """These experiences, with the next free id of another library."""
    return ExperienceLibrary(experiences, next_number=like.next_number)
