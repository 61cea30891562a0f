"""A gate for one thing at a time: incumbent against a candidate on the same examples."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate.candidates import Candidates, length
from tfgrpo_dspy.gate.measured import annotated
from tfgrpo_dspy.gate.protocol import Decision, Trial, TrialEvidence, Trials
from tfgrpo_dspy.gate.sequential import (
    MIN_TRIALS,
    Account,
    Plan,
    check_settings,
    compare,
    slots,
)


@dataclass(frozen=True, slots=True)
class PairedGate:
    """The update stays if it beats the incumbent in a sequential test, on the same examples.

    Over all updates of a run, the chance that any lesson that does nothing is accepted is at most
    `error`: accepting whatever scores higher takes in nearly every second one. The test is that of
    `sequential`: its looks and the updates share the error out, and what one update did not spend
    is there for the next. A small validation set is gone through several times, with fresh
    rollouts, and yet counts as no more than so many examples: with fewer than about eight, nothing
    can be accepted in a run of twelve updates, and nothing is tried.

    Of an update of several operations, each alone is a candidate besides all together: a good line
    can be buried by bad ones. They race first, on rollouts of their own: the better half goes on,
    the shorter first where two are equal, and the last one is tested.

    Args:
        error: the chance that a run of useless lessons ends with any of them.
        max_trials: how many rollouts the decision on one update may take.
        max_singles: how many operations are candidates alone, those with the most evidence; 0:
            only all together.
        race_share: how much of `max_trials` the race may take.
        futility: a test ends when its chance to accept, by the trend so far, falls below this.
        max_passes: how often an example is used at most.
        metric: scores the trials in place of the optimizer's metric.
    """

    error: float = 0.1
    max_trials: int = 200
    max_singles: int = 8
    race_share: float = 0.4
    futility: float = 0.02
    max_passes: int = 10
    metric: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_settings(self.error, self.max_trials, self.futility, self.max_passes)
        if self.max_singles < 0:
            raise ValueError(f"max_singles={self.max_singles}: pass 0 or more.")
        if not 0 < self.race_share < 1:
            raise ValueError(f"race_share={self.race_share}: pass a share between 0 and 1.")

    def next(self, evidence: TrialEvidence) -> Trials | Decision:
        """The next trials, or the decision."""
        if evidence.max_trials is not None:
            most = max(MIN_TRIALS, min(self.max_trials, evidence.max_trials))
            return replace(self, max_trials=most).next(replace(evidence, max_trials=None))
        account = Account.of(evidence, self.error)
        candidates = Candidates(evidence)
        racing = self._racing(evidence, candidates)
        if not racing or not evidence.n_examples:
            reason = "nothing to decide" if not racing else "no validation examples"
            return Decision(candidates.library(()), reason, memory=account)
        n_left = self.max_trials - (self._race_trials(len(racing), evidence.n_examples))
        n_pairs = min(account.n_pairs(n_left), self.max_passes * evidence.n_examples)
        plan = Plan(n_pairs, account.share(evidence, self.error), futility=self.futility)
        if plan.is_hopeless(evidence.n_examples):
            reason = f"too few trials to tell a gain from luck ({evidence.n_examples} examples)"
            return Decision(candidates.library(()), reason, memory=account)
        winner = self._raced(racing, candidates, evidence)
        if isinstance(winner, Trials):
            return winner
        return self._tested(winner, candidates, evidence, plan, account)

    def most_trials(self, n_examples: int) -> int:
        """How many rollouts the decision on one update takes at most, the incumbent's included."""
        return self.max_trials if n_examples else 0

    def _tested(
        self,
        winner: frozenset[int],
        candidates: Candidates,
        evidence: TrialEvidence,
        plan: Plan,
        account: Account,
    ) -> Trials | Decision:
        library = candidates.library(winner)
        verdict = compare(evidence, library, plan)
        if isinstance(verdict, Trials):
            return verdict
        account = account.after(verdict)
        reasons = dict.fromkeys(candidates.all - winner, "lost the race against another candidate")
        if verdict.is_better:
            stays = annotated(candidates, winner, evidence) if len(winner) == 1 else library
            dropped = candidates.dropped(winner, reasons)
            return Decision(stays, str(verdict), dropped=dropped, memory=account)
        reasons |= dict.fromkeys(winner, f"not told from luck: {verdict}")
        dropped = candidates.dropped((), reasons)
        return Decision(candidates.library(()), str(verdict), dropped=dropped, memory=account)

    def _racing(self, evidence: TrialEvidence, candidates: Candidates) -> list[frozenset[int]]:
        """All together, then those alone that have the most evidence."""
        if not len(candidates):
            return []
        order = sorted(candidates.all, key=lambda k: (-len(candidates.changes[k].evidence), k))
        alone = [frozenset({k}) for k in order[: self.max_singles]]
        fitting = [one for one in alone if candidates.fitting(one)]
        racing = dict.fromkeys([candidates.all, *fitting])
        return [one for one in racing if candidates.library(one) != evidence.incumbent]

    def _race_trials(self, n_racing: int, n_examples: int) -> int:
        return sum(n_alive * n_new for n_alive, n_new in self._rounds(n_racing, n_examples))

    def _rounds(self, n_racing: int, n_examples: int) -> list[tuple[int, int]]:
        """Of each round: how many are in it, and on how many more slots they are tried."""
        n_rounds = math.ceil(math.log2(n_racing)) if n_racing > 1 else 0
        rounds, alive, most = [], n_racing, self.max_passes * n_examples
        for _ in range(n_rounds):
            n_new = int(self.race_share * self.max_trials / n_rounds) // alive
            rounds.append((alive, min(n_new, most)))
            alive, most = math.ceil(alive / 2), most - rounds[-1][1]
        return rounds

    def _raced(
        self, racing: Sequence[frozenset[int]], candidates: Candidates, evidence: TrialEvidence
    ) -> Trials | frozenset[int]:
        """The trials of the next round, or who is left."""
        alive, n_shown = list(racing), 0
        for _, n_new in self._rounds(len(racing), evidence.n_examples):
            n_shown += n_new
            shown = slots(evidence.validation_order, n_shown, first=1)
            trials = {
                one: [Trial(candidates.library(one), *slot) for slot in shown] for one in alive
            }
            wanted = tuple(trial for of_one in trials.values() for trial in of_one)
            if any(trial not in evidence.scores for trial in wanted):
                return Trials(wanted)
            rank = {
                one: self._rank(trials[one], candidates.library(one), evidence) for one in alive
            }
            alive = sorted(alive, key=rank.__getitem__)[: math.ceil(len(alive) / 2)]
        return alive[0]

    @staticmethod
    def _rank(
        trials: Sequence[Trial], library: ExperienceLibrary, evidence: TrialEvidence
    ) -> tuple[float, int]:
        """The higher mean score comes first, then the shorter library."""
        scores = [score for t in trials if (score := evidence.scores[t]) is not None]
        return (-statistics.fmean(scores) if scores else math.inf, length(library))
