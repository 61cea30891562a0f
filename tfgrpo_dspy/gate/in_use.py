"""A gate for advice that concerns every example, by its use on training examples alone.

A candidate goes on trial at once: a random half of the rollouts of every training group from then
on is given it, drawn for each candidate anew. Besides, training examples are rolled out in pairs,
with a random half of all that is on trial and with the other half. So each rollout is evidence on
every candidate (`effects`), and what they say together settles or drops it. No rollout goes to a
proof, and the validation set is not used: this finds more, and lets more useless advice pass, than
`TrialThenConfirm`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate.extra import ExtraPairs
from tfgrpo_dspy.gate.judging import Judging, Rules
from tfgrpo_dspy.gate.on_trial import OnTrial
from tfgrpo_dspy.gate.protocol import Decision, GroupPlan, TrialEvidence, Trials


@dataclass(frozen=True, slots=True)
class TrialInUse:
    """Lessons on trial in training groups and in pairs of training rollouts, which settle them.

    Probabilities are posterior ones, pooled over all on trial, and looked at after every update
    without a correction: how many useless lessons pass is what `benchmarks/gates.py` measured, not
    a guarantee. A new text under an old id is on trial against the old text; a DELETE puts what it
    names on trial against its absence, and it goes if it cannot be told from useless.

    Where calls are scarce, pass `max_trials=0`; where groups are small, more `max_epochs`, as each
    tells less (4 for groups of two; `benchmarks/small_groups.py`). In `learn` too, unless all
    traces have labels: pairs run the program on their inputs.

    Args:
        max_trials: how many rollouts, in pairs, an update takes at most; 0: the groups tell all.
        settle_at: with this probability that it helps, an experience is settled.
        drop_at: with this probability or less it is dropped.
        max_epochs: after so many groups, as a share of the training set, what is not settled is
            dropped.
        max_on_trial: where more would be on trial, those go that less likely help than not, then
            the new ones with the least evidence.

    Raises:
        ValueError: a number is out of range.
    """

    max_trials: int = 100
    settle_at: float = 0.9
    drop_at: float = 0.4
    max_epochs: float = 1.0
    max_on_trial: int = 30
    metric: Callable[..., Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.max_trials < 0 or self.max_on_trial < 1 or self.max_epochs <= 0:
            raise ValueError(
                f"max_trials={self.max_trials}, max_on_trial={self.max_on_trial}, "
                f"max_epochs={self.max_epochs}: pass at least 0, at least 1 and more than 0."
            )
        if not 0 <= self.drop_at < self.settle_at < 1:
            raise ValueError(
                f"drop_at={self.drop_at}, settle_at={self.settle_at}: "
                f"pass 0 <= drop_at < settle_at < 1."
            )

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The pairs of this update, or the decision.

        First by the groups, which may end a trial; then, with the operations on trial too, by the
        pairs.
        """
        state = OnTrial.from_memory(evidence.memory).having_read(evidence)
        by_groups, settled = self._judging(state, evidence, is_over=False)
        first = by_groups.decision(settled)
        state = OnTrial.from_memory(first.memory)
        evidence = replace(evidence, incumbent=first.library, operations=())
        most = self.max_trials if evidence.max_trials is None else evidence.max_trials
        pairs = ExtraPairs.of(state, evidence, min(most, self.max_trials) // 2)
        trials = tuple(trial for trial, _ in pairs.trials)
        if any(trial not in evidence.scores for trial in trials):
            return Trials(trials)
        state = replace(state, rows=state.rows + pairs.rows(evidence))
        is_over = evidence.n_ahead == 0 and evidence.update + 1 >= evidence.n_updates
        by_all, settled = self._judging(state, evidence, is_over=is_over, before=by_groups)
        return by_all.decision(settled)

    def most_trials(self, n_examples: int) -> int:  # noqa: ARG002 - of the validation set
        """How many rollouts the decision on one update takes at most."""
        return self.max_trials

    def assign(self, plan: GroupPlan) -> tuple[ExperienceLibrary, ...]:
        """The library of each rollout of a group: a random half holds each experience on trial.

        The others hold what stood before it: the old text of a MODIFY, or nothing.
        """
        return OnTrial.who(plan.memory).assigned(plan)

    def on_trial(self, memory: Any) -> frozenset[str]:
        """The ids of what this gate has on trial, by what its last decision left."""
        return frozenset(OnTrial.who(memory).tried)

    def _judging(
        self,
        state: OnTrial,
        evidence: TrialEvidence,
        *,
        is_over: bool,
        before: Judging | None = None,
    ) -> tuple[Judging, frozenset[str]]:
        """By all that is known, and who is settled; nothing stays on trial if the run is over."""
        estimates = state.estimates()
        settled = frozenset(
            id_
            for id_, estimate in estimates.items()
            if estimate.p_positive >= self.settle_at and not state.tried[id_].is_delete
        )
        rules = Rules(
            self.drop_at,
            self.settle_at,
            self.max_epochs,
            self.max_on_trial,
            is_over=is_over,
            has_test=False,
        )
        return Judging(rules, state, estimates, evidence, before), settled
