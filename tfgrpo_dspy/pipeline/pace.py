"""How many more updates a limited budget has room for, at the pace of those before."""

from tfgrpo_dspy.pipeline.batches import Batch
from tfgrpo_dspy.pipeline.shares import used_up
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.settings import Settings


class Pace:
    """What the updates of one run have used of its budget.

    Nothing of what a later update has in flight is counted, so that a run that is repeated decides
    the same. Of judges inside metrics it counts the calls for training rollouts, not for trials.

    `kept_back` is the share of the budget that is for measuring at the end.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._n_updates = 0
        self._learning = Usage()
        self._n_rollouts = 0
        self._student: float | None = None
        self._by_learning = 0.0
        self._by_drafts = 0.0
        self._by_trials = 0.0
        self.kept_back = 0.0

    def note(self, batch: Batch, reflections: Usage, n_trials: int, trials: Usage) -> None:
        """An update is about to be decided: its groups, its reflections, all trials so far.

        At the first update these are the student's measurement, which does not come again; nor do
        drafts, and their trials.
        """
        rollouts = [rollout for group in batch.groups for rollout in group.all_rollouts]
        self._learning += sum((own.usage + own.metric_usage for own in rollouts), reflections)
        self._n_rollouts += len(rollouts)
        self._n_updates += not batch.is_draft
        self._by_learning = used_up(self._settings, self._learning, self._n_rollouts)
        self._by_trials = used_up(self._settings, trials, n_trials)
        if batch.is_draft:
            self._by_drafts = self._by_learning
        elif self._student is None:
            self._student = self._by_trials

    def n_updates_left(self, most: int) -> int:
        """How many updates follow the one that was noted last: so many, or fewer."""
        if not self._n_updates:  # nothing is known but what a draft takes
            return most
        n_decided = self._n_updates - 1
        trials = (self._by_trials - (self._student or 0.0)) / n_decided if n_decided else 0.0
        each = (self._by_learning - self._by_drafts) / self._n_updates + trials
        if each <= 0:
            return most
        left = 1 - self.kept_back - self._by_learning - self._by_trials - trials
        return max(0, min(most, int(left / each)))
