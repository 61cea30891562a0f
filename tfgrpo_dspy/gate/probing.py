"""Probes: rollouts that a gate asks for on examples whose group is a control that is paid for.

A candidate is probed on the examples that it was drawn from. An experience on trial is probed on
an example whose lesson led to a KEEP: another group has been found to support it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tfgrpo_dspy.experience import Evidence, Experience, ExperienceLibrary, Keep
from tfgrpo_dspy.gate.posterior import Beliefs, Contrast
from tfgrpo_dspy.gate.protocol import GroupEvidence, Trial, TrialEvidence
from tfgrpo_dspy.gate.records import Ledger, Record, contrast_of
from tfgrpo_dspy.gate.rules import Probe

Control = tuple[int, Sequence[float]]
"""An example and the scores of its group, those that are known."""


@dataclass(frozen=True, slots=True)
class Probed:
    """How a probe stands: its record so far, the rollout that it wants next, whether it passed."""

    experience: Experience
    record: Record
    wants: Trial | None = None
    has_passed: bool = False
    reason: str = ""


def probed(
    candidate: Experience,
    evidence: TrialEvidence,
    ledger: Ledger,
    beliefs: Beliefs,
    rule: Probe,
    max_sources: int,
) -> Probed:
    """The probe of a candidate, on its latest source examples in turns.

    A candidate without a scored source passes unmeasured: its record is empty.
    """
    record = Record.of(candidate)
    controls = _sources(candidate)[:max_sources]
    if not controls:
        return Probed(candidate, record, has_passed=True, reason="no scored group to probe it on")

    def helps(so_far: Record) -> float:
        return beliefs.posterior(ledger.scaled(so_far.contrasts), so_far.sources).helps

    record, wants = _rolled(
        candidate,
        record,
        controls,
        rule.max_rollouts,
        evidence,
        ledger,
        lambda so_far: rule.is_over(helps(so_far)),
    )
    if wants is not None:
        return Probed(candidate, record, wants)
    probability = helps(record)
    n_rolled = sum(contrast.n_with for contrast in record.contrasts)
    reason = f"P(helps) {probability:.2f} after {n_rolled} rollouts of its source examples"
    return Probed(candidate, record, None, probability >= rule.pass_at_end, reason)


def confirmed(
    keep: Keep,
    evidence: TrialEvidence,
    ledger: Ledger,
    max_rollouts: int,
    is_over: Callable[[Record], bool],
) -> Probed:
    """The probe of an experience on trial on this update's groups that support it.

    Only groups count that it was not drawn from and that were made without it.
    """
    experience = evidence.incumbent[keep.id]
    record = ledger.records[keep.id]
    for group in _supporting(keep, experience, record, evidence.groups):
        scores = [score for score in group.scores if score is not None]
        if is_over(record) or not scores:
            continue
        record, wants = _rolled(
            experience, record, [(group.example, scores)], max_rollouts, evidence, ledger, is_over
        )
        if wants is not None:
            return Probed(experience, record, wants)
    return Probed(experience, record)


def _rolled(
    experience: Experience,
    record: Record,
    controls: Sequence[Control],
    max_rollouts: int,
    evidence: TrialEvidence,
    ledger: Ledger,
    is_over: Callable[[Record], bool],
) -> tuple[Record, Trial | None]:
    """The record with what was rolled so far, and the next rollout, if one is wanted."""
    rolled: dict[int, list[float]] = {example: [] for example, _ in controls}
    so_far = record
    for n_rolled in range(max_rollouts):
        turn, place = divmod(n_rolled, len(controls))
        index = evidence.update * max_rollouts + turn
        trial = _trial(experience, controls[place][0], turn, index, evidence)
        if trial not in evidence.scores:
            return so_far, trial
        score = evidence.scores[trial]
        if score is None:
            continue
        rolled[trial.example].append(score)
        new = tuple(_contrast(control, rolled[control[0]], ledger) for control in controls)
        known = record.contrasts + tuple(contrast for contrast in new if contrast.n_with)
        so_far = replace(record, contrasts=known)
        if is_over(so_far):
            break
    return so_far, None


def _trial(
    experience: Experience, example: int, turn: int, index: int, evidence: TrialEvidence
) -> Trial:
    """A fresh rollout of the example: with the experience, and else as one of its group was."""
    made = [
        library
        for group in evidence.groups
        if group.example == example
        for library in group.libraries
    ]
    like = made[turn % len(made)] if made else evidence.incumbent
    others = [own for own in like if own.id != experience.id]
    number = max(like.next_number, evidence.proposed.next_number)
    library = ExperienceLibrary([*others, experience], next_number=number)
    return Trial(library, example, index, on="training")


def _contrast(control: Control, rolled: Sequence[float], ledger: Ledger) -> Contrast:
    """What was rolled with the experience, against the group."""
    example, scores = control
    is_selected = min(scores) < max(scores) and ledger.is_binary(scores)
    return contrast_of(example, rolled, scores, is_selected)


def _sources(experience: Experience) -> list[Control]:
    """The groups that it was drawn from and that have scores, the latest first; one an example."""
    controls: dict[int, Control] = {}
    for group in sorted(experience.evidence, key=_age):
        scores = [score for score in group.scores if score is not None]
        if scores:
            controls.setdefault(group.example, (group.example, scores))
    return list(controls.values())


def _age(group: Evidence) -> int:
    return -group.update


def _supporting(
    keep: Keep, experience: Experience, record: Record, groups: Sequence[GroupEvidence]
) -> list[GroupEvidence]:
    named = {group.example for group in keep.evidence} - set(record.sources)
    return [
        group
        for group in groups
        if group.example in named
        and not any(own == experience for library in group.libraries for own in library)
    ]
