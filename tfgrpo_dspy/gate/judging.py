"""What becomes of each experience on trial in all groups, and of what the operations ask."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from tfgrpo_dspy.experience import Add, Experience, ExperienceLibrary
from tfgrpo_dspy.gate.effects import Estimate
from tfgrpo_dspy.gate.on_trial import OnTrial
from tfgrpo_dspy.gate.protocol import Decision, TrialEvidence


@dataclass(frozen=True, slots=True)
class Rules:
    """When a trial ends without a verdict; the gate that has it on trial says what they mean.

    `ready_at`: with this probability an experience helps; `has_test`: it then waits for a test,
    however long it is tried. `is_over`: no groups are left to try anything in.
    """

    drop_at: float
    ready_at: float
    max_epochs: float
    max_on_trial: int
    is_over: bool
    has_test: bool


def after(first: Decision, second: Decision) -> Decision:
    """Both in one, the second of which was made on the library of the first."""
    return replace(
        second,
        reason="; ".join(filter(None, (first.reason, second.reason))),
        dropped={**first.dropped, **second.dropped},
    )


class Judging:
    """One decision in the making; `decision` is asked once.

    Args:
        before: a judgement of the same update, on whose library this one is made: what it dropped
            and noted is told with this one.
    """

    def __init__(
        self,
        rules: Rules,
        state: OnTrial,
        estimates: Mapping[str, Estimate],
        evidence: TrialEvidence,
        before: "Judging | None" = None,
    ) -> None:
        self._rules = rules
        self._state = state
        self._estimates = estimates
        self._evidence = evidence
        self.dropped: dict[str, str] = {} if before is None else dict(before.dropped)
        self.notes: list[str] = [] if before is None else list(before.notes)

    def decision(
        self,
        settled: Container[str],
        failed: Mapping[str, str] = MappingProxyType({}),
        note: str = "",
    ) -> Decision:
        """The library with the operations on trial, and what is to be remembered.

        `settled` are the ids of what everybody is given from now on, `failed` says by id why
        something is tried no longer; of all others the groups tell.
        """
        state = self._state
        judged: list[Experience] = []
        for own in self._evidence.incumbent:
            stays, state = self._judged(own, state, settled, failed)
            judged += stays
        number = self._evidence.incumbent.next_number
        library = ExperienceLibrary(judged, next_number=number)
        library, state = self._with_room(library, state)
        library, state = self._with_operations(library, state)
        library = library.annotated({own.id: self._annotations(own, state) for own in library})
        exported = state.exported(library)
        n_on_trial = len(state.tried)
        counts = f"{len(library) - n_on_trial} settled, {n_on_trial} on trial"
        counts += f", {len(self.dropped)} dropped" if self.dropped else ""
        return Decision(
            library,
            "; ".join(filter(None, [note, *self.notes, counts])),
            ExperienceLibrary(exported, next_number=library.next_number),
            self.dropped,
            state.to_memory(),
        )

    def _judged(
        self, own: Experience, state: OnTrial, settled: Container[str], failed: Mapping[str, str]
    ) -> tuple[list[Experience], OnTrial]:
        """What stays of one of the incumbent's, in use for good or on trial still."""
        tried, rules = state.tried.get(own.id), self._rules
        if tried is None:
            return [own], state
        if own.id in settled:
            return [own], state.having_ended(own.id)
        if own.id in failed:
            return self._gone(own, state, failed[own.id])
        estimate = self._estimates.get(own.id)
        n_most = rules.max_epochs * max(self._evidence.n_training, 1)
        is_late = rules.is_over or state.n_groups(own.id) >= n_most
        if tried.is_delete:
            return self._undeleted(own, state, estimate, is_late)
        is_useless = estimate is not None and estimate.p_positive <= rules.drop_at
        is_ready = estimate is not None and estimate.p_unpooled >= rules.ready_at
        if is_useless or rules.is_over or (is_late and not (is_ready and rules.has_test)):
            return self._gone(own, state, _reason(estimate))
        return [own], state

    def _undeleted(
        self, own: Experience, state: OnTrial, estimate: Estimate | None, is_late: bool
    ) -> tuple[list[Experience], OnTrial]:
        """Of what a DELETE named: it stays if it helps, and goes where that cannot be shown."""
        if estimate is not None and estimate.p_positive >= self._rules.ready_at:
            self.notes.append(f"{own.id} was to be deleted, and stays: {_reason(estimate)}")
            return [own], state.having_ended(own.id)
        if is_late or (estimate is not None and estimate.p_positive <= self._rules.drop_at):
            self.dropped[own.id] = f"deleted by an operation: {_reason(estimate)}"
            return [], state.having_ended(own.id)
        return [own], state

    def _gone(
        self, own: Experience, state: OnTrial, reason: str
    ) -> tuple[list[Experience], OnTrial]:
        """Without it; or with its old text, where there is one."""
        before = state.without(own)
        if before is None:
            self.dropped[own.id] = reason
            return [], state.having_ended(own.id)
        self.notes.append(f"{own.id} has its old text again; of the new one: {reason}")
        return [before], state.having_ended(own.id)

    # ------------------------------------------------------------------ what the operations ask

    def _with_room(
        self, library: ExperienceLibrary, state: OnTrial
    ) -> tuple[ExperienceLibrary, OnTrial]:
        """Where too many would be on trial, without those that least seem to help."""
        n_adds = sum(isinstance(operation, Add) for operation in self._evidence.operations)
        n_over = max(0, len(state.tried) + n_adds - self._rules.max_on_trial)
        doubtful = {
            id_: self._estimates[id_]
            for id_, tried in state.tried.items()
            if tried.before is None
            and not tried.is_delete
            and id_ in self._estimates
            and self._estimates[id_].p_positive < 0.5
        }
        for id_ in sorted(doubtful, key=lambda one: doubtful[one].p_positive)[:n_over]:
            self.dropped[id_] = f"made room for others: {_reason(doubtful[id_])}"
            state = state.having_ended(id_)
        staying = [own for own in library if own.id not in self.dropped]
        return ExperienceLibrary(staying, next_number=library.next_number), state

    def _with_operations(
        self, library: ExperienceLibrary, state: OnTrial
    ) -> tuple[ExperienceLibrary, OnTrial]:
        """The library with what they add, change and delete on trial."""
        proposed = library.apply(self._evidence.operations, self._evidence.limits)
        old = {own.id: own for own in library}
        staying = {own.id: own for own in proposed}
        kept: list[Experience] = []
        for own in library:
            if own.id not in staying:
                remains, state = self._deleted(own, state)
                kept += remains
            else:
                if staying[own.id] != own:
                    state = state.having_begun(staying[own.id], before=own)
                kept.append(staying[own.id])
        new = [own for own in proposed if own.id not in old]
        room = max(0, self._rules.max_on_trial - len(state.tried))
        by_evidence = sorted(new, key=lambda own: -len(own.evidence))
        for own in by_evidence[room:]:
            self.dropped[own.id] = f"{self._rules.max_on_trial} others are on trial"
        for own in new:
            if own.id not in self.dropped:
                kept.append(own)
                state = state.having_begun(own)
        kept, state = self._within_limits(kept, staying, state)
        return ExperienceLibrary(kept, next_number=proposed.next_number), state

    def _deleted(self, own: Experience, state: OnTrial) -> tuple[list[Experience], OnTrial]:
        """What a DELETE leaves: an experience that was settled is on trial against its absence."""
        tried = state.tried.get(own.id)
        if tried is not None and not tried.is_delete:
            return self._gone(own, state, "deleted by an operation while it was on trial")
        return [own], state if tried is not None else state.having_begun(own, is_delete=True)

    def _within_limits(
        self, kept: Sequence[Experience], proposed: Container[str], state: OnTrial
    ) -> tuple[list[Experience], OnTrial]:
        """The same; where it is too many, without as many of those that a DELETE named."""
        n_over = max(0, len(kept) - self._evidence.limits.max_experiences)
        for own in [own for own in kept if own.id not in proposed][:n_over]:
            self.dropped[own.id] = "deleted by an operation; the library is full"
            state = state.having_ended(own.id)
        return [own for own in kept if own.id not in self.dropped], state

    def _annotations(self, own: Experience, state: OnTrial) -> dict[str, Any]:
        """Whether it is on trial, and what was measured of this text, not of another."""
        is_on_trial, estimate = own.id in state.tried, self._estimates.get(own.id)
        is_said = estimate is not None and self._state.tried[own.id].said == (own.text, own.scope)
        if estimate is None or not is_said or not estimate.is_known:
            return {"is_on_trial": is_on_trial}
        return {"is_on_trial": is_on_trial, "effect": estimate.effect}


def _reason(estimate: Estimate | None) -> str:
    if estimate is None or not math.isfinite(estimate.measured.standard_error):
        return "its effect could not be measured"
    effect = estimate.measured
    return (
        f"effect {effect.estimate:+.3f} (standard error {effect.standard_error:.3f}) over "
        f"{effect.n_rollouts} rollouts; above 0 with probability {estimate.p_positive:.2f}"
    )
